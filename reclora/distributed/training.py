"""This file is the one loop on many ranks: each trains its own segments, on the rows it fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.checkpoints import Checkpoint
from reclora.distributed.division import Codes, rows_of_training
from reclora.distributed.rounds import Rounds
from reclora.distributed.shards import ShardedBase
from reclora.interactions import Interactions
from reclora.training import HeldOutLoss, Training, TrainingConfig, TrainingError, train

LogsOf = Callable[[Codes], tuple[Interactions, Interactions | None, Interactions | None]]
"""The segments of a chunk -> their log; what is held out of it to judge by, if anything; and what
their users took before it, if that is to be no negative either (see `train`)."""
BankOf = Callable[[BaseModel, Interactions, Codes], AdapterBank]
"""(a part of the base, the log of some segments, their codes) -> a bank for them."""


@dataclass(frozen=True)
class TrainedChunk:
    """The segments of a chunk after training."""

    codes: Codes
    adapters: list[Adapter]
    """Empty where every segment of the chunk that trained is quarantined."""
    training: Training


def train_sharded(
    base: ShardedBase,
    chunks: Sequence[Codes],
    logs_of: LogsOf,
    bank_of: BankOf,
    config: TrainingConfig,
    *,
    seed: int = 0,
    checkpoint_of: Callable[[Codes], Checkpoint | None] = lambda codes: None,
) -> list[TrainedChunk]:
    """Train this rank's chunks, one after the other; collective.

    Before a chunk a rank fetches the rows of the base that the chunk will look up, once, as soon as
    every other rank does so for its own next chunk, or has none left. In between no rank waits for
    another. Numbers are those of one process that trains the same segments with the whole base.

    Args:
        chunks: of this rank, see `divide`; ranks may have different numbers of them, also none.
        logs_of: on the base's id maps; called for one chunk at a time.
        checkpoint_of: see `train`; on a disk that all ranks see, a chunk goes on wherever it is.

    Raises:
        ValueError, OSError: as `train`.
    """
    rounds = Rounds(base)

    def trained(codes: Codes) -> TrainedChunk:
        log, held_out, taken = logs_of(codes)
        part = rounds.part(*rows_of_training(log, held_out, config, seed))
        bank = bank_of(part, log, codes)
        judge = None if held_out is None else HeldOutLoss(held_out, config)
        try:
            training = train(
                bank,
                log,
                config,
                judge=judge,
                seed=seed,
                checkpoint=checkpoint_of(codes),
                taken=taken,
            )
        except TrainingError as error:
            # The other ranks' segments go on, as the other chunks' do.
            return TrainedChunk(codes, [], error.training)
        return TrainedChunk(codes, bank.adapters(), training)

    done = [trained(codes) for codes in chunks]
    rounds.stand_by()
    return done
