"""This file is how adapters become packs: parents first, then one pack a config and parent.

All of a publish is made and checked in memory before the first byte is written.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reclora.adapters import Adapter
from reclora.configs import Config, config_to_json
from reclora.stacks import AdapterStack
from reclora.store.layout import HashedFile
from reclora.store.packs import pack_file
from reclora.store.placements import Placement
from reclora.store.reading import MAX_PARENTS, BaseMismatch, StoreError, near
from reclora.store.releases import PackSummary


@dataclass(frozen=True)
class PlannedPack:
    """A pack that is ready to be written."""

    file: HashedFile
    summary: PackSummary
    segments: tuple[str, ...]
    """Whose adapters it holds; the adapter of index i is that of segments[i]."""


@dataclass(frozen=True)
class Plan:
    """What a publish will write and say."""

    packs: Sequence[PlannedPack]
    """Those to be written, each after its parent's."""
    placements: Mapping[str, Placement]
    """segment -> where its adapter will be."""


def segments_of(adapters: Sequence[Adapter]) -> Sequence[str]:
    """Return whose adapters they are."""
    if isinstance(adapters, AdapterStack):
        return adapters.segments
    return [adapter.segment for adapter in adapters]


def check_segments(
    segments: Sequence[str],
    remove: Sequence[str],
    metrics: Mapping[str, Mapping[str, float]],
) -> None:
    """Refuse a segment that comes twice or shall be published and removed, and metrics of what is
    not published or that are infinite; raises StoreError.
    """
    distinct = {*segments, *remove}
    if len(distinct) < len(segments) + len(remove):
        twice = Counter([*segments, *remove]).most_common(1)[0][0]
        raise StoreError(f"segment {twice!r} comes twice; publish one adapter a segment")
    published = set(segments)
    for segment, values in metrics.items():
        if segment not in published:
            raise StoreError(
                f"metrics of segment {segment!r}, which is not published" + near(segment, published)
            )
        infinite = [name for name, value in values.items() if math.isinf(value)]
        if infinite:
            raise StoreError(f"segment {segment!r}: metric {infinite[0]!r} is infinite")


def check_one_base(adapters: Sequence[Adapter], parent: Adapter | None) -> str:
    """Return the fingerprint of the base of all of `adapters`, `parent`, and what they stand on.

    Raises:
        BaseMismatch: there are several.
        StoreError: an adapter stands on more than `MAX_PARENTS` others; or there is none at all.
    """
    own = _one_or_all(adapters)
    below = [adapter for parent in _parents_of(adapters, parent) for adapter in _lineage(parent)]
    if not own and not below:
        raise StoreError("serves_parent needs the parent: name it with parent=")
    first = [*own, *below][0]
    for adapter in [*own, *below]:
        if adapter.base_fingerprint != first.base_fingerprint:
            raise BaseMismatch(
                f"segment {first.segment!r} belongs to base {first.base_fingerprint}, segment "
                f"{adapter.segment!r} to base {adapter.base_fingerprint}; publish those of one base"
            )
    return first.base_fingerprint


def plan_publish(
    adapters: Sequence[Adapter],
    metrics: Mapping[str, Mapping[str, float]],
    serves_parent: Sequence[str],
    parent: Adapter | None,
) -> Plan:
    """Make the packs of a publish; the order in which the adapters are given changes none.

    For the arguments and errors see `AdapterStore.publish`.
    """
    parents = _plan_parents(_parents_of(adapters, parent))
    packs = [_planned(stack, parents) for stack in _stacks_of(adapters, parents)]
    measured = {
        segment: {name: float(value) for name, value in values.items() if value == value}
        for segment, values in metrics.items()
    }
    places = {
        segment: Placement(pack.file.name, index, measured.get(segment, {}))
        for pack in packs
        for index, segment in enumerate(pack.segments)
    }
    if serves_parent:
        serving = _serving(packs, parents, parent)
        for segment in serves_parent:
            places[segment] = Placement(serving, 0, measured.get(segment, {}), serves_parent=True)
    return Plan([*parents.values(), *packs], places)


def _serving(
    packs: Sequence[PlannedPack], parents: Mapping[int, PlannedPack], parent: Adapter | None
) -> str:
    """Return the pack of the parent that serves segments without an adapter of their own."""
    if parent is not None:
        return parents[id(parent)].file.name
    found = {pack.summary.parent for pack in packs}
    found.discard(None)
    if len(found) != 1:
        raise StoreError(
            f"serves_parent needs to know which parent: the adapters published here have "
            f"{len(found)}; name it with parent="
        )
    return str(found.pop())


def _parents_of(adapters: Sequence[Adapter], parent: Adapter | None) -> list[Adapter]:
    """Return the distinct objects that `adapters` stand on, and `parent`."""
    found = [adapter.parent for adapter in _one_or_all(adapters)]
    return list({id(a): a for a in [*found, parent] if a is not None}.values())


def _one_or_all(adapters: Sequence[Adapter]) -> Sequence[Adapter]:
    """Return all adapters; of a stack the first, whose base and parent are those of all."""
    return [adapters[0]] if isinstance(adapters, AdapterStack) and adapters else adapters


def _lineage(parent: Adapter) -> list[Adapter]:
    """Return `parent`, its parent, and so on down to the one that stands on the base."""
    below = [parent]
    while below[-1].parent is not None:
        if len(below) == MAX_PARENTS:
            raise StoreError(
                f"an adapter stands on {parent.segment!r} and at least {MAX_PARENTS} more, at most "
                f"{MAX_PARENTS} in all are read; merge some of them"
            )
        below.append(below[-1].parent)
    return below


def _plan_parents(parents: Sequence[Adapter]) -> dict[int, PlannedPack]:
    """Return id of an adapter -> its pack, for `parents` and all below them, the lowest first."""
    planned: dict[int, PlannedPack] = {}
    for parent in parents:
        for adapter in reversed(_lineage(parent)):
            if id(adapter) not in planned:
                planned[id(adapter)] = _planned(AdapterStack.of([adapter]), planned)
    return planned


def _planned(stack: AdapterStack, parents: Mapping[int, PlannedPack]) -> PlannedPack:
    parent = None if stack.parent is None else parents[id(stack.parent)].file.name
    file = pack_file(stack, parent)
    # As JSON gives it back, so that a release is the same before it is written and after.
    config = json.loads(json.dumps(config_to_json(stack.config)))
    summary = PackSummary(file.name, config, parent)
    return PlannedPack(file, summary, stack.segments)


def _stacks_of(
    adapters: Sequence[Adapter], parents: Mapping[int, PlannedPack]
) -> list[AdapterStack]:
    """Return the stack of each pack, sorted by segment."""
    if isinstance(adapters, AdapterStack):
        order = sorted(range(len(adapters)), key=adapters.segments.__getitem__)
        return [adapters if order == list(range(len(order))) else adapters.take(order)]
    groups: dict[tuple[Config, str | None], list[Adapter]] = {}
    for adapter in sorted(adapters, key=lambda adapter: adapter.segment):
        parent = None if adapter.parent is None else parents[id(adapter.parent)].file.name
        group = groups.setdefault((adapter.config, parent), [])
        # Parents that are equal to the bit are one parent.
        if group and adapter.parent is not group[0].parent:
            adapter = replace(adapter, parent=group[0].parent)
        group.append(adapter)
    return [AdapterStack.of(group) for group in groups.values()]
