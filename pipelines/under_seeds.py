"""A contender trained under several seeds in one pass: its segments stand once a seed.

As `train_contender` does it seed by seed, with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.batches import chunks_of
from reclora.configs import AdapterConfig
from reclora.evaluation import RankingJudge
from reclora.interactions import Interactions
from reclora.stability import adapters_under, copied, copied_users, training_under
from reclora.training import Training, TrainingConfig, TrainingError

from .contenders import Contender, Ground, Trained
from .progress import Step
from .run import digest
from .workshop import digest_of, joined


def train_under_seeds(
    contender: Contender,
    ground: Ground,
    config: TrainingConfig,
    seeds: Sequence[int],
    progress: Step,
) -> list[Trained]:
    """Train one contender with one setting, fresh, under all seeds; of many rows in chunks of
    segments, so that only a chunk's rows are there n times at once.

    Args:
        contender: of one config for all segments.
        ground: whose parent, where the contender has one, is that of every seed.
        seeds: different ones.
        progress: told (done, of so many chunks).

    Raises:
        TrainingError: every segment that trained is quarantined under every seed.
        OSError: a checkpoint cannot be written.
    """
    if contender.is_pooled:
        ground = ground.pooled
    parent, kinds = ground.parent if contender.has_parent else None, contender.config
    banks = [AdapterBank.for_log(ground.base, ground.log, kinds, s, parent) for s in seeds]
    trainings: list[list[Training]] = [[] for _ in seeds]
    chunk_rows = max(1, ground.workshop.chunk_rows // len(seeds))
    chunks, failed = chunks_of(np.diff(ground.log.offsets), chunk_rows), list[TrainingError]()
    for done, codes in enumerate(chunks, 1):
        names = [ground.log.segment_names[code] for code in codes]
        try:
            bank, training = _train_copies(contender, ground, config, seeds, codes)
            for own, seed in zip(banks, seeds, strict=True):
                for adapter in adapters_under(seed, bank, names):
                    own.put(adapter)
        except TrainingError as error:
            # All of it is quarantined, and fresh numbers change nothing.
            training = error.training
            failed.append(error)
        for its, seed in zip(trainings, seeds, strict=True):
            its.append(training_under(seed, training, names))
        progress(done, len(chunks))
    if len(failed) == len(chunks):
        raise failed[0]
    decides = contender.model, vars(config), digest_of(parent)
    return [
        Trained(contender, bank, joined(its, {}), digest(*decides, seed))
        for bank, its, seed in zip(banks, trainings, seeds, strict=True)
    ]


def _train_copies(
    contender: Contender,
    ground: Ground,
    config: TrainingConfig,
    seeds: Sequence[int],
    codes: tuple[int, ...],
) -> tuple[AdapterBank, Training]:
    """Train some segments under all seeds."""
    parent, kinds = ground.parent if contender.has_parent else None, contender.config
    assert isinstance(kinds, AdapterConfig), "one config for all segments"
    many = copied(ground.log.part(codes), seeds)
    taken = None if ground.taken is None else copied(ground.taken.part(codes), seeds)

    def bank_of(base: BaseModel, log: Interactions, _: NDArray[np.int64]) -> AdapterBank:
        return AdapterBank.for_log(base, log, kinds, parent=parent)

    # The copies of a chunk are one pass, whatever a chunk of the workshop is.
    workshop = replace(ground.workshop, chunk_rows=max(len(many), 1))
    what = ["under seeds", asdict(contender), digest_of(parent), many.segment_names]
    judge_of = partial(RankingJudge, copied_users(ground.held_out, seeds))
    return workshop.train(what, bank_of, ground.base, many, config, judge_of, 0, taken)
