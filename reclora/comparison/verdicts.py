"""From differences to verdicts: how large, how sure among many, and how sure one could be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["better", "worse", "cannot tell"]

ROUNDING = 1e-12
"""Differences below it are of arithmetic: metrics are of the order of 1."""
POWER = 0.8
"""The chance with which a difference is to be found: Cohen's convention."""


def benjamini_hochberg(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """The q-value of each p-value: of the comparisons with q at most .05, about 5 % are false.

        q_(i) = min_{j >= i} p_(j) * m / j        over the m p-values in ascending order

    NaN stays NaN and is not counted.

    Source: Benjamini and Hochberg, "Controlling the false discovery rate", JRSS B 57(1), 1995,
    section 3.1.
    """
    q = np.full(len(p), np.nan)
    known = ~np.isnan(p)
    if known.any():
        # It takes most of a second to load, and who reads settings compares nothing.
        from scipy.stats import false_discovery_control

        q[known] = false_discovery_control(p[known], method="bh")
    return q


@dataclass(frozen=True)
class Effect:
    """How large a mean difference is, and how large a one these users could show."""

    users: int
    difference: float
    """The mean of d_u."""
    effect: float
    """difference / sd(d): Cohen's d_z; NaN where all differ alike or there is one user."""
    wins: int
    """Users with d_u > 0."""
    losses: int
    """Users with d_u < 0."""
    detectable: float
    """(z_{1 - a / 2} + z_{.8}) sd(d) / sqrt(U): the smallest true difference that so many users
    would show with probability .8."""
    users_needed: float
    """((z_{1 - a / 2} + z_{.8}) sd(d) / difference)^2: how many users would show a difference as
    large as the one seen; infinite where it is zero."""

    @classmethod
    def of(cls, differences_U: NDArray[np.float64], confidence: float) -> Effect:
        """The effect of users' differences.

        Source: Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988, chapter 2.
        """
        from scipy.special import ndtri

        users = len(differences_U)
        difference = float(differences_U.mean()) if users else np.nan
        deviation = float(differences_U.std(ddof=1)) if users > 1 else np.nan
        deviation = 0.0 if deviation < ROUNDING else deviation
        reach = float(ndtri((1 + confidence) / 2) + ndtri(POWER)) * deviation
        return cls(
            users=users,
            difference=difference,
            effect=difference / deviation if deviation > 0 else np.nan,
            wins=int((differences_U > 0).sum()),
            losses=int((differences_U < 0).sum()),
            detectable=reach / users**0.5 if users else np.nan,
            users_needed=(reach / difference) ** 2 if difference else np.inf,
        )

    def can_be_told(self, confidence: float) -> bool:
        """Whether a sign test could decide if all users who differ agreed: six at .95."""
        return 2.0 ** (1 - self.wins - self.losses) <= 1 - confidence


def verdict(effect: Effect, low: float, high: float, q: float, confidence: float) -> Verdict:
    """`better` or `worse` where the interval excludes zero and q is at most 1 - confidence, and
    users enough differ; else `cannot tell`.
    """
    if not effect.can_be_told(confidence) or not q <= 1 - confidence:
        return "cannot tell"
    return "better" if low > 0 else "worse" if high < 0 else "cannot tell"


def note(
    found: Verdict, effect: Effect, low: float, high: float, q: float, confidence: float
) -> str:
    """Why nothing can be told, in few words; empty where something can."""
    if found != "cannot tell":
        return ""
    if effect.users < 2:
        return "too few users"
    if not effect.can_be_told(confidence):
        return f"only {effect.wins + effect.losses} of {effect.users:,} users differ"
    if (low > 0 or high < 0) and not q <= 1 - confidence:
        return f"the interval excludes zero, but q = {q:.2g}"
    told = f"{effect.users:,} users show differences from {effect.detectable:.4f} on"
    if not np.isfinite(effect.users_needed) or effect.users_needed > 1e9:
        return told
    return f"{told}; for {abs(effect.difference):.4f} about {effect.users_needed:,.0f} are needed"
