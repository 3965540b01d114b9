"""This file is what ranks hand each other through a folder that all of them see: rows of a log,
held-out users, adapters and identifiers, as tensors in files that are named by their sha256.

What is there already, and whole, is not written again; a file that is damaged is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from reclora.adapters import Adapter, id_tensors, ids_of_tensors
from reclora.base import BaseModel
from reclora.checkpoints import Checkpoint, digest_of
from reclora.distributed.placement import DistributedError
from reclora.distributed.saved import read_parent, write_pack
from reclora.evaluation import EvaluationConfig, HeldOut, HeldOutSegment
from reclora.files import make_folder
from reclora.interactions import IdMap, Interactions
from reclora.ranking import UserItems
from reclora.stacks import AdapterStack
from reclora.store.layout import hashed_path
from reclora.store.packs import open_pack

Address = tuple[str, int]
"""Where an adapter is: its pack, and its place in there."""


class Parcels:
    """A folder of parcels. It is made as the first one is put into it.

    Raises (all that read):
        DistributedError: a parcel is not there or is damaged.
        StoreError: the pack of an adapter is damaged.

    Raises (all that write):
        OSError: the disk refused.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole: set[str] = set()
        self._parents: dict[str, Adapter] = {}
        self._stacks: dict[str, AdapterStack] = {}

    def put(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
        """Write tensors, and facts that are JSON-able; return the parcel's name."""
        name = digest_of(tensors, json.dumps(facts))
        parcel = Checkpoint(self._path(name), name)
        if name not in self._whole and parcel.load() is None:
            parcel.save(tensors, facts)
        self._whole.add(name)
        return name

    def get(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was put."""
        found = Checkpoint(self._path(name), name).load()
        if found is None:
            raise DistributedError(
                f"{self._path(name)}: what the first rank has sent is not there, or is damaged: "
                "all ranks must see the same folders"
            )
        return found

    def put_log(self, log: Interactions) -> str:
        """Write the rows of a log; its attributes, which training does not look at, are left."""
        columns = "offsets", "user_rows", "item_rows", "timestamps", "weights"
        arrays = {name: getattr(log, name) for name in columns}
        tensors = {n: torch.from_numpy(array) for n, array in arrays.items() if array is not None}
        return self.put(tensors, {"segments": log.segment_names})

    def log(self, name: str, base: BaseModel) -> Interactions:
        """The log that was put, which is on the base's id maps."""
        tensors, facts = self.get(name)
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        return Interactions(base.users, base.items, tuple(facts["segments"]), **arrays)

    def put_users(self, held_out: HeldOut) -> str:
        """Write held-out users; how many users have each item is left, which lists alone need."""
        segments = held_out.segments
        nothing = torch.empty(0, dtype=torch.int64)
        tensors = {"user_rows": torch.cat([nothing, *(s.user_rows_U for s in segments)])}
        for name in ("relevant", "seen"):
            sets: list[UserItems] = [getattr(segment, name) for segment in segments]
            tensors[f"{name}.sizes"] = torch.cat([nothing, *(s.sizes_U for s in sets)])
            tensors[f"{name}.items"] = torch.cat([nothing, *(s.item_rows for s in sets)])
        # Segments often share one mask.
        masks = {id(s.candidates_N): s.candidates_N for s in segments if s.candidates_N is not None}
        places = {mask: place for place, mask in enumerate(masks)}
        tensors |= {f"candidates.{places[mask]}": _packed(its) for mask, its in masks.items()}
        facts = {
            "config": asdict(held_out.config),
            "items": held_out.num_items,
            "segments": [s.name for s in segments],
            "users": [s.num_users for s in segments],
            "without": [s.users_without_relevant for s in segments],
            "masks": len(masks),
            "candidates": [places.get(id(s.candidates_N)) for s in segments],
        }
        return self.put(tensors, facts)

    def users(self, name: str, base: BaseModel) -> HeldOut:
        """The held-out users that were put, who are on the base's id maps."""
        tensors, facts = self.get(name)
        rows = tensors["user_rows"].split(facts["users"])
        sets = {
            of: _sets(tensors[f"{of}.sizes"], tensors[f"{of}.items"], facts["users"])
            for of in ("relevant", "seen")
        }
        masks = [
            _unpacked(tensors[f"candidates.{place}"], facts["items"])
            for place in range(facts["masks"])
        ]
        segments = [
            HeldOutSegment(
                name=name,
                user_rows_U=rows[at],
                user_ids=base.users.ids_of(rows[at].numpy()),
                relevant=sets["relevant"][at],
                seen=sets["seen"][at],
                candidates_N=None if mask is None else masks[mask],
                users_without_relevant=facts["without"][at],
            )
            for at, (name, mask) in enumerate(
                zip(facts["segments"], facts["candidates"], strict=True)
            )
        ]
        config: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in facts["config"].items()
        }
        unknown_N = torch.zeros(1, dtype=torch.int64).expand(facts["items"])
        return HeldOut(EvaluationConfig(**config), unknown_N, 0, tuple(segments))

    def put_adapters(self, adapters: Sequence[Adapter]) -> list[Address]:
        """Write adapters, and what they stand on; where each one is."""
        make_folder(self._folder)
        # A pack has one config, one parent, and no segment twice.
        stacks: dict[tuple[object, int, int], list[Adapter]] = {}
        times: dict[tuple[object, int, str], int] = {}
        # One adapter may serve many.
        for adapter in {id(adapter): adapter for adapter in adapters}.values():
            alike = adapter.config, id(adapter.parent)
            time = times[*alike, adapter.segment] = times.get((*alike, adapter.segment), -1) + 1
            stacks.setdefault((*alike, time), []).append(adapter)
        found: dict[int, Address] = {}
        for stack in stacks.values():
            pack = write_pack(self._folder, stack)
            found |= {id(adapter): (pack, index) for index, adapter in enumerate(stack)}
        return [found[id(adapter)] for adapter in adapters]

    def adapter(self, address: Sequence[Any]) -> Adapter:
        """The adapter at an address; adapters of one parent have one and the same."""
        name, index = address
        if name not in self._stacks:
            pack = open_pack(hashed_path(self._folder, name))
            parent = read_parent(self._folder, pack.parent, self._parents)
            self._stacks[name] = pack.stack(parent)
        return self._stacks[name][int(index)]

    def parent(self, address: Sequence[Any]) -> Adapter:
        """As `adapter`, and the same one each time: what others stand on."""
        found = read_parent(self._folder, address[0], self._parents)
        assert found is not None
        return found

    def put_ids(self, base: BaseModel) -> str:
        """Write the identifiers by which a base has grown, in the order of their rows."""
        tensors: dict[str, Tensor] = {}
        for side, ids, table in (
            ("users", base.users, base.user_table),
            ("items", base.items, base.item_table),
        ):
            tensors |= id_tensors(side, ids.ids[table.num_own_rows :])
        return self.put(tensors, {})

    def ids(self, name: str, base: BaseModel) -> tuple[IdMap, IdMap]:
        """The base's id maps with the identifiers that were put behind those it has."""
        tensors, _ = self.get(name)
        users, items = (
            IdMap(pa.concat_arrays([ids.ids, ids_of_tensors(tensors, side, ids)]))
            for side, ids in (("users", base.users), ("items", base.items))
        )
        return users, items

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def _packed(mask_N: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask_N.numpy()))


def _unpacked(bits: Tensor, count: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(np.bool_))


def _sets(sizes: Tensor, items: Tensor, users: Sequence[int]) -> list[UserItems]:
    """The sets of the users of each segment, of those of all segments one after the other."""
    found, start = list[UserItems](), 0
    for sizes_U in sizes.split(list(users)):
        offsets_U1 = torch.cat([torch.zeros(1, dtype=torch.int64), sizes_U.cumsum(0)])
        stop = start + int(offsets_U1[-1])
        found.append(UserItems(offsets_U1, items[start:stop]))
        start = stop
    return found
