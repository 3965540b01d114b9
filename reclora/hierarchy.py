"""This file is a hierarchy of segments: country on region on all, each frozen before the next.

    E_country = E + delta_all + delta_region + delta_country        (of additive kinds)

Every level is a log of its own: the rows of a region are those of its countries. So what a small
country stands on has learned from its neighbours, and what it learns itself is only what they do
not have in common. Levels are mappings, made of a column (`groups_of`) or by hand.

    train_levels(base, log, [dict.fromkeys(log.segment_names, "all"), region_of], config, training)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig
from reclora.evaluation import EvaluationConfig, RankingJudge, ScorerOf, hold_out
from reclora.interactions import Interactions
from reclora.training import Training, TrainingConfig, train

Groups = Mapping[str, str]
"""Segment -> the group that it is in on one level."""


@dataclass(frozen=True)
class Hierarchy:
    """Trained levels, the highest first; the last is the segments' own."""

    levels: tuple[dict[str, Adapter], ...]
    """Group -> its adapter, which stands on that of the group above."""
    trainings: tuple[tuple[Training, ...], ...]
    """What training did on each level, once for each group of the level above."""

    @property
    def adapters(self) -> list[Adapter]:
        """The segments' own, each with all that it stands on: what the store takes."""
        return list(self.levels[-1].values())


def train_levels(
    base: BaseModel,
    log: Interactions,
    levels: Sequence[Groups],
    config: AdapterConfig,
    training: TrainingConfig,
    *,
    validation: Interactions | None = None,
    seen: Interactions | None = None,
    measured: EvaluationConfig | None = None,
    seed: int = 0,
) -> Hierarchy:
    """Train groups from the highest level down to the segments, each on what it is a part of.

    All groups that stand on one are trained in one pass.

    Args:
        log: on the base's id maps.
        levels: the highest first; each group of a level lies in one group of the level above.
        validation: of the segments of the log: on every level it chooses the epochs. Without it
            every group trains all epochs.
        seen: all before the validation; if not given, the log.
        measured: the headline is what chooses; by default that of `EvaluationConfig`.

    Raises:
        ValueError: a segment has no group on a level, a group lies in several of the level above,
            or as `reclora.training.train`.
        AdapterError: as `AdapterBank.for_log`.
    """
    own = {segment: segment for segment in log.segment_names}
    every = [*levels, own]
    above = _nested(every)
    trained: list[dict[str, Adapter]] = []
    trainings: list[tuple[Training, ...]] = []
    for groups, parent_of in zip(every, above, strict=True):
        part = regrouped(log, groups)
        judge = None
        if validation is not None:
            before = regrouped(log if seen is None else seen, groups)
            held_out = hold_out(
                regrouped(validation, groups), before, measured or EvaluationConfig()
            )
            judge = RankingJudge(held_out)
        adapters: dict[str, Adapter] = {}
        done = []
        for parent in dict.fromkeys(parent_of.values()):
            members = [c for c, name in enumerate(part.segment_names) if parent_of[name] == parent]
            below = trained[-1][parent] if parent is not None else None
            own_log = part.part(members)
            bank = AdapterBank.for_log(base, own_log, config, seed, below)
            done.append(train(bank, own_log, training, judge=judge, seed=seed))
            adapters |= {adapter.segment: adapter for adapter in bank.adapters()}
        trained.append({name: adapters[name] for name in part.segment_names})
        trainings.append(tuple(done))
    return Hierarchy(tuple(trained), tuple(trainings))


def groups_of(log: Interactions, attribute: str) -> dict[str, str]:
    """A level from a column of the log: segment -> its one value.

    A segment without rows has none, and is left out.

    Raises:
        ValueError: the log has no such column, or a segment has several values.
    """
    if attribute not in log.attributes:
        raise ValueError(
            f"the log has no column {attribute!r}, it has {[*log.attributes]}: keep it in the "
            "contract's attributes"
        )
    values = log.attributes[attribute]
    groups = {}
    for segment, first, end in zip(
        log.segment_names, log.offsets[:-1].tolist(), log.offsets[1:].tolist(), strict=True
    ):
        found = sorted(
            {str(values.categories[code]) for code in np.unique(values.codes[first:end])}
        )
        if len(found) > 1:
            raise ValueError(
                f"segment {segment!r} has {len(found)} values of {attribute!r}, such as "
                f"{found[0]!r} and {found[1]!r}: on a level each segment lies in one group"
            )
        if found:
            groups[segment] = found[0]
    return groups


def regrouped(log: Interactions, groups: Groups) -> Interactions:
    """The rows of a log with groups for segments, in the order in which the segments name them.

    Raises:
        ValueError: a segment of the log has no group.
    """
    for segment in log.segment_names:
        if segment not in groups:
            raise ValueError(f"segment {segment!r} has no group: give one for each of the log")
    names = list(dict.fromkeys(groups[segment] for segment in log.segment_names))
    codes_S = np.array([names.index(groups[s]) for s in log.segment_names], dtype=np.int64)
    return log.in_segments(names, codes_S[log.segment_rows])


def scorers(base: BaseModel, adapters: Sequence[Adapter]) -> ScorerOf:
    """The scorer of each adapter's segment, of whatever parents.

    Args:
        base: grown by the identifiers that any of them brings, where they are of several parents.

    Raises:
        AdapterError: as `AdapterBank.of`.
    """
    by_parent: dict[int, list[Adapter]] = {}
    for adapter in adapters:
        by_parent.setdefault(id(adapter.parent), []).append(adapter)
    banks = [AdapterBank.of(base, group) for group in by_parent.values()]
    bank_of = {name: bank for bank in banks for name in bank.segment_names}
    return lambda segment: bank_of[segment].scorer(segment)


def _nested(levels: Sequence[Groups]) -> list[dict[str, str | None]]:
    """For each level: group -> the group above; None on the highest."""
    above: list[dict[str, str | None]] = [dict.fromkeys(levels[0].values())]
    for number, (upper, lower) in enumerate(zip(levels, levels[1:], strict=False)):
        found: dict[str, str | None] = {}
        for segment, group in lower.items():
            if segment not in upper:
                raise ValueError(f"segment {segment!r} has no group on level {number}")
            other = found.setdefault(group, upper[segment])
            if other != upper[segment]:
                raise ValueError(
                    f"group {group!r} of level {number + 1} lies in {other!r} and in "
                    f"{upper[segment]!r} of level {number}: it must lie in one"
                )
        above.append(found)
    return above
