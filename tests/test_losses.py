"""The objectives equal their formulas, also where a softmax has nothing left to tell apart."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.losses import LOSSES, Separable, bce_loss, bpr_loss, ccl_loss, softmax_loss
from tests import reference

Formula = Callable[[float, Sequence[float], Sequence[float]], float]

scores = st.floats(-20, 20, width=32)

WEIGHTED: dict[str, tuple[Separable, Formula]] = {
    "softmax": (softmax_loss, reference.weighted_softmax_loss),
    "ccl": (ccl_loss(0.4, 7.0), lambda s, n, w: reference.ccl_loss(s, n, w, 0.4, 7.0)),
    "bce": (bce_loss(3.0), lambda s, n, w: reference.bce_loss(s, n, w, 3.0)),
}
"""The separable losses beside their formulas, of (positive, negatives, weights)."""

some_scores = st.lists(
    st.tuples(st.floats(-8, 8), st.tuples(*[st.floats(-8, 8)] * 3)), min_size=1, max_size=5
)
some_weights = st.tuples(*[st.floats(0.1, 9)] * 3)


@settings(deadline=None)
@given(st.lists(st.tuples(scores, st.tuples(scores, scores, scores)), min_size=1, max_size=5))
def test_losses_equal_plain_loops(rows: list[tuple[float, tuple[float, float, float]]]) -> None:
    positive = torch.tensor([p for p, _ in rows])
    negatives = torch.tensor([n for _, n in rows])
    for name, formula in (("softmax", reference.softmax_loss), ("bpr", reference.bpr_loss)):
        expected = torch.tensor([formula(p, n) for p, n in rows])
        torch.testing.assert_close(LOSSES[name](positive, negatives), expected)


@settings(deadline=None)
@given(some_scores, some_weights)
def test_weighted_losses_equal_plain_loops(
    rows: list[tuple[float, tuple[float, float, float]]], weights: tuple[float, float, float]
) -> None:
    positive = torch.tensor([p for p, _ in rows], dtype=torch.float64)
    negatives = torch.tensor([n for _, n in rows], dtype=torch.float64)
    weights_J = torch.tensor(weights, dtype=torch.float64)
    ones = [1.0] * 3
    for loss, formula in WEIGHTED.values():
        expected = torch.tensor([formula(p, n, ones) for p, n in rows], dtype=torch.float64)
        torch.testing.assert_close(loss(positive, negatives), expected)
        expected = torch.tensor([formula(p, n, weights) for p, n in rows], dtype=torch.float64)
        torch.testing.assert_close(loss.row(positive, loss.summary(negatives, weights_J)), expected)
    expected = torch.tensor(
        [reference.weighted_bpr_loss(p, n, weights) for p, n in rows], dtype=torch.float64
    )
    torch.testing.assert_close(bpr_loss(positive, negatives, weights_J), expected)


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_loss_has_the_gradient_of_its_formula(name: str) -> None:
    loss, formula = WEIGHTED[name]
    weights = [0.5, 2.0, 1.0]
    weights_J = torch.tensor(weights, dtype=torch.float64)
    numbers = torch.tensor([0.3, -0.7, 0.9, 2.1], dtype=torch.float64, requires_grad=True)
    torch.autograd.backward(loss.row(numbers[0], loss.summary(numbers[1:], weights_J)))

    def at(place: int, change: float) -> float:
        moved = numbers.tolist()
        moved[place] += change
        return formula(moved[0], moved[1:], weights)

    expected = [(at(place, 1e-6) - at(place, -1e-6)) / 2e-6 for place in range(4)]
    assert numbers.grad is not None
    assert numbers.grad.tolist() == pytest.approx(expected, abs=1e-7)


@settings(deadline=None)
@given(some_scores, st.none() | some_weights, st.booleans())
def test_a_slope_is_the_gradient_of_its_summary(
    rows: list[tuple[float, tuple[float, float, float]]],
    weights: tuple[float, float, float] | None,
    masked: bool,
) -> None:
    for loss, _ in WEIGHTED.values():
        negatives = torch.tensor([n for _, n in rows], dtype=torch.float64)
        if masked:
            negatives[:, 1] = torch.finfo(torch.float64).min
        weights_J = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        given_summary, slope = loss.slope(negatives.clone(), weights_J)
        summary = loss.summary(negatives.requires_grad_(), weights_J)
        (gradient,) = torch.autograd.grad(summary.sum(), negatives)
        torch.testing.assert_close(given_summary, summary.detach())
        torch.testing.assert_close(slope, gradient)
        assert not masked or not slope[:, 1].any()


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_row_that_competes_with_nothing_is_only_pulled(name: str) -> None:
    """Every negative is out: what is left is the positive's own part, and no NaN."""
    loss, formula = WEIGHTED[name]
    out = torch.full((1, 4), torch.finfo(torch.float32).min)
    positive = torch.tensor([0.25], requires_grad=True)
    summary, slope = loss.slope(out, None)
    torch.testing.assert_close(summary, loss.summary(out, None))
    assert torch.isfinite(slope).all()
    value = loss.row(positive, summary)
    assert value.item() == pytest.approx(formula(0.25, [-500.0], [1.0]), abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_negatives_cost_nothing_and_move_nothing(name: str) -> None:
    positive = torch.tensor([0.5, 1.0], requires_grad=True)
    negatives = torch.tensor([[-math.inf] * 2, [2.0, -math.inf]], requires_grad=True)
    loss = LOSSES[name](positive, negatives)
    torch.autograd.backward(loss.sum())
    assert loss[0].item() == 0
    assert positive.grad is not None and negatives.grad is not None
    assert positive.grad[0] == 0 and positive.grad[1] < 0
    assert negatives.grad[0].tolist() == [0, 0]
    assert negatives.grad[1, 0] > 0 and negatives.grad[1, 1] == 0


def test_a_masked_negative_is_as_good_as_none_to_softmax() -> None:
    one, masked = torch.tensor([[2.0]]), torch.tensor([[2.0, -math.inf]])
    positive = torch.tensor([1.0])
    torch.testing.assert_close(softmax_loss(positive, masked), softmax_loss(positive, one))
    torch.testing.assert_close(bpr_loss(positive, masked), bpr_loss(positive, one) / 2)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("margin", [5.0, 16.0, 40.0, 80.0])
def test_the_gradient_of_a_won_row_keeps_its_digits(name: str, margin: float) -> None:
    """The gradient is e^-margin and not the rounding of 1 - 1: Adagrad divides by its size."""
    positive = torch.tensor([margin], requires_grad=True)
    loss = LOSSES[name](positive, torch.tensor([[0.0]]))
    torch.autograd.backward(loss.sum())
    assert loss.item() == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-5)
    assert positive.grad is not None
    assert positive.grad.item() == pytest.approx(-1 / (1 + math.exp(margin)), rel=1e-5)
