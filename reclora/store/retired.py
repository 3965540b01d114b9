"""This file is how a pack that gc removed is told from one that was lost.

    releases/retired.json     {"kept_from": 31}: of releases below 31 gc has removed packs

Their JSON, maps and decisions stay, so that the history is whole. Needs no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from reclora.files import write_text
from reclora.store.layout import hashed_path
from reclora.store.lineage import Lineages
from reclora.store.reading import (
    FORMAT,
    NEEDS,
    StoreError,
    check_format,
    open_regular,
    parse_json,
    read_into,
)
from reclora.store.releases import PackSummary

NAME = "retired.json"

MAX_BYTES = 2**10
"""Largest such file that is read."""


def read_kept_from(releases: Path) -> int:
    """Return the number from which on gc has removed nothing; 1 where it never has.

    Args:
        releases: the folder of the releases.

    Raises:
        StoreError: the file is damaged or of a newer format.
    """
    path = releases / NAME
    try:
        with open_regular(path) as descriptor:
            text = bytearray(min(os.fstat(descriptor).st_size, MAX_BYTES))
            read_into(descriptor, memoryview(text), 0, path)
    except FileNotFoundError:
        return 1
    content = parse_json(text, path)
    check_format(content.get("format"), content.get("needs"), path)
    number = content.get("kept_from")
    if type(number) is not int or number < 1:
        raise StoreError(f"{path} is damaged: expected the number of a release, got {number!r}")
    return number


def write_kept_from(releases: Path, number: int) -> None:
    """Note that packs of releases below `number` are about to be removed; never takes one back."""
    if number > read_kept_from(releases):
        content = {"format": FORMAT, "needs": NEEDS, "kept_from": number}
        write_text(releases / NAME, json.dumps(content) + "\n")


def is_missing(path: Path, number: int, releases: Path) -> StoreError:
    """Return the error that the pack at `path`, which release `number` needs, is not there."""
    kept_from = read_kept_from(releases)
    if number < kept_from:
        return StoreError(
            f"{path} was removed by gc: release {number} is older than those it kept, {kept_from} "
            "and later; choose one of these, or restore the file from a copy"
        )
    return StoreError(f"{path} is missing, release {number} needs it; restore it from a copy")


def check_there(
    packs: Path, wanted: Mapping[str, PackSummary], number: int, releases: Path
) -> None:
    """Check that packs and all that they stand on are there; nothing but headers is read.

    Args:
        packs, releases: the folders.
        wanted: sha256 -> pack.
        number: of the release that has them.

    Raises:
        StoreError: one is not, and whether gc removed it; or a header is damaged.
    """
    for name in sorted(Lineages(packs).needed(wanted.values())):
        path = hashed_path(packs, name)
        if not path.is_file():
            raise is_missing(path, number, releases)
