"""This file is how a log is factorised: the settings, and their ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

LossName = Literal["softmax", "ccl", "bpr", "bce", "ials"]
Similarity = Literal["cosine", "dot"]


@dataclass(frozen=True)
class FactorisationConfig:
    """How a log is factorised; the defaults are the strongest that were found on gowalla.

    `ials` reads `embedding_dim`, `epochs`, `judge_every`, `patience`, `l2`, `l2_exponent`,
    `unobserved_weight` and `init_std`; the other losses read all but `l2_exponent` and
    `unobserved_weight`.

    Raises:
        ValueError: a number out of its range, named with the range.
    """

    loss: LossName = "softmax"
    """The objective: one of `reclora.losses`, or the closed form `ials`."""
    similarity: Similarity = "cosine"
    """The score: cos(u, v) / temperature + b, or u . v + b; of `ials` u . v."""
    temperature: float = 0.1
    """What cosines are divided by; positive."""
    num_negatives: int | None = None
    """J, negatives of a step, common to its users; at least 1. Not set, every item is
    taken: it costs most and gives most. `bpr` compares each row with each negative, and needs a
    number. Of `bce` also 0: the declined rows alone are its negatives."""
    batch_users: int = 256
    """Users of a step, with all their rows; at least 1."""
    embedding_dim: int = 64
    """D, the length of a row; at least 1."""
    epochs: int = 60
    """Passes over the log at the most, of `ials` alternations; at least 1."""
    judge_every: int = 5
    """Epochs from one judgement to the next: one ranks every user, and may take as long as an
    epoch; at least 1. The last epoch is always judged."""
    patience: int = 3
    """It stops after so many judgements without a better one; at least 1."""
    lr: float = 0.01
    """Learning rate of the tables at the first step; positive."""
    bias_lr: float = 0.001
    """Learning rate of the item bias at the first step, in the units of the scores that the loss
    sees; 0 leaves the bias at zero. What it moves in all follows rate x steps: with larger batches
    take a larger one."""
    l2: float = 0.0
    """Half of it weighs the mean squared length of the rows used, as they are before they are made
    cosines; 0 or more. Of `ials`: lambda, which must be positive, such as .005."""
    user_weight: float = 0.0
    """a: a row of a user of n rows weighs 1 / n^a; 0 counts rows alike, 1 users; 0 to 1."""
    margin: float = 0.6
    """Of `ccl`: the cosine below which a negative costs nothing; finite."""
    negative_weight: float | None = None
    """Of `ccl` and `bce`: the weight of the negatives' mean against a positive, and of a declined
    row against one; positive. Not set, it is 200 for `ccl`, which wants less the denser a
    log is, and 1 for `bce`."""
    init_std: float = 0.1
    """Standard deviation of the tables' numbers before the first step; positive."""
    unobserved_weight: float = 0.01
    """Of `ials`: alpha, what a pair weighs that is not in the log; positive."""
    l2_exponent: float = 1.0
    """Of `ials`: nu, how `l2` grows with what is known of a row; 0 or more. 0 is plain `l2`."""

    def __post_init__(self) -> None:
        for name, words in (("loss", get_args(LossName)), ("similarity", get_args(Similarity))):
            if getattr(self, name) not in words:
                raise ValueError(
                    f"{name} must be one of {', '.join(words)}, got {getattr(self, name)!r}"
                )
        for name in ("batch_users", "embedding_dim", "epochs", "judge_every", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("temperature", "lr", "negative_weight", "init_std", "unobserved_weight"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        for name in ("bias_lr", "l2", "l2_exponent"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.user_weight <= 1:
            raise ValueError(f"user_weight must be from 0 to 1, got {self.user_weight}")
        if not math.isfinite(self.margin):
            raise ValueError(f"margin must be a finite number, got {self.margin}")
        self._check_together()

    def _check_together(self) -> None:
        fewest = 0 if self.loss == "bce" else 1
        if self.num_negatives is not None and self.num_negatives < fewest:
            raise ValueError(
                f"num_negatives must be at least {fewest}, got {self.num_negatives}: leave it out "
                "for every item; 0 needs loss = 'bce' with declined rows"
            )
        if self.loss == "bpr" and self.num_negatives is None:
            raise ValueError(
                "bpr compares each row with each negative: give num_negatives, such as 256"
            )
        if self.loss == "ials" and self.l2 == 0:
            raise ValueError("ials solves by l2 > 0: give l2, such as .005")

    @property
    def score_scale(self) -> float:
        """What u . v is multiplied by in a score: 1 / temperature for cosines, else 1."""
        return 1 / self.temperature if self.similarity == "cosine" else 1.0

    @property
    def loss_scale(self) -> float:
        """The same in the loss: `ccl` sees cosines as they are, since its margin is one."""
        return 1.0 if self.loss == "ccl" else self.score_scale
