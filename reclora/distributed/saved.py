"""This file is the adapters of many ranks in one folder: packs, which any number of ranks reads.

A rank writes the adapters that it owns as packs named by their sha256, so that no two ranks ever
write one file; which segments a pack holds stands in it, and who wrote it stands nowhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path

from safetensors import safe_open

from reclora.adapters import Adapter
from reclora.distributed.placement import DistributedError
from reclora.files import make_folder, sha256_of
from reclora.stacks import AdapterStack
from reclora.store.layout import hashed_path
from reclora.store.packs import OFFSETS, SEGMENTS, open_pack, pack_file


def save_adapters(folder: Path, adapters: Sequence[Adapter]) -> None:
    """Write adapters, and what they stand on, into a folder that all ranks see.

    Raises:
        StoreError: numbers that are not finite.
        OSError: the disk refused.
    """
    make_folder(folder)
    groups: dict[tuple[object, int], list[Adapter]] = {}
    for adapter in adapters:
        groups.setdefault((adapter.config, id(adapter.parent)), []).append(adapter)
    for group in groups.values():
        write_pack(folder, group)


def write_pack(folder: Path, adapters: Sequence[Adapter]) -> str:
    """Write adapters of one config and one parent, and that parent, unless they are there and
    whole; return the pack's name.
    """
    parent = adapters[0].parent
    below = None if parent is None else write_pack(folder, [parent])
    file = pack_file(AdapterStack.of(adapters), below)
    path = hashed_path(folder, file.name)
    if not path.exists() or sha256_of(path) != file.name:
        file.write(folder)
    return file.name


def load_adapters(folder: Path, segments: Collection[str]) -> dict[str, Adapter]:
    """Segment -> its adapter, for those of `segments` that any rank has saved; of other packs only
    headers and names are read. Adapters of one parent have one and the same.

    Raises:
        DistributedError: a segment stands in two packs.
        StoreError: a pack is damaged.
        FileNotFoundError: the pack of a parent is missing.
    """
    wanted, parents = set(segments), dict[str, Adapter]()
    found: dict[str, Adapter] = {}
    for path in sorted(folder.glob("*.safetensors")):
        pack = open_pack(path)
        for index, name in enumerate(_segments(path)):
            if name not in wanted:
                continue
            if name in found:
                raise DistributedError(
                    f"segment {name!r} stands in two packs of {folder}, one of them {path.name}: "
                    "save each training to a folder of its own"
                )
            found[name] = pack.adapter(name, index, read_parent(folder, pack.parent, parents))
    return found


def _segments(path: Path) -> list[str]:
    """Whose adapters a pack holds, in order."""
    with safe_open(path, framework="pt") as file:
        text = file.get_tensor(SEGMENTS).numpy().tobytes()
        ends = file.get_tensor(SEGMENTS + OFFSETS).tolist()
    # What is no text becomes what no segment is called; the pack refuses it by number.
    return [text[a:b].decode(errors="surrogateescape") for a, b in pairwise(ends)]


def read_parent(folder: Path, name: str | None, known: dict[str, Adapter]) -> Adapter | None:
    """The adapter of a pack that holds nothing else; one and the same each time."""
    if name is None:
        return None
    if name not in known:
        pack = open_pack(hashed_path(folder, name))
        pack.check_single()
        known[name] = pack.stack(read_parent(folder, pack.parent, known))[0]
    return known[name]
