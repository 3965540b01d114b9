"""The laws of training: isolation, one pass = each alone, frozen base, recovery, determinism."""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.batches import Batch, segment_seeds, stratified_batches
from reclora.configs import FULL, AdapterConfig
from reclora.datasets.planted import PlantedConfig, PlantedWorld, plant
from reclora.evaluation import EvaluationConfig, RankingJudge, evaluate, hold_out
from reclora.interactions import IdMap, Interactions
from reclora.negatives import Sampler
from reclora.optim import RowwiseAdagrad
from reclora.training import HeldOutLoss, Training, TrainingConfig, TrainingError, _losses, train
from tests import reference
from tests.small_worlds import (
    ALL_KINDS,
    KINDS,
    SIZES,
    configs_of,
    fill,
    make_bank,
    make_base,
    make_log,
    numbers,
)

BASE = make_base()
LOG = make_log(BASE)
VALIDATION = LOG.select(np.arange(len(LOG)) % 3 == 0)
"""A part of the log itself, so that training helps; not of the segment of one row."""
SHORT = TrainingConfig(
    epochs=4,
    patience=2,
    batch_rows=16,
    num_negatives=20,
    rows_lr=0.1,
    bias_lr=0.2,
    lr_ratio=2.0,
    l2=0.01,
    shrinkage=0.3,
)


def trained(
    kind: str,
    log: Interactions = LOG,
    validation: Interactions | None = VALIDATION,
    config: TrainingConfig = SHORT,
    seed: int = 9,
) -> tuple[AdapterBank, Training]:
    bank = AdapterBank.for_log(BASE, log, configs_of(kind, log.segment_names), seed)
    judge = None if validation is None else HeldOutLoss(validation, config, seed)
    return bank, train(bank, log, config, judge=judge, seed=seed)


def largest_difference(left: AdapterBank, right: AdapterBank, segment: str) -> float:
    ours, theirs = left.adapter(segment).tensors, right.adapter(segment).tensors
    assert ours.keys() == theirs.keys()
    return max(
        (float((ours[n].double() - theirs[n].double()).abs().max()) for n in ours if len(ours[n])),
        default=0.0,
    )


def sha256_of(base: BaseModel) -> str:
    digest = hashlib.sha256()
    for table in (base.user_table, base.item_table, base.item_bias):
        digest.update(table.weight_ND.numpy().tobytes() + table.mean_D.numpy().tobytes())
    assert base.tower is not None
    for tensor in (*base.tower.weights, *base.tower.biases):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


# The laws.


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_isolation_of_the_segments_that_do_not_train(kind: str) -> None:
    """Other segments' numbers stay byte for byte."""
    trains = {"日本", "one row"}
    rows = np.isin(LOG.segment_rows, [list(SIZES).index(name) for name in trains])
    bank = make_bank(kind, BASE)
    before = {name: numbers(bank, name) for name in SIZES}
    train(bank, LOG.select(rows), SHORT, judge=None)
    for name in SIZES:
        assert (numbers(bank, name) == before[name]) == (name not in trains), name


@pytest.mark.parametrize("kind", ["rows", "full"])
def test_isolation_of_the_optimizers_state(kind: str) -> None:
    bank = AdapterBank.for_log(BASE, LOG, KINDS[kind])
    optimizer = RowwiseAdagrad(bank.parameters(), lr=0.1)
    ids, segments = torch.from_numpy(LOG.user_rows[:8]).view(1, -1), torch.tensor([0])
    items = torch.from_numpy(LOG.item_rows[:8]).view(1, -1)
    scores = (bank.users(ids, segments)[0] * bank.items(items, segments)[0]).sum()
    torch.autograd.backward(scores + bank.biases(items, segments).sum())
    optimizer.step()
    for name, delta in bank.deltas():
        for code in range(len(SIZES)):
            for parameter, part in delta.slices(code).items():
                total = optimizer.state[delta.get_parameter(parameter)]["sum"][part]
                if code != 0:
                    assert not total.any()
                elif name in ("item_bias", "item_table") and parameter in ("a", "d"):
                    touched = len(set(LOG.item_rows[:8].tolist()))
                    assert int((total > 0).sum()) == touched


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {}) for kind in ALL_KINDS),
        ("mixed", {"loss": "bpr"}),
        ("rows", {"row_dropout": 0.3}),
        ("ladder", {"row_dropout": 0.5}),
    ],
)
def test_one_pass_equals_each_alone(kind: str, changes: dict[str, Any]) -> None:
    """Equal but for the last bits: a product of one matrix and one of many round differently."""
    config = replace(SHORT, **changes)
    together, result = trained(kind, config=config)
    narrow, narrow_result = trained(kind, config=replace(config, step_rows=40))
    assert narrow_result.steps > result.steps
    assert narrow_result.best_epoch == result.best_epoch
    for name in SIZES:
        alone, alone_result = trained(kind, LOG.only(name), VALIDATION.only(name), config)
        assert alone_result.best_epoch[name] == result.best_epoch[name]
        assert largest_difference(together, alone, name) < 1e-5
        assert largest_difference(together, narrow, name) < 1e-5
        curve = result.curves[result.curves["segment"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone_result.curves, curve, atol=1e-5, check_dtype=False)
    fresh = AdapterBank.for_log(BASE, LOG, configs_of(kind, [*SIZES]), 9)
    assert largest_difference(together, fresh, "market 0") > 0.05


def test_one_pass_equals_each_alone_without_validation_and_with_weights() -> None:
    log = make_log(BASE, weighted=True)
    together, _ = trained("rows", log, None)
    for name in SIZES:
        alone, _ = trained("rows", log.only(name), None)
        assert largest_difference(together, alone, name) < 1e-5


@pytest.mark.parametrize("kind", ["rows", "full"])
def test_the_base_is_frozen(kind: str, tmp_path: Path) -> None:
    BASE.save(tmp_path / "base")
    files = {path: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    mapped = BaseModel.load(tmp_path / "base")
    for base in (BASE, mapped):
        before = sha256_of(base)
        bank = AdapterBank.for_log(base, LOG, KINDS[kind])
        train(bank, LOG, SHORT, judge=HeldOutLoss(VALIDATION, SHORT))
        bank.merged("日本")
        assert sha256_of(base) == before
        assert all(parameter.abs().max() > 0 for parameter in bank.parameters())
    mapped.verify()
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize("kind", ["rows", "full"])
def test_determinism_same_seed_same_bytes(kind: str) -> None:
    (first, result), (same, again), (other, _) = (trained(kind, seed=s) for s in (9, 9, 10))
    pd.testing.assert_frame_equal(result.curves, again.curves, check_exact=True)
    for name in SIZES:
        assert numbers(first, name) == numbers(same, name)
    assert numbers(first, "日本") != numbers(other, "日本")
    bank = AdapterBank.for_log(BASE, LOG, KINDS[kind], 9)
    train(bank, LOG, SHORT, judge=HeldOutLoss(VALIDATION, SHORT, 10), seed=10)
    assert numbers(first, "日本") != numbers(bank, "日本")


# Recovery: the base is the truth before the cut, and adapters have to find what shifted.


def planted(config: PlantedConfig) -> tuple[PlantedWorld, BaseModel, list[Interactions]]:
    """A world, its true base, and its adapt window cut 8 : 1 : 1 by time."""
    world = plant(config)
    chunks = list(world.chunks())
    users, items, times = (
        np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in ("user_rows", "item_rows", "timestamps")
    )
    base = BaseModel.of(
        IdMap(world.user_ids),
        IdMap(world.item_ids),
        torch.from_numpy(world.user_vectors),
        torch.from_numpy(world.item_vectors),
        torch.from_numpy(world.item_bias),
    )
    log = Interactions.from_arrays(
        users=base.users,
        items=base.items,
        segment_names=world.segment_names,
        segments=world.user_segment[users],
        user_rows=users,
        item_rows=items,
        timestamps=times,
    )
    cut = int(world.cut_time.timestamp() * 1e6)
    ends = [cut, *np.quantile(times[times >= cut], [0.8, 0.9]), math.inf]
    parts = [
        log.select((log.timestamps >= first) & (log.timestamps < last))
        for first, last in zip(ends, ends[1:], strict=False)
    ]
    return world, base, parts


def lifts(base: BaseModel, bank: AdapterBank, test: Interactions) -> dict[str, NDArray[np.float64]]:
    """NDCG@10 with the adapter minus that of the base, per segment, one number a user."""
    config = EvaluationConfig(ks=(10,), metrics=("ndcg",))
    # A user of the planted world may choose an item again: nothing counts as seen.
    held_out = hold_out(test, test.select(np.zeros(len(test), bool)), config)
    frozen = base.scorer()
    before, after = (
        evaluate(held_out, scorer_of, model="", run="", seed=0)
        for scorer_of in (lambda _: frozen, bank.scorer)
    )
    change = after["value"] - before["value"]
    return {str(name): part.to_numpy() for name, part in change.groupby(after["segment"])}


def largest_angle(rows: Tensor, others: Tensor) -> float:
    """The largest principal angle between two row spaces, in degrees."""
    bases = [torch.linalg.qr(each.double().T).Q for each in (rows, others)]
    cosines = torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1)
    return math.degrees(math.acos(float(cosines.min())))


def check_recovery(config: PlantedConfig, training: TrainingConfig, degrees: float) -> None:
    world, base, (log, validation, test) = planted(config)
    kinds = AdapterConfig(user_table="none", tower="none", rank=config.rank, alpha=config.rank)
    bank = AdapterBank.for_log(base, log, kinds)
    train(bank, log, training, judge=HeldOutLoss(validation, training))
    lift = lifts(base, bank, test)
    for name in world.shifted_segments:
        error = lift[name].std() / len(lift[name]) ** 0.5
        assert lift[name].mean() > 0.1 and lift[name].mean() > 5 * error, name
        found = bank.adapter(name).tensors["item_table.rows.b"]
        planted_rows = torch.from_numpy(world.segment_shift(name)[1])
        assert largest_angle(found, planted_rows) < degrees, name
    for name in world.unshifted_segments:
        error = lift[name].std() / len(lift[name]) ** 0.5
        assert lift[name].mean() >= -3 * error and lift[name].mean() > -0.03, name


def test_recovery_of_the_planted_shift() -> None:
    """Random planes of 8 dimensions are 37 degrees or more apart in 999 of 1000 cases."""
    config = PlantedConfig(
        num_users=600,
        num_items=200,
        dim=8,
        num_segments=5,
        num_base_interactions=100,
        num_interactions=40_000,
        bias_shift=0.5,
    )
    training = TrainingConfig(rows_lr=0.2, epochs=12, patience=2, num_negatives=32)
    check_recovery(config, training, degrees=12)


@pytest.mark.slow
def test_recovery_in_a_larger_world() -> None:
    config = PlantedConfig(
        num_users=4000, num_items=500, num_base_interactions=100, num_interactions=150_000
    )
    training = TrainingConfig(rows_lr=0.2, epochs=12, patience=2)
    check_recovery(config, training, degrees=12)


@torch.no_grad()
def divergence(truth: AdapterBank, bank: AdapterBank | BaseModel, segment: str) -> float:
    """KL of a softmax over all items from the planted one, the mean over all users."""
    users = torch.arange(len(truth.base.users))
    scorer = bank.scorer() if isinstance(bank, BaseModel) else bank.scorer(segment)
    planted, found = (
        each.scores(users).double().log_softmax(1) for each in (truth.scorer(segment), scorer)
    )
    return float((planted.exp() * (planted - found)).sum(1).mean())


@pytest.mark.parametrize(
    "config",
    [
        AdapterConfig("none", "map", "none", rank=2, alpha=2.0),
        AdapterConfig("none", "basis", "none", rank=4, alpha=4.0),
        AdapterConfig("none", "rows", "bias", rank=2, alpha=2.0),
        AdapterConfig("none", "scale + map + basis", "bias", rank=2, alpha=2.0),
        AdapterConfig("none", "rows", "none", rank=2, alpha=2.0, magnitude=True),
    ],
    ids=lambda config: f"{config.item_table}, {config.item_bias}",
)
def test_recovery_of_what_an_adapter_of_the_kind_planted(config: AdapterConfig) -> None:
    """A log drawn from a bank of random numbers: a fresh bank of the same kinds gets near it.

    Users take little each: what one has taken is no negative of theirs, and would be missed.
    """
    base = make_base(num_users=3000, hidden=())
    names, nothing = ("one", "other", "unshifted"), AdapterConfig("none", "none", "none", "none")
    touched = [torch.arange(3000)] * 3, [torch.arange(30)] * 3
    truth = fill(AdapterBank(base, names, *touched, [config, config, nothing], seed=1))
    with torch.no_grad():
        for _, delta in truth.deltas():
            for parameter in delta.parameters():
                parameter.mul_(2.5)
    rng = np.random.default_rng(0)
    users, segments = rng.integers(3000, size=9000), np.repeat(np.arange(3), 3000)
    scores = np.stack([truth.scorer(name).scores(torch.arange(3000)).numpy() for name in names])
    log = Interactions.from_arrays(
        users=base.users,
        items=base.items,
        segment_names=names,
        segments=segments,
        user_rows=users,
        item_rows=(scores[segments, users] + rng.gumbel(size=(9000, 30))).argmax(1),
        timestamps=np.arange(9000),
    )
    held_out = rng.random(len(log)) < 0.15
    training = TrainingConfig(
        rows_lr=0.2, bias_lr=0.2, batch_rows=128, num_negatives=128, epochs=10, patience=2
    )
    bank = AdapterBank(base, names, *touched, config)
    judge = HeldOutLoss(log.select(held_out), training)
    train(bank, log.select(~held_out), training, judge=judge)
    for name in names[:2]:
        before, after = divergence(truth, base, name), divergence(truth, bank, name)
        assert before > 0.1 and after < 0.15 * before, name
    assert divergence(truth, bank, "unshifted") < 0.02


# What a step is, and when training stops.


def own_items(log: Interactions, code: int, user: int) -> set[int]:
    """What a user has taken in a segment."""
    inside = slice(int(log.offsets[code]), int(log.offsets[code + 1]))
    return set(log.item_rows[inside][log.user_rows[inside] == user].tolist())


def corrected(batch: Batch, g: int) -> list[tuple[int, float]]:
    """The negatives of a segment, each with what is taken off its score."""
    rows_J, chance_J = batch.negative_GJ[g].tolist(), batch.log_chance_GJ[g].tolist()
    return list(zip(rows_J, chance_J, strict=True))


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_the_first_losses_equal_plain_loops(loss: str) -> None:
    """Before training: the base's own loss on validation rows, weighted, masked, by the formula."""
    base = make_base(num_users=9, num_items=7, dim=3, hidden=(4,))
    sizes = {"a": 9, "b": 3}
    log, held_out = make_log(base, sizes), make_log(base, sizes, seed=1, weighted=True)
    config = TrainingConfig(loss=loss, epochs=1, batch_rows=4, num_negatives=6)  # type: ignore[arg-type]
    bank = AdapterBank.for_log(base, log, KINDS["rows"])
    curves = train(bank, log, config, judge=HeldOutLoss(held_out, config, 4), seed=4).curves
    scores = base.scorer().scores(torch.arange(9)).tolist()
    formula = reference.softmax_loss if loss == "softmax" else reference.bpr_loss
    for code, name in enumerate(sizes):
        total = weights = 0.0
        for batch in stratified_batches(
            held_out,
            np.array([code]),
            seeds_S=segment_seeds(4, held_out),
            epoch=1 << 20,
            batch_rows=4,
            sampler=Sampler(held_out, 6, by_popularity=loss == "softmax"),
            segments_per_step=1,
        ):
            negatives = corrected(batch, 0)
            for user, item, weight in zip(
                batch.user_GB[0].tolist(),
                batch.item_GB[0].tolist(),
                batch.weight_GB[0].tolist(),
                strict=True,
            ):
                taken = own_items(held_out, code, user)
                others = [scores[user][j] - c if j not in taken else -1e9 for j, c in negatives]
                total += weight * formula(scores[user][item], others)
                weights += weight
        found = curves[(curves["segment"] == name) & (curves["epoch"] == 0)]
        assert found["score"].item() == pytest.approx(-total / weights, rel=1e-4)


@pytest.mark.parametrize("kind", ["ladder", "full"])
@pytest.mark.parametrize("below", [None, "rows"])
def test_a_steps_loss_and_penalty_equal_plain_loops(kind: str, below: str | None) -> None:
    """The penalty is of the change from the parent's vectors, or from the base's."""
    base = make_base(num_users=9, num_items=7, hidden=(4,))
    log = make_log(base, {"a": 9, "b": 3}, weighted=True)
    parent = None
    if below is not None:
        parent = fill(AdapterBank.for_log(base, log, KINDS[below])).adapter("a")
    bank = fill(AdapterBank.for_log(base, log, KINDS[kind], parent=parent), seed=5)
    frozen = base if parent is None else AdapterBank.of(base, [parent]).merged("a")
    config = TrainingConfig(batch_rows=4, num_negatives=6)
    seeds_S, penalty_S = segment_seeds(0, log), torch.tensor([0.5, 3.0])
    sampler = Sampler(log, 6, by_popularity=True)
    kwargs = {"epoch": 1, "batch_rows": 4, "sampler": sampler, "segments_per_step": 2}
    for batch in stratified_batches(log, np.arange(2), seeds_S=seeds_S, **kwargs):
        losses, objectives = _losses(bank, batch, config, penalty_S=penalty_S)
        for g, code in enumerate(batch.segments_G.tolist()):
            merged = bank.merged(bank.segment_names[code])
            scores = merged.scorer().scores(torch.arange(9)).tolist()

            def change(name: str, row: int, merged: BaseModel = merged) -> float:
                ours, theirs = (getattr(m, name).weight_ND[row].tolist() for m in (merged, frozen))
                return reference.squared_distance(ours, theirs)

            loss = penalty = 0.0
            negatives = corrected(batch, g)
            for b in range(int(batch.rows_G[g])):
                user, item = int(batch.user_GB[g, b]), int(batch.item_GB[g, b])
                share = float(batch.weight_GB[g, b]) / int(batch.rows_G[g])
                taken = own_items(log, code, user)
                others = [scores[user][j] - c if j not in taken else -1e9 for j, c in negatives]
                loss += share * reference.softmax_loss(scores[user][item], others)
                penalty += share * (change("user_table", user) + change("item_table", item))
            for item, _ in negatives:
                penalty += change("item_table", item) / len(negatives)
            assert losses[g].item() == pytest.approx(loss, rel=1e-4)
            objective = loss + float(penalty_S[code]) * penalty
            assert objectives[g].item() == pytest.approx(objective, rel=1e-4)


def test_shrinkage_is_l2_by_the_rows_of_a_segment() -> None:
    for name in ("market 0", "../up", "one row"):
        found, expected, other = (
            numbers(trained("rows", LOG.only(name), None, config)[0], name)
            for config in (
                replace(SHORT, l2=0.25, shrinkage=5.0),
                replace(SHORT, l2=0.25 + 5 / SIZES[name], shrinkage=0.0),
                replace(SHORT, l2=0.25, shrinkage=0.0),
            )
        )
        assert found == expected != other


def test_a_small_segment_stays_nearer_to_its_parent_than_a_large_one() -> None:
    log = make_log(BASE, {"large": 400, "small": 20})
    parent = make_bank("rows", BASE).adapter("日本")
    below = AdapterBank.of(BASE, [parent]).merged("日本").item_table.weight_ND
    far: dict[float, list[float]] = {}
    for shrinkage in (0.0, 20.0):
        bank = AdapterBank.for_log(BASE, log, KINDS["items"], parent=parent)
        train(bank, log, replace(SHORT, l2=0.0, shrinkage=shrinkage), judge=None)
        far[shrinkage] = [
            float((bank.merged(name).item_table.weight_ND - below).norm())
            for name in log.segment_names
        ]
    large, small = (shrunk / free for shrunk, free in zip(far[20.0], far[0.0], strict=True))
    assert small < 0.6 * large and large < 1


def test_each_step_drops_from_the_row_factors_anew_and_the_judge_drops_nothing() -> None:
    without, dropping = SHORT, replace(SHORT, row_dropout=0.5)
    free, _ = trained("rows", validation=None, config=without)
    dropped, _ = trained("rows", validation=None, config=dropping)
    again, _ = trained("rows", validation=None, config=dropping)
    assert numbers(dropped, "日本") == numbers(again, "日本") != numbers(free, "日本")
    judges = HeldOutLoss(VALIDATION, without), HeldOutLoss(VALIDATION, dropping)
    judged, judged_dropping = (judge(free, np.arange(2)) for judge in judges)
    assert np.array_equal(judged, judged_dropping)


def test_training_lowers_the_loss_it_minimises() -> None:
    _, result = trained("rows", validation=None, config=replace(SHORT, epochs=10))
    for name, curve in result.curves.groupby("segment"):
        assert curve["training_loss"].iloc[-1] < 0.8 * curve["training_loss"].iloc[0], name
    assert result.best_epoch == {name: 10 if size else 0 for name, size in SIZES.items()}


def test_a_log_without_any_rows_trains_nothing() -> None:
    nothing = LOG.select(np.zeros(len(LOG), bool))
    bank, result = trained("rows", nothing, VALIDATION)
    assert result.steps == 0 and set(result.best_epoch.values()) == {0}
    assert result.curves.columns.tolist() == [
        "segment",
        "epoch",
        "training_loss",
        "score",
    ]


def test_a_segment_without_a_delta_of_its_own_trains_nothing() -> None:
    """Beside others, and on a parent, where it is served by that."""
    nothing = AdapterConfig(user_table="none", item_table="none", item_bias="none", tower="none")
    configs = [nothing if name == "日本" else KINDS["rows"] for name in SIZES]
    bank = AdapterBank.for_log(BASE, LOG, configs, 9)
    judge = HeldOutLoss(VALIDATION, SHORT, 9)
    result = train(bank, LOG, SHORT, judge=judge, seed=9)
    assert result.curves.loc[result.curves["segment"] == "日本", "epoch"].tolist() == [0]
    assert result.best_epoch["日本"] == 0 and bank.adapter("日本").num_numbers == 0
    everyone, _ = trained("rows")
    assert largest_difference(bank, everyone, "../up") < 1e-5
    on_parent = AdapterBank.for_log(BASE, LOG, nothing, parent=everyone.adapter("market 0"))
    assert train(on_parent, LOG, SHORT, judge=judge).steps == 0
    served = on_parent.scorer("日本").scores(torch.arange(40))
    assert torch.equal(served, everyone.scorer("market 0").scores(torch.arange(40)))


def test_a_row_of_weight_two_counts_as_two_rows() -> None:
    # Draws by popularity count rows; uniform ones see none.
    config = replace(SHORT, loss="bpr", batch_rows=8, epochs=3, l2=0.0)
    parts = {"user_rows": [3, 4, 5], "item_rows": [1, 2, 3], "timestamps": [0, 1, 2]}

    def log(places: Sequence[int], weights: list[float] | None) -> Interactions:
        return Interactions.from_arrays(
            users=BASE.users,
            items=BASE.items,
            segment_names=("a",),
            segments=[0] * len(places),
            weights=weights,
            **{name: [values[p] for p in places] for name, values in parts.items()},
        )

    heavy, _ = trained("rows", log([0, 1, 2], [2.0, 1.0, 0.0]), None, config)
    twice, _ = trained("rows", log([0, 0, 1], None), None, config)
    light, _ = trained("rows", log([0, 1], None), None, config)
    found, expected, other = (
        bank.merged("a").user_table.weight_ND for bank in (heavy, twice, light)
    )
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(other, expected)


def test_a_weight_counts_against_the_whole_segment_and_not_its_step() -> None:
    """One row a step: a row of three times the other's weight has three times its share."""
    log = Interactions.from_arrays(
        users=BASE.users,
        items=BASE.items,
        segment_names=("a",),
        segments=[0, 0],
        user_rows=[3, 4],
        item_rows=[1, 2],
        timestamps=[0, 1],
        weights=[3.0, 1.0],
    )
    config = replace(SHORT, batch_rows=1)
    bank = AdapterBank.for_log(BASE, log, KINDS["rows"])
    sampler = Sampler(log, 5, by_popularity=True)
    kwargs = {"epoch": 1, "batch_rows": 1, "sampler": sampler, "segments_per_step": 1}
    seeds_S = segment_seeds(0, log)
    found = {}
    for rows in (log, replace(log, weights=None)):
        for batch in stratified_batches(rows, np.array([0]), seeds_S=seeds_S, **kwargs):
            loss_G, _ = _losses(bank, batch, config)
            found[rows.weights is None, int(batch.user_GB)] = loss_G.item()
    assert found[False, 3] == pytest.approx(1.5 * found[True, 3])
    assert found[False, 4] == pytest.approx(0.5 * found[True, 4])


def test_l2_keeps_vectors_near_the_base() -> None:
    sizes = []
    for l2 in (0.0, 1.0):
        bank, _ = trained("full", validation=None, config=replace(SHORT, l2=l2))
        change = bank.merged("日本").item_table.weight_ND - BASE.item_table.weight_ND
        sizes.append(float(change.norm()))
    assert sizes[1] < 0.5 * sizes[0]


def test_learning_rates_are_each_their_own() -> None:
    slow: dict[str, Any] = {"rows_lr": 1e-9, "bias_lr": 1e-9, "tower_lr": 1e-9}
    moved = {
        "rows_lr": ("user_table.rows.a", "item_table.rows.a"),
        "bias_lr": ("item_bias.bias.d",),
        "tower_lr": ("tower.0.weight.low_rank.b", "tower.1.weight.low_rank.b"),
    }
    for rate, names in moved.items():
        bank, _ = trained("rows", validation=None, config=replace(SHORT, **slow | {rate: 0.1}))
        tensors = bank.adapter("日本").tensors
        for name in [name for each in moved.values() for name in each]:
            assert (float(tensors[name].abs().max()) > 0.01) == (name in names)


def test_the_factor_that_starts_at_random_learns_slower_by_the_ratio() -> None:
    """One step from the same numbers: its change is divided, all others are the same."""
    log = LOG.only("one row")
    config = AdapterConfig(user_table="map + rows", item_table="scale + basis", rank=2)
    moved = {}
    for ratio in (1.0, 4.0):
        bank = fill(AdapterBank.for_log(BASE, log, config))
        before = bank.adapter("one row").tensors
        one_step = replace(SHORT, epochs=1, lr_ratio=ratio)
        train(bank, log, one_step, judge=None)
        after = bank.adapter("one row").tensors
        moved[ratio] = {name: after[name] - before[name] for name in before}
    random = {"user_table.map.b", "user_table.rows.b"} | {
        f"tower.{layer}.weight.low_rank.a" for layer in (0, 1)
    }
    assert random < moved[1.0].keys()
    for name, change in moved[1.0].items():
        if change.is_floating_point():
            assert change.any(), name
            expected = change / (4 if name in random else 1)
            torch.testing.assert_close(moved[4.0][name], expected, atol=1e-6, rtol=1e-3)


def test_progress_is_told_after_every_epoch() -> None:
    told: list[tuple[int, int]] = []
    bank = AdapterBank.for_log(BASE, LOG, KINDS["bias"])
    train(bank, LOG, SHORT, judge=None, progress=lambda *done: told.append(done))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_last_bias_does_not_drift() -> None:
    """It shifts all scores alike: its gradient is rounding alone, and it has none to train."""
    bank = AdapterBank.for_log(BASE, LOG, FULL)
    train(bank, LOG, SHORT, judge=None)
    merged, frozen = bank.merged("market 0").tower, BASE.tower
    assert merged is not None and frozen is not None
    assert torch.equal(merged.biases[-1], frozen.biases[-1])
    assert not torch.equal(merged.biases[0], frozen.biases[0])


# Errors.


def test_where_every_segment_diverges_it_is_an_error() -> None:
    config = replace(SHORT, rows_lr=1e30, loss="bpr")
    named = (
        r"no segment is left.*'market 0' \(and 3 more\): the loss is not finite in epoch 1, step 2"
    )
    with pytest.raises(TrainingError, match=named):
        trained("full", validation=None, config=config)


def test_a_poisoned_segment_is_quarantined_and_the_others_train_as_without_it() -> None:
    """One user's vector is so long that its segment's scores overflow; no other has that user."""
    of = {name: np.unique(LOG.only(name).user_rows) for name in LOG.segment_names}
    alone = np.setdiff1d(of["market 0"], np.concatenate([of[n] for n in of if n != "market 0"]))
    users = BASE.user_table.materialised()
    users[alone[0]] = 3e38
    tables = users, BASE.item_table.materialised(), BASE.item_bias.materialised().squeeze(1)
    base = BaseModel.of(BASE.users, BASE.items, *tables, BASE.tower)
    bank = AdapterBank.for_log(base, LOG, KINDS["bias"])
    done = train(bank, LOG, SHORT, judge=None)
    assert list(done.quarantined) == ["market 0"]
    assert re.search(r"the loss is not finite in epoch 1, step \d+", done.quarantined["market 0"])
    assert done.best_epoch["market 0"] == 0
    spoilt = bank.adapter("market 0").tensors
    assert all(not t.any() for t in spoilt.values() if t.is_floating_point())
    clean = AdapterBank.for_log(BASE, LOG, KINDS["bias"])
    expected = train(clean, LOG, SHORT, judge=None)
    for name in LOG.segment_names[1:]:
        assert done.best_epoch[name] == expected.best_epoch[name]
        for key, tensor in clean.adapter(name).tensors.items():
            assert torch.allclose(bank.adapter(name).tensors[key], tensor, rtol=0, atol=1e-5)


def test_numbers_spoilt_by_the_last_step_are_found() -> None:
    """One batch in all: its loss was finite, and no later loss sees what its step did."""
    log = LOG.only("one row")
    config = replace(SHORT, epochs=1, rows_lr=3e38, bias_lr=1e-9, tower_lr=1e-9)
    bank = AdapterBank.for_log(BASE, log, replace(FULL, tower="none"))
    with pytest.raises(TrainingError, match="'one row': user_table.d is not finite after epoch 1"):
        train(bank, log, config, judge=None)


@pytest.mark.parametrize("rate", [1e12, 1e30, 3e38])
def test_what_no_judge_could_rank_by_is_quarantined_before_it_is_asked(rate: float) -> None:
    """One step an epoch: no loss sees what it did before the judge's scores would overflow."""
    log = LOG.only("one row")
    others = LOG.only("market 0")
    others = others.in_segments(["one row"], np.zeros(len(others), np.int64))
    held_out = hold_out(others, log, EvaluationConfig())
    for kind in ("rows", "bias"):
        bank = AdapterBank.for_log(BASE, log, KINDS[kind])
        config = replace(SHORT, epochs=2, rows_lr=rate, bias_lr=rate)
        with pytest.raises(
            TrainingError, match=r"'one row'.* (beyond 1e\+08|finite) after epoch 1"
        ):
            train(bank, log, config, judge=RankingJudge(held_out))
        spoilt = bank.adapter("one row").tensors.values()
        assert not any(t.any() for t in spoilt if t.is_floating_point())


def test_what_does_not_fit_is_refused() -> None:
    bank = AdapterBank.for_log(BASE, LOG, KINDS["rows"])
    foreign = make_log(make_base(num_users=41))
    for log, judge in ((foreign, None), (LOG, HeldOutLoss(foreign, SHORT))):
        with pytest.raises(ValueError, match="not on the base's id maps"):
            train(bank, log, SHORT, judge=judge)
    with pytest.raises(ValueError, match="the log's segments are not the bank's"):
        train(bank, LOG.only("日本"), SHORT, judge=None)
    nothing = AdapterConfig(user_table="none", item_table="none", item_bias="none", tower="none")
    with pytest.raises(ValueError, match="the bank has no delta to train"):
        train(AdapterBank.for_log(BASE, LOG, nothing), LOG, SHORT, judge=None)


@pytest.mark.parametrize("kind", ["full", "map", "bias", "tower"])
def test_dropout_without_a_row_factor_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="row_dropout is 0.1, but no delta has a row factor"):
        trained(kind, config=replace(SHORT, row_dropout=0.1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", "hinge"),
        ("epochs", 0),
        ("patience", 0),
        ("batch_rows", 0),
        ("num_negatives", 0),
        ("step_rows", 0),
        ("rows_lr", 0.0),
        ("bias_lr", float("nan")),
        ("tower_lr", float("inf")),
        ("l2", -0.1),
        ("l2", float("nan")),
        ("shrinkage", -1.0),
        ("shrinkage", float("inf")),
        ("lr_ratio", 0.0),
        ("lr_ratio", float("nan")),
        ("row_dropout", 1.0),
        ("row_dropout", -0.1),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        TrainingConfig(**{name: value})  # type: ignore[arg-type]


def test_what_users_took_before_says_nothing_that_the_log_says_already() -> None:
    """And what it says beside that changes the numbers."""
    log, judged = make_log(BASE), make_log(BASE, seed=3)
    found = []
    for taken in (None, log, judged):
        bank = AdapterBank.for_log(BASE, log, KINDS["rows"])
        train(bank, log, SHORT, judge=None, taken=taken)
        found.append({name: p.detach().clone() for name, p in bank.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(torch.equal(found[0][name], found[2][name]) for name in found[0])
    other = make_log(make_base(num_users=3))
    with pytest.raises(ValueError, match="not on the base's id maps"):
        train(AdapterBank.for_log(BASE, log, KINDS["rows"]), log, SHORT, judge=None, taken=other)
