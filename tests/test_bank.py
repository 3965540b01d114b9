"""Laws 1 and 2: a fresh bank changes no score, and an adapted row means one thing everywhere."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig, AdapterError, DeltaConfig
from reclora.deltas import RowsDelta
from reclora.interactions import IdMap, Interactions
from tests.plain_models import PlainModel
from tests.small_worlds import (
    ALL_KINDS,
    KINDS,
    MIXED,
    SIZES,
    configs_of,
    fill,
    make_bank,
    make_base,
    make_log,
    numbers,
)

BASE = make_base()
USERS = torch.arange(len(BASE.users))

new_texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=4)
new_numbers = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_identity_a_fresh_adapter_changes_no_score(kind: str) -> None:
    bank = AdapterBank.for_log(BASE, make_log(BASE), configs_of(kind, [*SIZES]))
    expected = BASE.scorer().scores(USERS)
    for name in SIZES:
        assert torch.equal(bank.scorer(name).scores(USERS), expected)
        assert bank.merged(name).fingerprint == BASE.fingerprint
    ids, segments = USERS[:30].expand(len(SIZES), -1), torch.arange(len(SIZES))
    for adapted, below in (bank.users(ids, segments), bank.items(ids, segments)):
        assert torch.equal(adapted, below) and torch.equal(adapted[0], adapted[-1])
    assert torch.equal(bank.items(ids, segments)[0][0], BASE.item_table.weight_ND)
    assert torch.equal(bank.biases(ids, segments)[0], BASE.item_bias.weight_ND.squeeze(1))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_one_meaning_scores_equal_plain_loops(kind: str) -> None:
    base = make_base(num_users=9, num_items=7, dim=8, hidden=(4,))
    bank = make_bank(kind, base)
    users = torch.arange(9)
    for name in SIZES:
        expected = PlainModel.of(base).adapted(bank.adapter(name)).scores()
        torch.testing.assert_close(bank.scorer(name).scores(users), expected, atol=1e-4, rtol=1e-4)
        merged = bank.merged(name).scorer().scores(users)
        torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_one_meaning_lookups_are_rows_of_the_merged_tables(kind: str) -> None:
    bank = make_bank(kind, BASE)
    segments = torch.arange(len(SIZES)).flip(0)
    users, items = USERS.expand(len(SIZES), -1), torch.arange(30).expand(len(SIZES), -1)
    user_rows, users_below = bank.users(users, segments)
    item_rows, items_below = bank.items(items, segments)
    for g, code in enumerate(segments.tolist()):
        merged = bank.merged(bank.segment_names[code])
        torch.testing.assert_close(user_rows[g], merged.user_table.weight_ND)
        torch.testing.assert_close(item_rows[g], merged.item_table.weight_ND)
        biases = merged.item_bias.weight_ND.squeeze(1)
        torch.testing.assert_close(bank.biases(items, segments)[g], biases)
        assert torch.equal(users_below[g], BASE.user_table.weight_ND)
        assert torch.equal(items_below[g], BASE.item_table.weight_ND)


def test_one_meaning_a_merged_layer_is_the_unmerged_one() -> None:
    """x W_s^T = x W^T + scaling * (x A^T) B^T."""
    bank = make_bank("tower", BASE)
    assert BASE.tower is not None
    for code, name in enumerate(SIZES):
        tensors = bank.adapter(name).tensors
        for number, (weight, _) in enumerate(bank.layers(torch.tensor([code]))):
            a, b = (
                tensors[f"tower.{number}.weight.low_rank.a"],
                tensors[f"tower.{number}.weight.low_rank.b"],
            )
            x = torch.randn(3, weight.shape[2], generator=torch.Generator().manual_seed(number))
            unmerged = (
                x @ BASE.tower.weights[number].T + bank.configs[code].scaling * (x @ a.T) @ b.T
            )
            torch.testing.assert_close(x @ weight[0].T, unmerged, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_bank_of_its_adapters_is_the_bank(kind: str) -> None:
    bank = make_bank(kind, BASE)
    rebuilt = AdapterBank.of(BASE, bank.adapters()[::-1])
    assert rebuilt.segment_names == bank.segment_names[::-1]
    for name in SIZES:
        assert numbers(rebuilt, name) == numbers(bank, name)
        assert torch.equal(rebuilt.scorer(name).scores(USERS), bank.scorer(name).scores(USERS))


def test_a_mixed_bank_starts_each_segment_as_alone() -> None:
    log = make_log(BASE)
    bank = AdapterBank.for_log(BASE, log, configs_of("mixed", log.segment_names), seed=3)
    for name, config in MIXED.items():
        alone = AdapterBank.for_log(BASE, log.only(name), config, seed=3)
        assert numbers(bank, name) == numbers(alone, name)
        assert bank.adapter(name).config == config
    ranks = [delta.rank for _, delta in bank.deltas() if isinstance(delta, RowsDelta)]
    assert sorted(ranks) == [2, 2, 2, 3, 3], "of the users 2 and 3, of the items 2, 2 and 3"


def test_segments_of_one_config_share_their_deltas() -> None:
    """However many segments: one delta a kind and size."""
    log = make_log(BASE, {f"s{number}": 3 for number in range(40)})
    configs = [AdapterConfig(rank=2 + number % 2, tower="none") for number in range(40)]
    bank = AdapterBank.for_log(BASE, log, configs)
    names = [name for name, _ in bank.deltas()]
    assert names == ["user_table"] * 2 + ["item_table"] * 2 + ["item_bias"]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_segment_that_nobody_knows_is_served_by_the_base(kind: str) -> None:
    bank = make_bank(kind, BASE)
    segments = torch.tensor([0, -1, 3])
    users, items = USERS.expand(3, -1), torch.arange(30).expand(3, -1)
    user_rows, item_rows = bank.users(users, segments)[0], bank.items(items, segments)[0]
    assert torch.equal(user_rows[1], BASE.user_table.weight_ND)
    assert torch.equal(item_rows[1], BASE.item_table.weight_ND)
    assert torch.equal(bank.biases(items, segments)[1], BASE.item_bias.weight_ND.squeeze(1))
    assert BASE.tower is not None
    for (weight, bias), *frozen in zip(
        bank.layers(segments), BASE.tower.weights, BASE.tower.biases, strict=True
    ):
        assert torch.equal(weight[1], frozen[0]) and torch.equal(bias[1], frozen[1])
    kept = torch.equal(user_rows[0], user_rows[1]) and torch.equal(item_rows[0], item_rows[1])
    assert kept == (kind in ("bias", "tower"))


@pytest.mark.parametrize("kind", ["ladder", "rows"])
def test_a_large_table_is_materialised_in_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_bank(kind, BASE)
    whole = {name: bank.scorer(name).scores(USERS) for name in SIZES}
    monkeypatch.setattr("reclora.bank.bank.MATERIALISED_ROWS", 7)
    for name in SIZES:
        torch.testing.assert_close(bank.scorer(name).scores(USERS), whole[name])


def test_an_adapter_is_a_copy() -> None:
    bank = make_bank("rows", BASE)
    before = numbers(bank, "日本")
    for tensor in bank.adapter("日本").tensors.values():
        tensor.zero_()
    assert numbers(bank, "日本") == before


def grown_log(base: BaseModel, users: IdMap, items: IdMap) -> Interactions:
    """Every user with every item, dealt out to three segments."""
    pairs = np.indices((len(users), len(items))).reshape(2, -1)
    return Interactions.from_arrays(
        users=users,
        items=items,
        segment_names=("a", "b", "c"),
        segments=(pairs[0] + pairs[1]) % 3,
        user_rows=pairs[0],
        item_rows=pairs[1],
        timestamps=np.arange(pairs.shape[1]),
    )


@given(
    st.tuples(*[st.tuples(new_numbers, new_texts)] * 3),
    st.sampled_from([AdapterConfig(rank=2), KINDS["ladder"], KINDS["magnitude"]]),
)
@settings(deadline=None, max_examples=25)
def test_adapters_carry_identifiers_that_the_base_does_not_know(
    news: tuple[tuple[list[int], list[str]], ...], config: AdapterConfig
) -> None:
    """Each segment trained over its own new users and items: brought together they are the same."""
    base = make_base(num_users=4, num_items=3, dim=3, hidden=(2,))
    adapters, scores, maps = [], [], []
    for code, (user_ids, item_ids) in enumerate(news):
        users, items = base.users, base.items
        for part in (slice(1), slice(None)):  # grown twice: new rows need not be in order of id
            users = users.extended(pa.array(user_ids[part], pa.int64()))
            items = items.extended(pa.array(item_ids[part], pa.string()))
        log = grown_log(base, users, items)
        bank = fill(AdapterBank.for_log(base.grown(users, items), log, config), seed=code)
        name = log.segment_names[code]
        adapters.append(bank.adapter(name))
        scores.append(bank.scorer(name).scores(torch.arange(len(users))))
        maps.append((users, items))
    bank = AdapterBank.of(base, adapters)
    for adapter, expected, (users, items) in zip(adapters, scores, maps, strict=True):
        user_rows = torch.from_numpy(bank.base.users.rows_of(users.ids))
        item_rows = torch.from_numpy(bank.base.items.rows_of(items.ids))
        assert int(user_rows.min()) >= 0 and int(item_rows.min()) >= 0
        found = bank.scorer(adapter.segment).scores(user_rows)[:, item_rows]
        torch.testing.assert_close(found, expected)
    again = AdapterBank.of(bank.base, bank.adapters())
    assert (again.base.users, again.base.items) == (bank.base.users, bank.base.items)
    for adapter in adapters:
        assert numbers(again, adapter.segment) == numbers(bank, adapter.segment)


def test_new_rows_learn_from_the_mean() -> None:
    users, items = BASE.users.extended([5000]), BASE.items.extended(["new"])
    log = grown_log(BASE, users, items)
    bank = AdapterBank.for_log(BASE.grown(users, items), log, KINDS["rows"])
    rows, _ = bank.users(torch.tensor([[40]]), torch.tensor([0]))
    assert torch.equal(rows[0, 0], BASE.user_table.mean_D)
    assert bank.merged("a").users == users
    assert bank.adapter("a").tensors["users.new_ids"].tolist() == [5000]


def test_kinds_that_move_all_rows_move_new_and_unseen_ones() -> None:
    """A user that came yesterday and that the segment never saw is scaled like any other."""
    base = BASE.grown(BASE.users.extended([5000]), BASE.items)
    config = AdapterConfig(user_table="scale", item_table="none", item_bias="none", tower="none")
    bank = fill(AdapterBank(base, ["a"], [torch.tensor([3])], [torch.tensor([0])], config))
    c = bank.adapter("a").tensors["user_table.scale.c"]
    expected = torch.cat([BASE.user_table.weight_ND, BASE.user_table.mean_D[None]]) * (1 + c)
    torch.testing.assert_close(bank.merged("a").user_table.weight_ND, expected)
    assert bank.adapter("a").num_numbers == 8


def test_a_bank_holds_what_the_segments_touch_and_no_more() -> None:
    base = make_base(num_users=20_000, num_items=10_000, hidden=())
    log = make_log(base, {f"s{number}": 10 for number in range(100)})
    bank = AdapterBank.for_log(base, log, AdapterConfig(rank=2))
    touched = sum(
        len(np.unique(rows))
        for name in log.segment_names
        for rows in (log.only(name).user_rows, log.only(name).item_rows)
    )
    items = len(bank.touched_items)
    padding = 2 * (2 + 8) + 1
    expected = 2 * touched + items + padding + 2 * 100 * 2 * 8
    assert sum(p.numel() for p in bank.parameters()) == expected


def test_a_gradient_has_the_rows_of_the_batch() -> None:
    base = make_base(num_users=20_000, num_items=10_000)
    log = make_log(base, {"a": 20_000, "b": 20_000})
    for kind in KINDS:
        bank = AdapterBank.for_log(base, log, KINDS[kind])
        ids = torch.from_numpy(np.stack([log.user_rows[:4], log.user_rows[-4:]]))
        items = torch.from_numpy(np.stack([log.item_rows[:4], log.item_rows[-4:]]))
        segments = torch.tensor([0, 1])
        total = (
            bank.users(ids, segments)[0].sum()
            + bank.items(items, segments)[0].sum()
            + bank.biases(items, segments).sum()
            + sum(weight.sum() + bias.sum() for weight, bias in bank.layers(segments))
        )
        torch.autograd.backward(total)
        for name, delta in bank.deltas():
            for parameter in delta.parameters():
                assert parameter.grad is not None and parameter.grad.is_sparse, name
                if not name.startswith("tower"):
                    assert parameter.grad._nnz() <= 8


def test_a_segment_without_rows_scores_as_the_base() -> None:
    bank = make_bank("bias", BASE)
    assert bank.adapter("no rows").num_numbers == 0
    assert torch.equal(bank.scorer("no rows").scores(USERS), BASE.scorer().scores(USERS))
    assert not torch.equal(bank.scorer("日本").scores(USERS), BASE.scorer().scores(USERS))


def test_a_rank_above_a_towers_side_is_cut_to_it() -> None:
    bank = make_bank("tower", BASE)
    tensors = bank.adapter("日本").tensors
    assert tensors["tower.0.weight.low_rank.b"].shape == (12, 5)
    assert tensors["tower.1.weight.low_rank.b"].shape == (1, 1)


def test_a_base_without_a_tower_has_no_tower_deltas() -> None:
    base = make_base(hidden=())
    bank = make_bank("rows", base)
    assert [name for name, _ in bank.deltas()] == ["user_table", "item_table", "item_bias"]
    assert bank.layers(torch.tensor([0])) == [] and bank.merged("日本").tower is None


def test_segments_start_apart_and_by_seed() -> None:
    log = make_log(BASE)
    banks = [AdapterBank.for_log(BASE, log, KINDS["rows"], seed) for seed in (0, 0, 1)]
    first, same, other = (numbers(bank, "日本") for bank in banks)
    assert first == same
    assert first["item_table.rows.b"] != other["item_table.rows.b"]
    assert first["item_table.rows.b"] != first["user_table.rows.b"]
    assert first["item_table.rows.b"] != numbers(banks[0], "../up")["item_table.rows.b"]
    alone = AdapterBank.for_log(BASE, log.only("日本"), KINDS["rows"])
    assert numbers(alone, "日本") == first


def test_what_does_not_fit_is_refused() -> None:
    rows = [torch.tensor([0])]
    config = KINDS["rows"]
    for names, users, given_config, message in (
        ([], [], config, "at least one segment"),
        (["a", "a"], rows * 2, config, "distinct"),
        (["a", "b"], rows, config, "each of 2 segments needs .* got 1, 1 and 2 of"),
        (["a"], rows, [config] * 2, "each of 1 segments needs .* got 1, 1 and 2 of"),
        (["a"], rows, AdapterConfig(rank=9), "rank 9 is above the tables' embedding_dim 8"),
        (["a", "b"], rows * 2, [config, AdapterConfig("none", "map", rank=9)], "rank 9 is above"),
    ):
        with pytest.raises(AdapterError, match=message):
            AdapterBank(BASE, names, users, users, given_config)
    with pytest.raises(IndexError, match="touches row 40"):
        AdapterBank(BASE, ["a"], [torch.tensor([40])], rows, config)
    other = make_base(num_users=41)
    with pytest.raises(AdapterError, match="log.onto"):
        AdapterBank.for_log(other, make_log(BASE), config)
    with pytest.raises(AdapterError, match="no segment 'nowhere'"):
        make_bank("rows", BASE).scorer("nowhere")


def test_adapters_that_do_not_fit_are_refused() -> None:
    bank = make_bank("rows", BASE)
    japan, up = bank.adapter("日本"), bank.adapter("../up")
    with pytest.raises(AdapterError, match="at least one adapter"):
        AdapterBank.of(BASE, [])
    with pytest.raises(AdapterError, match="was trained on base"):
        AdapterBank.of(make_base(seed=1), [japan])
    for name, tensor in (
        ("item_table.rows.a", torch.zeros(1, 3)),
        ("user_table.rows.b", torch.zeros(8)),
    ):
        damaged = replace(up, tensors={**up.tensors, name: tensor})
        with pytest.raises(AdapterError, match=rf"'../up' needs {name} of shape"):
            AdapterBank.of(BASE, [japan, damaged])
    modules = replace(up, config=(DeltaConfig(("encoder.*",), "low_rank"),))
    with pytest.raises(AdapterError, match="'../up' is of modules of a model"):
        AdapterBank.of(BASE, [japan, modules])
    missing = {name: tensor for name, tensor in up.tensors.items() if name != "item_bias.bias.d"}
    with pytest.raises(AdapterError, match="got none"):
        AdapterBank.of(BASE, [replace(up, tensors=missing)])


def test_repr_tells_the_size() -> None:
    assert "5 segments, 1,485 numbers, of BaseModel" in repr(make_bank("rows", BASE))


# Beginning with what is stored.


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_bank_that_begins_with_adapters_scores_as_they_do(kind: str) -> None:
    """Whatever rows the new log touches: its own are fresh, and change nothing yet."""
    base = make_base()
    stored = make_bank(kind, base)
    log = make_log(base, seed=7)
    start = {name: stored.adapter(name) for name in list(SIZES)[:3]}
    configs = configs_of(kind, log.segment_names)
    bank = AdapterBank.for_log(base, log, configs, start=start)
    fresh = AdapterBank.for_log(base, log, configs)
    users = torch.arange(len(base.users))
    for name in SIZES:
        expected = (stored if name in start else fresh).scorer(name).scores(users)
        assert torch.equal(bank.scorer(name).scores(users), expected)
    for name, adapter in start.items():
        rows = bank.adapter(name).tensors["items.rows"]
        assert set(adapter.tensors["items.rows"].tolist()) <= set(rows.tolist())


def test_what_a_segment_cannot_begin_with_is_refused() -> None:
    base = make_base()
    log = make_log(base)
    stored = make_bank("rows", base).adapter("market 0")
    with pytest.raises(AdapterError, match="'market 0' cannot begin with"):
        AdapterBank.for_log(base, log, KINDS["bias"], start={"market 0": stored})
    parent = make_bank("rows", base).adapter("one row")
    with pytest.raises(AdapterError, match="leave it out of `start`"):
        AdapterBank.for_log(base, log, KINDS["rows"], parent=parent, start={"market 0": stored})
