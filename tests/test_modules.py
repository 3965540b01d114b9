"""Each sort of module keeps the laws: identity, one meaning, isolation, frozen base."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reclora.configs import AdapterError, DeltaConfig
from reclora.modules import AdaptedModel, adapt
from reclora.modules.attention import AttentionSite
from reclora.modules.bags import BagSite
from reclora.modules.embeddings import EmbeddingSite
from reclora.modules.layers import LayerSite
from reclora.optim import RowwiseAdagrad

NAMES = ("de", "../fr", "日本")
N = 12


class Table(nn.Module):
    """An embedding whose mean over what a sample names feeds a layer."""

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.users = nn.Embedding(N, 4, padding_idx=padding_idx)
        self.out = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.users(ids)
        return self.out(rows.flatten(1, -2).mean(1) if rows.dim() > 2 else rows).tanh()


class Bag(nn.Module):
    def __init__(self, mode: str, **options: Any) -> None:
        super().__init__()
        self.bags = nn.EmbeddingBag(N, 4, mode=mode, **options)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        pooled: Tensor = self.bags(*args, **kwargs)
        return pooled.tanh()


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **options)
        self.options: dict[str, Any] = {}

    def forward(self, x: Tensor, y: Tensor, **kwargs: Any) -> Any:
        if not self.attention.batch_first:
            x, y = x.transpose(0, 1), y.transpose(0, 1)
        mixed, weights = self.attention(x, y, y, **kwargs)
        mixed = mixed if self.attention.batch_first else mixed.transpose(0, 1)
        return mixed if weights is None else (mixed, weights)


Draw = Callable[[int, torch.Generator], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    inputs: Draw
    configs: tuple[DeltaConfig, ...]
    rows: dict[str, list[Tensor]] = field(default_factory=dict)


def floats(*shape: int) -> Draw:
    return lambda count, g: ((torch.randn(count, *shape, generator=g),), {})


def ids(*shape: int) -> Draw:
    return lambda count, g: ((torch.randint(N, (count, *shape), generator=g),), {})


def ragged(weighted: bool, last: bool) -> Draw:
    """Bags of 0 to 3 ids, one after the other."""

    def draw(count: int, g: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        sizes = torch.randint(4, (count,), generator=g)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        flat = torch.randint(N, (int(offsets[-1]),), generator=g)
        weights = torch.rand(len(flat), generator=g) if weighted else None
        return (flat, offsets if last else offsets[:-1]), {"per_sample_weights": weights}

    return draw


def attended(masks: str, need_weights: bool = False) -> Draw:
    def draw(count: int, g: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, y = (torch.randn(count, length, 4, generator=g) for length in (3, 5))
        kwargs: dict[str, Any] = {"need_weights": need_weights}
        if "padding" in masks:
            kwargs["key_padding_mask"] = torch.arange(5) >= torch.randint(
                1, 6, (count, 1), generator=g
            )
        if "square" in masks:
            kwargs["attn_mask"] = torch.ones(3, 5, dtype=torch.bool).triu(2)
        if "heads" in masks:
            kwargs["attn_mask"] = torch.randn(count * 2, 3, 5, generator=g)
            kwargs["average_attn_weights"] = False
        return (x, y), kwargs

    return draw


def low_rank(*targets: str, rank: int = 2, **options: Any) -> DeltaConfig:
    return DeltaConfig(targets, "low_rank", rank=rank, **options)


def on(target: str, *kinds: str) -> tuple[DeltaConfig, ...]:
    return tuple(DeltaConfig((target,), kind, rank=2, alpha=3.0) for kind in kinds)


SOME = [torch.tensor([0, 3, 3, 11]), torch.tensor([], dtype=torch.int64), torch.arange(5)]
LAYER = ("bias", "scale", "low_rank")


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))


CASES = {
    "linear": Case(linear, floats(5), (low_rank("0", "2"), *on("0", "bias", "scale"))),
    "linear, more dimensions": Case(linear, floats(2, 3, 5), (low_rank("*"),)),
    "conv1d": Case(
        lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1, dilation=2), floats(3, 9), on("", *LAYER)
    ),
    "conv2d": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 4, (3, 2), padding=(1, 0), stride=(2, 1)), nn.ReLU()),
        floats(2, 5, 4),
        on("0", *LAYER),
    ),
    "conv2d, same": Case(
        lambda: nn.Conv2d(2, 4, 3, padding="same", bias=False), floats(2, 3, 3), on("", "low_rank")
    ),
    "grouped convolution": Case(
        lambda: nn.Conv2d(4, 4, 3, groups=2), floats(4, 3, 3), on("", "scale", "bias")
    ),
    "embedding": Case(Table, ids(), on("users", "rows", "map", "scale"), {"users": SOME}),
    "embedding, all rows": Case(Table, ids(2, 3), on("users", "rows")),
    "embedding, basis": Case(Table, ids(2), on("users", "basis"), {"users": SOME}),
    "embedding, magnitude": Case(
        Table, ids(2), (DeltaConfig(("users",), "rows", rank=2, magnitude=True),), {"users": SOME}
    ),
    "embedding, padding": Case(
        lambda: Table(3), ids(4), on("users", "scale", "map", "rows"), {"users": SOME}
    ),
    "bag": Case(lambda: Bag("sum"), ids(3), on("bags", "rows", "map", "scale"), {"bags": SOME}),
    "bag, mean and padding": Case(
        lambda: Bag("mean", padding_idx=3), ids(3), on("bags", "rows", "scale"), {"bags": SOME}
    ),
    "bag, offsets": Case(
        lambda: Bag("mean"), ragged(False, False), on("bags", "basis"), {"bags": SOME}
    ),
    "bag, weights": Case(
        lambda: Bag("sum", include_last_offset=True, padding_idx=0),
        ragged(True, True),
        on("bags", "rows"),
        {"bags": SOME},
    ),
    "attention": Case(
        lambda: Attention(batch_first=True), attended("padding"), (low_rank("attention"),)
    ),
    "attention, time first": Case(
        Attention, attended("padding and square", True), (low_rank("attention"),)
    ),
    "attention, a mask a head": Case(
        lambda: Attention(batch_first=True, bias=False),
        attended("heads", True),
        (low_rank("attention", rank=3, alpha=2.0),),
    ),
}


def make(case: Case) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt(case.model(), case.configs, NAMES, case.rows)


@torch.no_grad()
def filled(adapted: AdaptedModel) -> AdaptedModel:
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        parameter[:-1] = torch.randn(parameter[:-1].shape, generator=generator) * 0.5
    return adapted


def tensors(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def frozen_bytes(model: nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.state_dict().values()]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    return CASES[request.param]


def batch(case: Case, count: int = 9, seed: int = 5) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return case.inputs(count, torch.Generator().manual_seed(seed))


MIXED = torch.tensor([2, 0, -1, 0, 1, 2, -1, 0, 0])


def test_identity_fresh_deltas_change_no_bit(case: Case) -> None:
    args, kwargs = batch(case)
    torch.manual_seed(0)
    expected = tensors(case.model().eval()(*args, **kwargs))
    adapted = make(case)
    for segments in (MIXED, torch.full((9,), 1)):
        for found, plain in zip(
            tensors(adapted(*args, segments=segments, **kwargs)), expected, strict=True
        ):
            torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-5)
            if "attention" not in adapted.sites[0].path:
                assert torch.equal(found, plain)


def test_one_meaning_mixed_equals_alone_equals_merged(case: Case) -> None:
    adapted = filled(make(case))
    before = frozen_bytes(adapted.model)
    args, kwargs = batch(case)
    with torch.no_grad():
        mixed = tensors(adapted(*args, segments=MIXED, **kwargs))
        for code in (-1, 0, 1, 2):
            alone = tensors(adapted(*args, segments=torch.full((9,), code), **kwargs))
            for found, expected in zip(mixed, alone, strict=True):
                torch.testing.assert_close(
                    found[MIXED == code], expected[MIXED == code], atol=1e-5, rtol=1e-4
                )
            if code < 0:
                continue
            adapted.merge(NAMES[code])
            merged = tensors(adapted(*args, **kwargs))
            assert all(map(torch.equal, merged, tensors(adapted.model(*args, **kwargs))))
            adapted.unmerge()
            for found, expected in zip(merged, alone, strict=True):
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
            assert not all(map(torch.equal, merged, mixed)), "the segment changes something"
            assert frozen_bytes(adapted.model) == before
        adapted.remove()
        base = tensors(adapted.model(*args, **kwargs))
    for found, expected in zip(mixed, base, strict=True):
        torch.testing.assert_close(found[MIXED == -1], expected[MIXED == -1], atol=1e-6, rtol=1e-5)


def test_isolation_a_step_moves_its_segments_alone_and_no_byte_of_the_model(case: Case) -> None:
    adapted = filled(make(case)).train()
    before, frozen = [*adapted.stack()], frozen_bytes(adapted.model)
    args, kwargs = batch(case)
    segments = torch.tensor([2, 0, -1, 0, 2, 2, -1, 0, 0])
    for optimizer in (
        RowwiseAdagrad(adapted.parameters(), lr=0.1),
        torch.optim.SGD(adapted.parameters(), lr=0.1),
        torch.optim.SparseAdam(adapted.parameters(), lr=0.1),
    ):
        optimizer.zero_grad()
        output = tensors(adapted(*args, segments=segments, **kwargs))
        torch.autograd.backward(torch.stack([o.square().sum() for o in output]).sum())
        assert all(p.grad is not None and p.grad.is_sparse for p in adapted.parameters())
        optimizer.step()
    for code, (old, new) in enumerate(zip(before, [*adapted.stack()], strict=True)):
        same = [torch.equal(old.tensors[name], new.tensors[name]) for name in old.tensors]
        assert all(same) if code == 1 else not all(same)
    assert frozen_bytes(adapted.model) == frozen
    assert not any(parameter[-1].any() for parameter in adapted.parameters()), "padding"


def test_gradients_of_a_mixed_batch_are_the_sum_of_those_of_its_segments(case: Case) -> None:
    adapted = filled(make(case))
    args, kwargs = batch(case)

    def gradients(masks: list[Tensor]) -> list[Tensor]:
        adapted.zero_grad()
        for mask in masks:
            code = int(MIXED[mask][0])
            segments = MIXED if len(masks) == 1 else torch.full((9,), code)
            output = tensors(adapted(*args, segments=segments, **kwargs))
            torch.autograd.backward(torch.stack([o[mask].square().sum() for o in output]).sum())
        return [p.grad.to_dense() for p in adapted.parameters() if p.grad is not None]

    mixed = gradients([MIXED >= 0])
    alone = gradients([MIXED == code for code in range(3)])
    for found, expected in zip(mixed, alone, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@given(
    st.sampled_from(sorted(CASES)),
    st.lists(st.integers(-1, 2), min_size=1, max_size=40),
    st.integers(0, 5),
)
@settings(deadline=None, max_examples=60)
def test_any_mix_equals_each_sample_alone(name: str, codes: list[int], seed: int) -> None:
    case = CASES[name]
    adapted = filled(make(case))
    args, kwargs = batch(case, len(codes), seed)
    with torch.no_grad():
        mixed = tensors(adapted(*args, segments=torch.tensor(codes), **kwargs))
        for code in set(codes):
            alone = tensors(adapted(*args, segments=torch.full((len(codes),), code), **kwargs))
            mine = torch.tensor(codes) == code
            for found, expected in zip(mixed, alone, strict=True):
                torch.testing.assert_close(found[mine], expected[mine], atol=1e-5, rtol=1e-4)


def test_no_sample_is_a_batch_too(case: Case) -> None:
    adapted = filled(make(case))
    args, kwargs = batch(case, 0)
    for output in tensors(adapted(*args, segments=torch.empty(0, dtype=torch.int64), **kwargs)):
        assert not output.numel()


def test_what_all_samples_share_is_spread() -> None:
    """As the positions of a text, a batch of one row for all."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Embedding(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            places: Tensor = self.positions(torch.arange(x.shape[1]).unsqueeze(0))
            return x + places

    adapted = filled(adapt(Positions(), on("positions", "rows"), NAMES))
    x = torch.randn(9, 6, 4)
    mixed = adapted(x, segments=MIXED)
    for code in (-1, 0, 1, 2):
        alone = adapted(x, segments=torch.full((9,), code))
        torch.testing.assert_close(mixed[MIXED == code], alone[MIXED == code])
    assert not torch.equal(mixed[0] - x[0], mixed[1] - x[1])


def test_the_padding_row_is_never_changed() -> None:
    case = CASES["embedding, padding"]
    adapted = filled(make(case))
    assert isinstance(adapted.model, Table)
    padding = adapted.model.users.weight[3].clone()
    seen: list[Tensor] = []
    adapted.model.users.register_forward_hook(lambda _, args, output: seen.append(output))
    adapted(torch.full((4, 2), 3), segments=torch.tensor([0, 1, 2, -1]))
    assert torch.equal(seen[0], padding.expand(4, 2, 4))
    adapted.merge("de")
    assert torch.equal(adapted.model.users.weight[3], padding)
    assert not torch.equal(adapted.model.users.weight[0], seen[0][0, 0])


def test_dropout_acts_in_training_only() -> None:
    for name, config in (
        ("linear", low_rank("0", dropout=0.5)),
        ("conv1d", low_rank("", dropout=0.5)),
        ("embedding", DeltaConfig(("users",), "rows", rank=2, dropout=0.5)),
        ("bag", DeltaConfig(("bags",), "rows", rank=2, dropout=0.5)),
        ("attention", low_rank("attention", dropout=0.5)),
    ):
        case = CASES[name]
        adapted = filled(adapt(case.model(), config, NAMES))
        args, kwargs = batch(case)
        still = [adapted.eval()(*args, segments=MIXED, **kwargs) for _ in range(2)]
        moved = [adapted.train()(*args, segments=MIXED, **kwargs) for _ in range(2)]
        assert torch.equal(*still), name
        assert not torch.equal(*moved), name
        assert torch.equal(moved[0][2], moved[1][2]), f"{name}: a sample of nobody's"
        assert not adapted.model.training


@pytest.mark.parametrize(
    ("build", "config", "message"),
    [
        (lambda: nn.Conv2d(4, 4, 3, groups=2), on("", "low_rank"), "groups = 2"),
        (lambda: nn.Conv2d(4, 4, 3, padding_mode="circular"), on("", "low_rank"), "'circular'"),
        (lambda: nn.Linear(3, 3, bias=False), on("", "bias"), "has no bias"),
        (lambda: nn.Linear(3, 3).double(), on("", "low_rank"), "torch.float64"),
        (lambda: nn.Embedding(4, 4, max_norm=1.0), on("", "map"), "max_norm"),
        (lambda: nn.EmbeddingBag(4, 4, mode="max"), on("", "map"), "pools by 'max'"),
        (
            lambda: nn.EmbeddingBag(4, 4),
            (DeltaConfig(("",), "rows", rank=2, magnitude=True),),
            "through their sum",
        ),
        (
            lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
            on("", "low_rank"),
            "add_bias_kv",
        ),
        (lambda: nn.MultiheadAttention(4, 2), on("out_proj", "low_rank"), "never calls it"),
        (
            lambda: nn.TransformerEncoderLayer(4, 2, 8),
            on("linear1", "low_rank"),
            "batch_first=True",
        ),
        (lambda: nn.Linear(3, 3), on("", "rows"), "takes the kinds scale, low_rank, bias"),
        (lambda: nn.Embedding(3, 3), on("", "low_rank"), "scale, map, basis, rows, not"),
        (lambda: nn.MultiheadAttention(4, 2), on("", "scale"), "takes the kinds low_rank"),
        (lambda: nn.LayerNorm(3), on("", "scale"), "LayerNorm, which has no deltas"),
        (lambda: nn.Linear(3, 5), (low_rank("", rank=4),), "rank 4 is above 3"),
        (lambda: nn.Conv1d(1, 9, 3), (low_rank("", rank=4),), "rank 4 is above 3"),
        (lambda: nn.Embedding(9, 3), (DeltaConfig(("",), "map", rank=4),), "rank 4 is above 3"),
        (
            lambda: nn.MultiheadAttention(4, 2, kdim=3),
            (low_rank("", rank=4),),
            "rank 4 is above 3",
        ),
        (
            lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
            on("", "low_rank"),
            "parametrised",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused(
    build: Callable[[], nn.Module], config: tuple[DeltaConfig, ...], message: str
) -> None:
    model = build()
    with pytest.raises(AdapterError, match=message):
        adapt(model, config, NAMES)
    assert all(not module._forward_hooks for module in model.modules())


def test_shapes_that_do_not_name_the_samples_are_refused() -> None:
    three = torch.tensor([0, 1, 2])
    for name, args, message in (
        ("linear", (torch.randn(5),), r"'0' got an input of shape \(5,\)"),
        ("linear", (torch.randn(4, 5),), r"'0' got an input of shape \(4, 5\).* 3 samples"),
        ("conv2d", (torch.randn(2, 5, 4),), "at least 4 dimensions"),
        ("embedding", (torch.zeros(4, 2, dtype=torch.int64),), "'users' got .* 3 samples"),
        ("bag", (torch.zeros(4, 2, dtype=torch.int64),), "'bags' pooled 4 bags, .* 3 samples"),
        ("attention", (torch.randn(4, 3, 4), torch.randn(4, 5, 4)), "'attention' got .* 3"),
        ("attention", (torch.randn(3, 4), torch.randn(5, 4)), "a query of 2 dimensions"),
    ):
        adapted = make(CASES[name])
        with pytest.raises(AdapterError, match=message):
            adapted(*args, segments=three)


@pytest.mark.parametrize("id_", [-1, N])
@pytest.mark.parametrize("name", ["embedding", "bag"])
def test_an_id_outside_its_table_is_an_error(name: str, id_: int) -> None:
    adapted = filled(make(CASES[name]))
    ids = torch.tensor([[1, 2], [0, id_]])
    with pytest.raises((IndexError, RuntimeError)):
        adapted(ids if name == "bag" else ids[:, 1], segments=torch.tensor([0, 2]))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("target", ["layers.1.self_attn", "layers.1.linear2", "layers.*"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_the_fast_path_of_a_transformer_does_not_pass_a_delta_by(target: str, nested: bool) -> None:
    def encoder() -> nn.TransformerEncoder:
        torch.manual_seed(2)
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()

    adapted = filled(adapt(encoder(), low_rank(target), NAMES))
    x = torch.randn(9, 5, 4)
    padding = torch.arange(5) >= torch.tensor([5, 3, 2, 5, 4, 1, 2, 3, 5]).unsqueeze(1)
    kept = ~padding
    with torch.no_grad():
        found = adapted(x, src_key_padding_mask=padding, segments=MIXED)
        base = encoder()(x, src_key_padding_mask=padding)
        for code in (-1, 0, 1, 2):
            mine = (MIXED == code).unsqueeze(1) & kept
            if code < 0:
                expected = base
            else:
                adapted.merge(NAMES[code])
                expected = adapted(x, src_key_padding_mask=padding)
                adapted.unmerge()
                assert not torch.allclose(found[mine], base[mine], atol=1e-3)
            torch.testing.assert_close(found[mine], expected[mine], atol=1e-5, rtol=1e-4)


def test_the_sites_are_of_the_modules() -> None:
    kinds = {
        name: type(make(case).sites[0])
        for name, case in CASES.items()
        if name in ("linear", "embedding", "bag", "attention")
    }
    assert kinds == {
        "linear": LayerSite,
        "embedding": EmbeddingSite,
        "bag": BagSite,
        "attention": AttentionSite,
    }
