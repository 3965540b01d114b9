"""This file is what one step minimises, over all rows of U users and their negatives.

    mean_ui w_ui loss(s_ui, s_u-) + (l2 / 2) (mean_u |u|^2 + mean_i |v_i|^2)

The first mean is over the step's rows, the others over the rows of the tables that it uses. Where
rows carry labels y, a declined one (y = 0) is a negative of its own, and the first mean is that of

    w_ui ( -y log sigmoid(s_ui) - c (1 - y) log(1 - sigmoid(s_ui)) ),    c = negative_weight

to whose positive rows the mean over other negatives is added, where there are some.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reclora.factorisation.config import FactorisationConfig
from reclora.factorisation.directions import directed
from reclora.factorisation.negatives import Cells, Negatives
from reclora.factorisation.summaries import Summaries
from reclora.losses import Separable, bce_loss, bpr_loss, ccl_loss, softmax_loss


@dataclass(frozen=True)
class Tables:
    """What is trained: rows as they are before they are made cosines, and the item bias in units of
    what the loss sees.
    """

    user_ND: Tensor
    item_ND: Tensor
    bias_N: Tensor


@dataclass(frozen=True)
class Step:
    """U users with their B rows, and what these compete with.

    Attributes:
        user_U: user rows.
        owner_B: positions in `user_U`.
        item_B: item rows.
        weight_B: weights, of mean one over the log.
        drawn: the negatives; None for every item in its order.
        own: (owner, column) of the users' own items among the negatives.
        num_declined: so many of the B rows, the last ones, were declined; the others are positive.
    """

    user_U: Tensor
    owner_B: Tensor
    item_B: Tensor
    weight_B: Tensor
    drawn: Negatives | None
    own: Cells
    num_declined: int = 0


Scores = tuple[Tensor, Tensor, Tensor]
"""What scores are made of: users' rows, U x D, negatives' rows, J x D, and biases, J."""


class Objective:
    """The objective of a config, as a function of tables and step."""

    def __init__(self, config: FactorisationConfig) -> None:
        self._config = config
        separable = _separable(config)
        self._losses: Callable[[Tensor, Scores, Step], Tensor] = (
            _bpr if separable is None else _Separated(separable)
        )

    def __call__(self, tables: Tables, step: Step) -> tuple[Tensor, Tensor]:
        """The mean loss of the rows, and that with the squared lengths: what to minimise."""
        users_UD = tables.user_ND.index_select(0, step.user_U)
        u_UD = directed(users_UD, self._config) * self._config.loss_scale
        if step.drawn is None:
            items_ND, bias_J = tables.item_ND, tables.bias_N
            v_JD = directed(items_ND, self._config)
            v_BD = v_JD.index_select(0, step.item_B)
        else:
            used = torch.cat([step.item_B, step.drawn.rows_J])
            items_ND = tables.item_ND.index_select(0, used)
            bias_J = tables.bias_N.index_select(0, step.drawn.rows_J)
            v_BD, v_JD = directed(items_ND, self._config).tensor_split([len(step.item_B)])
        bias_B = tables.bias_N.index_select(0, step.item_B)
        score_B = (u_UD.index_select(0, step.owner_B) * v_BD).sum(1) + bias_B
        loss_B = self._losses(score_B, (u_UD, v_JD, bias_J), step)
        loss = (step.weight_B * loss_B).mean()
        if not self._config.l2:
            return loss, loss
        lengths = sum(rows.square().sum(1).mean() for rows in (users_UD, items_ND))
        return loss, loss + self._config.l2 / 2 * lengths


class _Separated:
    """The losses of the rows; the summary of the negatives is made once a user."""

    def __init__(self, loss: Separable) -> None:
        self._loss, self._summaries = loss, Summaries(loss)

    def __call__(self, score_B: Tensor, scores: Scores, step: Step) -> Tensor:
        if not step.num_declined:
            return self._of_positives(score_B, step.owner_B, scores, step)
        num_positive = len(score_B) - step.num_declined
        positive_P, declined_C = score_B.tensor_split([num_positive])
        loss_P = self._of_positives(positive_P, step.owner_B[:num_positive], scores, step)
        # Of one negative the mean is its cost.
        return torch.cat([loss_P, self._loss.summary(declined_C.unsqueeze(1), None)])

    def _of_positives(
        self, positive_P: Tensor, owner_P: Tensor, scores: Scores, step: Step
    ) -> Tensor:
        if step.drawn is not None and len(step.drawn.rows_J) == 0:
            return self._loss.row(positive_P, torch.zeros_like(positive_P))
        weights_J = None if step.drawn is None else step.drawn.weights(as_sum=self._loss.is_sum)
        summary_U = self._summaries(*scores, step.own, weights_J)
        return self._loss.row(positive_P, summary_U.index_select(0, owner_P))


def _bpr(positive_B: Tensor, scores: Scores, step: Step) -> Tensor:
    u_UD, v_JD, bias_J = scores
    scores_UJ = torch.addmm(bias_J, u_UD, v_JD.T)
    scores_UJ[step.own] = -torch.inf
    weights_J = None if step.drawn is None else step.drawn.weights(as_sum=False)
    return bpr_loss(positive_B, scores_UJ.index_select(0, step.owner_B), weights_J)


def _separable(config: FactorisationConfig) -> Separable | None:
    """None where the loss compares each row with each negative."""
    if config.loss == "softmax":
        return softmax_loss
    if config.loss == "ccl":
        return ccl_loss(config.margin, config.negative_weight or 200.0)
    if config.loss == "bce":
        return bce_loss(config.negative_weight or 1.0)
    assert config.loss == "bpr", "ials has no steps"
    return None
