"""This file is the best adapter of a smaller rank.

The k largest singular values of L M are found without ever making that P x Q matrix:

    L = Q_L C_L    M^T = Q_M C_M    C_L C_M^T = U S V^T    L' = Q_L U_k S_k    M' = (Q_M V_k)^T
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from reclora.adapters import Adapter
from reclora.arithmetic.parts import (
    Delta,
    check_finite,
    check_no_magnitude,
    deltas_of,
    resized,
    settings_of,
)
from reclora.configs import AdapterError


@torch.no_grad()
def recompress(adapter: Adapter, rank: int) -> Adapter:
    """The best adapter of a smaller rank: each product L M cut to its k largest singular values.

        |L M - L' M'|_F^2 = the sum of the squares of the others; no product of rank k is nearer

    It costs O((P + Q) R^2) a product. The rows of M' are orthonormal and L' carries the units, as
    in an adapter that begins to train; a rank that is not smaller makes them so and no more. What
    is not a product stays as it is, in the same memory.

    Args:
        adapter: of a base model or of modules of any model; its parent stays.
        rank: k, at least 1; a tower's weight takes min(k, its sides).

    Returns:
        The segment's adapter with that rank, and with alpha such that the scaling is the same.

    Raises:
        AdapterError: rank is below 1; the adapter has a learned magnitude, NaN or infinity, or a
            `basis` that uses more than k of the directions, which are frozen.

    Source: Eckart and Young, "The approximation of one matrix by another of lower rank",
    Psychometrika 1936.
    """
    if rank < 1:
        raise AdapterError(f"rank must be at least 1, got {rank}")
    check_no_magnitude(adapter)
    check_finite(adapter.segment, adapter.tensors)
    ranks = [min(rank, settings.rank) for settings in settings_of(adapter)]
    tensors = dict(adapter.tensors)
    for delta in deltas_of(adapter).values():
        tensors.update(_smaller(delta, ranks[delta.place]).tensors())
    return replace(adapter, config=resized(adapter.config, ranks), tensors=tensors)


@torch.no_grad()
def singular_values(adapter: Adapter) -> dict[str, Tensor]:
    """How much each direction of each product changes: what to choose a rank by.

        values = singular_values(adapter)["user_table.rows"]
        values[k:].square().sum().sqrt()                # what recompress(adapter, k) loses there

    Returns:
        Name of a product (`user_table.rows`, `tower.0.weight.low_rank`) -> the singular values of
        scaling * L M, descending, at most R, float64; in units of the table or weight, of a `map`
        as parts of a row.

    Raises:
        AdapterError: the adapter has a learned magnitude, NaN or infinity.
    """
    check_no_magnitude(adapter)
    check_finite(adapter.segment, adapter.tensors)
    return {
        name: delta.scaling * _svd(delta.left_PR, delta.right_RQ)[1]
        for name, delta in deltas_of(adapter).items()
        if delta.is_product
    }


def cut(delta: Delta, rank: int) -> Delta:
    """The nearest product of `rank`, which is at most its own and at most Q."""
    columns_PV, values_V, rows_VQ = _svd(delta.left_PR, delta.right_RQ)
    left_PV = (columns_PV * values_V)[:, :rank]
    # With fewer touched rows than `rank` there are fewer values: the rest of L' is zero, and of M'
    # rows at right angles, so that both can train on.
    left_PR = F.pad(left_PV, (0, rank - left_PV.shape[1])).to(delta.left_PR.dtype)
    return delta.with_product(left_PR, rows_VQ[:rank].to(delta.right_RQ.dtype))


def _smaller(delta: Delta, rank: int) -> Delta:
    if delta.is_product:
        return cut(delta, min(rank, len(delta.right_RQ)))
    if delta.kind == "basis":
        a_TR = delta.factors["a"]
        if bool(a_TR[:, rank:].any()):
            raise AdapterError(
                f"{delta.target} has the kind `basis`, whose directions are frozen and common to "
                f"all: with {a_TR.shape[1]} of them in use there is no best rank {rank}; keep the "
                "rank, or train it with a smaller one"
            )
        return replace(delta, factors={"a": a_TR[:, :rank].contiguous()})
    return delta


def _svd(left_PR: Tensor, right_RQ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q_L U, S and (Q_M V)^T of L M, in float64; min(R, Q) rows even where S has fewer values."""
    q_left, core_left = torch.linalg.qr(left_PR.double())
    q_right, core_right = torch.linalg.qr(right_RQ.T.double())
    u, values, vh = torch.linalg.svd(core_left @ core_right.T)
    return q_left @ u[:, : len(values)], values, vh @ q_right.T
