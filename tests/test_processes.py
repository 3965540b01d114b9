"""Ranking that is divided among processes gives the same lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_worlds import make_bank, make_base, make_log
from torch import Tensor

from reclora.evaluation import EvaluationConfig, HeldOut, hold_out, processes, recommend
from reclora.ranking import Scorer
from reclora.scoring import ALL

BASE = make_base(num_users=400)
SIZES = {"large": 3000, "small": 40, "none": 0, "日本": 300}


def held() -> HeldOut:
    log = make_log(BASE, SIZES)
    order = np.random.default_rng(0).permutation(len(log))
    later, earlier = (log.select(np.sort(part)) for part in (order[:900], order[900:]))
    return hold_out(later, earlier, EvaluationConfig((5, 3), ("ndcg",)))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_lists_are_those_of_one_process(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    from reclora.evaluation import lists

    monkeypatch.setattr(lists, "LEAST_USERS", 10)
    bank = make_bank("rows", BASE)
    scorers = {name: bank.scorer(s) for name, s in zip(SIZES, bank.segment_names, strict=False)}
    held_out = held()
    alone = recommend(held_out, scorers.__getitem__, model="m")[""]
    shared = recommend(held_out, scorers.__getitem__, model="m", processes=count)[""]
    assert list(alone.segments) == list(shared.segments)
    for name, its in alone.segments.items():
        assert torch.equal(its.user_rows_U, shared.segments[name].user_rows_U)
        assert torch.equal(its.item_rows_UK, shared.segments[name].item_rows_UK)


class Broken:
    """A scorer that says NaN of one segment's users."""

    num_items = len(BASE.items)

    def scores(self, user_rows_B: Tensor, items: slice = ALL) -> Tensor:
        return torch.full((len(user_rows_B), self.num_items), torch.nan)[:, items]


def test_an_error_in_a_process_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    from reclora.evaluation import lists

    monkeypatch.setattr(lists, "LEAST_USERS", 10)
    frozen = BASE.scorer()

    def scorer_of(segment: str) -> Scorer:
        return Broken() if segment == "small" else frozen

    with pytest.raises(ValueError, match="'small'.*NaN"):
        recommend(held(), scorer_of, model="m", processes=2)


def test_a_killed_process_costs_only_time() -> None:
    import os
    import signal

    parent = os.getpid()
    held_out = held()
    frozen = BASE.scorer()

    def rank(segment: object) -> Tensor:
        if os.getpid() != parent and segment.name == "large":  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        return frozen.scores(segment.user_rows_U).topk(3).indices  # type: ignore[attr-defined]

    asked = [segment for segment in held_out.segments if segment.num_users]
    found = processes.rank_in_processes(asked, rank, 3, 2)
    for segment, lists in zip(asked, found, strict=True):
        assert torch.equal(lists, frozen.scores(segment.user_rows_U).topk(3).indices)
