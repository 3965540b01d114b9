"""Early stopping: a mask per segment, and each segment's best numbers, whoever else goes on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from reclora.bank import AdapterBank
from reclora.early_stopping import EarlyStopping
from tests.small_worlds import KINDS, SIZES, fill, make_log, numbers
from tests.test_training import (
    BASE,
    LOG,
    SHORT,
    VALIDATION,
    largest_difference,
    trained,
)

SURPRISE = make_log(BASE, {name: size // 3 for name, size in SIZES.items()}, seed=1)
"""Other random rows, so that training stops helping soon."""
CODES = {name: code for code, name in enumerate(SIZES)}


def scored(keeper: EarlyStopping, epoch: int, scores: dict[str, float]) -> None:
    """Tell the scores of the segments that are active; all others are 0."""
    loss_S = np.arange(len(SIZES), dtype=np.float64)
    active = [name for name in SIZES if keeper.active[CODES[name]]]
    keeper.judge(epoch, loss_S, np.array([scores.get(name, 0.0) for name in active]))


def still_trains(keeper: EarlyStopping) -> set[str]:
    return {name for name in SIZES if keeper.active[CODES[name]]}


@pytest.mark.parametrize("kind", ["rows", "full", "bias", "tower"])
def test_each_segment_keeps_its_best_numbers(kind: str) -> None:
    bank = AdapterBank.for_log(BASE, LOG, KINDS[kind])
    keeper = EarlyStopping(bank, LOG, patience=2)
    curves = {"market 0": [0, 1, 2, 3], "日本": [0, 3, 2, 1], "../up": [3, 2, 1, 0]}
    seen: list[dict[str, dict[str, bytes]]] = []
    for epoch in range(4):
        if epoch:
            fill(bank, seed=epoch)
        seen.append({name: numbers(bank, name) for name in SIZES})
        scored(keeper, epoch, {name: float(c[epoch]) for name, c in curves.items()})
        if epoch == 2:
            assert still_trains(keeper) == {"market 0", "日本"}
    assert still_trains(keeper) == {"market 0"}
    keeper.restore()
    best = {"market 0": 3, "日本": 1, "../up": 0}
    for name, epoch in best.items():
        assert keeper.best_epochs()[name] == epoch
        assert numbers(bank, name) == seen[epoch][name], name


def test_who_is_as_good_as_before_is_not_better() -> None:
    keeper = EarlyStopping(AdapterBank.for_log(BASE, LOG, KINDS["bias"]), LOG, patience=1)
    scored(keeper, 0, {})
    scored(keeper, 1, {"日本": 1e-9})
    assert still_trains(keeper) == {"日本"}
    assert keeper.best_epochs()["日本"] == 1 and keeper.best_epochs()["market 0"] == 0


def test_who_cannot_be_judged_stops_at_once_and_is_not_moved() -> None:
    bank = AdapterBank.for_log(BASE, LOG, KINDS["rows"])
    before = numbers(bank, "日本")
    keeper = EarlyStopping(bank, LOG, patience=9)
    scored(keeper, 0, {"日本": float("nan")})
    assert still_trains(keeper) == {"market 0", "../up", "one row"}
    fill(bank)
    scored(keeper, 1, {"market 0": 1.0})
    keeper.restore()
    assert numbers(bank, "日本") == before and keeper.best_epochs()["日本"] == 0


def test_without_a_judge_the_last_epoch_is_the_best() -> None:
    bank = fill(AdapterBank.for_log(BASE, LOG, KINDS["rows"]))
    keeper = EarlyStopping(bank, LOG, patience=1)
    loss_S: NDArray[np.float64] = np.linspace(0, 1, len(SIZES))
    for epoch in (1, 2, 3):
        keeper.note(epoch, loss_S)
    held = {name: numbers(bank, name) for name in SIZES}
    keeper.restore()
    assert {name: numbers(bank, name) for name in SIZES} == held
    assert keeper.best_epochs() == {name: 3 if size else 0 for name, size in SIZES.items()}
    curves = keeper.curves()
    assert len(curves) == 3 * sum(size > 0 for size in SIZES.values())
    assert curves["score"].isna().all()
    of_last = curves.loc[curves["segment"] == "one row", "training_loss"]
    assert of_last.tolist() == [1.0] * 3


def test_restoring_leaves_no_trace_in_the_kept_numbers() -> None:
    """What is kept is a copy: training on does not change it."""
    bank = AdapterBank.for_log(BASE, LOG, KINDS["rows"])
    keeper = EarlyStopping(bank, LOG, patience=9)
    fill(bank, seed=5)
    held = numbers(bank, "market 0")
    scored(keeper, 1, {name: 1.0 for name in SIZES})
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.add_(1.0)
    keeper.restore()
    assert numbers(bank, "market 0") == held


# In training: the bank that comes out.


def test_early_stopping_is_a_mask_per_segment() -> None:
    """Each segment keeps its own best epoch; who stops has no more rows in the curves."""
    config = replace(SHORT, epochs=30, patience=2, bias_lr=0.05)
    bank, result = trained("bias", LOG, SURPRISE, config)
    curves = result.curves
    stops = curves.groupby("segment")["epoch"].max()
    assert stops.nunique() > 1
    for name, curve in curves.groupby("segment"):
        if curve["score"].isna().all():
            continue
        scores = curve.set_index("epoch")["score"]
        assert result.best_epoch[str(name)] == scores.idxmax()
        assert stops[name] == min(30, result.best_epoch[str(name)] + 2)
    for name in SIZES:
        only, until = LOG.only(name), result.best_epoch[name]
        if until == 0:
            fresh = AdapterBank.for_log(BASE, only, KINDS["bias"], 9)
            assert numbers(bank, name) == numbers(fresh, name)
        else:
            best, _ = trained("bias", only, None, replace(config, epochs=until))
            assert largest_difference(bank, best, name) < 1e-5


def test_who_has_nothing_to_train_or_judge_stays_at_the_base() -> None:
    """No rows, no validation rows, rows of no weight: the untouched base, and no error."""
    weights = np.where(LOG.segment_rows == list(SIZES).index("日本"), 0, 1).astype(np.float32)
    log = replace(LOG, weights=weights)
    judged = VALIDATION.select(VALIDATION.segment_rows != list(SIZES).index("../up"))
    bank, result = trained("rows", log, judged)
    stay = {"日本", "../up", "no rows", "one row"}
    assert {name for name, epoch in result.best_epoch.items() if epoch == 0} == stay
    assert not set(result.curves.loc[result.curves["epoch"] > 0, "segment"]) & stay
    fresh = AdapterBank.for_log(BASE, LOG, KINDS["rows"], 9)
    for name in stay:
        assert numbers(bank, name) == numbers(fresh, name)
    assert numbers(bank, "market 0") != numbers(fresh, "market 0")
