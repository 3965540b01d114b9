"""The mean of adapters is the mean of their changes; a cut one is as near as its rank allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from reclora.adapters import Adapter
from reclora.arithmetic import average, recompress, singular_values
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig, AdapterError, DeltaConfig
from reclora.deltas.per_row import signs
from reclora.modules import AdaptedModel, adapt
from tests.small_worlds import fill, make_base

BASE = make_base(num_users=12, num_items=9, dim=6, hidden=(5,))
FLAT = make_base(num_users=12, num_items=9, dim=6, hidden=())
GROWN = {
    id(base): base.grown(base.users.extended([1000, 7000]), base.items.extended(["new", "äöü"]))
    for base in (BASE, FLAT)
}
"""With identifiers in rows 12, 13 and 9, 10 that the base does not know."""

TABLES = ("rows", "map", "scale", "basis", "full", "none", "scale + rows", "map + rows")

rows_of_users = st.lists(st.integers(0, 13), max_size=8)
rows_of_items = st.lists(st.integers(0, 10), max_size=8)
weights = st.floats(-2, 2, width=32)


def adapters_of(
    base: BaseModel,
    configs: Sequence[AdapterConfig],
    users: Sequence[list[int]],
    items: Sequence[list[int]],
    parent: Adapter | None = None,
) -> list[Adapter]:
    """One of random numbers for each config, touching these rows."""
    names = [f"segment {code}" for code in range(len(configs))]
    rows = [[torch.tensor(r, dtype=torch.int64) for r in side] for side in (users, items)]
    bank = AdapterBank(GROWN[id(base)], names, *rows, configs, parent=parent)
    return fill(bank).adapters()


def changes(base: BaseModel, adapter: Adapter) -> list[Tensor]:
    """What the adapter adds to its parent, or to the base: whole tables over all identifiers, and
    the tower's weights and biases.
    """
    below = merged(base, adapter.parent) if adapter.parent else GROWN[id(base)]
    return [a - b for a, b in zip(whole(merged(base, adapter)), whole(below), strict=True)]


def merged(base: BaseModel, adapter: Adapter) -> BaseModel:
    return AdapterBank.of(GROWN[id(base)], [adapter]).merged(adapter.segment)


def whole(model: BaseModel) -> list[Tensor]:
    tables = [model.user_table, model.item_table, model.item_bias]
    tower = [*model.tower.weights, *model.tower.biases] if model.tower else []
    return [*(table.materialised() for table in tables), *tower]


def assert_mean(
    base: BaseModel, mean: Adapter, adapters: Sequence[Adapter], shares: Sequence[float]
) -> None:
    parts = zip(*(changes(base, adapter) for adapter in adapters), strict=True)
    for got, own in zip(changes(base, mean), parts, strict=True):
        expected = sum((w * one for w, one in zip(shares, own, strict=True)), torch.zeros(()))
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


def configs_of(
    kinds: tuple[str, str, str, str], sizes: Sequence[tuple[int, float, bool]]
) -> list[AdapterConfig]:
    user_table, item_table, item_bias, tower = kinds
    return [
        AdapterConfig(user_table, item_table, item_bias, tower, rank, alpha, stabilised)  # type: ignore[arg-type]
        for rank, alpha, stabilised in sizes
    ]


# The mean.


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_the_mean_of_adapters_is_the_mean_of_their_merged_tables_and_towers(
    data: st.DataObject,
) -> None:
    """Whatever their kinds, ranks, scalings, rows, identifiers and weights."""
    kinds = data.draw(
        st.tuples(
            st.sampled_from(TABLES),
            st.sampled_from(TABLES),
            st.sampled_from(("bias", "none")),
            st.sampled_from(("low_rank", "full", "none")),
        )
    )
    size = st.tuples(st.integers(1, 2), st.sampled_from((1.0, 3.0)), st.booleans())
    configs = configs_of(kinds, data.draw(st.lists(size, min_size=1, max_size=3)))
    users, items = (
        data.draw(st.lists(rows, min_size=len(configs), max_size=len(configs)))
        for rows in (rows_of_users, rows_of_items)
    )
    shares = data.draw(st.lists(weights, min_size=len(configs), max_size=len(configs)))
    adapters = adapters_of(BASE, configs, users, items)
    mean = average(adapters, shares, segment="all")
    assert mean.segment == "all" and mean.config.scaling == pytest.approx(configs[0].scaling)
    assert_mean(BASE, mean, adapters, shares)
    again = AdapterBank.of(BASE, [mean]).adapter("all").tensors
    assert again.keys() == mean.tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in mean.tensors.items())
    assert all(tensor.is_contiguous() for tensor in mean.tensors.values())


def test_the_weights_are_equal_where_none_are_given() -> None:
    configs = [AdapterConfig(rank=1), AdapterConfig(rank=2), AdapterConfig(rank=1, alpha=3.0)]
    adapters = adapters_of(BASE, configs, [[0, 12], [0, 3], []], [[1], [1, 10], [2, 9]])
    mean = average(adapters, segment="mean")
    assert_mean(BASE, mean, adapters, [1 / 3] * 3)
    assert mean.config == replace(configs[0], rank=4, alpha=32.0)


def test_the_mean_stands_on_the_parent_of_the_adapters() -> None:
    (parent,) = adapters_of(BASE, [AdapterConfig(rank=2)], [[0, 5, 12]], [[3, 9]])
    configs = [AdapterConfig("scale + rows", rank=1), AdapterConfig("scale + rows", rank=2)]
    adapters = adapters_of(BASE, configs, [[0, 1], [1, 13]], [[3], [4, 9]], parent)
    mean = average(adapters, segment="mean")
    assert mean.parent is parent
    assert_mean(BASE, mean, adapters, [0.5, 0.5])


def test_ranks_beyond_the_sides_of_a_matrix_are_cut_to_them_without_a_loss() -> None:
    tables = AdapterConfig(tower="none", rank=4)
    adapters = adapters_of(FLAT, [tables] * 3, [[0, 1, 2], [1, 3], [12]], [[1], [2], [3]])
    mean = average(adapters, segment="mean")
    assert mean.tensors["user_table.rows.a"].shape == (5, 6) and mean.config.rank == 6
    assert_mean(FLAT, mean, adapters, [1 / 3] * 3)
    tower = AdapterConfig("none", "none", rank=4)
    adapters = adapters_of(BASE, [tower] * 2, [[], []], [[1], [2]])
    mean = average(adapters, segment="mean")
    assert mean.tensors["tower.0.weight.low_rank.a"].shape == (5, 18) and mean.config.rank == 5
    assert mean.tensors["tower.1.weight.low_rank.b"].shape == (1, 1)
    assert_mean(BASE, mean, adapters, [0.5, 0.5])


def test_directions_that_are_common_do_not_add_up() -> None:
    configs = [AdapterConfig("basis", "none", tower="none", rank=rank) for rank in (2, 5, 3)]
    adapters = adapters_of(BASE, configs, [[0, 1], [1, 2], [12]], [[], [0], []])
    mean = average(adapters, segment="mean")
    assert mean.config.rank == 5
    assert_mean(BASE, mean, adapters, [1 / 3] * 3)


def test_a_difference_of_adapters_is_what_one_has_and_the_other_has_not() -> None:
    adapters = adapters_of(BASE, [AdapterConfig(rank=2)] * 2, [[0, 1], [1, 2]], [[1], [2]])
    assert_mean(BASE, average(adapters, (1, -1), segment="d"), adapters, (1, -1))
    nothing = average([adapters[0]] * 2, (1, -1), segment="nothing")
    assert all(change.abs().max() < 1e-6 for change in changes(BASE, nothing))


def test_the_mean_of_one_adapter_many_times_is_that_adapter_once_it_is_cut() -> None:
    (adapter,) = adapters_of(BASE, [AdapterConfig(rank=2)], [[0, 1, 5, 12]], [[1, 3, 9]])
    mean = recompress(average([adapter] * 3, segment="mean"), 2)
    assert mean.config == adapter.config
    assert_mean(BASE, mean, [adapter], [1])


# The best adapter of a rank.


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_cut_adapter_is_as_near_as_its_rank_allows(data: st.DataObject) -> None:
    """As near as the truncated singular value decomposition of the matrices themselves."""
    kinds = data.draw(
        st.tuples(
            st.sampled_from(("rows", "full", "scale", "none")),
            st.sampled_from(("rows", "none")),
            st.just("bias"),
            st.sampled_from(("low_rank", "none")),
        )
    )
    size = (
        data.draw(st.integers(1, 6)),
        data.draw(st.sampled_from((1.0, 8.0))),
        data.draw(st.booleans()),
    )
    rank = data.draw(st.integers(1, 7))
    rows = data.draw(rows_of_users), data.draw(rows_of_items)
    (adapter,) = adapters_of(BASE, configs_of(kinds, [size]), [rows[0]], [rows[1]])
    smaller = recompress(adapter, rank)
    k = min(rank, size[0])
    assert smaller.config.rank == k
    assert smaller.config.scaling == pytest.approx(adapter.config.scaling)
    products = [kinds[0] == "rows", kinds[1] == "rows", False] + [kinds[3] == "low_rank"] * 2
    before, after = changes(BASE, adapter), changes(BASE, smaller)
    for is_product, old, new in zip([*products, False, False], before, after, strict=True):
        lost = (
            torch.linalg.svdvals(old)[k:].square().sum().sqrt() if is_product else torch.zeros(())
        )
        torch.testing.assert_close((old - new).norm(), lost, atol=1e-4, rtol=1e-4)
    assert all(tensor.is_contiguous() for tensor in smaller.tensors.values())


@pytest.mark.parametrize("kind", ["rows", "map"])
def test_a_cut_adapter_is_like_one_that_begins_to_train(kind: str) -> None:
    """The factor that is drawn at the start has rows of length one, the other has the units."""
    (adapter,) = adapters_of(BASE, [AdapterConfig(kind, kind, rank=5)], [[0, 7]], [[]])
    smaller = recompress(adapter, 3).tensors
    for name in (f"user_table.{kind}.b", f"item_table.{kind}.b", "tower.0.weight.low_rank.a"):
        torch.testing.assert_close(smaller[name] @ smaller[name].T, torch.eye(3))
    assert_mean(BASE, recompress(recompress(adapter, 3), 3), [recompress(adapter, 3)], [1])


def test_a_map_is_cut_as_a_matrix_and_the_kinds_of_one_table_apart() -> None:
    config = AdapterConfig("scale + map + rows", "map", rank=4, alpha=2.0)
    (adapter,) = adapters_of(BASE, [config], [[0, 7, 9, 12]], [[1]])
    smaller = recompress(adapter, 2).tensors
    for name in ("user_table.map", "user_table.rows", "item_table.map"):
        transposed = name.endswith("map")
        old, new = (product(one, name, transposed) for one in (adapter.tensors, smaller))
        u, values, vh = torch.linalg.svd(old, full_matrices=False)
        torch.testing.assert_close(new, (u[:, :2] * values[:2]) @ vh[:2], atol=1e-5, rtol=1e-4)
    assert torch.equal(smaller["user_table.scale.c"], adapter.tensors["user_table.scale.c"])


def product(tensors: Mapping[str, Tensor], name: str, transposed: bool) -> Tensor:
    a, b = tensors[f"{name}.a"], tensors[f"{name}.b"]
    return (a.T if transposed else a) @ b


def test_a_rank_that_is_not_smaller_changes_no_score() -> None:
    (adapter,) = adapters_of(BASE, [AdapterConfig("map + rows", rank=3)], [[0, 7, 13]], [[1, 9]])
    for rank in (3, 4, 100):
        same = recompress(adapter, rank)
        assert same.config == adapter.config
        assert_mean(BASE, same, [adapter], [1])


def test_a_fresh_adapter_stays_one() -> None:
    rows = [torch.tensor([0, 1, 2, 3])]
    fresh = AdapterBank(BASE, ["s"], rows, rows, AdapterConfig(rank=3)).adapter("s")
    cut = recompress(fresh, 2)
    assert merged(BASE, cut).fingerprint == merged(BASE, fresh).fingerprint
    b = cut.tensors["user_table.rows.b"]
    torch.testing.assert_close(b @ b.T, torch.eye(2))


def test_singular_values_are_those_of_the_changes() -> None:
    config = AdapterConfig("rows", "scale", rank=4, alpha=6.0, rank_stabilised=True)
    (adapter,) = adapters_of(BASE, [config], [[0, 1, 5, 7, 8, 12]], [[1]])
    values = singular_values(adapter)
    assert [*values] == ["user_table.rows", "tower.0.weight.low_rank", "tower.1.weight.low_rank"]
    user_table, _, _, first, second, _, _ = changes(BASE, adapter)
    for got, change in zip(values.values(), (user_table, first, second), strict=True):
        expected = torch.linalg.svdvals(change.double())[: len(got)]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    lost = changes(BASE, recompress(adapter, 2))[0] - user_table
    tail = values["user_table.rows"][2:].square().sum().sqrt()
    torch.testing.assert_close(lost.norm().double(), tail, atol=1e-5, rtol=1e-5)


def test_directions_that_are_common_are_kept_or_refused() -> None:
    config = AdapterConfig("basis", "rows", tower="none", rank=2)
    adapters = adapters_of(BASE, [config] * 2, [[0, 1], [1, 2]], [[1, 3], [3, 5]])
    mean = average(adapters, segment="mean")
    assert mean.config.rank == 4
    assert recompress(mean, 2).tensors["user_table.basis.a"].shape == (3, 2)
    with pytest.raises(AdapterError, match="user_table has the kind `basis`.* rank 1"):
        recompress(mean, 1)


# What it costs.


class Largest(TorchDispatchMode):
    """Records the numbers of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, list | tuple) else [made]:
            if isinstance(one, Tensor):
                self.numel = max(self.numel, one.numel())
        return made


def test_no_matrix_is_made_that_a_product_stands_for() -> None:
    """The largest tensor is a factor: 3,000 touched rows x the sum of ranks, not x 64."""
    base = make_base(num_users=3000, num_items=5, dim=64, hidden=(48,))
    rows = [[torch.arange(3000), torch.arange(0, 3000, 2)], [torch.arange(5)] * 2]
    bank = AdapterBank(base, ["a", "b"], *rows, [AdapterConfig(rank=2), AdapterConfig(rank=3)])
    adapters = fill(bank).adapters()
    with Largest() as largest:
        mean = average(adapters, segment="mean")
        recompress(mean, 2)
        singular_values(mean)
    assert largest.numel == 3000 * 5
    with Largest() as largest:
        product(mean.tensors, "user_table.rows", False)
    assert largest.numel == 3000 * 64


# Modules of any model.

MODULES = (
    DeltaConfig(("layers.*", "head"), "low_rank", rank=2, alpha=3.0),
    DeltaConfig(("conv",), "low_rank", rank=1, rank_stabilised=True),
    DeltaConfig(("users", "bags.t_*"), "rows", rank=1),
    DeltaConfig(("users",), "map", rank=2),
    DeltaConfig(("items",), "basis", rank=2),
    DeltaConfig(("items", "head"), "scale"),
    DeltaConfig(("head",), "bias"),
)
SHAPES = {"layers.0": (6, 8), "layers.1": (7, 5), "head": (5, 9), "conv": (4, 3 * 3 * 3)}
"""O x I of each weight; of a convolution flattened."""
NUM_ROWS, DIM = 10, 8


def module_adapter(seed: int, ranks: Sequence[int], rows: Mapping[str, list[int]]) -> Adapter:
    """Random numbers for `MODULES`, the first four with other ranks."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    config = tuple(
        replace(one, rank=rank) for one, rank in zip(MODULES, [*ranks, 2, 8, 8], strict=True)
    )
    tensors = {f"{path}.rows": torch.tensor(sorted({*own})).long() for path, own in rows.items()}
    for path, (out, inside) in SHAPES.items():
        rank = ranks[1 if path == "conv" else 0]
        tensors[f"{path}.low_rank.b"] = random(out, rank)
        tensors[f"{path}.low_rank.a"] = random(rank, inside)
    for path in ("users", "bags.t_0"):
        tensors[f"{path}.rows.a"] = random(len(tensors[f"{path}.rows"]), ranks[2])
        tensors[f"{path}.rows.b"] = random(ranks[2], DIM)
    tensors["users.map.a"], tensors["users.map.b"] = random(ranks[3], DIM), random(ranks[3], DIM)
    tensors["items.basis.a"] = random(len(tensors["items.rows"]), 2)
    tensors["items.scale.c"], tensors["head.scale.c"] = random(1, DIM), random(1, 5)
    tensors["head.bias.c"] = random(1, 5)
    return Adapter(f"segment {seed}", config, "a model", tensors)


def materialised(adapter: Adapter) -> dict[str, Tensor]:
    """What the adapter's deltas are as matrices; tables over all rows."""
    assert isinstance(adapter.config, tuple)
    layers, conv, rows, maps, basis, _, _ = (one.low_rank for one in adapter.config)
    tensors, found = adapter.tensors, {}
    for path in SHAPES:
        size = conv if path == "conv" else layers
        b, a = tensors[f"{path}.low_rank.b"], tensors[f"{path}.low_rank.a"]
        assert len(a) == b.shape[1] == size.rank
        found[path] = size.scaling * b @ a
    for path in ("users", "bags.t_0"):
        assert tensors[f"{path}.rows.a"].shape[1] == rows.rank
        found[path] = torch.zeros(NUM_ROWS, DIM)
        found[path][tensors[f"{path}.rows"]] = rows.scaling * product(
            tensors, f"{path}.rows", False
        )
    found["users.map"] = maps.scaling * product(tensors, "users.map", True)
    found["items"] = torch.zeros(NUM_ROWS, DIM)
    found["items"][tensors["items.rows"]] = (
        basis.scaling * tensors["items.basis.a"] @ signs(basis.rank, DIM)
    )
    return {**found, **{n: t for n, t in tensors.items() if n.endswith(".c")}}


touched = st.fixed_dictionaries(
    {path: st.lists(st.integers(0, NUM_ROWS - 1)) for path in ("users", "items", "bags.t_0")}
)
ranks_of_modules = st.tuples(*[st.integers(1, 2)] * 4)


@given(st.lists(st.tuples(ranks_of_modules, touched, weights), min_size=1, max_size=2))
@settings(deadline=None)
def test_the_mean_of_adapters_of_modules(parts: list[tuple[Any, Any, float]]) -> None:
    adapters = [module_adapter(seed, ranks, rows) for seed, (ranks, rows, _) in enumerate(parts)]
    mean = average(adapters, [w for _, _, w in parts], segment="mean")
    own = [materialised(adapter) for adapter in adapters]
    for name, got in materialised(mean).items():
        expected = sum(
            (w * o[name] for (_, _, w), o in zip(parts, own, strict=True)), torch.zeros(())
        )
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert isinstance(mean.config, tuple)
    sums = [sum(ranks[place] for ranks, _, _ in parts) for place in range(4)]
    assert [one.rank for one in mean.config[:4]] == sums


@given(ranks_of_modules, touched, st.integers(1, 3))
@settings(deadline=None)
def test_the_best_adapter_of_modules(
    ranks: tuple[int, ...], rows: dict[str, list[int]], rank: int
) -> None:
    adapter = module_adapter(0, ranks, rows)
    adapter.tensors["items.basis.a"].zero_()
    before, after = materialised(adapter), materialised(recompress(adapter, rank))
    for name, old in before.items():
        place = {"conv": 1, "users": 2, "bags.t_0": 2, "users.map": 3}.get(name, 0)
        lost = torch.linalg.svdvals(old)[min(rank, ranks[place]) :].norm()
        if name.endswith(".c"):
            lost = torch.zeros(())
        torch.testing.assert_close((old - after[name]).norm(), lost, atol=1e-4, rtol=1e-4)
    assert singular_values(adapter).keys() == {
        *(f"{path}.low_rank" for path in SHAPES),
        "users.rows",
        "bags.t_0.rows",
        "users.map",
    }


class Model(nn.Module):
    """One module of each sort."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(10, 6), nn.EmbeddingBag(7, 6)
        self.conv, self.linear = nn.Conv2d(2, 5, 3), nn.Linear(6, 7)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)


def test_the_mean_of_adapters_is_the_mean_of_their_merged_models() -> None:
    torch.manual_seed(0)
    model, configs = (
        Model(),
        (
            DeltaConfig(("users",), "rows", rank=2, alpha=3.0),
            DeltaConfig(("users", "items", "linear"), "scale"),
            DeltaConfig(("items",), "basis", rank=2),
            DeltaConfig(("linear", "attention"), "low_rank", rank=2, rank_stabilised=True),
            DeltaConfig(("conv",), "low_rank", rank=2),
            DeltaConfig(("linear",), "bias"),
        ),
    )
    rows = [torch.tensor([1, 2, 4]), torch.tensor([0, 2])]
    adapted = adapt(model, configs, ["a", "b"], {"users": rows, "items": rows})
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter[:-1] = torch.randn(parameter[:-1].shape) / 3
    adapters = [*adapted.stack()]
    adapted.remove()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mean = average(adapters, (0.25, 1.5), segment="mean")
    first, second, got, recompressed = (
        merged_model(model, one) for one in (*adapters, mean, recompress(mean, 100))
    )
    for name, tensor in base.items():
        expected = tensor + 0.25 * (first[name] - tensor) + 1.5 * (second[name] - tensor)
        for result in (got, recompressed):
            torch.testing.assert_close(result[name], expected, atol=1e-5, rtol=1e-5)
    assert sum(not torch.equal(got[name], tensor) for name, tensor in base.items()) == 7


def merged_model(model: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    adapted = AdaptedModel.of(model, [adapter])
    adapted.merge(adapter.segment)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted.remove()
    return state


def test_settings_are_found_by_a_path_of_the_module_or_of_the_whole_that_it_is_a_part_of() -> None:
    """A projection is a part of its attention; a tied module has two paths, a model that is itself
    adapted none.
    """
    config = (
        DeltaConfig(("encoder.linear",), "low_rank", rank=1, alpha=3.0),
        DeltaConfig(("*.attention",), "low_rank", rank=1, alpha=2.0),
        DeltaConfig(("second",), "rows", rank=1, alpha=5.0),
    )
    factors = {"b": torch.ones(4, 1), "a": torch.ones(1, 4)}
    rows = {"a": torch.ones(1, 1), "b": torch.ones(1, 4)}
    tensors = {
        **{f"encoder.attention.q.low_rank.{name}": factor for name, factor in factors.items()},
        "first.rows": torch.tensor([3]),
        **{f"first.rows.{name}": factor for name, factor in rows.items()},
    }
    adapter = Adapter("s", config, "", tensors)
    values = singular_values(adapter)
    assert values["encoder.attention.q.low_rank"].item() == pytest.approx(2.0 * 4)
    assert values["first.rows"].item() == pytest.approx(5.0 * 2)

    table = {"rows": torch.tensor([3, 5]), "rows.a": torch.ones(2, 1), "rows.b": torch.ones(1, 4)}
    mean = average([Adapter("s", config[2:], "", table)] * 2, (1, 2), segment="mean")
    assert mean.tensors["rows"].tolist() == [3, 5]
    change = mean.config[0].low_rank.scaling * mean.tensors["rows.a"] @ mean.tensors["rows.b"]  # type: ignore[index]
    torch.testing.assert_close(change, torch.full((2, 4), 15.0))

    lost = {f"elsewhere.low_rank.{name}": factor for name, factor in factors.items()}
    with pytest.raises(AdapterError, match="`low_rank` of 'elsewhere', but 2 of its settings"):
        singular_values(replace(adapter, tensors=lost))


# What is refused.


def two(**changed: Any) -> list[Adapter]:
    return adapters_of(BASE, [AdapterConfig(rank=2, **changed)] * 2, [[0], [1]], [[2], [3]])


PARENT = Adapter("parent", AdapterConfig(), "", {})
DAMAGED = {"users.rows": torch.tensor([0])}
NOT_FINITE = {"user_table.rows.a": torch.full((1, 2), float("nan"))}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base_fingerprint": "f00"}, "'segment 1' belongs to base f00"),
        ({"parent": PARENT}, "'segment 1' stands on .*'parent'.* on None"),
        ({"config": AdapterConfig("none")}, "average those of the same kinds"),
        ({"config": MODULES}, "average those of the same kinds"),
        ({"tensors": DAMAGED}, "only one of them has .*user_table.rows.a.*damaged"),
        ({"tensors": NOT_FINITE}, "user_table.rows.a .* 'segment 1' holds NaN"),
    ],
)
def test_adapters_that_do_not_go_together_are_refused(
    changed: dict[str, Any], message: str
) -> None:
    first, second = two()
    with pytest.raises(AdapterError, match=message):
        average([first, replace(second, **changed)], segment="mean")


@pytest.mark.parametrize(
    "wrong", [[1.0], [1.0, 1.0, 1.0], [], [float("nan"), 1.0], [float("inf"), 0.0]]
)
def test_wrong_weights_are_refused(wrong: list[float]) -> None:
    with pytest.raises(AdapterError, match="weights must be 2 finite numbers"):
        average(two(), wrong, segment="mean")


def test_a_mean_that_is_no_number_is_refused() -> None:
    """Also where its factors would be cut."""
    for adapters in (two(), two()[:1] * 4):
        with pytest.raises(AdapterError, match="adapter of segment 'mean' holds NaN or infinity"):
            average(adapters, [1e39] * len(adapters), segment="mean")


def test_what_has_no_mean_or_no_rank_is_refused() -> None:
    with pytest.raises(AdapterError, match="at least one adapter"):
        average([], segment="mean")
    with pytest.raises(AdapterError, match="user_table has the kinds `scale` and `map`"):
        average(two(user_table="scale + map"), segment="mean")
    magnitude = two(magnitude=True)
    for refused in (
        lambda: average(magnitude, segment="mean"),
        lambda: recompress(magnitude[0], 1),
        lambda: singular_values(magnitude[0]),
    ):
        with pytest.raises(AdapterError, match="'segment 0' has a learned magnitude"):
            refused()
    with pytest.raises(AdapterError, match="rank must be at least 1, got 0"):
        recompress(two()[0], 0)
    with pytest.raises(AdapterError, match="holds NaN"):
        recompress(replace(two()[0], tensors=NOT_FINITE), 1)


def test_one_setting_that_needs_two_ranks_is_refused() -> None:
    """A tower with wider sides than the tables have embedding_dim."""
    base = make_base(num_users=4, num_items=4, dim=4, hidden=(9,))
    rows = [torch.arange(4)] * 3
    bank = AdapterBank(base, ["a", "b", "c"], rows, rows, AdapterConfig(rank=2))
    with pytest.raises(AdapterError, match="2, 2, 2 needs rank 6, .*table.* none above 4"):
        average(bank.adapters(), segment="mean")
