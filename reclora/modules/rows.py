"""This file is which rows of the tables each segment may change, as `adapt` is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reclora.configs import AdapterError
from reclora.deltas import TouchedRows
from reclora.modules.targets import Candidate, Target, nearest

MOST_SLOTS = 20_000_000
"""Rows of a table times segments that may own numbers without being told which they touch."""


def touched_rows(
    targets: Sequence[Target],
    names: Mapping[str, Candidate],
    segments: Sequence[str],
    rows: Mapping[str, Sequence[Tensor]],
) -> dict[str, TouchedRows]:
    """The rows that each segment may change of each table with a factor a row, by its path.

    Args:
        names: every name of every module, see `candidates`.

    Raises:
        AdapterError: rows of something else, not one tensor of whole numbers a segment, a row that
            the table lacks, or too many rows in all without being told which.
    """
    tables = {
        target.candidate.path: len(target.candidate.module.get_parameter("weight"))
        for target in targets
        if {"rows", "basis"} & {config.kind for config in target.configs}
    }
    given: dict[str, Sequence[Tensor]] = {}
    for name, lists in rows.items():
        path = names[name].path if name in names else None
        if path not in tables:
            raise AdapterError(
                f"rows are given for {name!r}, which has no delta of the kind `rows` or `basis`"
                f"{nearest(name, list(tables))}"
            )
        given[path] = _checked(name, lists, segments, tables[path])
    return {
        path: TouchedRows.of(given[path], count) if path in given else _all(path, count, segments)
        for path, count in tables.items()
    }


def _checked(
    name: str, lists: Sequence[Tensor], segments: Sequence[str], num_rows: int
) -> list[Tensor]:
    if len(lists) != len(segments):
        raise AdapterError(
            f"the rows of {name!r} must be one tensor for each of {len(segments)} segments, "
            f"got {len(lists)}"
        )
    checked = []
    for segment, rows in zip(segments, lists, strict=True):
        whole = rows.dtype not in (torch.bool,) and not (rows.is_floating_point() and len(rows))
        if rows.dim() != 1 or not whole or rows.is_complex():
            raise AdapterError(
                f"the rows of {name!r} in segment {segment!r} must be a 1-D tensor of row numbers, "
                f"got {rows.dtype} {tuple(rows.shape)}; mask.nonzero().flatten() makes them of a "
                f"mask"
            )
        outside = rows[(rows < 0) | (rows >= num_rows)]
        if len(outside):
            raise AdapterError(
                f"segment {segment!r} touches row {int(outside[0])} of {name!r}, which has rows 0 "
                f"to {num_rows - 1}"
            )
        checked.append(rows.long())
    return checked


def _all(path: str, num_rows: int, segments: Sequence[str]) -> TouchedRows:
    if num_rows * len(segments) > MOST_SLOTS:
        raise AdapterError(
            f"table {path!r} has {num_rows:,} rows: numbers for all of them in each of "
            f"{len(segments):,} segments are more than {MOST_SLOTS:,} rows; pass "
            f"rows={{{path!r}: [the rows that each segment touches]}}"
        )
    offsets = torch.arange(len(segments) + 1) * num_rows
    return TouchedRows(num_rows, offsets, torch.arange(num_rows).repeat(len(segments)))
