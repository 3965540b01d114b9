"""The training objectives, one formula each.

Each takes the scores of one positive item and of J negative items per row and returns one loss per
row; the mean over a segment's rows and the sum over segments are the loop's business.

Softmax, CCL and BCE are *separable*: their negatives enter by one number, which rows that share
their negatives share as well. BPR compares each row with each negative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Separable:
    """loss(s+, s-) = row(s+, summary(s-)).

    Negatives are of shape `(..., J)`; -inf, or the least finite number, takes one out. Weights of
    shape `(J,)` say what each counts for; None is one each.
    """

    summary: Callable[[Tensor, Tensor | None], Tensor]
    """(negatives, weights) -> their summary, shape `(...)`."""
    slope: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
    """(negatives, weights) -> the summary, and its gradient with respect to the negatives, of their
    shape; not for autograd. At least one of a row's negatives is finite."""
    row: Callable[[Tensor, Tensor], Tensor]
    """(scores of the positive items, summaries) -> the loss per row, all of shape `(...)`."""
    is_sum: bool
    """Whether the summary adds its negatives up, so that negatives drawn from a catalogue must
    weigh as much as the whole of it; else it is a mean over them."""

    def __call__(self, positive: Tensor, negatives: Tensor) -> Tensor:
        """The loss per row, shape `(...)`.

        Args:
            positive: scores of the positive items, shape `(...)`.
            negatives: scores of the negative items, shape `(..., J)`.
        """
        return self.row(positive, self.summary(negatives, None))


def _log_sum(negatives: Tensor, weights: Tensor | None) -> Tensor:
    # Where every negative is out, the gradient of logsumexp at -inf alone would be NaN.
    finite = negatives.clamp(min=torch.finfo(negatives.dtype).min)
    return torch.logsumexp(finite if weights is None else finite + weights.log(), -1)


def _log_sum_slope(negatives: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    scores = negatives if weights is None else negatives + weights.log()
    share = torch.softmax(scores, -1)
    # The highest share is at least 1 / J, so that nothing is lost in its logarithm.
    return scores.amax(-1) - share.amax(-1).log(), share


def _softmax_row(positive: Tensor, log_sum: Tensor) -> Tensor:
    return F.softplus(log_sum - positive)


softmax_loss = Separable(_log_sum, _log_sum_slope, _softmax_row, is_sum=True)
"""Sampled softmax: -log( e^s+ / (e^s+ + sum_j e^s-_j) ) = log(1 + e^(logsumexp_j(s-_j) - s+)).

The second form keeps its digits, and those of its gradient, where the loss is near zero: the first
takes the difference of two equal numbers there, and Adagrad would make steps of its rounding. The
summary is logsumexp_j(s-_j + log weight_j). Negatives drawn uniformly need no log-Q correction: it
is the same constant for every item and cancels.

Returns the loss per row, at least 0.

Source: Jean et al., "On Using Very Large Target Vocabulary for Neural Machine Translation",
ACL 2015, section 3.
"""


def ccl_loss(margin: float, negative_weight: float) -> Separable:
    """Cosine contrastive: (1 - s+) + (w / J) sum_j max(0, s-_j - m), for scores that are cosines.

    Args:
        margin: m, below which a negative costs nothing.
        negative_weight: w of the negatives against the positive.

    Source: Mao et al., "SimpleX: A Simple and Strong Baseline for Collaborative Filtering",
    CIKM 2021, equation 1.
    """

    def cost(negatives: Tensor) -> Tensor:
        return F.relu(negatives - margin)

    def slope(negatives: Tensor) -> Tensor:
        return (negatives > margin).to(negatives.dtype)

    return _of_mean(cost, slope, lambda positive: 1 - positive, negative_weight)


def bce_loss(negative_weight: float) -> Separable:
    """Binary cross-entropy: -log sigmoid(s+) - (w / J) sum_j log(1 - sigmoid(s-_j)).

    Args:
        negative_weight: w of the negatives against the positive.

    Source: He et al., "Neural Collaborative Filtering", WWW 2017, equation 7.
    """
    return _of_mean(F.softplus, torch.sigmoid, lambda s: F.softplus(-s), negative_weight)


def _of_mean(
    cost: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    positive_cost: Callable[[Tensor], Tensor],
    weight: float,
) -> Separable:
    """positive_cost(s+) + (weight / J) sum_j cost(s-_j); `slope` is the derivative of `cost`."""

    def mean(costs: Tensor, weights: Tensor | None) -> Tensor:
        return weight * (costs.mean(-1) if weights is None else costs @ weights / len(weights))

    def summary_and_slope(negatives: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        share: Tensor | float = 1.0 if weights is None else weights
        slopes = slope(negatives).mul_(share * (weight / negatives.shape[-1]))
        return mean(cost(negatives), weights), slopes

    return Separable(
        lambda negatives, weights: mean(cost(negatives), weights),
        summary_and_slope,
        lambda positive, summary: positive_cost(positive) + summary,
        is_sum=False,
    )


def bpr_loss(positive: Tensor, negatives: Tensor, weights: Tensor | None = None) -> Tensor:
    """Bayesian personalised ranking: mean over the J negatives of -log sigmoid(s+ - s-_j).

    Args:
        positive: scores of the positive items, shape `(...)`.
        negatives: scores of the negative items, shape `(..., J)`; one at -inf costs nothing.
        weights: what each negative counts for in the mean, shape `(J,)`; one each if None.

    Returns:
        The loss per row, shape `(...)`, at least 0.

    Source: Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009,
    section 4.1.
    """
    costs = F.softplus(negatives - positive.unsqueeze(-1))
    return costs.mean(-1) if weights is None else costs @ weights / len(weights)


LOSSES: dict[str, Loss] = {"softmax": softmax_loss, "bpr": bpr_loss}
"""What adapters train by: objectives of a row's scores as they are."""
