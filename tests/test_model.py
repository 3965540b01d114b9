"""An adapted model: names, codes, stored adapters, parents, and what is refused."""

import copy
import gc
import pickle
from collections.abc import Sequence
from dataclasses import replace
from threading import Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reclora.adapters import Adapter
from reclora.configs import AdapterConfig, AdapterError, DeltaConfig
from reclora.modules import AdaptedModel, adapt
from reclora.modules.mixed import Tiles
from reclora.modules.numbers import filled, is_rows, stacked
from reclora.modules.sites import hook_outputs
from reclora.modules.targets import candidates, targets_of
from reclora.stacks import AdapterStack
from tests import reference

NAMES = ("de", "us.mobile", "../../etc", "日本\0")
N = 10


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(N, 4)
        self.tower = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 2))

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.tower(self.users(ids))
        return scores


CONFIGS = (
    DeltaConfig(("tower.?",), "low_rank", rank=2, alpha=3.0),
    DeltaConfig(("users",), "rows", rank=2),
)
ROWS = {"users": [torch.tensor(r) for r in ([0, 3], [1], [5, 9, 2], [0, 1])]}
IDS, CODES = torch.tensor([0, 3, 1, 9, 5, 0]), torch.tensor([0, 0, 1, 2, -1, 3])


def ranker() -> Ranker:
    torch.manual_seed(0)
    return Ranker()


@torch.no_grad()
def fill(adapted: AdaptedModel, seed: int = 1) -> AdaptedModel:
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapted.parameters():
        parameter[:-1] = torch.randn(parameter[:-1].shape, generator=generator) * 0.5
    return adapted


def make(
    names: Sequence[str] = NAMES, seed: int = 0, parent: Adapter | None = None
) -> AdaptedModel:
    rows = [ROWS["users"][NAMES.index(name)] for name in names]
    return adapt(ranker(), CONFIGS, names, {"users": rows}, seed, parent)


# Mixed batches.


@given(st.lists(st.integers(-1, 5), max_size=70))
@settings(deadline=None)
def test_tiles_hold_every_sample_once_among_its_own(codes: list[int]) -> None:
    segments = torch.tensor(codes, dtype=torch.int64)
    tiles = Tiles(segments)
    samples = torch.arange(len(codes))
    packed = tiles.pack(samples)
    assert packed.shape == (len(tiles.segments_G), tiles.height)
    assert torch.equal(tiles.unpack(packed), samples)
    for segment, row in zip(tiles.segments_G.tolist(), packed, strict=True):
        assert {codes[sample] for sample in row.tolist()} == {segment}
    assert packed.numel() <= max(1, len(codes) * 8)


@pytest.mark.parametrize("num_segments", [2, 16, 256, 4096])
def test_tiles_are_few_and_little_is_padded(num_segments: int) -> None:
    segments = torch.randint(
        num_segments, (4096,), generator=torch.Generator().manual_seed(num_segments)
    )
    tiles = Tiles(segments)
    places = len(tiles.segments_G) * tiles.height
    assert places <= 2 * 4096
    assert len(tiles.segments_G) <= 4 * len(segments.unique())


def test_an_even_batch_is_not_copied() -> None:
    x = torch.randn(6, 3)
    for segments in ([1] * 6, [0, 0, 2, 2, 5, 5]):
        tiles = Tiles(torch.tensor(segments))
        assert tiles.layout.samples is None
        assert tiles.unpack(tiles.pack(x)).data_ptr() == x.data_ptr()


def test_a_linear_layer_equals_plain_loops() -> None:
    adapted = fill(adapt(nn.Linear(5, 3), DeltaConfig(("",), "low_rank", rank=2, alpha=3.0), NAMES))
    x, codes = torch.randn(7, 5), torch.tensor([3, 1, 0, 0, 2, 3, -1])
    found = adapted(x, segments=codes)
    layer = adapted.model
    assert isinstance(layer, nn.Linear)
    for sample, code in enumerate(codes.tolist()):
        weight = layer.weight
        if code >= 0:
            numbers = adapted.adapter(NAMES[code]).tensors
            a, b = numbers["low_rank.a"].tolist(), numbers["low_rank.b"].tolist()
            weight = torch.tensor(reference.low_rank_weight(weight.tolist(), b, a, 1.5))
        torch.testing.assert_close(found[sample], weight @ x[sample] + layer.bias)


def test_codes_are_of_names() -> None:
    adapted = make()
    assert adapted.codes(["us.mobile", "??", "de"]).tolist() == [1, -1, 0]
    assert adapted.codes([]).dtype == torch.int64
    with pytest.raises(AdapterError, match="no segment 'us.moble' among 4; did you mean 'us.mob"):
        adapted.code("us.moble")


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (None, "needs segments="),
        (torch.tensor([0.0]), "int64 of shape .B,., got torch.float32"),
        (torch.tensor([[0]]), r"got torch.int64 \(1, 1\)"),
        (torch.tensor([4]), "codes from -1 to 3, got 4 to 4"),
        (torch.tensor([-2]), "codes from -1 to 3, got -2 to -2"),
    ],
)
def test_codes_that_are_none_are_refused(segments: Tensor | None, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        make()(IDS[:1], segments=segments)


def test_only_deltas_are_parameters_and_the_model_keeps_its_shape() -> None:
    model = ranker()
    names, before = [*model.state_dict()], [type(module) for module in model.modules()]
    adapted = adapt(model, CONFIGS, NAMES, ROWS).train()
    assert [*model.state_dict()] == names
    assert [type(module) for module in model.modules()] == before
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert sum(p.numel() for p in adapted.parameters()) == sum(
        (site_rows + 1) * 2 for site_rows in (8, 4 * 6, 4 * 2)
    ) + (4 * 2 + 1) * (4 + 4 + 6)
    statistics = adapted.model.tower[2].running_mean.clone()  # type: ignore[index, union-attr]
    adapted(IDS, segments=CODES)
    assert torch.equal(
        adapted.model.tower[2].running_mean,
        statistics,  # type: ignore[index, union-attr]
    )


def test_a_segment_starts_the_same_in_any_company_and_by_seed() -> None:
    together, alone = make().adapter("us.mobile"), make(["us.mobile"]).adapter("us.mobile")
    assert alone.tensors.keys() == together.tensors.keys()
    for name, tensor in together.tensors.items():
        assert torch.equal(tensor, alone.tensors[name])
    other = make(seed=1).adapter("us.mobile").tensors
    assert not torch.equal(other["tower.0.low_rank.a"], together.tensors["tower.0.low_rank.a"])


def test_threads_do_not_see_each_other() -> None:
    adapted = fill(make())
    expected = [adapted(IDS, segments=torch.full((6,), code)) for code in range(4)]
    wrong = []

    def serve(code: int) -> None:
        for _ in range(30):
            found = adapted(IDS, segments=torch.full((6,), code))
            if not torch.equal(found, expected[code]):
                wrong.append(code)

    threads = [Thread(target=serve, args=(code,)) for code in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Names of modules.


def test_tied_modules_have_one_delta_by_either_name() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = self.first

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x))
            return y

    for target in ("first", "second", "*"):
        adapted = fill(adapt(Tied(), DeltaConfig((target,), "scale"), ["a"]))
        assert [*adapted.adapter("a").tensors] == ["first.scale.c"]
        x, codes = torch.randn(2, 3), torch.zeros(2, dtype=torch.int64)
        expected = adapted(x, segments=codes)
        adapted.merge("a")
        torch.testing.assert_close(adapted(x), expected)


def test_a_tied_weight_is_not_merged() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(N, 4), nn.Linear(4, N, bias=False)
            self.out.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            scores: Tensor = self.out(self.table(ids))
            return scores

    adapted = adapt(Tied(), DeltaConfig(("out",), "low_rank", rank=2), ["a"])
    with pytest.raises(AdapterError, match="'out' is also that of 'table'"):
        adapted.merge("a")


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([], "at least one DeltaConfig"),
        ([DeltaConfig(("tower.00",), "scale")], "'tower.00' matches no module; did you mean 'tow"),
        ([DeltaConfig(("tower.0", "usres"), "map", rank=2)], "'tower.0' is of type Linear"),
        ([DeltaConfig(("users", "usres"), "map", rank=2)], "'usres' .*; did you mean 'users'"),
        ([DeltaConfig(("tower.2",), "bias")], "BatchNorm1d, which has no deltas; types that have"),
        ([DeltaConfig(("tower",), "bias")], "'tower' is of type Sequential"),
        ([DeltaConfig(("tower.*",), "rows")], "matches 4 modules, but none .*`rows`"),
        ([DeltaConfig(("*",), "low_rank", rank=3)], "rank 3 is above 2, .* 'tower.3'"),
        ([DeltaConfig(("*",), "bias"), DeltaConfig(("tower.0",), "bias")], "kind `bias` twice"),
        (
            [DeltaConfig(("users",), "basis", rank=2), DeltaConfig(("users",), "rows", rank=2)],
            "`basis` and `rows`",
        ),
    ],
)
def test_targets_that_do_not_fit_are_refused(configs: list[DeltaConfig], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        adapt(ranker(), configs, NAMES)


def test_a_pattern_takes_what_can_have_the_kind() -> None:
    found = targets_of([DeltaConfig(("*",), "scale"), CONFIGS[0]], candidates(ranker()))
    assert [(t.candidate.path, [c.kind for c in t.configs]) for t in found] == [
        ("users", ["scale"]),
        ("tower.0", ["scale", "low_rank"]),
        ("tower.3", ["scale", "low_rank"]),
    ]
    assert [*candidates(ranker())] == [name for name, _ in ranker().named_modules()]


def test_a_module_that_was_not_called_is_an_error() -> None:
    class ByWeight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y @ self.other.weight

    adapted = adapt(ByWeight(), DeltaConfig(("*",), "scale"), ["a"])
    with pytest.raises(AdapterError, match="never called module 'other'"):
        adapted(torch.randn(2, 3), segments=torch.tensor([0, -1]))


def test_calling_past_the_adapted_model_is_an_error_until_the_deltas_are_removed() -> None:
    adapted = fill(make())
    with pytest.raises(AdapterError, match="'users' is adapted, but was called outside"):
        adapted.model(IDS)
    adapted.remove()
    assert torch.equal(adapted.model(IDS), ranker().eval()(IDS))
    assert all(not module._forward_hooks for module in adapted.model.modules())


def test_an_error_in_the_model_leaves_no_forward_under_way() -> None:
    adapted = make()
    with pytest.raises(IndexError):
        adapted(torch.tensor([N]), segments=torch.tensor([0]))
    with pytest.raises(AdapterError, match="outside"):
        adapted.model(IDS)


@pytest.mark.parametrize(
    ("segments", "rows", "message"),
    [
        ([], {}, "at least one segment"),
        ("de", {}, "a sequence of texts, got 'de'"),
        ([0, 1], {}, "a sequence of texts"),
        (["a"], {"users": [torch.tensor([True, False])]}, "'a' must be a 1-D tensor of row num"),
        (["a"], {"users": [torch.tensor([0.5])]}, "got torch.float32 .1,.; mask.nonzero"),
        (["a", "a"], {}, "2 names, 1 of them distinct"),
        (["a", "b"], {"users": [torch.tensor([0])]}, "one tensor for each of 2 segments, got 1"),
        (["a"], {"user": [torch.tensor([0])]}, "'user', which .*; did you mean 'users'"),
        (["a"], {"tower.0": [torch.tensor([0])]}, "'tower.0', which has no delta of the kind"),
    ],
)
def test_segments_and_rows_that_do_not_fit_are_refused(
    segments: list[str], rows: dict[str, list[Tensor]], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        adapt(ranker(), CONFIGS, segments, rows)


def test_a_row_outside_its_table_is_refused() -> None:
    with pytest.raises(AdapterError, match=f"segment 'a' touches row {N} of 'users'"):
        adapt(ranker(), CONFIGS, ["a"], {"users": [torch.tensor([N])]})


def test_a_large_table_needs_the_rows_that_are_touched_and_holds_no_more() -> None:
    table = nn.Embedding(300_000, 4, _weight=torch.zeros(300_000, 4))
    config = DeltaConfig(("",), "rows", rank=2)
    names = [str(number) for number in range(100)]
    with pytest.raises(AdapterError, match=r"300,000 rows.* pass rows=.'': "):
        adapt(table, config, names)
    touched = [torch.tensor([number, 299_999]) for number in range(100)]
    adapted = adapt(table, config, names, {"": touched})
    gc.collect()
    assert sum(p.numel() for p in adapted.parameters()) == (200 + 1) * 2 + (100 * 2 + 1) * 4
    loss = adapted(torch.tensor([7, 299_999]), segments=torch.tensor([7, 8])).sum()
    torch.autograd.backward(loss)
    assert all(p.grad is not None and p.grad._nnz() <= 4 for p in adapted.parameters())
    fill(adapted).merge("7")
    assert table.weight.abs().sum(1).nonzero().flatten().tolist() == [7, 299_999]


# Merging.


def test_merging_is_for_one_segment_and_undone_bit_for_bit() -> None:
    adapted = fill(make())
    before = {name: value.clone() for name, value in adapted.model.state_dict().items()}
    fingerprint = adapted.base_fingerprint
    adapted.merge("de")
    with pytest.raises(AdapterError, match="'de' is merged into the model's weights: unmerge"):
        _ = adapted.base_fingerprint
    with pytest.raises(AdapterError, match="'de' is merged into the model's weights: unmerge"):
        adapted.load(fill(make()).stack())
    with pytest.raises(AdapterError, match="'de' is merged already"):
        adapted.merge("us.mobile")
    with pytest.raises(AdapterError, match="leave `segments` out"):
        adapted(IDS, segments=CODES)
    assert not torch.equal(adapted.model.state_dict()["users.weight"], before["users.weight"])
    adapted.unmerge()
    for name, value in adapted.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert adapted.base_fingerprint == fingerprint
    adapted.unmerge()


# Stored adapters.


def test_adapters_are_named_by_path_kind_and_factor() -> None:
    adapter = fill(make()).adapter("../../etc")
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
    assert shapes == {
        "users.rows": (3,),
        "users.rows.a": (3, 2),
        "users.rows.b": (2, 4),
        "tower.0.low_rank.b": (6, 2),
        "tower.0.low_rank.a": (2, 4),
        "tower.3.low_rank.b": (2, 2),
        "tower.3.low_rank.a": (2, 6),
    }
    assert adapter.tensors["users.rows"].tolist() == [2, 5, 9]
    assert adapter.config == CONFIGS and adapter.parent is None


def test_loading_puts_numbers_back_by_name() -> None:
    adapted = fill(make())
    expected = adapted(IDS, segments=CODES)
    stack = adapted.stack()
    other = fill(make(), seed=9)
    kept = other.adapter("us.mobile")
    other.load(stack.take([3, 0]))
    assert torch.equal(
        other.adapter("us.mobile").tensors["users.rows.a"], kept.tensors["users.rows.a"]
    )
    other.load([stack[1], stack[2]])
    assert torch.equal(other(IDS, segments=CODES), expected)
    for mine, theirs in zip(adapted.stack(), other.stack(), strict=True):
        assert mine.segment == theirs.segment
        assert all(torch.equal(t, theirs.tensors[name]) for name, t in mine.tensors.items())


def test_an_adapter_is_a_copy() -> None:
    adapted = fill(make())
    before = adapted(IDS, segments=CODES)
    for adapter in (adapted.adapter("de"), *adapted.stack()):
        for tensor in adapter.tensors.values():
            tensor.zero_()
    assert torch.equal(adapted(IDS, segments=CODES), before)


def test_adapters_that_do_not_fit_are_refused_and_nothing_is_changed() -> None:
    adapted = fill(make())
    stack, before = adapted.stack(), adapted(IDS, segments=CODES)
    model = ranker()
    with torch.no_grad():
        model.tower[3].bias[1] += 1e-6
    foreign = fill(adapt(model, CONFIGS, NAMES, ROWS))
    configured = fill(adapt(ranker(), CONFIGS[0], NAMES))
    wider = fill(adapt(ranker(), CONFIGS, ["de"]))
    moved = fill(adapt(ranker(), CONFIGS, ["de"], {"users": [torch.tensor([0, 4])]}))
    unknown = fill(make(["de"]))
    unknown.segment_names = ("dee",)
    own = adapted.base_fingerprint
    for adapters, message in (
        ([*foreign.stack()], f"on model {foreign.base_fingerprint}, this model is {own}"),
        ([*configured.stack()], "this model has .DeltaConfig"),
        ([*wider.stack()], "'de' has 10 rows, this model has 2"),
        ([*moved.stack()], "users.rows of the adapters are not those"),
        ([*unknown.stack()], "no segment 'dee' among 4; did you mean 'de'"),
        ([], "at least one adapter"),
    ):
        with pytest.raises(AdapterError, match=message):
            adapted.load(adapters)
    for other in (configured, wider, moved):
        with pytest.raises((AdapterError, RuntimeError), match="of other segments|size mismatch"):
            adapted.load_state_dict(other.state_dict())
    tensors = {**stack.tensors, "users.rows.b": stack.tensors["users.rows.b"][:, :3]}
    damaged = AdapterStack(NAMES, CONFIGS, own, tensors, stack.offsets)
    with pytest.raises(AdapterError, match="users.rows.b of the adapters"):
        adapted.load(damaged)
    del tensors["users.rows.b"]
    offsets = {name: stack.offsets[name] for name in tensors}
    with pytest.raises(AdapterError, match="users.rows.b'. in one of them only"):
        adapted.load(AdapterStack(NAMES, CONFIGS, own, tensors, offsets))
    assert torch.equal(adapted(IDS, segments=CODES), before)


def test_a_state_dict_comes_back_where_it_belongs() -> None:
    adapted, again = fill(make()), make()
    again.load_state_dict(adapted.state_dict())
    assert torch.equal(again(IDS, segments=CODES), adapted(IDS, segments=CODES))
    with pytest.raises(AdapterError, match="of other segments .or in another order"):
        make([*NAMES[::-1]]).load_state_dict(adapted.state_dict())


def test_a_segment_that_is_served_by_the_parent_is_one_of_the_adapters() -> None:
    pooled = fill(make(["us.mobile"]), seed=4)
    parent = pooled.adapter("us.mobile")
    under = pooled(IDS, segments=torch.zeros(6, dtype=torch.int64)).detach()
    adapters = [*fill(adapt(ranker(), CONFIGS, NAMES, ROWS, parent=parent)).stack()]
    served = replace(adapters[1], config=(), tensors={})
    assert served.is_served and not adapters[1].is_served
    bare = AdapterStack((served.segment,), (), served.base_fingerprint, {}, {}, parent)
    expected = AdaptedModel.of(ranker(), adapters)(IDS, segments=CODES)
    kept = CODES >= 2
    for stored in (
        [served, *adapters[2:]],
        [AdapterStack.of(adapters[2:]), bare],
        [AdapterStack.of(adapters[2:3]), bare, AdapterStack.of(adapters[3:])],
    ):
        some = AdaptedModel.of(ranker(), stored)
        codes = some.codes([NAMES[code] if code >= 0 else "?" for code in CODES])
        found = some(IDS, segments=codes)
        assert torch.equal(found[kept], expected[kept])
        torch.testing.assert_close(found[~kept], under[~kept])
    for all_served in ([served], [bare], bare):
        some = AdaptedModel.of(ranker(), all_served)
        assert not [*some.parameters()] and some.code(served.segment) == 0
        assert torch.equal(some(IDS, segments=torch.tensor([0, -1, 0, 0, -1, 0])), under)
        some.merge(served.segment)
        torch.testing.assert_close(some(IDS), under)
        some.unmerge()
    other = replace(served, parent=replace(parent, segment="other"))
    with pytest.raises(AdapterError, match="stand on different parents"):
        AdaptedModel.of(ranker(), [other, *adapters[2:]])


def test_models_and_what_adapts_them_know_each_other() -> None:
    model = ranker()
    adapted = adapt(model, CONFIGS, NAMES, ROWS)
    with pytest.raises(AdapterError, match="adapted already: model.adapted_by.remove"):
        adapt(model, CONFIGS, ["again"])
    assert model.adapted_by is adapted  # type: ignore[comparison-overlap]
    for copied in (lambda: copy.deepcopy(adapted), lambda: pickle.dumps(adapted)):
        with pytest.raises(AdapterError, match="cannot be copied or pickled"):
            copied()
    adapted.remove()
    with pytest.raises(AdapterError, match="taken off this model by remove"):
        adapted(IDS, segments=CODES)
    adapt(model, CONFIGS, ["again"])


def test_a_parent_of_another_model_leaves_no_trace() -> None:
    parent = make(["de"]).adapter("de")
    model = ranker().train()
    with torch.no_grad():
        model.users.weight[0] += 1
    with pytest.raises(AdapterError, match="was trained on model"):
        adapt(model, CONFIGS, NAMES, ROWS, parent=parent)
    assert model.training and model.users.weight.requires_grad
    assert all(not module._forward_hooks for module in model.modules())
    adapt(model, CONFIGS, NAMES, ROWS)


def test_a_train_around_the_model_does_not_reach_it() -> None:
    adapted = fill(make())
    before = {name: value.clone() for name, value in adapted.model.state_dict().items()}
    fingerprint, expected = adapted.base_fingerprint, adapted(IDS, segments=CODES)
    adapted.model.train()
    assert torch.equal(adapted(IDS, segments=CODES), expected)
    for name, value in adapted.model.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        adapted.model.get_parameter("users.weight")[0] += 1
    assert adapted.base_fingerprint != fingerprint, "a base that was written to is another"


def test_names_with_slashes_are_modules_of_their_own() -> None:
    class Slashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("a/b", nn.Linear(3, 3))
            self.a = nn.Module()
            self.a.b = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.get_submodule("a/b")(x) + self.a.get_submodule("b")(x)
            return y

    adapted = adapt(Slashed(), DeltaConfig(("*",), "low_rank", rank=2), ["a"])
    assert len(list(adapted.parameters())) == 4
    assert {"a/b.low_rank.a", "a.b.low_rank.a"} < adapted.adapter("a").tensors.keys()


def test_an_adapter_of_a_base_model_is_not_one_of_modules() -> None:
    adapter = Adapter("a", AdapterConfig(), "f" * 64, {"users.rows": torch.tensor([1])})
    with pytest.raises(AdapterError, match="take AdapterBank.of"):
        AdaptedModel.of(ranker(), [adapter])


def test_a_model_that_is_not_what_adapters_need_is_left_alone() -> None:
    model = ranker()
    with torch.no_grad():
        model.users.weight[0] += 1
    with pytest.raises(AdapterError, match="was trained on model"):
        AdaptedModel.of(model, [*fill(make()).stack()])
    assert all(not module._forward_hooks for module in model.modules())


def test_the_parts_that_are_stored_and_filled_are_the_same_memory() -> None:
    adapted = fill(make())
    own, stack = stacked(adapted.sites), adapted.stack()
    written = list(filled(adapted.sites, stack, torch.arange(4)))
    assert len(written) == sum(not is_rows(name) for name in own)
    for tensor, places, values in written:
        assert torch.equal(tensor[places], values)


# Parents.


def test_segments_stand_on_their_parent_and_nobody_is_served_by_it() -> None:
    pooled = fill(make(["us.mobile"]), seed=4)
    parent = pooled.adapter("us.mobile")
    under = [pooled(IDS, segments=torch.full((6,), 0)).detach(), pooled.model]
    pooled.remove()
    adapted = adapt(ranker(), CONFIGS, NAMES, ROWS, parent=parent)
    assert torch.equal(adapted(IDS, segments=CODES), under[0]), "identity: on its parent"
    fill(adapted)
    mixed = adapted(IDS, segments=CODES)
    torch.testing.assert_close(mixed[CODES < 0], under[0][CODES < 0])
    assert not torch.allclose(mixed, under[0])
    assert all("parent" not in name for name, _ in adapted.named_parameters())
    torch.autograd.backward(mixed.sum())
    below = adapted._frozen[1]
    assert below is not None and not any(p.requires_grad for p in below.parameters())
    for code, name in enumerate(NAMES):
        alone = adapted(IDS, segments=torch.full((6,), code))
        adapted.merge(name)
        torch.testing.assert_close(adapted(IDS), alone)
        adapted.unmerge()
        torch.testing.assert_close(mixed[code == CODES], alone[code == CODES])
    again = AdaptedModel.of(ranker(), [*adapted.stack()])
    assert torch.equal(again(IDS, segments=CODES), mixed)
    with pytest.raises(AdapterError, match="this model has None"):
        make().load([*adapted.stack()])
    moved = replace(parent, parent=make(["de"]).adapter("de"))
    with pytest.raises(AdapterError, match="adapt with the adapter's own parent"):
        adapted.load([replace(each, parent=moved) for each in adapted.stack()])
    adapted.load([*again.stack()])
    adapted.remove()
    assert torch.equal(adapted.model(IDS), ranker().eval()(IDS))


def test_attention_stands_on_a_parents_too() -> None:
    def attention() -> nn.Module:
        torch.manual_seed(3)
        return nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    config = DeltaConfig(("self_attn", "linear2"), "low_rank", rank=2)
    pooled = fill(adapt(attention(), config, ["pooled"]), seed=7)
    x, codes = torch.randn(4, 3, 4), torch.tensor([0, -1, 1, 1])
    base = pooled(x, segments=torch.zeros(4, dtype=torch.int64))
    adapted = fill(adapt(attention(), config, ["a", "b"], parent=pooled.adapter("pooled")))
    found = adapted(x, segments=codes)
    torch.testing.assert_close(found[1], base[1])
    adapted.merge("b")
    torch.testing.assert_close(found[2:], adapted(x)[2:], atol=1e-5, rtol=1e-4)
    adapted.remove()
    assert "forward" not in vars(adapted.model.self_attn)


def test_a_hook_sees_arguments_by_place_or_name() -> None:
    seen: list[tuple[object, ...]] = []
    bag, tiles = nn.EmbeddingBag(4, 2), Tiles(torch.tensor([0]))
    detach = hook_outputs(bag, lambda: tiles, lambda _, args, output: seen.append(args))
    ids, offsets = torch.tensor([1, 2]), torch.tensor([0])
    bag(ids, offsets)
    bag(offsets=offsets, input=ids)
    bag(ids, offsets=offsets, per_sample_weights=None)
    detach()
    bag(ids, offsets)
    assert [args[:2] for args in seen] == [(ids, offsets)] * 3
