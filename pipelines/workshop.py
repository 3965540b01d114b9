"""How a bank is trained in a run: in chunks of segments, each kept on the disk as it is done.

Chunks follow from the log alone, so that however many workers share them, and however often the run
was broken, they end with the same bytes. A chunk that is done is not trained again.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from reclora.configs import AdapterConfig
from reclora.distributed import DistributedError
from reclora.early_stopping import Judge
from reclora.evaluation import HeldOut, KeptLists, Lists, Ranking, ScorerOf, recommend
from reclora.interactions import Interactions
from reclora.training import Training, TrainingConfig, TrainingError, train
from reclora.workers import Finished, run_tasks

from .run import digest

BankOf = Callable[[BaseModel, Interactions, NDArray[np.int64]], AdapterBank]
"""(the base or a part of it, the log of some segments, their codes) -> a bank for them."""

JudgeOf = Callable[[Ranking], Judge]


@dataclass(frozen=True)
class Recipe:
    """What adapters begin as; called as `BankOf`, it makes the bank of some segments of a log."""

    configs: AdapterConfig | Mapping[int, AdapterConfig]
    """Of all segments, or of each by its code."""
    seed: int
    parent: Adapter | None = None
    """What all of them stand on."""
    start: Mapping[str, Adapter] = field(default_factory=dict)
    """Segment -> the adapter that it begins with, where that is of its config and of the parent."""

    def __call__(self, base: BaseModel, log: Interactions, codes: NDArray[np.int64]) -> AdapterBank:
        configs = self.configs_of(codes.tolist())
        start = self.start_of(log.segment_names, configs)
        return AdapterBank.for_log(base, log, configs, self.seed, self.parent, start)

    def configs_of(self, codes: Sequence[int]) -> list[AdapterConfig]:
        """The config of each of some segments."""
        if isinstance(self.configs, AdapterConfig):
            return [self.configs] * len(codes)
        return [self.configs[code] for code in codes]

    def start_of(
        self, segments: Sequence[str], configs: Sequence[AdapterConfig]
    ) -> dict[str, Adapter]:
        """The adapters that segments of these configs begin with."""
        return {
            name: adapter
            for name, config in zip(segments, configs, strict=True)
            if (adapter := self.start.get(name)) is not None
            and adapter.config == config
            and adapter.parent is self.parent
        }


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
    watch: Callable[[Judge], Judge] = unwatched
    """What stands in for the judge of a training: whoever wants to know what it says."""

    def name_of(self, what: object, config: TrainingConfig, seed: int) -> str:
        """What the checkpoints of a training are called; arguments as `train`."""
        return digest(what, vars(config), seed)

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
            what: whose training it is, JSON-able: everything that decides its numbers beside `log`,
                `config` and `seed`.
            base: of many ranks, who have trained all chunks, the base without a row of its tables.
            judge_of: who ranks -> the judge.
            taken: as `train` has it; it follows from the run's log, as `log` does.

        Raises:
            TrainingError: every segment that trained is quarantined.
            OSError: a checkpoint cannot be written.
        """
        name, chunks = self.name_of(what, config, seed), chunks_of(log, self.chunk_rows)
        # Chunks share the processes among them; a chunk that is alone has all of them.
        processes = self.workers if len(chunks) == 1 else 1

        def here(held_out: HeldOut, scorer_of: ScorerOf) -> Lists:
            return recommend(held_out, scorer_of, model="", processes=processes)[""]

        judge = self.watch(judge_of(here))
        if len(chunks) == 1:
            return self.fit(name, chunks[0], bank_of, base, log, config, judge, seed, taken)

        def trained(codes: tuple[int, ...]) -> tuple[AdapterBank | None, Training]:
            try:
                before = None if taken is None else taken.part(codes)
                part = log.part(codes)
                return self.fit(name, codes, bank_of, base, part, config, judge, seed, before)
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

    def has_trained(
        self, name: str, config: TrainingConfig, codes: tuple[int, ...], part: Interactions
    ) -> bool:
        """Whether a chunk is done, and whole on the disk; arguments as `fit`."""
        kept = self._checkpoint(name, config.step_rows, codes, part)
        found = None if kept is None else kept.load()
        return found is not None and bool(found[1]["is_done"])

    def check_trained(self, name: str, chunks: Sequence[tuple[int, ...]]) -> None:
        """Refuse to go on where another rank's checkpoints cannot be seen (DistributedError)."""
        paths = (self._path(name, codes) for codes in chunks)
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise DistributedError(
                f"{missing[0]}: what another rank has trained is not there: all ranks must see the "
                "same `runs` folder"
            )

    def fit(
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
        """Train a chunk, with as many rows in a step as there is memory for: results do not follow
        it.

        Args:
            name: of the whole training, see `name_of`.
            codes: of the chunk's segments in the whole log.
            base, part, taken: of the chunk, as in `train`.

        Raises:
            TrainingError: every segment that trained is quarantined.
            OSError: a checkpoint cannot be written.
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
