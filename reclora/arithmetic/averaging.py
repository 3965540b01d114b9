"""This file is the mean of adapters, exactly: of their changes, not of their factors.

Products are set side by side, with s the scaling of the result and s_i that of adapter i:

    sum_i w_i s_i L_i M_i = s [w_1 s_1 / s L_1 | w_2 s_2 / s L_2 | ...] [M_1; M_2; ...]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from reclora.adapters import Adapter, id_tensors, new_ids
from reclora.arithmetic.compression import cut
from reclora.arithmetic.parts import (
    Delta,
    check_finite,
    check_no_magnitude,
    deltas_of,
    resized,
    settings_of,
)
from reclora.configs import AdapterConfig, AdapterError, DeltaConfig
from reclora.interactions import IdMap


@torch.no_grad()
def average(
    adapters: Sequence[Adapter], weights: Sequence[float] | None = None, *, segment: str
) -> Adapter:
    """The adapter whose changes of tables, weights and biases are the mean of the adapters' ones.

        change = sum_i w_i change_i

    It is exact: a row that an adapter does not touch it changes by zero, and identifiers that the
    base does not know are matched by id. Ranks may differ; the result has their sum, or the most
    that the changed matrix can have (`basis`, whose directions are common: the largest), and
    `recompress` makes it smaller. Weights are averaged, not scores: a tower of mean weights is not
    the mean of the towers.

    Args:
        adapters: at least one; of one base, one parent (the same object) and the same kinds.
        weights: a finite number for each, 1 / n by default. They may sum to anything: to 1 for a
            mean; (1, 1) is a sum, (1, -1) a difference.
        segment: the name of the result.

    Returns:
        An adapter with the settings and the scaling of the first, and its own rank and alpha.
        Weights and other scalings are in the factor that starts at zero.

    Raises:
        AdapterError: adapters or weights are not as above; a mean is not of the adapters' kinds (a
            learned magnitude, or `scale` and `map` on one table); one of the settings needs two
            ranks; a number is or becomes NaN or infinite.

    Source: Ilharco et al., "Editing models with task arithmetic", ICLR 2023, section 2.
    """
    _check_together(adapters)
    shares = _checked_weights(weights, len(adapters))
    first = adapters[0]
    united = {name: _United.of(adapters, name) for name in first.tensors if _are_rows(name)}
    parts = [
        {name: _spread(delta, united, code) for name, delta in deltas_of(adapter).items()}
        for code, adapter in enumerate(adapters)
    ]
    means = [_mean([part[name] for part in parts], shares) for name in parts[0]]
    for delta in means:
        check_finite(segment, delta.tensors())
    ranks = [
        _rank_of([one.rank for one in settings], [d for d in means if d.place == place])
        for place, settings in enumerate(zip(*map(settings_of, adapters), strict=True))
    ]
    tensors = {name: tensor for rows in united.values() for name, tensor in rows.tensors.items()}
    for delta in means:
        tensors.update(_with_rank(delta, ranks[delta.place]).tensors())
    config = resized(first.config, ranks)
    return Adapter(segment, config, first.base_fingerprint, tensors, first.parent)


@dataclass(frozen=True)
class _United:
    """The rows of a table that any of several adapters touches."""

    tensors: Mapping[str, Tensor]
    """Rows, and identifiers that the base does not know, as an adapter has them."""
    num_rows: int
    places: Sequence[Tensor]
    """Where each adapter's rows are among them."""

    @classmethod
    def of(cls, adapters: Sequence[Adapter], name: str) -> _United:
        side = name.removesuffix(".rows")
        rows = [adapter.tensors[name] for adapter in adapters]
        new = [_own_ids(adapter, side) for adapter in adapters]
        all_new = IdMap.of(pa.concat_arrays(new))
        # After its known rows each adapter numbers its own identifiers from the base's N on.
        ends = [int(r[-1]) + 1 - len(ids) for r, ids in zip(rows, new, strict=True) if len(ids)]
        num_known = max(ends, default=0)
        numbers = [
            torch.cat([r[: len(r) - len(ids)], num_known + torch.from_numpy(all_new.rows_of(ids))])
            for r, ids in zip(rows, new, strict=True)
        ]
        union = torch.unique(torch.cat(numbers))
        tensors = {name: union}
        if isinstance(adapters[0].config, AdapterConfig):
            tensors.update(id_tensors(side, all_new.ids))
        return cls(tensors, len(union), [torch.searchsorted(union, one) for one in numbers])


def _are_rows(name: str) -> bool:
    return name == "rows" or name.endswith(".rows")


def _own_ids(adapter: Adapter, side: str) -> pa.Array:
    """The identifiers that an adapter brings; to a module's table it brings none."""
    if f"{side}.new_id_bytes" in adapter.tensors:
        return new_ids(adapter, side, IdMap(pa.array([], pa.large_string())))
    if f"{side}.new_ids" in adapter.tensors:
        return new_ids(adapter, side, IdMap(pa.array([], pa.int64())))
    return pa.array([], pa.int64())


def _spread(delta: Delta, united: Mapping[str, _United], code: int) -> Delta:
    """The delta with a row for each row that any of the adapters touches."""
    if delta.rows is None:
        return delta
    rows, factors = united[delta.rows], dict(delta.factors)
    for name, factor in delta.factors.items():
        if name != "b":
            zeros = factor.new_zeros(rows.num_rows, factor.shape[1])
            factors[name] = zeros.index_copy_(0, rows.places[code], factor)
    return replace(delta, factors=factors)


def _mean(deltas: Sequence[Delta], weights: Sequence[float]) -> Delta:
    """The weighted sum of the changes; a product of as many columns as all of them have."""
    first = deltas[0]
    shares = [w * d.scaling / first.scaling for w, d in zip(weights, deltas, strict=True)]
    if first.is_product:
        left_PR = torch.cat([w * d.left_PR for w, d in zip(shares, deltas, strict=True)], dim=1)
        return first.with_product(left_PR, torch.cat([d.right_RQ for d in deltas]))
    if first.kind == "basis":
        # The directions of a smaller rank are the first of those of a larger one.
        largest = max(delta.factors["a"].shape[1] for delta in deltas)
        deltas = [_with_rank(delta, largest) for delta in deltas]
    factors = {name: torch.zeros_like(factor) for name, factor in deltas[0].factors.items()}
    for share, delta in zip(shares, deltas, strict=True):
        for name, factor in delta.factors.items():
            factors[name] += share * factor
    return replace(first, factors=factors)


def _rank_of(ranks: Sequence[int], means: Sequence[Delta]) -> int:
    """The rank that the settings of `means` need, whose ranks were `ranks`.

    Raises:
        AdapterError: it is more than one of them can have.
    """
    products = [delta for delta in means if delta.is_product]
    needed = [min(sum(ranks), delta.max_rank) for delta in products]
    if not products or any(delta.kind == "basis" for delta in means):
        needed.append(max(ranks))
    rank = max(needed)
    for delta in products:
        if delta.max_rank < rank and not delta.takes_less:
            raise AdapterError(
                f"the mean of ranks {', '.join(map(str, ranks))} needs rank {rank}, but "
                f"{delta.target}, which has the same settings, has none above {delta.max_rank}: "
                f"recompress the adapters first, to ranks of {delta.max_rank} together"
            )
    return rank


def _with_rank(delta: Delta, rank: int) -> Delta:
    """The same change in factors of a rank that is enough for it."""
    if delta.kind == "basis":
        a_TR = delta.factors["a"]
        return replace(delta, factors={"a": F.pad(a_TR, (0, rank - a_TR.shape[1]))})
    if delta.is_product and len(delta.right_RQ) > min(rank, delta.max_rank):
        return cut(delta, min(rank, delta.max_rank))
    return delta


def _check_together(adapters: Sequence[Adapter]) -> None:
    if not adapters:
        raise AdapterError("a mean needs at least one adapter, got none")
    first = adapters[0]
    for adapter in adapters:
        check_no_magnitude(adapter)
        check_finite(adapter.segment, adapter.tensors)
        which = f"the adapter of segment {adapter.segment!r}"
        if adapter.base_fingerprint != first.base_fingerprint:
            raise AdapterError(
                f"{which} belongs to base {adapter.base_fingerprint}, that of {first.segment!r} to "
                f"{first.base_fingerprint}: average those of one base"
            )
        if adapter.parent is not first.parent:
            raise AdapterError(
                f"{which} stands on {adapter.parent!r}, that of {first.segment!r} on "
                f"{first.parent!r}: average those of one parent, the same object"
            )
        kinds, wanted = (list(map(_kinds, settings_of(one))) for one in (adapter, first))
        if kinds != wanted:
            raise AdapterError(
                f"{which} has {kinds}, that of {first.segment!r} has {wanted}: average those of "
                "the same kinds"
            )
        if adapter.tensors.keys() != first.tensors.keys():
            odd = sorted(adapter.tensors.keys() ^ first.tensors.keys())
            raise AdapterError(
                f"{which} and that of {first.segment!r} have the same kinds, but only one of them "
                f"has {odd}: it is damaged"
            )
    _check_additive(first)


def _kinds(settings: AdapterConfig | DeltaConfig) -> tuple[object, ...]:
    """What must be the same in settings whose adapters are averaged."""
    if isinstance(settings, AdapterConfig):
        return settings.user_kinds, settings.item_kinds, settings.item_bias, settings.tower
    return settings.targets, settings.kind


def _check_additive(adapter: Adapter) -> None:
    """Refuse kinds that multiply each other; what the others add depends on none before them."""
    kinds = {(delta.target, delta.kind) for delta in deltas_of(adapter).values()}
    for target, kind in kinds:
        if kind == "scale" and (target, "map") in kinds:
            raise AdapterError(
                f"{target} has the kinds `scale` and `map`, which multiply each other: no adapter "
                "of these kinds is the mean of several; train it with one of them"
            )


def _checked_weights(weights: Sequence[float] | None, number: int) -> list[float]:
    if weights is None:
        return [1 / number] * number
    if len(weights) != number or not all(map(math.isfinite, weights)):
        raise AdapterError(
            f"weights must be {number} finite numbers, one for each adapter, got {list(weights)}"
        )
    return [float(weight) for weight in weights]
