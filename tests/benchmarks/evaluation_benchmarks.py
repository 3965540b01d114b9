"""Figures of offline evaluation: ranking, metrics, the bootstrap.

One thread, process-CPU time. Each measurement is a process of its own (`alone`).
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from . import measuring, ranking_ways
from .engine_worlds import alone
from .harness import Figure, measures
from .ranking_ways import USERS, K

PEERS: Final = {
    "torch in blocks": ranking_ways.torch_blocked,
    f"implicit {version('implicit')}": ranking_ways.implicit,
    f"faiss {version('faiss-cpu')}, flat": ranking_ways.faiss_flat,
    f"RecTools {version('rectools')}": ranking_ways.rectools,
}


@measures("rank_20k_vs_best_peer", "rank_share_of_sgemm_20k")
def rank_20k() -> list[Figure]:
    """Exact top 100 with a seen filter of 4,000 users and 20,000 items."""
    return _rank(20_000, "20k")


@measures("rank_100k_vs_best_peer", "rank_share_of_sgemm_100k")
def rank_100k() -> list[Figure]:
    """The same of 100,000 items."""
    return _rank(100_000, "100k")


def _rank(num_items: int, size: str) -> list[Figure]:
    """Users a CPU-second beside the fastest peer of this run, and beside the product alone."""
    ours = USERS / alone(ranking_ways.ours, num_items)
    product = USERS / alone(ranking_ways.product_alone, num_items)
    peers = {name: USERS / alone(way, num_items) for name, way in PEERS.items()}
    best = max(peers, key=peers.__getitem__)
    print(f"{num_items:,} items, users/CPU-s:", {n: round(v) for n, v in peers.items()})
    return [
        Figure(f"rank_{size}_vs_best_peer", ours, "users/CPU-s", ">= 1.0", best, peers[best]),
        Figure(
            f"rank_share_of_sgemm_{size}",
            ours,
            "users/CPU-s",
            ">= 0",
            "the product alone",
            product,
        ),
    ]


@measures("rank_extra_memory_mb")
def memory() -> Figure:
    """What ranking 4,000 users among 100,000 items adds to the peak, less the lists themselves."""
    lists = USERS * K * (8 + 4)
    extra = alone(ranking_ways.extra_memory, 100_000) - lists
    return Figure("rank_extra_memory_mb", extra / 1e6, "MB", "<= 32")


@measures("metrics_us_per_user")
def metrics() -> Figure:
    """Recall and NDCG at 10 and 20 of 100,000 users, structures included."""
    ours = alone(measuring.our_metrics, 100_000)
    peer = alone(measuring.rectools_metrics, 100_000)
    print(f"metrics, CPU-us a user: RecTools {version('rectools')} {peer:.1f}")
    return Figure("metrics_us_per_user", ours, "CPU-us", "<= 2")


@measures("bootstrap_20000x1000_cpu_s")
def bootstrap() -> Figure:
    """1,000 samples of 20,000 users."""
    ours = alone(measuring.our_bootstrap, 20_000)
    print(
        f"bootstrap, CPU-s: SciPy {version('scipy')} {alone(measuring.scipy_bootstrap, 20_000):.2f}"
    )
    return Figure("bootstrap_20000x1000_cpu_s", ours, "CPU-s", "<= 0.05")
