"""The base model: frozen user and item tables, an item bias and a ranking tower, with their id
maps and fingerprint.

    score(user, item) = u . v + b_i + MLP([u, v, u * v])

Without a tower (tables imported from elsewhere) the last term is absent. On disk a base is a
folder: `base.json`, `tables.safetensors`, `tower.safetensors`, `user_ids.parquet`,
`item_ids.parquet`. Tables open memory-mapped: a lookup reads the rows that it needs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reclora.files import atomic_write, fsync, make_folder, temporary_path, write_text
from reclora.interactions import IdMap
from reclora.scoring import CatalogueScorer, RemoteScorer
from reclora.tables import BaseError, Table
from reclora.tower import Tower

FORMAT = 1
NEEDS = "0.1.0"
"""The first version of reclora that reads `FORMAT`."""


@dataclass(frozen=True)
class BaseModel:
    """What is frozen: tables, tower, id maps. Make one with `of`, `random` or `load`.

    Its fingerprint is the sha256 of everything in it; an adapter belongs to one fingerprint.
    """

    users: IdMap
    items: IdMap
    user_table: Table
    item_table: Table
    item_bias: Table
    tower: Tower | None
    fingerprint: str

    @classmethod
    def of(
        cls,
        users: IdMap,
        items: IdMap,
        user_table_ND: Tensor,
        item_table_ND: Tensor,
        item_bias_N: Tensor | None = None,
        tower: Tower | None = None,
    ) -> BaseModel:
        """A base model from its parts; without an item bias it is zero, without a tower the score
        is a dot product.

        Raises:
            BaseError: parts that do not fit each other; which, and how.
        """
        bias = torch.zeros(len(item_table_ND)) if item_bias_N is None else item_bias_N
        tables = Table.of(user_table_ND), Table.of(item_table_ND), Table.of(bias.view(-1, 1))
        for name, ids, table in zip(
            ("user", "item", "item bias"), (users, items, items), tables, strict=True
        ):
            if len(ids) != table.num_rows:
                raise BaseError(
                    f"the {name} table has {table.num_rows} rows, its id map {len(ids)}"
                )
        dims = tables[0].embedding_dim, tables[1].embedding_dim
        if dims[0] != dims[1]:
            raise BaseError(
                f"user and item vectors must be of one length, got {dims[0]} and {dims[1]}"
            )
        if tower is not None and tower.weights[0].shape[1] != 3 * dims[0]:
            raise BaseError(
                f"the tower reads {tower.weights[0].shape[1]} numbers, "
                f"but [u, v, u * v] has {3 * dims[0]}"
            )
        return cls(users, items, *tables, tower, _fingerprint(users, items, tables, tower))

    @classmethod
    def random(
        cls,
        users: IdMap,
        items: IdMap,
        embedding_dim: int,
        hidden: Sequence[int],
        seed: int,
    ) -> BaseModel:
        """Where pretraining starts: rows of length about .1, zero item bias, a tower that adds
        nothing yet.

        Args:
            hidden: widths of the tower's hidden layers; empty for no tower.
        """
        generator = torch.Generator().manual_seed(seed)
        scale = 0.1 / embedding_dim**0.5
        return cls.of(
            users,
            items,
            torch.randn(len(users), embedding_dim, generator=generator) * scale,
            torch.randn(len(items), embedding_dim, generator=generator) * scale,
            tower=Tower.random(embedding_dim, hidden, generator) if hidden else None,
        )

    @property
    def embedding_dim(self) -> int:
        return self.user_table.embedding_dim

    @property
    def num_numbers(self) -> int:
        """How many numbers it stores: of its tables, without grown rows, and of its tower."""
        tables = [t.weight_ND for t in (self.user_table, self.item_table, self.item_bias)]
        return sum(numbers.numel() for numbers in [*tables, *_tower_tensors(self.tower).values()])

    def __repr__(self) -> str:
        tower = (
            "no tower"
            if self.tower is None
            else f"tower {[*(w.shape[1] for w in self.tower.weights), 1]}"
        )
        return (
            f"BaseModel({self.user_table.num_rows:,} users, {self.item_table.num_rows:,} items, "
            f"D={self.embedding_dim}, {tower}, {self.fingerprint[:12]})"
        )

    def grown(self, users: IdMap, items: IdMap) -> BaseModel:
        """The same base over id maps that extend its own; each new identifier's row is the table's
        mean.

        Raises:
            BaseError: a map does not begin with the base's identifiers.
        """
        for name, own, new in (("user", self.users, users), ("item", self.items, items)):
            if not new.ids.slice(0, len(own)).equals(own.ids):
                raise BaseError(
                    f"a grown {name} id map must begin with the base's own {len(own)} ids"
                )
        return replace(
            self,
            users=users,
            items=items,
            user_table=replace(self.user_table, num_rows=len(users)),
            item_table=replace(self.item_table, num_rows=len(items)),
            item_bias=replace(self.item_bias, num_rows=len(items)),
        )

    def scorer(self) -> CatalogueScorer | RemoteScorer:
        """Scores of all items for users, by the frozen base alone."""
        if not self.item_table.is_whole:
            return RemoteScorer(None, self.item_table.num_rows)
        return CatalogueScorer(
            self.user_table.lookup,
            self.item_table.materialised(),
            self.item_bias.materialised().squeeze(1),
            self.tower.layers() if self.tower else [],
        )

    def save(self, folder: Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Write the base to a new folder, whole or not at all.

        Args:
            provenance: anything JSON can hold about where the base comes from.

        Raises:
            BaseError: the folder exists (a base is immutable), or the base is a grown one.
            OSError: the disk refused, or what it holds is not what was written.
        """
        if folder.exists():
            raise BaseError(f"{folder} exists, and a base model is immutable; name a new folder")
        if self.user_table.num_rows > self.user_table.num_own_rows or (
            self.item_table.num_rows > self.item_table.num_own_rows
        ):
            raise BaseError(
                "a grown base is saved as its adapters; save the base it was grown from"
            )
        make_folder(folder.parent)
        temporary = temporary_path(folder)
        temporary.mkdir()
        try:
            self._write(temporary, dict(provenance or {}))
            _read_back(temporary, folder)
            temporary.rename(folder)
            fsync(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _write(self, folder: Path, provenance: dict[str, Any]) -> None:
        tables = {"user": self.user_table, "item": self.item_table, "item_bias": self.item_bias}
        with atomic_write(folder / "tables.safetensors") as path:
            tensors = {f"{name}_table": t.weight_ND.contiguous() for name, t in tables.items()}
            save_file(tensors | {f"{name}_mean": t.mean_D for name, t in tables.items()}, path)
        with atomic_write(folder / "tower.safetensors") as path:
            save_file(_tower_tensors(self.tower), path)
        self.users.write(folder / "user_ids.parquet")
        self.items.write(folder / "item_ids.parquet")
        about = {
            "format": FORMAT,
            "needs": NEEDS,
            "fingerprint": self.fingerprint,
            "num_users": len(self.users),
            "num_items": len(self.items),
            "embedding_dim": self.embedding_dim,
            "tower": [list(w.shape) for w in self.tower.weights] if self.tower else None,
            "provenance": provenance,
        }
        write_text(folder / "base.json", json.dumps(about, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> BaseModel:
        """Open a saved base; its tables are memory-mapped, and its fingerprint is believed (see
        `verify`).

        Raises:
            BaseError: a file is missing, damaged, of a newer format, or of other shapes than
                `base.json` says.
        """
        if folder.is_file():
            raise BaseError(
                f"{folder}: expected the folder of a saved base model, got a file; tables from "
                "elsewhere are imported: convert them to safetensors or Parquet and name those "
                "(in a settings file: [base] import_users, import_items, import_tables)"
            )
        try:
            about = json.loads((folder / "base.json").read_text())
            if about["format"] > FORMAT:
                raise BaseError(
                    f"{folder} needs reclora >= {about.get('needs', 'that of its writer')}: it has "
                    f"base format {about['format']}; this reclora reads up to {FORMAT}"
                )
            tensors = _read_tensors(folder / "tables.safetensors")
            tower = _tower_of(_read_tensors(folder / "tower.safetensors"))
            found = [list(w.shape) for w in tower.weights] if tower else None
            if found != about["tower"]:
                raise BaseError(
                    f"{folder}/tower.safetensors: the weights must be of shapes {about['tower']} "
                    f"as base.json says, got {found}"
                )
            tables = []
            for name, rows, width in (
                ("user", about["num_users"], about["embedding_dim"]),
                ("item", about["num_items"], about["embedding_dim"]),
                ("item_bias", about["num_items"], 1),
            ):
                weight, mean = tensors[f"{name}_table"], tensors[f"{name}_mean"]
                if (
                    weight.shape != (rows, width)
                    or mean.shape != (width,)
                    or {weight.dtype, mean.dtype} != {torch.float32}
                ):
                    raise BaseError(
                        f"{folder}/tables.safetensors: {name}_table must be float32 {rows} x "
                        f"{width} as base.json says, and {name}_mean float32 {width}, "
                        f"got {weight.dtype} {tuple(weight.shape)} and {mean.dtype} "
                        f"{tuple(mean.shape)}"
                    )
                tables.append(Table(weight, mean, rows))
            users = IdMap.read(folder / "user_ids.parquet")
            items = IdMap.read(folder / "item_ids.parquet")
            # Reading the ids left buffers larger than the ids; give them back.
            pa.default_memory_pool().release_unused()
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            if isinstance(error, BaseError):
                raise
            raise BaseError(
                f"{folder} is no whole base model: {type(error).__name__}: {error}"
            ) from error
        if (len(users), len(items)) != (about["num_users"], about["num_items"]):
            raise BaseError(
                f"{folder}: the id maps and base.json count users and items differently"
            )
        return cls(users, items, tables[0], tables[1], tables[2], tower, about["fingerprint"])

    def verify(self) -> None:
        """Read everything and check it against the fingerprint.

        Raises:
            BaseError: a byte differs from what was saved.
        """
        tables = self.user_table, self.item_table, self.item_bias
        found = _fingerprint(self.users, self.items, tables, self.tower)
        if found != self.fingerprint:
            raise BaseError(
                f"the base's bytes have fingerprint {found}, but it was saved as {self.fingerprint}"
            )


def read_provenance(folder: Path) -> dict[str, Any]:
    """What was written, when a base was saved, about where it comes from.

    Raises:
        OSError: the folder holds no saved base.
    """
    about = json.loads((folder / "base.json").read_text(encoding="utf-8"))
    return dict(about["provenance"])


def _read_back(written: Path, folder: Path) -> None:
    """Check the files in `written`, which shall become `folder`, against their fingerprint."""
    try:
        BaseModel.load(written).verify()
    except BaseError as error:
        what = f"the base that was written is not the one that is there now: {error}"
        raise OSError(errno.EIO, what, str(folder)) from error


def _fingerprint(users: IdMap, items: IdMap, tables: Sequence[Table], tower: Tower | None) -> str:
    digest = hashlib.sha256(f"reclora base {FORMAT}\0{users.digest()}\0{items.digest()}".encode())
    tensors = [tensor for table in tables for tensor in (table.weight_ND, table.mean_D)]
    for tensor in [*tensors, *(t for _, t in sorted(_tower_tensors(tower).items()))]:
        digest.update(f"\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _tower_tensors(tower: Tower | None) -> dict[str, Tensor]:
    if tower is None:
        return {}
    pairs = zip(tower.weights, tower.biases, strict=True)
    return {
        f"{layer}.{name}": tensor.contiguous()
        for layer, (weight, bias) in enumerate(pairs)
        for name, tensor in (("weight", weight), ("bias", bias))
    }


def _tower_of(tensors: Mapping[str, Tensor]) -> Tower | None:
    depth = len(tensors) // 2
    if depth == 0:
        return None
    return Tower(
        tuple(tensors[f"{i}.weight"] for i in range(depth)),
        tuple(tensors[f"{i}.bias"] for i in range(depth)),
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}
