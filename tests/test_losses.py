"""The objectives equal their formulas, also where a softmax has nothing left to tell apart."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.losses import LOSSES, bpr_loss, softmax_loss
from tests import reference

scores = st.floats(-20, 20, width=32)


@settings(deadline=None)
@given(st.lists(st.tuples(scores, st.tuples(scores, scores, scores)), min_size=1, max_size=5))
def test_losses_equal_plain_loops(rows: list[tuple[float, tuple[float, float, float]]]) -> None:
    positive = torch.tensor([p for p, _ in rows])
    negatives = torch.tensor([n for _, n in rows])
    for name, formula in (("softmax", reference.softmax_loss), ("bpr", reference.bpr_loss)):
        expected = torch.tensor([formula(p, n) for p, n in rows])
        torch.testing.assert_close(LOSSES[name](positive, negatives), expected)


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
