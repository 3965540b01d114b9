"""Which items may be recommended in each segment: all, those of its log, or those of a file.

Candidate items are ranked; the candidates of a canary are adapters, and another matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reclora.evaluation import ForeignError
from reclora.evaluation.plain import PlainTable
from reclora.interactions import IdMap

from .wanted import History, Rows, known_rows


@dataclass(frozen=True)
class CandidateItems:
    """The item rows that may be recommended, by segment."""

    num_items: int
    of_segments: Mapping[str, Rows]
    of_others: Rows | None
    """Of segments that are not among them, and of no segment; None: all items."""

    @classmethod
    def read(cls, path: Path, items: IdMap, segments: Sequence[str]) -> CandidateItems:
        """Those of a Parquet file with item_id; without a column segment they are of all segments.

        Args:
            items: the base's; others are left out.
            segments: that must have some.

        Raises:
            ForeignError: the file is not what it should be, or has no known item for a segment.
        """
        table = PlainTable.read(path, ("item_id",))
        item_rows = known_rows(table, "item_id", items)
        known = item_rows >= 0
        own: Mapping[str, Rows] = {}
        if "segment" in table:
            names = table.segments
            own = _by_segment(names, table.codes(names)[known], item_rows[known])
            empty = [name for name in segments if name not in own]
            if empty:
                raise ForeignError(
                    f"{path}: segment {empty[0]!r} has no candidate that the base knows"
                )
        if not known.any():
            raise ForeignError(f"{path} has no candidate that the base knows")
        return cls(len(items), own, item_rows[known])

    @classmethod
    def of_log(cls, history: History, num_items: int) -> CandidateItems:
        """The items that a segment has rows with; of a segment without any, and of none, all."""
        known = history.item_rows >= 0
        own = _by_segment(history.segments, history.codes[known], history.item_rows[known])
        return cls(num_items, own, None)

    @classmethod
    def catalogue(cls, num_items: int) -> CandidateItems:
        """All items."""
        return cls(num_items, {}, None)

    def mask(self, segment: str | None) -> Tensor | None:
        """Whether each item may be recommended, bool, shape (N,); None: all may."""
        rows = self.of_others
        if segment is not None:
            rows = self.of_segments.get(segment, rows)
        if rows is None:
            return None
        mask_N = torch.zeros(self.num_items, dtype=torch.bool)
        mask_N[torch.from_numpy(rows)] = True
        return mask_N


def _by_segment(names: Sequence[str], codes: Rows, rows: Rows) -> dict[str, Rows]:
    """The rows of each code that has any, by its name."""
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(1, len(names)))
    parts = zip(names, np.split(rows[order], bounds), strict=True)
    return {name: part for name, part in parts if len(part)}
