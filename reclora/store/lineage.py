"""This file is which packs others stand on, read from their headers. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from reclora.store.layout import hashed_path, is_hash, read_layout
from reclora.store.reading import StoreError, open_regular
from reclora.store.releases import PackSummary

METADATA = frozenset({"base_fingerprint", "config", "parent"})
"""What a pack's header says beside its tensors."""


class Lineages:
    """The parents of the packs of one folder; each header is read once.

    Args:
        packs: the folder.
    """

    def __init__(self, packs: Path) -> None:
        self._packs = packs
        self._parent = lru_cache(maxsize=None)(self._read_parent)

    def needed(self, packs: Iterable[PackSummary]) -> set[str]:
        """Return the sha256s of `packs` and of all that they stand on.

        What is missing is among them; what it stands on cannot be known.

        Raises:
            StoreError: a header is damaged.
        """
        found = set()
        wanted = [name for pack in packs for name in (pack.pack, pack.parent) if name is not None]
        while wanted:
            name = wanted.pop()
            if name not in found:
                found.add(name)
                parent = self._parent(name)
                if parent is not None:
                    wanted.append(parent)
        return found

    def _read_parent(self, name: str) -> str | None:
        path = hashed_path(self._packs, name)
        try:
            with open_regular(path) as descriptor:
                metadata = read_layout(descriptor, path, METADATA).metadata
        except FileNotFoundError:
            return None
        return parent_in(metadata, path)


def parent_in(metadata: Mapping[str, str], path: Path) -> str | None:
    """Return the sha256 of the pack that the pack at `path` stands on, as its header has it.

    Raises:
        StoreError: it is no sha256.
    """
    parent = metadata["parent"] or None
    if parent is not None and not is_hash(parent):
        raise StoreError(f"{path} is damaged: its parent is no sha256: {parent[:100]!r}")
    return parent
