"""This file is the course of a factorisation, whatever its loss: what each epoch was worth, which
one is kept, when to stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from reclora.base import BaseModel
from reclora.factorisation.config import FactorisationConfig
from reclora.tables import BaseError

Judge = Callable[[BaseModel], float]
"""How good a base model is: higher is better."""
Progress = Callable[[int, int], None]
"""Told (epochs done, epochs at most)."""


class FactorisationError(RuntimeError):
    """The numbers of a factorisation are not finite; says in which epoch, and what to change."""


@dataclass(frozen=True)
class Epoch:
    """What the tables have come to after a pass over the log.

    Attributes:
        training_loss: the mean over the rows, as it went.
        tables: makes what a base model has: user table, item table and item bias, to keep.
    """

    training_loss: float
    tables: Callable[[], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Factorisation:
    """What a factorisation gave.

    Attributes:
        base: the base model of `best_epoch`, without a tower.
        best_epoch: the epoch that the judge found best; the last one without a judge.
        curve: epoch (from 1), training_loss, score (what the judge said; NaN where not asked).
        seconds: CPU time of all threads together, without the judge's.
    """

    base: BaseModel
    best_epoch: int
    curve: pd.DataFrame
    seconds: float


class Course:
    """Epochs as they come, until the last one or until they get no better.

    Args:
        last_epoch: the epoch to stop after at the latest.
        base_of: the base model of an epoch.
    """

    def __init__(
        self,
        config: FactorisationConfig,
        last_epoch: int,
        base_of: Callable[[Epoch], BaseModel],
        judge: Judge | None,
    ) -> None:
        self._config, self._last_epoch = config, last_epoch
        self._base_of, self._judge = base_of, judge
        self._rows: list[tuple[int, float, float]] = []
        self._best: tuple[float, int, BaseModel] | None = None
        self._worse, self._judging = 0, 0.0
        """Judgements since the best one; CPU time of all of them."""

    def run(self, epochs: Iterable[Epoch], progress: Progress | None) -> Factorisation:
        """Take the epochs down one by one, and keep the best.

        Raises:
            FactorisationError: a loss or a table is not finite.
            ValueError: the judge said NaN.
        """
        began = time.process_time()
        for number, epoch in enumerate(epochs, 1):
            self._take_down(number, epoch)
            if progress is not None:
                progress(number, self._last_epoch)
            if number == self._last_epoch or self._worse == self._config.patience:
                break
        assert self._best is not None, "the last epoch is always kept or judged"
        _, best_epoch, base = self._best
        curve = pd.DataFrame(self._rows, columns=["epoch", "training_loss", "score"])
        seconds = time.process_time() - began - self._judging
        return Factorisation(base, best_epoch, curve, seconds)

    def _take_down(self, number: int, epoch: Epoch) -> None:
        if not math.isfinite(epoch.training_loss):
            raise _not_finite(f"the loss is {epoch.training_loss}", number)
        is_last = number == self._last_epoch
        score = math.nan
        if is_last or (self._judge is not None and number % self._config.judge_every == 0):
            try:
                base = self._base_of(epoch)
            except BaseError as error:
                raise _not_finite(str(error), number) from error
            if self._judge is not None:
                score = self._judged(number, base)
            if self._best is None or score > self._best[0]:
                self._best, self._worse = (score, number, base), 0
            else:
                self._worse += 1
        self._rows.append((number, epoch.training_loss, score))

    def _judged(self, number: int, base: BaseModel) -> float:
        assert self._judge is not None
        began = time.process_time()
        score = float(self._judge(base))
        self._judging += time.process_time() - began
        if math.isnan(score):
            raise ValueError(
                f"the judge said NaN of epoch {number}: it has nothing to judge by; give it "
                "held-out rows, or leave it out"
            )
        return score


def _not_finite(what: str, number: int) -> FactorisationError:
    return FactorisationError(
        f"{what} in epoch {number}: lower lr and bias_lr, or raise temperature or l2"
    )
