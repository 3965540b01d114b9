"""A factorisation minimises its formula, finds a planted world, and keeps its word on odd logs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reclora.base import BaseModel
from reclora.counted import segment_seed
from reclora.factorisation import FactorisationConfig, FactorisationError, factorise
from reclora.factorisation.descent import Steps
from reclora.factorisation.ials import alternate
from reclora.factorisation.negatives import Negatives, Sampler
from reclora.factorisation.objective import Objective, Step, Tables
from reclora.factorisation.positives import Positives
from reclora.factorisation.summaries import Summaries
from reclora.interactions import IdMap, Interactions
from reclora.losses import softmax_loss
from tests import reference

Formula = Callable[[float, Sequence[float], Sequence[float]], float]

SMALL: dict[str, Any] = {"embedding_dim": 3, "epochs": 2, "batch_users": 2, "judge_every": 1}
CONFIGS = {
    "softmax": FactorisationConfig(**SMALL),
    "dot": FactorisationConfig(similarity="dot", l2=0.3, **SMALL),
    "ccl": FactorisationConfig(loss="ccl", margin=0.1, negative_weight=2.0, **SMALL),
    "bce": FactorisationConfig(loss="bce", negative_weight=3.0, temperature=0.5, **SMALL),
    "ccl as it is": FactorisationConfig(loss="ccl", **SMALL),
    "bce as it is": FactorisationConfig(loss="bce", similarity="dot", **SMALL),
    "bpr": FactorisationConfig(loss="bpr", num_negatives=5, l2=0.1, **SMALL),
    "drawn": FactorisationConfig(num_negatives=7, **SMALL),
    "drawn ccl": FactorisationConfig(
        loss="ccl", margin=0.1, negative_weight=2.0, num_negatives=4, **SMALL
    ),
    "ials": FactorisationConfig(loss="ials", l2=0.05, unobserved_weight=0.2, **SMALL),
}
"""One config of each loss, and more."""
DESCENDING = [name for name, config in CONFIGS.items() if config.loss != "ials"]
LABELLED = {
    "alone": FactorisationConfig(loss="bce", num_negatives=0, negative_weight=2.0, **SMALL),
    "alone dot": FactorisationConfig(
        loss="bce", num_negatives=0, similarity="dot", l2=0.2, user_weight=0.5, **SMALL
    ),
    "and every item": FactorisationConfig(loss="bce", negative_weight=3.0, l2=0.1, **SMALL),
    "and drawn": FactorisationConfig(loss="bce", num_negatives=5, l2=0.1, **SMALL),
}
"""Configs that take declined rows."""


def log_of(
    pairs: Sequence[tuple[int, int]],
    num_users: int = 5,
    num_items: int = 6,
    weights: Sequence[float] | None = None,
    segments: Sequence[int] | None = None,
) -> Interactions:
    return Interactions.from_arrays(
        users=IdMap([f"u{row}" for row in range(num_users)]),
        items=IdMap([f"i{row}" for row in range(num_items)]),
        segment_names=("one", "other"),
        segments=[0] * len(pairs) if segments is None else segments,
        user_rows=np.array([user for user, _ in pairs], np.int64),
        item_rows=np.array([item for _, item in pairs], np.int64),
        timestamps=np.arange(len(pairs)),
        weights=weights,
    )


PAIRS = [(0, 1), (0, 4), (1, 0), (2, 1), (2, 2), (2, 5), (4, 4)]
LOG = log_of(PAIRS)
"""User row 3 and item row 3 have no interaction."""


def stream(seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array([segment_seed(seed, "a test")], np.uint64)


def scores_of(base: BaseModel) -> Tensor:
    return base.scorer().scores(torch.arange(len(base.users)))


# What a step minimises.


def formula_of(config: FactorisationConfig) -> Formula:
    if config.loss == "softmax":
        return reference.weighted_softmax_loss
    if config.loss == "bpr":
        return reference.weighted_bpr_loss
    w = config.negative_weight or {"ccl": 200.0, "bce": 1.0}[config.loss]
    if config.loss == "bce":
        return lambda s, negatives, weights: reference.bce_loss(s, negatives, weights, w)
    m = config.margin
    return lambda s, negatives, weights: reference.ccl_loss(s, negatives, weights, m, w)


def slow_objective(config: FactorisationConfig, tables: Tables, step: Step) -> float:
    """The objective by plain loops."""
    users, items = tables.user_ND.tolist(), tables.item_ND.tolist()
    bias: list[float] = tables.bias_N.tolist()
    num_items = len(bias)
    rows = list(range(num_items)) if step.drawn is None else step.drawn.rows_J.tolist()
    labelled = list(zip(step.owner_B.tolist(), step.item_B.tolist(), strict=True))
    pairs = labelled[: len(labelled) - step.num_declined]

    def score(user: int, item: int) -> float:
        if config.similarity == "dot":
            return reference.score(users[user], items[item], bias[item], [])
        cosine: float = reference.cosine(users[user], items[item])
        return (cosine if config.loss == "ccl" else cosine / config.temperature) + bias[item]

    total = 0.0
    for at, (owner, item) in enumerate(labelled):
        user, weight = int(step.user_U[owner]), float(step.weight_B[at]) / len(labelled)
        chance = 1 / (1 + math.exp(-score(user, item)))
        if at >= len(pairs):
            total -= weight * (config.negative_weight or 1.0) * math.log(1 - chance)
            continue
        if not rows:
            total -= weight * math.log(chance)
            continue
        negatives, weights = [], []
        for place, row in enumerate(rows):
            counts = 1.0
            if step.drawn is not None:
                q = float(step.drawn.q_J[place])
                counts = 1 / (len(rows) * q if config.loss == "softmax" else num_items * q)
            negatives.append(score(user, row))
            weights.append(0.0 if (owner, row) in pairs else counts)
        total += weight * formula_of(config)(score(user, item), negatives, weights)
    used = [users[int(user)] for user in step.user_U]
    total += config.l2 / 2 * sum(reference.length(row) ** 2 for row in used) / len(used)
    used = items if step.drawn is None else [items[i] for i in [*step.item_B.tolist(), *rows]]
    return total + config.l2 / 2 * sum(reference.length(row) ** 2 for row in used) / len(used)


def a_step(config: FactorisationConfig) -> Step:
    """Of users 2 and 0, with weights; what is drawn holds own items, and one item twice."""
    owner_B, item_B = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1, 2, 5, 1, 4])
    weight_B = torch.tensor([0.5, 1.0, 2.0, 0.7, 0.8], dtype=torch.float64)
    drawn = None
    if config.num_negatives is not None:
        rows_J = torch.tensor([0, 1, 2, 3, 3])
        drawn = Negatives(rows_J, torch.tensor([0.1, 0.3, 0.1, 0.2, 0.2]).double(), 6)
    own = (owner_B, item_B) if drawn is None else drawn.cells(owner_B, item_B)
    return Step(torch.tensor([2, 0]), owner_B, item_B, weight_B, drawn, own)


def a_labelled_step(config: FactorisationConfig) -> Step:
    """The same with rows that the two users declined; some of what is drawn was declined, too."""
    step = a_step(config)
    if config.num_negatives == 0:
        none = torch.tensor([], dtype=torch.int64)
        step = replace(step, drawn=Negatives(none, none.double(), 6), own=(none, none))
    return replace(
        step,
        owner_B=torch.cat([step.owner_B, torch.tensor([0, 0, 1])]),
        item_B=torch.cat([step.item_B, torch.tensor([3, 0, 3])]),
        weight_B=torch.cat([step.weight_B, torch.tensor([0.3, 1.4, 1.1]).double()]),
        num_declined=3,
    )


def some_tables(dim: int = 3) -> Tables:
    generator = torch.Generator().manual_seed(7)
    shapes = (5, dim), (6, dim), (6,)
    return Tables(*(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes))


@pytest.mark.parametrize("name", [*DESCENDING, *LABELLED])
def test_the_objective_and_its_gradient_are_those_of_plain_loops(name: str) -> None:
    config, tables = (CONFIGS | LABELLED)[name], some_tables()
    step = a_labelled_step(config) if name in LABELLED else a_step(config)
    for table in (tables.user_ND, tables.item_ND, tables.bias_N):
        table.requires_grad_()
    loss, minimised = Objective(config)(tables, step)
    assert minimised.item() == pytest.approx(slow_objective(config, tables, step), rel=1e-9)
    without = slow_objective(replace(config, l2=0.0), tables, step)
    assert loss.item() == pytest.approx(without, rel=1e-9)
    torch.autograd.backward(minimised)
    for table in (tables.user_ND, tables.item_ND, tables.bias_N):
        assert table.grad is not None
        flat, gradient = table.detach().view(-1), table.grad.view(-1)
        for place in range(len(flat)):
            before, sides = float(flat[place]), []
            for change in (1e-6, -1e-6):
                flat[place] = before + change
                sides.append(slow_objective(config, tables, step))
            flat[place] = before
            assert float(gradient[place]) == pytest.approx(
                (sides[0] - sides[1]) / 2e-6, rel=1e-5, abs=1e-7
            )


@pytest.mark.parametrize("tile, block", [(1, 1), (4, 7), (1000, 1 << 20)])
def test_tiles_and_blocks_change_nothing(
    tile: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, step = some_tables(), a_step(CONFIGS["softmax"])
    u_UD, v_JD, bias_J = (
        t.requires_grad_() for t in (tables.user_ND, tables.item_ND, tables.bias_N)
    )
    plain_UJ = u_UD @ v_JD.T + bias_J
    hidden = torch.zeros(5, 6, dtype=torch.bool)
    hidden[step.own] = True
    expected = torch.logsumexp(plain_UJ.masked_fill(hidden, -torch.inf), 1)
    pull = torch.arange(5).double()
    gradients = torch.autograd.grad(expected, (u_UD, v_JD, bias_J), pull)
    monkeypatch.setattr("reclora.factorisation.summaries.TILE_COLUMNS", tile)
    monkeypatch.setattr("reclora.factorisation.summaries.BLOCK_CELLS", block)
    summaries = Summaries(softmax_loss)
    for _ in range(2):
        found = summaries(u_UD, v_JD, bias_J, step.own, None)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, (u_UD, v_JD, bias_J), pull), gradients
        )


def test_own_items_are_never_among_the_negatives() -> None:
    """A user is not pushed from an own item, whatever its score."""
    tables, step = some_tables(), a_step(CONFIGS["softmax"])
    u_UD, bias_J = tables.user_ND[step.user_U], tables.bias_N.requires_grad_()
    for user in (0, 1):
        own = set(step.item_B[step.owner_B == user].tolist())
        summary_U = Summaries(softmax_loss)(u_UD, tables.item_ND, bias_J, step.own, None)
        (gradient,) = torch.autograd.grad(summary_U[user], bias_J)
        assert {row for row in range(6) if gradient[row] == 0} == own


# What is drawn.


def test_a_sum_and_a_mean_over_what_is_drawn_are_expected_to_be_those_of_the_catalogue() -> None:
    sampler = Sampler(Positives.of(LOG), 4, stream())
    scores_N = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.5, -0.5])
    sums, means = [], []
    for step in range(20_000):
        drawn = sampler.draw(1 + step % 3, step)
        values_J = scores_N[drawn.rows_J].exp()
        sums.append(float(drawn.weights(as_sum=True) @ values_J))
        means.append(float(drawn.weights(as_sum=False) @ values_J) / 4)
    for found, expected in ((sums, scores_N.exp().sum()), (means, scores_N.exp().mean())):
        error = np.std(found) / math.sqrt(len(found))
        assert abs(np.mean(found) - float(expected)) < 4 * error


def test_half_is_drawn_by_popularity() -> None:
    pairs = [(user, 0) for user in range(5)] + [(0, 1), (1, 1), (2, 1)]
    sampler = Sampler(Positives.of(log_of(pairs, num_items=4)), 1000, stream())
    drawn = torch.cat([sampler.draw(1, step).rows_J for step in range(50)])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    q = [(5 / 8 + 1 / 4) / 2, (3 / 8 + 1 / 4) / 2, 1 / 8, 1 / 8]
    assert shares.tolist() == pytest.approx(q, abs=0.01)
    seen = {tuple(sampler.draw(*at).rows_J.tolist()) for at in ((1, 0), (1, 1), (2, 0), (1, 0))}
    assert len(seen) == 3
    once = sampler.draw(1, 0)
    assert dict(zip(once.rows_J.tolist(), once.q_J.tolist(), strict=True)) == pytest.approx(
        dict(enumerate(q))
    )


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9), min_size=1))
def test_cells_are_where_an_own_item_was_drawn(drawn: list[int], own: list[int]) -> None:
    rows_J = torch.tensor(sorted(drawn))
    owner_B = torch.arange(len(own)) % 3
    negatives = Negatives(rows_J, torch.ones(len(drawn)), 10)
    owners, columns = negatives.cells(owner_B, torch.tensor(own))
    found = sorted(zip(owners.tolist(), columns.tolist(), strict=True))
    expected = [
        (int(owner), column)
        for owner, item in zip(owner_B, own, strict=True)
        for column, row in enumerate(rows_J.tolist())
        if row == item
    ]
    assert found == sorted(expected)


def test_an_epoch_takes_every_pair_once_and_users_in_an_order_of_its_own() -> None:
    pairs, _ = planted()
    positives = Positives.of(log_of(pairs, 120, 80))
    steps = Steps(positives, FactorisationConfig(batch_users=50), stream())
    orders = []
    for epoch in (1, 2):
        found = list(steps.of(epoch))
        assert [len(step.user_U) for step in found] == [50, 50, 20] and steps.per_epoch == 3
        taken = [
            pair
            for step in found
            for pair in zip(step.user_U[step.owner_B].tolist(), step.item_B.tolist(), strict=True)
        ]
        assert sorted(taken) == sorted(pairs)
        orders.append(torch.cat([step.user_U for step in found]).tolist())
    assert orders[0] != orders[1] != sorted(orders[1]) and orders[0] != sorted(orders[0])


# A whole factorisation.


@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 2.0, 1.0, 4.0, 0.5, 0.0]])
@pytest.mark.parametrize("user_weight", [0.0, 0.5, 1.0])
def test_the_training_loss_is_the_formula_over_the_bases_scores(
    user_weight: float, weights: list[float] | None
) -> None:
    """At a rate of next to nothing the base is what the loss was taken of."""
    config = FactorisationConfig(
        embedding_dim=3, epochs=1, batch_users=2, lr=1e-9, bias_lr=1e-9, user_weight=user_weight
    )
    made = factorise(log_of(PAIRS, weights=weights), config, seed=3)
    scores = scores_of(made.base).tolist()
    total = counted = 0.0
    for (user, item), weight in zip(PAIRS, weights or [1.0] * len(PAIRS), strict=True):
        own = [i for u, i in PAIRS if u == user]
        others = [s for i, s in enumerate(scores[user]) if i not in own]
        share = weight / len(own) ** user_weight
        total += share * reference.softmax_loss(scores[user][item], others)
        counted += share
    assert made.curve.training_loss.item() == pytest.approx(total / counted, rel=1e-4)


@pytest.mark.parametrize("name", ["softmax", "ccl", "bce"])
def test_a_cosine_base_scores_cosines_over_temperature_plus_bias(name: str) -> None:
    config = CONFIGS[name]
    base = factorise(LOG, config, seed=0).base
    users, items = base.user_table.weight_ND, base.item_table.weight_ND
    trained = [0, 1, 2, 4]
    torch.testing.assert_close(items.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(users[trained].norm(dim=1), torch.full((4,), 1 / config.temperature))
    cosines = torch.nn.functional.cosine_similarity(users.unsqueeze(1), items, dim=2)
    bias = base.item_bias.weight_ND.squeeze(1)
    assert bias.abs().min() > 0
    expected = cosines / config.temperature + bias
    torch.testing.assert_close(scores_of(base)[trained], expected[trained])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_user_without_rows_gets_the_mean_of_the_others(name: str) -> None:
    base = factorise(LOG, CONFIGS[name], seed=0).base
    users = base.user_table.weight_ND
    torch.testing.assert_close(users[3], users[[0, 1, 2, 4]].mean(0))


@pytest.mark.parametrize("name", CONFIGS)
def test_segments_repetitions_and_order_change_nothing(name: str) -> None:
    plain = factorise(LOG, CONFIGS[name], seed=0)
    twice = [*PAIRS[::-1], PAIRS[2], PAIRS[2]]
    other = factorise(log_of(twice, segments=[0, 1] * 4 + [1]), CONFIGS[name], seed=0)
    assert other.base.fingerprint == plain.base.fingerprint


@pytest.mark.parametrize("name", CONFIGS)
def test_what_comes_out_is_a_function_of_log_config_and_seed(name: str) -> None:
    config = CONFIGS[name]
    one, same, other = (factorise(LOG, config, seed=seed) for seed in (1, 1, 2))
    assert one.base.fingerprint == same.base.fingerprint != other.base.fingerprint
    assert one.curve.equals(same.curve)
    assert one.best_epoch == config.epochs
    assert one.curve.score.isna().all()


@pytest.mark.parametrize("name", CONFIGS)
def test_stopped_early_it_is_what_it_was_on_its_way(name: str) -> None:
    """`epochs` does not move the learning rates."""
    on_its_way: list[str] = []

    def judge(base: BaseModel) -> float:
        on_its_way.append(base.fingerprint)
        return len(on_its_way)

    whole = factorise(LOG, replace(CONFIGS[name], epochs=4), seed=0, judge=judge)
    assert whole.best_epoch == 4 and whole.base.fingerprint == on_its_way[3]
    stopped = factorise(LOG, replace(CONFIGS[name], epochs=4), seed=0, epochs=2)
    assert stopped.base.fingerprint == on_its_way[1] != on_its_way[3]
    assert stopped.best_epoch == 2
    assert stopped.curve.training_loss.tolist() == whole.curve.training_loss.tolist()[:2]


def test_the_learning_rates_fall_to_zero() -> None:
    """With one step an epoch Adam moves the bias of an item by its rate at first."""
    config = FactorisationConfig(embedding_dim=3, epochs=4, lr=1e-7, bias_lr=0.01)
    biases = [torch.zeros(6)]
    for epochs in range(1, 5):
        base = factorise(LOG, config, seed=0, epochs=epochs).base
        biases.append(base.item_bias.weight_ND.squeeze(1))
    moves = [float((b - a).abs().mean()) for a, b in zip(biases, biases[1:], strict=False)]
    assert moves == pytest.approx([0.01, 0.0075, 0.005, 0.0025], rel=0.05)


@pytest.mark.parametrize("name", ["softmax", "ials"])
def test_the_best_epoch_is_kept_and_patience_ends_it(name: str) -> None:
    config = replace(CONFIGS[name], epochs=20, judge_every=2, patience=2)
    said = iter([0.1, 0.3, 0.3, 0.2, 0.9])
    heard: list[tuple[int, int]] = []
    made = factorise(
        LOG,
        config,
        seed=0,
        judge=lambda base: next(said),
        progress=lambda done, most: heard.append((done, most)),
    )
    assert made.best_epoch == 4
    assert made.base.fingerprint == factorise(LOG, config, seed=0, epochs=4).base.fingerprint
    assert made.curve.epoch.tolist() == list(range(1, 9))
    assert made.curve.score.dropna().tolist() == [0.1, 0.3, 0.3, 0.2]
    assert heard == [(epoch, 20) for epoch in range(1, 9)]


def test_the_last_epoch_is_judged_too() -> None:
    config = replace(CONFIGS["softmax"], epochs=5, judge_every=2)
    made = factorise(LOG, config, seed=0, judge=lambda base: 1.0, epochs=3)
    assert made.curve.score.notna().tolist() == [False, True, True]
    assert made.best_epoch == 2


# Rows that were shown and not taken.

DECLINES = [(0, 0), (0, 4), (1, 5), (1, 3), (2, 3), (2, 3), (3, 2)]
"""One that the user took another time, one twice, one of a user who took nothing."""
COUNTED = [(0, 0), (1, 5), (1, 3), (2, 3)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("user_weight", [0.0, 0.5, 1.0])
def test_the_training_loss_of_a_labelled_log_is_the_cross_entropy_of_its_rows(
    user_weight: float, weighted: bool
) -> None:
    config = replace(LABELLED["alone"], epochs=1, lr=1e-9, bias_lr=1e-9, user_weight=user_weight)
    yes = [1.0, 3.0, 2.0, 1.0, 4.0, 0.5, 0.0] if weighted else [1.0] * 7
    # Of the pair that is there twice the larger weight counts.
    no = [2.0, 9.0, 0.5, 3.0, 1.0, 5.0, 9.0] if weighted else [1.0] * 7
    logs = [
        log_of(pairs, weights=w if weighted else None)
        for pairs, w in ((PAIRS, yes), (DECLINES, no))
    ]
    made = factorise(logs[0], config, seed=3, declined=logs[1])
    scores = scores_of(made.base).tolist()
    labelled = [(pair, 1, w) for pair, w in zip(PAIRS, yes, strict=True)]
    labelled += [
        (pair, 0, max(w for other, w in zip(DECLINES, no, strict=True) if other == pair))
        for pair in COUNTED
    ]
    total = counted = 0.0
    for (user, item), label, weight in labelled:
        chance = 1 / (1 + math.exp(-scores[user][item]))
        share = weight / sum(pair[0] == user for pair, _, _ in labelled) ** user_weight
        total -= share * (math.log(chance) if label else 2.0 * math.log(1 - chance))
        counted += share
    assert made.curve.training_loss.item() == pytest.approx(total / counted, rel=1e-4)


@pytest.mark.parametrize("name", LABELLED)
def test_an_epoch_takes_every_labelled_pair_once_and_hides_only_what_was_taken(name: str) -> None:
    """What was declined stays among the other negatives: it is one."""
    positives = Positives.of(LOG)
    declined = positives.declined(log_of(DECLINES))
    steps = Steps(positives, LABELLED[name], stream(), declined)
    found: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for step in steps.of(1):
        users = step.user_U[step.owner_B].tolist()
        labelled = list(zip(users, step.item_B.tolist(), strict=True))
        num_positive = len(labelled) - step.num_declined
        found[0].extend(labelled[:num_positive])
        found[1].extend(labelled[num_positive:])
        rows_J = torch.arange(6) if step.drawn is None else step.drawn.rows_J
        owners, columns = step.own
        hidden = zip(step.user_U[owners].tolist(), rows_J[columns].tolist(), strict=True)
        users = step.user_U.tolist()
        assert sorted(hidden) == sorted(
            (user, item) for user in users for item in rows_J.tolist() if (user, item) in PAIRS
        )
    assert [sorted(pairs) for pairs in found] == [sorted(PAIRS), sorted(COUNTED)]
    assert steps.num_rows == len(PAIRS) + len(COUNTED)


def test_a_declined_item_comes_to_score_less_than_a_taken_one() -> None:
    config = replace(LABELLED["alone"], epochs=60, judge_every=60, lr=0.05)
    scores = scores_of(factorise(LOG, config, seed=0, declined=log_of(COUNTED)).base)
    for user, item in COUNTED:
        taken = [own for owner, own in PAIRS if owner == user]
        assert scores[user, item] < scores[user, taken].min()


@pytest.mark.parametrize("name", LABELLED)
def test_order_segments_and_repetitions_of_declined_rows_change_nothing(name: str) -> None:
    plain = factorise(LOG, LABELLED[name], seed=0, declined=log_of(COUNTED))
    other = log_of(DECLINES[::-1], segments=[1, 0, 0, 1, 1, 0, 1])
    assert factorise(LOG, LABELLED[name], seed=0, declined=other).base.fingerprint == (
        plain.base.fingerprint
    )
    torch.testing.assert_close(
        plain.base.user_table.weight_ND[3],
        plain.base.user_table.weight_ND[[0, 1, 2, 4]].mean(0),
    )
    fewer = factorise(LOG, LABELLED[name], seed=0, declined=log_of(COUNTED[1:]))
    assert fewer.base.fingerprint != plain.base.fingerprint


@pytest.mark.parametrize("pairs", [[], [(3, 2)], [(0, 4)]])
def test_declined_rows_of_which_none_counts_are_no_declined_rows(
    pairs: list[tuple[int, int]],
) -> None:
    plain = factorise(LOG, LABELLED["and drawn"], seed=0)
    same = factorise(LOG, LABELLED["and drawn"], seed=0, declined=log_of(pairs))
    assert same.base.fingerprint == plain.base.fingerprint
    with pytest.raises(ValueError, match="0 leaves .*none of Interactions.*leave it out for"):
        factorise(LOG, LABELLED["alone"], seed=0, declined=log_of(pairs))


def test_declined_rows_that_cannot_be_used_are_refused() -> None:
    for name in ("softmax", "ccl", "bpr", "ials"):
        with pytest.raises(ValueError, match=f"negatives of loss = 'bce' alone, got '{name}'"):
            factorise(LOG, CONFIGS[name], seed=0, declined=log_of(COUNTED))
    elsewhere = log_of(COUNTED, num_items=7)
    with pytest.raises(ValueError, match="must be on the id maps of Interactions"):
        factorise(LOG, LABELLED["and drawn"], seed=0, declined=elsewhere)
    with pytest.raises(ValueError, match="the only negatives, and none were given"):
        factorise(LOG, LABELLED["alone"], seed=0)
    with pytest.raises(ValueError, match="num_negatives must be at least 0"):
        FactorisationConfig(loss="bce", num_negatives=-1)
    with pytest.raises(ValueError, match="num_negatives must be at least 1"):
        FactorisationConfig(loss="ccl", num_negatives=0)


# The closed form.


def test_an_alternation_equals_a_slow_solver() -> None:
    weights = [1.0, 3.0, 2.0, 1.0, 4.0, 0.5, 1.0]
    weights = [weight * 7 / sum(weights) for weight in weights]
    config = replace(CONFIGS["ials"], l2_exponent=0.7)
    by_user = np.zeros((5, 6))
    for (user, item), weight in zip(PAIRS, weights, strict=True):
        by_user[user, item] = weight
    rules = config.unobserved_weight, config.l2, config.l2_exponent
    positives = Positives.of(log_of(PAIRS, weights=weights))
    epochs = alternate(positives, config, stream())
    generator = torch.Generator().manual_seed(int(stream()[0]) >> 1)
    items = (torch.randn(6, 3, generator=generator) * config.init_std).tolist()
    for _ in range(2):
        epoch = next(epochs)
        users = [reference.ials_row(items, row, *rules) for row in by_user.tolist()]
        items = [reference.ials_row(users, row, *rules) for row in by_user.T.tolist()]
        user_ND, item_ND, bias_N = epoch.tables()
        torch.testing.assert_close(user_ND, torch.tensor(users), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(item_ND, torch.tensor(items), rtol=1e-4, atol=1e-5)
        assert not bias_N.any()
        cost = reference.ials_cost(users, items, by_user.tolist(), *rules)
        assert epoch.training_loss == pytest.approx(cost / len(PAIRS), rel=1e-4)


@pytest.mark.parametrize("numbers", [1, 100, 1 << 20])
def test_no_alternation_raises_the_loss_whatever_the_blocks(
    numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reclora.factorisation.ials.BLOCK_NUMBERS", numbers)
    train, _ = planted()
    config = FactorisationConfig(loss="ials", l2=0.01, embedding_dim=6, epochs=5)
    made = factorise(log_of(train, 120, 80), config, seed=0)
    assert (made.curve.training_loss.diff().dropna() <= 1e-6).all()
    monkeypatch.undo()
    plain = factorise(log_of(train, 120, 80), config, seed=0)
    torch.testing.assert_close(scores_of(made.base), scores_of(plain.base), rtol=1e-3, atol=1e-4)


# A planted world.


def planted(
    num_users: int = 120, num_items: int = 80
) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Pairs to train on and each user's held-out items, drawn by scores of rank 4 and a bias."""
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(num_users, 4)), rng.normal(size=(num_items, 4))
    scores = 1.5 * u @ v.T + 0.5 * rng.normal(size=num_items)
    chosen = np.argsort(-scores - rng.gumbel(size=scores.shape), axis=1)[:, :16]
    chosen = rng.permuted(chosen, axis=1)
    pairs = [(user, int(item)) for user in range(num_users) for item in chosen[user, 4:]]
    return pairs, chosen[:, :4].tolist()


def mean_ndcg(scores: Tensor, pairs: list[tuple[int, int]], held: list[list[int]]) -> float:
    scores = scores.clone()
    users, items = (list(side) for side in zip(*pairs, strict=True))
    scores[users, items] = -torch.inf
    lists = torch.argsort(scores, 1, descending=True)[:, :10].tolist()
    return float(np.mean([reference.ndcg(a, b, 10) for a, b in zip(lists, held, strict=True)]))


FINDING: dict[str, dict[str, Any]] = {
    "softmax": {"temperature": 0.3},
    "drawn": {"temperature": 0.3, "num_negatives": 60},
    "dot": {"similarity": "dot", "l2": 0.1},
    "ccl": {"loss": "ccl", "margin": 0.2, "negative_weight": 2.0},
    "drawn ccl": {"loss": "ccl", "margin": 0.2, "negative_weight": 2.0, "num_negatives": 60},
    "bce": {"loss": "bce", "similarity": "dot", "negative_weight": 2.0, "l2": 0.05},
    "bpr": {"loss": "bpr", "temperature": 0.5, "num_negatives": 60},
    "ials": {"loss": "ials", "l2": 0.05, "unobserved_weight": 0.1},
}


@pytest.mark.parametrize("name", FINDING)
def test_every_loss_finds_a_planted_world(name: str) -> None:
    pairs, held = planted()
    config = FactorisationConfig(
        embedding_dim=8, epochs=25, batch_users=16, bias_lr=0.01, **FINDING[name]
    )
    made = factorise(log_of(pairs, 120, 80), config, seed=0)
    found = mean_ndcg(scores_of(made.base), pairs, held)
    counts = torch.bincount(torch.tensor([item for _, item in pairs]), minlength=80)
    popular = mean_ndcg(counts.float().expand(120, -1), pairs, held)
    assert found > 1.5 * popular


# Odd logs, and errors.


@settings(deadline=None, max_examples=40)
@given(
    st.data(),
    st.sampled_from(sorted(CONFIGS)),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_an_odd_log_gives_a_finite_base(
    data: st.DataObject, name: str, num_users: int, num_items: int
) -> None:
    """Users without rows, one item, one user, who has every item, rows again and again."""
    pair = st.tuples(st.integers(0, num_users - 1), st.integers(0, num_items - 1))
    pairs = data.draw(st.lists(pair, min_size=1, max_size=12))
    weights = data.draw(st.none() | st.just([0.5 + place for place in range(len(pairs))]))
    log = log_of(pairs, num_users, num_items, weights)
    made = factorise(log, CONFIGS[name], seed=0)
    assert torch.isfinite(scores_of(made.base)).all()
    assert len(made.base.users) == num_users and len(made.base.items) == num_items


def test_positives_are_the_distinct_pairs_by_either_side() -> None:
    log = log_of([(2, 1), (0, 4), (2, 0), (2, 1)], weights=[1.0, 2.0, 3.0, 5.0])
    positives = Positives.of(log)
    assert positives.offsets.tolist() == [0, 1, 1, 3, 3, 3]
    assert positives.others.tolist() == [4, 0, 1]
    assert (positives.weights * 10 / 3).tolist() == pytest.approx([2, 3, 5])
    turned = positives.turned()
    assert turned.offsets.tolist() == [0, 1, 2, 2, 2, 3, 3]
    assert turned.others.tolist() == [2, 2, 0]
    assert (turned.weights * 10 / 3).tolist() == pytest.approx([3, 5, 2])
    owner, places = positives.places_of(np.array([2, 1, 0]))
    assert owner.tolist() == [0, 0, 2] and places.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"loss": "hinge"}, "loss must be one of softmax, ccl, bpr, bce, ials, got 'hinge'"),
        ({"similarity": "l2"}, "similarity must be one of cosine, dot, got 'l2'"),
        ({"embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        (
            {"num_negatives": 0},
            "num_negatives must be at least 1, got 0: leave it out for every item; 0 needs "
            "loss = 'bce' with declined rows",
        ),
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        ({"lr": math.nan}, "lr must be a positive number, got nan"),
        ({"negative_weight": 0.0}, "negative_weight must be a positive number, got 0.0"),
        ({"bias_lr": -1.0}, "bias_lr must be 0 or more"),
        ({"user_weight": 1.5}, "user_weight must be from 0 to 1"),
        ({"margin": math.inf}, "margin must be a finite number"),
        ({"loss": "bpr"}, "bpr compares each row with each negative: give num_negatives"),
        ({"loss": "ials"}, "ials solves by l2 > 0"),
    ],
)
def test_a_config_refuses_what_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FactorisationConfig(**wrong)


def test_a_log_with_nothing_to_factorise_is_refused() -> None:
    with pytest.raises(ValueError, match="has no row to factorise"):
        factorise(log_of([]), CONFIGS["softmax"], seed=0)
    with pytest.raises(ValueError, match="has a weight above 0"):
        factorise(log_of(PAIRS, weights=[0.0] * 7), CONFIGS["softmax"], seed=0)


@pytest.mark.parametrize("epochs", [0, 3])
def test_epochs_must_be_within_the_schedule(epochs: int) -> None:
    with pytest.raises(ValueError, match="epochs must be from 1 to the config's 2"):
        factorise(LOG, CONFIGS["softmax"], seed=0, epochs=epochs)


def test_a_judge_that_cannot_tell_is_named() -> None:
    with pytest.raises(ValueError, match="the judge said NaN of epoch 1"):
        factorise(LOG, CONFIGS["softmax"], seed=0, judge=lambda base: math.nan)


def test_numbers_that_leave_the_finite_name_the_epoch() -> None:
    with pytest.raises(FactorisationError, match=r"epoch \d: lower lr and bias_lr"):
        factorise(LOG, replace(CONFIGS["dot"], lr=1e30), seed=0)
    # The last step of all comes after the last loss.
    with pytest.raises(FactorisationError, match=r"a table .* in epoch 1: lower lr"):
        factorise(LOG, FactorisationConfig(embedding_dim=3, epochs=1, bias_lr=1e39), seed=0)
    with pytest.raises(FactorisationError, match="no solution in float32: raise l2"):
        factorise(LOG, replace(CONFIGS["ials"], l2=1e-30, unobserved_weight=1e-30), seed=0)
