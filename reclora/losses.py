"""The training objectives, one formula each.

Each takes the scores of one positive item and of J negative items per row and returns one loss per
row; the mean over a segment's rows and the sum over segments are the loop's business.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


def softmax_loss(positive: Tensor, negatives: Tensor) -> Tensor:
    """Sampled softmax: -log( e^s+ / (e^s+ + sum_j e^s-_j) ) = log(1 + e^(logsumexp_j(s-_j) - s+)).

    The second form keeps its digits, and those of its gradient, where the loss is near zero: the
    first takes the difference of two equal numbers there, and Adagrad would make steps of its
    rounding. Negatives drawn uniformly need no log-Q correction: it is the same constant for every
    item and cancels.

    Args:
        positive: scores of the positive items, shape `(...)`.
        negatives: scores of the negative items, shape `(..., J)`; -inf takes a negative out.

    Returns:
        The loss per row, shape `(...)`, at least 0.

    Source: Jean et al., "On Using Very Large Target Vocabulary for Neural Machine Translation",
    ACL 2015, section 3.
    """
    # Where every negative is out, the gradient of logsumexp at -inf alone would be NaN.
    finite = negatives.clamp(min=torch.finfo(negatives.dtype).min)
    return F.softplus(torch.logsumexp(finite, -1) - positive)


def bpr_loss(positive: Tensor, negatives: Tensor) -> Tensor:
    """Bayesian personalised ranking: mean over the J negatives of -log sigmoid(s+ - s-_j).

    Args and returns as `softmax_loss`; a negative at -inf costs nothing.

    Source: Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009,
    section 4.1.
    """
    return F.softplus(negatives - positive.unsqueeze(-1)).mean(-1)


LOSSES: dict[str, Loss] = {"softmax": softmax_loss, "bpr": bpr_loss}
