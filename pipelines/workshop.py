"""How a bank is trained in a run: in chunks of segments, each kept on the disk as it is done.

Chunks follow from the log alone, so that however many workers share them, and however often the run
was broken, they end with the same bytes. A chunk that is done is not trained again.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from reclora import batches
from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.checkpoints import Checkpoint
from reclora.distributed import (
    DistributedError,
    Rounds,
    ShardedBase,
    recommend_here,
    rows_of_training,
)
from reclora.distributed.division import balanced
from reclora.early_stopping import Judge
from reclora.evaluation import HeldOut, KeptLists, Lists, Ranking, ScorerOf, recommend
from reclora.interactions import Interactions
from reclora.training import Training, TrainingConfig, TrainingError, train
from reclora.workers import Finished, run_tasks

from .run import digest

BankOf = Callable[[BaseModel, Interactions, NDArray[np.int64]], AdapterBank]
"""(the base or a part of it, the log of some segments, their codes) -> a bank for them."""

JudgeOf = Callable[[Ranking], Judge]


def unwatched(judge: Judge) -> Judge:
    """The judge itself."""
    return judge


@dataclass(frozen=True)
class Workshop:
    """Where and by how many hands banks are trained."""

    folder: Path | None = None
    """Of the checkpoints; None keeps nothing, and has one worker."""
    chunk_rows: int = 200_000
    """Rows of the log in a chunk, at most, but one segment at least."""
    workers: int = 1
    shards: ShardedBase | None = None
    """The base on many ranks, where there are many: then each trains its own chunks."""
    watch: Callable[[Judge], Judge] = unwatched
    """What stands in for the judge of a training: whoever wants to know what it says."""

    def lists(self, *what: object) -> KeptLists | None:
        """Where the lists of what was trained are kept; None keeps nothing."""
        return None if self.folder is None else KeptLists(self.folder, f"lists-{digest(*what)}")

    def train(
        self,
        what: object,
        bank_of: BankOf,
        base: BaseModel,
        log: Interactions,
        config: TrainingConfig,
        judge_of: JudgeOf,
        seed: int,
        taken: Interactions | None = None,
    ) -> tuple[AdapterBank, Training]:
        """Train a bank for the segments of a log.

        Args:
            base: of many ranks, the base without a row of its tables.
            judge_of: who ranks -> the judge.
            taken: as `train` has it; it follows from the run's log, as `log` does.
            what: whose training it is, JSON-able: everything that decides its numbers beside `log`,
                `config` and `seed`.

        Raises:
            TrainingError: every segment that trained is quarantined.
            OSError: a checkpoint cannot be written.
            DistributedError: ranks do not see each other's checkpoints.
        """
        name = digest(what, vars(config), seed)
        chunks = chunks_of(log, self.chunk_rows)
        if self.shards is not None:
            self._train_own(name, chunks, bank_of, log, config, judge_of, seed, taken)
        # Chunks share the processes among them; a chunk that is alone has all of them.
        processes = self.workers if len(chunks) == 1 else 1

        def here(held_out: HeldOut, scorer_of: ScorerOf) -> Lists:
            return recommend(held_out, scorer_of, model="", processes=processes)[""]

        judge = self.watch(judge_of(here))
        if len(chunks) == 1:
            return self._fitting(name, chunks[0], bank_of, base, log, config, judge, seed, taken)

        def trained(codes: tuple[int, ...]) -> tuple[AdapterBank | None, Training]:
            try:
                before = None if taken is None else taken.part(codes)
                part = log.part(codes)
                return self._fitting(name, codes, bank_of, base, part, config, judge, seed, before)
            except TrainingError as error:
                # All of it is quarantined, and fresh numbers change nothing: there is none to take.
                return None, error.training

        finished = Finished(done=list(chunks))
        if self.workers > 1 and self.folder is not None:
            finished = run_tasks(chunks, lambda codes: trained(codes) and None, self.workers)
        bank = bank_of(base, log, np.arange(log.num_segments))
        trainings, is_left = list[Training](), False
        # What failed in a worker is trained again here, for its error.
        for codes in sorted((*finished.done, *finished.failed)):
            part, training = trained(codes)
            trainings.append(training)
            is_left |= part is not None
            for adapter in part.adapters() if part is not None else ():
                bank.put(adapter)
        names = log.segment_names
        training = joined(trainings, {names[s]: why for s, why in finished.given_up.items()})
        if not is_left:
            name, why = next(iter(training.quarantined.items()))
            raise TrainingError(f"no segment is left to train: {name!r}: {why}", training)
        return bank, training

    def _train_own(
        self,
        name: str,
        chunks: Sequence[tuple[int, ...]],
        bank_of: BankOf,
        log: Interactions,
        config: TrainingConfig,
        judge_of: JudgeOf,
        seed: int,
        taken: Interactions | None,
    ) -> None:
        """Train this rank's chunks while the others train theirs; then all are on the disk, those
        too of which nothing is left.
        """
        assert self.shards is not None
        rounds = Rounds(self.shards)
        judge = self.watch(judge_of(partial(recommend_here, rounds)))
        sizes = np.diff(log.offsets)
        rows = [int(sizes[list(codes)].sum()) for codes in chunks]
        for at in balanced(rows, self.shards.num_ranks)[self.shards.rank]:
            codes = chunks[at]
            part = log if len(chunks) == 1 else log.part(codes)
            kept = self._checkpoint(name, config.step_rows, codes, part)
            found = None if kept is None else kept.load()
            if found is not None and found[1]["is_done"]:
                continue
            before = taken if taken is None or len(chunks) == 1 else taken.part(codes)
            base = rounds.part(*rows_of_training(part, None, config, seed))
            # What has failed tells why where all are taken up.
            with contextlib.suppress(TrainingError):
                self._fitting(name, codes, bank_of, base, part, config, judge, seed, before)
        rounds.stand_by()
        missing = [
            path for path in (self._path(name, codes) for codes in chunks) if not path.exists()
        ]
        if missing:
            raise DistributedError(
                f"{missing[0]}: what another rank has trained is not there: all ranks must see the "
                "same `runs` folder"
            )

    def _fitting(
        self,
        name: str,
        codes: tuple[int, ...],
        bank_of: BankOf,
        base: BaseModel,
        part: Interactions,
        config: TrainingConfig,
        judge: Judge,
        seed: int,
        taken: Interactions | None,
    ) -> tuple[AdapterBank, Training]:
        """Train with as many rows in a step as there is memory for: results do not follow it.

        Raises:
            MemoryError: one segment's rows alone are too many; it says what was tried.
        """
        # What ran out of memory before goes on with the steps that it had room for.
        halved = config.step_rows
        while halved > config.batch_rows and self.folder is not None:
            halved = max(config.batch_rows, halved // 2)
            at = self._checkpoint(name, halved, codes, part)
            if at is not None and at.is_there():
                config = replace(config, step_rows=halved)
        while True:
            bank = bank_of(base, part, np.array(codes))
            own = config
            if not any(delta.kind in ("rows", "basis") for _, delta in bank.deltas()):
                # The full fine-tune and the low rungs have no row factor to drop from.
                own = replace(config, row_dropout=0.0)
            at = self._checkpoint(name, config.step_rows, codes, part)
            try:
                return bank, train(
                    bank, part, own, judge=judge, seed=seed, checkpoint=at, taken=taken
                )
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, DistributedError) or not _is_out_of_memory(error):
                    raise
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
                said = (
                    f"no memory for steps of {config.step_rows:,} rows, at {peak:.2f} GiB: {error}"
                )
            del bank
            if config.step_rows <= config.batch_rows:
                raise MemoryError(
                    f"{said}; set training.batch_rows below {config.batch_rows}, or chunk_rows "
                    f"below {self.chunk_rows:,}"
                )
            print(f"{said}; going on with half of them", file=sys.stderr)
            config = replace(config, step_rows=max(config.batch_rows, config.step_rows // 2))

    def _checkpoint(
        self, name: str, step_rows: int, codes: tuple[int, ...], part: Interactions
    ) -> Checkpoint | None:
        if self.folder is None:
            return None
        path = self._path(name, codes)
        return Checkpoint(path, digest(name, step_rows, part.segment_names))

    def _path(self, name: str, codes: tuple[int, ...]) -> Path:
        """Where the checkpoint of a chunk lies."""
        assert self.folder is not None
        return self.folder / f"{name}-{codes[0]}-{len(codes)}.safetensors"


def _is_out_of_memory(error: Exception) -> bool:
    """torch has no class of its own for it on the CPU."""
    words = "not enough memory", "can't allocate memory", "out of memory"
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def chunks_of(log: Interactions, chunk_rows: int) -> list[tuple[int, ...]]:
    """The segments' codes in chunks, as `reclora.batches.chunks_of` makes them."""
    chunks = batches.chunks_of(np.diff(log.offsets), chunk_rows)
    if len(chunks) <= 1:
        # As the log has them, so that nothing is copied.
        return [tuple(range(log.num_segments))]
    return chunks


def joined(trainings: Sequence[Training], given_up: Mapping[str, str]) -> Training:
    """One training of all; segments that were given up are as they were."""
    quarantined, best = dict(given_up), dict.fromkeys(given_up, 0)
    for training in trainings:
        quarantined |= training.quarantined
        best |= training.best_epoch
    curves = [training.curves for training in trainings]
    return Training(
        pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(),
        best,
        sum(training.steps for training in trainings),
        quarantined,
        sum(training.seconds for training in trainings),
    )


def digest_of(adapter: Adapter | None) -> str:
    """The sha256 of all that an adapter is, what it stands on included; empty for none."""
    if adapter is None:
        return ""
    whole = sha256(f"{adapter.base_fingerprint} {adapter.config}".encode())
    for name in sorted(adapter.tensors):
        tensor = adapter.tensors[name].contiguous()
        whole.update(f"{name} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    whole.update(digest_of(adapter.parent).encode())
    return whole.hexdigest()
