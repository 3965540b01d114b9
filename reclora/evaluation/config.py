"""What is measured, over which candidates."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from reclora.metrics import METRICS

Candidates = Literal["catalogue", "segment", "given"]


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and over which candidates.

    Raises:
        ValueError: a name is unknown (near ones are offered), `ks` or `metrics` is no tuple of its
            kind, is empty or repeats itself, or the first stage keeps fewer items than the longest
            list has.
    """

    ks: tuple[int, ...] = (10, 20)
    """List lengths, each at least 1."""
    metrics: tuple[str, ...] = ("ndcg", "recall")
    """Names in `reclora.metrics.METRICS`; the first, at the first k, is the headline."""
    candidates: Candidates = "catalogue"
    """The items ranked: all; those with an interaction of the segment in the seen log; or `given`,
    a list of the caller's."""
    retrieve: int = 0
    """Two stages: so many items are retrieved by the dot product, and the tower ranks them again;
    0: the tower ranks every candidate."""

    def __post_init__(self) -> None:
        _check_tuple("ks", self.ks, Integral, "whole numbers, such as (10, 20)")
        _check_tuple("metrics", self.metrics, str, 'names, such as ("ndcg", "recall")')
        if not self.ks or len(set(self.ks)) < len(self.ks) or min(self.ks) < 1:
            raise ValueError(f"ks must be different whole numbers from 1, got {self.ks}")
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics must be different names, got {self.metrics}")
        for metric in self.metrics:
            check_name("name in metrics", metric, METRICS)
        check_name("candidates", self.candidates, get_args(Candidates))
        if self.retrieve < 0 or 0 < self.retrieve < max(self.ks):
            raise ValueError(
                f"retrieve must be 0 or at least the longest list, {max(self.ks)}, "
                f"got {self.retrieve}"
            )

    @property
    def headline(self) -> str:
        """The first metric at the first k, such as `ndcg@10`."""
        return f"{self.metrics[0]}@{self.ks[0]}"


def _check_tuple(name: str, values: object, kind: type, expected: str) -> None:
    """Refuse what is no tuple or list of a kind (ValueError): 10 for (10,), a word for its list."""
    if not isinstance(values, tuple | list) or not all(isinstance(each, kind) for each in values):
        raise ValueError(f"{name} must be a tuple of {expected}, got {values!r}")


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Refuse an unknown name, offering near ones, whatever their case (ValueError)."""
    names = list(known)
    if name in names:
        return
    folded = {each.casefold(): each for each in names}
    near = difflib.get_close_matches(name.casefold(), folded, n=3)
    near = [name.casefold()] if name.casefold() in folded else near
    hint = f"did you mean {' or '.join(repr(folded[each]) for each in near)}?"
    if not near:
        more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
        hint = f"expected one of {', '.join(map(repr, names[:10]))}{more}"
    raise ValueError(f"unknown {what} {name!r}; {hint}")
