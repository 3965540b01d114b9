"""Ranking piece by piece: in processes, some of which are killed, and kept on the disk."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_worlds import make_bank, make_base, make_log
from torch import Tensor

from reclora.evaluation import (
    EvaluationConfig,
    HeldOut,
    HeldOutSegment,
    KeptLists,
    hold_out,
    pieces,
    recommend,
)
from reclora.evaluation.lists import ScorerOf
from reclora.ranking import Scorer
from reclora.scoring import ALL

BASE = make_base(num_users=400)
SIZES = {"large": 3000, "small": 40, "none": 0, "日本": 300}


def held() -> HeldOut:
    log = make_log(BASE, SIZES)
    order = np.random.default_rng(0).permutation(len(log))
    later, earlier = (log.select(np.sort(part)) for part in (order[:900], order[900:]))
    return hold_out(later, earlier, EvaluationConfig((5, 3), ("ndcg",)))


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pieces of few users."""
    from reclora.evaluation import lists

    monkeypatch.setattr(lists, "PIECE_USERS", 30)
    monkeypatch.setattr(pieces, "PIECE_USERS", 30)
    monkeypatch.setattr(pieces, "LEAST_USERS", 10)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_lists_are_those_of_one_process(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    make_small(monkeypatch)
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
    make_small(monkeypatch)
    frozen = BASE.scorer()

    def scorer_of(segment: str) -> Scorer:
        return Broken() if segment == "small" else frozen

    with pytest.raises(ValueError, match="'small'.*NaN"):
        recommend(held(), scorer_of, model="m", processes=2)


def test_a_killed_process_costs_only_time(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    parent = os.getpid()
    held_out = held()
    frozen = BASE.scorer()

    def rank(piece: HeldOutSegment) -> Tensor:
        if os.getpid() != parent and piece.name == "large":
            os.kill(os.getpid(), signal.SIGKILL)
        return frozen.scores(piece.user_rows_U).topk(3).indices

    asked = [segment for segment in held_out.segments if segment.num_users]
    found = pieces.rank_pieces(asked, rank, 3, processes=2)
    for segment, lists in zip(asked, found, strict=True):
        assert torch.equal(lists, frozen.scores(segment.user_rows_U).topk(3).indices)


def counted(asked: list[str]) -> ScorerOf:
    """The frozen base's scorers, of which it is written down who asked for one."""
    frozen = BASE.scorer()
    return lambda segment: asked.append(segment) or frozen  # type: ignore[func-returns-value]


@pytest.mark.parametrize("count", [1, 2])
def test_what_was_kept_is_not_ranked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int
) -> None:
    make_small(monkeypatch)
    held_out, asked, kept = held(), list[str](), KeptLists(tmp_path / "kept", "base")
    first = recommend(held_out, counted(asked), model="m", processes=count, kept=kept)[""]
    files = sorted(kept.folder.iterdir())
    assert len(files) > 3
    # What a kill leaves, and a disk: some files are missing, one is cut, one is of other bytes.
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-9])
    files[2].write_bytes(b"PAR1")
    asked.clear()
    again = recommend(held_out, counted(asked), model="m", kept=kept)[""]
    assert 0 < len(asked) <= 3
    for name, its in first.segments.items():
        assert torch.equal(its.item_rows_UK, again.segments[name].item_rows_UK)
    asked.clear()
    recommend(held_out, counted(asked), model="m", kept=kept)
    assert not asked
    recommend(held_out, counted(asked), model="m", kept=KeptLists(kept.folder, "another"))
    assert asked


def test_both_stages_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_small(monkeypatch)
    held_out = held()
    held_out = replace(held_out, config=replace(held_out.config, retrieve=20))
    base = make_base(num_users=400, hidden=(4,))
    kept, asked = KeptLists(tmp_path, "m"), list[str]()
    first = recommend(held_out, lambda segment: base.scorer(), model="m", processes=2, kept=kept)
    alone = recommend(held_out, lambda segment: base.scorer(), model="m")
    again = recommend(held_out, counted(asked), model="m", kept=kept)
    assert set(first) == {"", "retrieved"} and not asked
    for stage, lists in alone.items():
        for name, its in lists.segments.items():
            for other in (first, again):
                assert torch.equal(its.item_rows_UK, other[stage].segments[name].item_rows_UK)


def test_progress_counts_users(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    told, held_out = list[tuple[int, int]](), held()
    recommend(held_out, counted([]), model="m", progress=lambda *n: told.append(n))
    assert told == sorted(told) and told[-1] == (held_out.num_users, held_out.num_users)
    assert len(told) > 3


def test_a_disk_that_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_small(monkeypatch)
    (tmp_path / "file").touch()
    for count in (1, 2):
        with pytest.raises(OSError, match="file"):
            kept = KeptLists(tmp_path / "file" / "below", "m")
            recommend(held(), counted([]), model="m", processes=count, kept=kept)
