"""Conventions of other systems: what they would report of the same lists, under the same names.

The field agrees on names and not on numbers: of one set of lists it reports a recall of .52 or .67.
Our own metrics are those of the convention `comparable`. The others are here so that a published
figure, or a figure of a system that is being replaced, can be met on its own terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from reclora.metrics.relevance import (
    Counts,
    Hits,
    Metric,
    PerUser,
    capped_recall,
    discounted_gain,
    ndcg,
    recall,
)

Report = Callable[[Hits, Counts, NDArray[np.bool_], int], float]
"""(hits_UK, num_relevant_U, has_list_U, k) -> the one number that is reported."""


@dataclass(frozen=True)
class Convention:
    """How a system reports."""

    name: str
    systems: str
    """Whose numbers these are."""
    says: str
    """What differs from `comparable`."""
    reports: Mapping[str, Report]
    """The system's name of a number -> how it comes about."""

    def of(
        self, hits_UK: Hits, num_relevant_U: Counts, has_list_U: NDArray[np.bool_], k: int
    ) -> dict[str, float]:
        """What the system would report.

        Args:
            hits_UK, num_relevant_U, k: as of every metric in `relevance`; users with nothing
                relevant are left out.
            has_list_U: whether the user got any list.

        Raises:
            ValueError: as the metrics do.
        """
        return {
            name: report(hits_UK, num_relevant_U, has_list_U, k)
            for name, report in self.reports.items()
        }


def _over_all(metric: Metric) -> Report:
    """The mean over users with something relevant; one without a list counts as zero."""
    return lambda hits_UK, num_relevant_U, has_list_U, k: _mean(metric(hits_UK, num_relevant_U, k))


def _over_lists(metric: Metric) -> Report:
    """The mean over users who got a list."""
    return lambda hits_UK, num_relevant_U, has_list_U, k: _mean(
        metric(hits_UK[has_list_U], num_relevant_U[has_list_U], k)
    )


def _mean(values: PerUser) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _ndcg_of_full_ideal(hits_UK: Hits, num_relevant_U: Counts, k: int) -> PerUser:
    """Its ideal has hits at all k places, also where fewer items are relevant."""
    return ndcg(hits_UK, np.maximum(num_relevant_U, k), k)


def _ndcg_of_flat_start(hits_UK: Hits, num_relevant_U: Counts, k: int) -> PerUser:
    """Its discount is 1 / max(log2(place), 1): places 1 and 2 weigh the same."""
    discount_k = 1.0 / np.maximum(np.log2(np.arange(1.0, k + 1.0)), 1.0)
    return discounted_gain(hits_UK, num_relevant_U, discount_k)


def _pooled_precision(
    hits_UK: Hits, num_relevant_U: Counts, has_list_U: NDArray[np.bool_], k: int
) -> float:
    """The hits of all users over the sum of min(k, |relevant|): who has more counts for more."""
    possible = np.minimum(k, num_relevant_U).sum()
    return float(hits_UK[:, :k].sum() / possible) if possible else float("nan")


CONVENTIONS: Mapping[str, Convention] = MappingProxyType(
    {
        convention.name: convention
        for convention in (
            Convention(
                "comparable",
                "RePlay, ir-measures, ranx (comparable), RecTools (achievable)",
                "users without a list count as zero; recall over all that is relevant",
                {"recall": _over_all(recall), "ndcg": _over_all(ndcg)},
            ),
            Convention(
                "rectools",
                "RecTools, default",
                "the ideal of NDCG has hits at all k places",
                {"recall": _over_all(recall), "ndcg": _over_all(_ndcg_of_full_ideal)},
            ),
            Convention(
                "lenskit",
                "LensKit, default",
                "recall over min(k, |relevant|); in NDCG places 1 and 2 weigh the same",
                {"recall": _over_all(capped_recall), "ndcg": _over_all(_ndcg_of_flat_start)},
            ),
            Convention(
                "mult-vae",
                "Mult-VAE and the papers that took over its code",
                "recall over min(k, |relevant|)",
                {"recall": _over_all(capped_recall), "ndcg": _over_all(ndcg)},
            ),
            Convention(
                "pytrec_eval",
                "pytrec_eval, Cornac",
                "users without a list are left out",
                {"recall": _over_lists(recall), "ndcg": _over_lists(ndcg)},
            ),
            Convention(
                "recommenders",
                "Microsoft recommenders",
                "recall over users with a list, NDCG over all: two sets of users",
                {"recall": _over_lists(recall), "ndcg": _over_all(ndcg)},
            ),
            Convention(
                "implicit",
                "implicit's ranking_metrics_at_k",
                "its precision is the hits of all users over the sum of min(k, |relevant|)",
                {"precision": _pooled_precision, "ndcg": _over_all(ndcg)},
            ),
        )
    }
)
"""By name."""
