"""The world of the nightly rehearsal, on disk: a planted log in several Parquet files, a base model
that knows the world as it was before the cut, and the settings of a run over both.

    python -m tests.benchmarks.nightly_world FOLDER [--rows 20000000 --users 1000000 ...]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from reclora.base import BaseModel
from reclora.datasets.planted import PlantedConfig, PlantedWorld, plant, write_log
from reclora.interactions import IdMap
from reclora.splits import SplitConfig

LOG_FILES: Final = 8
TINY_SHARE: Final = 0.1
"""Of the segments, those that have next to no rows; as many others do not shift."""
NOISE: Final = 0.1
"""Standard deviation of the base's error over that of the true number."""


@dataclass(frozen=True)
class WorldSize:
    """How large a world is; users go by segments as 1 / rank, the largest segment first."""

    rows: int = 20_000_000
    users: int = 1_000_000
    items: int = 100_000
    segments: int = 5_000
    seed: int = 0

    @property
    def planted(self) -> PlantedConfig:
        """The law of the log. The shift begins where the default split ends its first window."""
        before = round(self.rows * SplitConfig().pretrain)
        few = round(self.segments * TINY_SHARE)
        return PlantedConfig(
            num_users=self.users,
            num_items=self.items,
            dim=32,
            num_segments=self.segments,
            unshifted_segments=few,
            tiny_segments=few,
            tiny_rows=15,
            num_base_interactions=before,
            num_interactions=self.rows - before,
            segment_size_exponent=1.0,
            # Of a large catalogue: from fewer offers a row says next to nothing of the best items.
            num_choices=200,
            seed=self.seed,
        )


def make_world(folder: Path, size: WorldSize) -> PlantedWorld:
    """Write `log/*.parquet`, `base/` and `run.toml` to a folder; return the truth.

    Memory: S x N_i x 3 floats, for the shift of every item in every segment.

    Raises:
        BaseError: the folder has a base already.
        ValueError: a size that the planted world refuses.
        OSError: a file cannot be written.
    """
    world = plant(size.planted)
    base_of(world).save(folder / "base", {"by": "the planted truth with noise"})
    _write_parts(world, folder / "log")
    (folder / "run.toml").write_text(settings_text(folder.resolve()), encoding="utf-8")
    return world


def base_of(world: PlantedWorld) -> BaseModel:
    """The truth before the cut with a small error: what pretraining comes near to. No tower."""
    rng = np.random.default_rng([world.config.seed, 3])
    users, items, bias = (
        torch.from_numpy(_noisy(truth, rng))
        for truth in (world.user_vectors, world.item_vectors, world.item_bias)
    )
    return BaseModel.of(IdMap(world.user_ids), IdMap(world.item_ids), users, items, bias)


def settings_text(folder: Path) -> str:
    """The settings of a night: one seed, and the rates of an earlier search."""

    def quoted(*parts: str) -> str:
        # A JSON string is a TOML string.
        return json.dumps(str(folder.joinpath(*parts)))

    return f"""name = "nightly"
folder = {quoted("work")}
runs = {quoted("runs")}
seeds = [0]
workers = 2
compared = []
kinds = "given"
parent = "pooled"

[adapter]
user_table = "none"
item_table = "rows"
tower = "none"
rank = 4
alpha = 4.0

[training]
epochs = 4
patience = 1

[evaluation]
ks = [10]
metrics = ["ndcg", "recall"]

[log]
files = [{quoted("log", "*.parquet")}]

[base]
saved = {quoted("base")}

[search]
rows_lr = []
bias_lr = []
l2 = []
"""


def _noisy(truth: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    error = rng.standard_normal(truth.shape, np.float32)
    error *= np.float32(NOISE * truth.std())
    return truth + error


def _write_parts(world: PlantedWorld, folder: Path) -> None:
    """Write the log in `LOG_FILES` files, as a company's daily exports are."""
    whole = write_log(world, folder.parent / "whole.parquet")
    folder.mkdir()
    with pq.ParquetFile(whole) as log:
        for number, groups in enumerate(np.array_split(np.arange(log.num_row_groups), LOG_FILES)):
            with pq.ParquetWriter(
                folder / f"part-{number}.parquet",
                log.schema_arrow,
                compression="zstd",
                write_page_checksum=True,
            ) as part:
                for group in groups.tolist():
                    part.write_table(log.read_row_group(group))
    whole.unlink()


def main() -> None:
    """The command in this file's first lines."""
    default = WorldSize()
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.nightly_world", description=__doc__
    )
    parser.add_argument("folder", type=Path, help="a folder without a world in it")
    for name in ("rows", "users", "items", "segments", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    arguments = vars(parser.parse_args())
    folder = arguments.pop("folder")
    world = make_world(folder, WorldSize(**arguments))
    print(f"{world.num_rows:,} rows of {world.config.num_segments:,} segments in {folder}")


if __name__ == "__main__":
    main()
