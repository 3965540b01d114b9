"""Tests of reclora.peft: adapters score the same in PEFT and here, or are refused with a reason."""

import copy
import json
import resource
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reclora.adapters import Adapter
from reclora.arithmetic import average
from reclora.configs import AdapterConfig, AdapterError, DeltaConfig
from reclora.modules import AdaptedModel, adapt
from reclora.modules.frozen import fingerprint_of
from reclora.peft import read_peft, write_peft

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers import BertConfig, BertModel

N, D, B = 12, 6, 9
SEGMENT = "南/de"


class Net(nn.Module):
    """Tables, layers and convolutions whose names are parts, ends and patterns of one another."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(N, D, padding_idx=0)
        self.deep = nn.ModuleDict(
            {"users": nn.Embedding(N, D), "lin": nn.Linear(3 * D, D), "l+n": nn.Linear(D, D)}
        )
        self.lin = nn.Linear(D, 1)
        self.sound = nn.Conv1d(2, 4, 3, stride=2, padding=1)
        self.picture = nn.Conv2d(2, D, (3, 1), padding="same", bias=False)

    def forward(self, ids: Tensor, pixels: Tensor) -> Tensor:
        seen = (
            self.picture(pixels).mean((2, 3)) + self.sound(pixels.flatten(2)).mean((1, 2))[:, None]
        )
        x = torch.cat([self.users(ids), self.deep["users"](ids), seen], 1)
        hidden = self.deep["lin"](x).tanh()
        out: Tensor = self.lin(hidden + self.deep["l+n"](hidden))
        return out


PATHS = {
    "users": "rows",
    "deep.users": "rows",
    "deep.lin": "low_rank",
    "deep.l+n": "low_rank",
    "lin": "low_rank",
    "sound": "low_rank",
    "picture": "low_rank",
}
MOST = {
    "users": D,
    "deep.users": D,
    "deep.lin": D,
    "deep.l+n": D,
    "lin": 1,
    "sound": 4,
    "picture": D,
}


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.tensor([0, 1, 2, 3, N - 1, 5, 0, 3, 7])
    return ids, torch.randn(B, 2, 4, 3, generator=generator)


def moved(module: nn.Module, seed: int = 1) -> None:
    """Random numbers in all that trains, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def adapter_of(
    model: nn.Module,
    configs: Sequence[DeltaConfig],
    rows: Mapping[str, Sequence[Tensor]] | None = None,
    parent: Adapter | None = None,
    seed: int = 1,
) -> Adapter:
    adapted = adapt(model, configs, [SEGMENT], rows, parent=parent)
    moved(adapted.deltas, seed)
    adapter = adapted.adapter(SEGMENT)
    adapted.remove()
    return adapter


@torch.no_grad()
def ours(model: nn.Module, adapter: Adapter, *batch: Tensor, merged: bool = False) -> Any:
    adapted = AdaptedModel.of(model, [adapter]).eval()
    try:
        if merged:
            adapted.merge(adapter.segment)
            return adapted(*batch)
        return adapted(*batch, segments=torch.zeros(len(batch[0]), dtype=torch.int64))
    finally:
        adapted.remove()


def loaded(model: nn.Module, folder: Path) -> PeftModel:
    """In PEFT, which warns of keys that are missing: warnings are errors here."""
    return PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()


@torch.no_grad()
def scores(model: nn.Module, *batch: Tensor) -> Tensor:
    out: Tensor = model(*batch)
    return out


def save(model: nn.Module, folder: Path, config: LoraConfig, seed: int = 1) -> None:
    """An adapter of PEFT with random numbers, but for some rows and the padding."""
    peft = get_peft_model(copy.deepcopy(model), config)
    moved(peft, seed)
    for path, layer in lora_layers(peft).items():
        if path == "users":
            layer.lora_embedding_A["default"].data[:, [0, 3, 4]] = 0
    peft.save_pretrained(str(folder))


def lora_layers(peft: PeftModel) -> dict[str, Any]:
    named = peft.base_model.model.named_modules()
    return {path: module for path, module in named if isinstance(module, LoraLayer)}


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 2e-6 * wanted.abs().max(), "float32, 16 roundings"


def assert_one_meaning(model: nn.Module, adapter: Adapter, wanted: Tensor, *batch: Tensor) -> None:
    """Unmerged and merged."""
    for merged in (False, True):
        assert_same(ours(model, adapter, *batch, merged=merged), wanted)


# Out.

sizes = st.tuples(st.integers(1, D), st.sampled_from((0.5, 3.0, 8.0)), st.booleans())
choices = st.dictionaries(st.sampled_from(sorted(PATHS)), sizes, min_size=1)
row_sets = st.sets(st.integers(0, N - 1))


def configs_of(chosen: Mapping[str, tuple[int, float, bool]]) -> list[DeltaConfig]:
    return [
        DeltaConfig((p,), PATHS[p], rank=min(r, MOST[p]), alpha=alpha, rank_stabilised=stabilised)
        for p, (r, alpha, stabilised) in chosen.items()
    ]


def rows_of(data: st.DataObject, chosen: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    return {
        path: [torch.tensor(sorted(data.draw(row_sets)), dtype=torch.int64)]
        for path in chosen
        if PATHS[path] == "rows"
    }


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_what_is_written_scores_the_same_in_peft_and_when_read_back(data: st.DataObject) -> None:
    """Whatever the modules, their ranks and scalings, the rows and the parents."""
    model, parent = net(), None
    generations = data.draw(st.lists(choices, min_size=1, max_size=3))
    for seed, chosen in enumerate(generations):
        rows = rows_of(data, chosen)
        adapter = parent = adapter_of(model, configs_of(chosen), rows, parent, seed)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "new" / "adapter"
        write_peft(adapter, model, folder)
        peft = loaded(model, folder)
        back = read_peft(folder, model, "back")
        assert sorted(file.name for file in folder.iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        assert not [file for file in folder.parent.iterdir() if file != folder]
    adapted = {path for chosen in generations for path in chosen}
    assert lora_layers(peft).keys() == adapted
    wanted = ours(model, adapter, *inputs())
    assert_same(scores(peft, *inputs()), wanted)
    assert back.segment == "back" and back.parent is None
    assert back.base_fingerprint == adapter.base_fingerprint
    assert_one_meaning(model, back, wanted, *inputs())
    if len(generations) == 1:
        assert_equal_numbers(back, adapter)


def assert_equal_numbers(back: Adapter, adapter: Adapter) -> None:
    """Bit for bit, but for rows of zeros and the padding, which change nothing."""
    assert back.tensors.keys() == adapter.tensors.keys()
    for name, tensor in adapter.tensors.items():
        if name in ("users.rows", "users.rows.a"):
            tensor = tensor[adapter.tensors["users.rows"] != 0]
        assert torch.equal(back.tensors[name], tensor), name
        assert back.tensors[name].is_contiguous()
    for config in adapter.config:  # type: ignore[union-attr]
        (path,) = config.targets
        (same,) = (one for one in back.config if path in one.targets)  # type: ignore[union-attr]
        assert (same.kind, same.rank) == (config.kind, config.rank)
        assert same.low_rank.scaling == pytest.approx(config.low_rank.scaling, rel=1e-14)


@pytest.mark.parametrize("stabilised", [False, True])
def test_settings_come_back_as_they_were(tmp_path: Path, stabilised: bool) -> None:
    """Where PEFT can say them: one way to scale, and one dropout."""
    model = net()
    configs = (
        DeltaConfig(("users",), "rows", rank=2, alpha=3.0, rank_stabilised=stabilised),
        DeltaConfig(
            ("deep.lin", "deep.l+n"), "low_rank", rank=3, rank_stabilised=stabilised, dropout=0.25
        ),
        DeltaConfig(("lin",), "low_rank", rank=1, rank_stabilised=stabilised, dropout=0.25),
    )
    write_peft(adapter_of(model, configs), model, tmp_path / "x")
    assert read_peft(tmp_path / "x", model, SEGMENT).config == configs
    stored = LoraConfig.from_pretrained(str(tmp_path / "x"))
    assert stored.use_rslora is stabilised and stored.lora_dropout == 0.25


def test_dropouts_that_differ_are_left_out(tmp_path: Path) -> None:
    model = net()
    configs = [
        DeltaConfig(("lin",), "low_rank", rank=1, dropout=0.5),
        DeltaConfig(("deep.lin",), "low_rank", rank=1),
    ]
    write_peft(adapter_of(model, configs), model, tmp_path / "x")
    assert LoraConfig.from_pretrained(str(tmp_path / "x")).lora_dropout == 0


def test_a_mean_of_adapters_can_be_written(tmp_path: Path) -> None:
    model = net()
    config = DeltaConfig(("users", "deep.*"), "rows", rank=2, alpha=5.0)
    several = [adapter_of(model, [config], seed=seed) for seed in (1, 2)]
    mean = average(several, segment="mean")
    write_peft(mean, model, tmp_path / "mean")
    assert_same(scores(loaded(model, tmp_path / "mean"), *inputs()), ours(model, mean, *inputs()))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_small_bert(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
        )
    ).eval()
    batch = torch.randint(1, 40, (4, 7), generator=torch.Generator().manual_seed(0))
    configs = [
        DeltaConfig(("*.query", "*.value"), "low_rank", rank=4, alpha=8.0),
        DeltaConfig(("*.layer.1.output.dense",), "low_rank", rank=2, rank_stabilised=True),
        DeltaConfig(("embeddings.word_embeddings",), "rows", rank=3),
    ]
    adapter = adapter_of(model, configs)
    write_peft(adapter, model, tmp_path / "x")
    wanted = ours(model, adapter, batch).last_hidden_state
    with torch.no_grad():
        found = loaded(model, tmp_path / "x")(batch).last_hidden_state
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)
    back = read_peft(tmp_path / "x", model, SEGMENT)
    assert torch.equal(ours(model, back, batch).last_hidden_state, wanted)


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = net()
    adapter = adapter_of(model, [DeltaConfig(("lin",), "low_rank", rank=1)])
    plain = net().train()
    before, own = fingerprint_of(plain), set(plain.__dict__)
    write_peft(adapter, plain, tmp_path / "x")
    read_peft(tmp_path / "x", plain, SEGMENT)
    assert plain.training and all(parameter.requires_grad for parameter in plain.parameters())
    assert fingerprint_of(plain) == before and set(plain.__dict__) == own
    adapted = AdaptedModel.of(model, [adapter])
    write_peft(adapted.adapter(SEGMENT), model, tmp_path / "y")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


# In.

NAMES = ("users", "lin", "deep.lin", "deep.l+n", "deep.users", "sound", "picture")
PATTERNS = (
    "lin",
    "^lin",
    "deep.lin",
    "d.*n",
    "(use|pict).*",
    r"deep\.l\+n",
    "sound",
    "l.n",
    "deep.l+n",
)
patterns = st.dictionaries(st.sampled_from(PATTERNS), st.integers(1, 9), max_size=3)
targets = st.one_of(
    st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    st.sampled_from(
        (".*(lin|users)", "lin", "(deep.)?users|picture", "sound", "(lin)?", "all-linear")
    ),
)


@settings(deadline=None, max_examples=40)
@given(
    targets,
    st.one_of(st.none(), st.sampled_from((["deep.lin"], "deep.users", ["lin"]))),
    st.integers(1, 9),
    st.sampled_from((1, 8, 0.5)),
    st.booleans(),
    patterns,
    patterns,
)
@pytest.mark.filterwarnings("ignore:The following (alpha|rank)_pattern keys did not:RuntimeWarning")
def test_what_peft_saved_scores_the_same_here(
    target_modules: Any,
    exclude_modules: Any,
    r: int,
    alpha: float,
    stabilised: bool,
    ranks: dict[str, int],
    alphas: dict[str, int],
) -> None:
    """Patterns and ends of names, ranks above the sides, rows of zeros. PEFT saves the patterns in
    another order, by which it may read another alpha or fail, and so it is what it loads that
    counts.
    """
    model = net()
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=target_modules,
        exclude_modules=exclude_modules,
        use_rslora=stabilised,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        init_lora_weights=False,
    )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            save(model, folder, config)
        except ValueError as error:
            assert "excluded" in str(error), "all that was targeted"
            return
        try:
            wanted = scores(loaded(model, folder), *inputs())
        except RuntimeError as error:
            assert "size mismatch" in str(error)
            with pytest.raises(AdapterError, match=r"of rank \d must be floats of shape"):
                read_peft(folder, model, SEGMENT)
            return
        adapter = read_peft(folder, model, SEGMENT)
    assert_one_meaning(model, adapter, wanted, *inputs())
    for own in adapter.config:  # type: ignore[union-attr]
        assert all(own.rank <= MOST[path] for path in own.targets)
    if "users.rows" in adapter.tensors:
        assert {0, 3, 4}.isdisjoint(adapter.tensors["users.rows"].tolist())


def test_what_peft_trained_scores_the_same_here(tmp_path: Path) -> None:
    model = net()
    config = LoraConfig(
        r=4,
        lora_alpha=12,
        lora_dropout=0.1,
        target_modules=["users", "lin", "picture"],
        rank_pattern={"picture": 2},
        alpha_pattern={"^lin": 5},
    )
    peft = get_peft_model(copy.deepcopy(model), config).train()
    optimizer = torch.optim.Adam((p for p in peft.parameters() if p.requires_grad), lr=0.05)
    wanted = torch.linspace(-1, 1, B)[:, None]
    for _ in range(20):
        optimizer.zero_grad()
        (peft(*inputs()) - wanted).square().mean().backward()
        optimizer.step()
    peft.save_pretrained(str(tmp_path))
    adapter = read_peft(tmp_path, model, SEGMENT)
    assert_one_meaning(model, adapter, scores(peft.eval(), *inputs()), *inputs())
    assert adapter.tensors["users.rows"].tolist() == [1, 2, 3, 5, 7, N - 1], "looked up in training"
    assert adapter.config == (
        DeltaConfig(("users", "deep.users"), "rows", rank=4, alpha=12.0),
        DeltaConfig(("deep.lin",), "low_rank", rank=4, alpha=12.0, dropout=0.1),
        DeltaConfig(("lin",), "low_rank", rank=1, alpha=1.25, dropout=0.1),
        DeltaConfig(("picture",), "low_rank", rank=2, alpha=12.0, dropout=0.1),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = net()
    save(model, tmp_path, LoraConfig(r=3, target_modules=["deep.users", "lin"]))
    rewrite(tmp_path, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    adapter = read_peft(tmp_path, model, SEGMENT)
    numbers = [tensor for name, tensor in adapter.tensors.items() if not name.endswith(".rows")]
    assert {tensor.dtype for tensor in numbers} == {torch.float32}
    assert_one_meaning(model, adapter, scores(loaded(model, tmp_path), *inputs()), *inputs())


def test_an_adapter_stays_when_its_file_goes(tmp_path: Path) -> None:
    model = net()
    save(model, tmp_path, LoraConfig(r=1, target_modules=["deep.users", "lin", "sound"]))
    adapter = read_peft(tmp_path, model, SEGMENT)
    before = {name: tensor.clone() for name, tensor in adapter.tensors.items()}
    size = (tmp_path / TENSORS).stat().st_size
    with (tmp_path / TENSORS).open("r+b") as file:
        file.write(b"\0" * size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.tensors.items())


class Tokens(nn.Module):
    """What PEFT takes for a language model: it saves the embeddings beside their factors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(N, D)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.embed_tokens(ids).sum(-1)
        return out


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_copies_of_the_bases_weights_must_equal_them(tmp_path: Path) -> None:
    model, ids = Tokens().eval(), torch.arange(N)
    save(model, tmp_path, LoraConfig(r=2, target_modules=["embed_tokens"]))
    assert "base_model.model.embed_tokens.base_layer.weight" in load_file(tmp_path / TENSORS)
    adapter = read_peft(tmp_path, model, SEGMENT)
    assert_one_meaning(model, adapter, scores(loaded(model, tmp_path), ids), ids)
    with torch.no_grad():
        model.embed_tokens.weight[3, 1] += 1
    with pytest.raises(
        AdapterError, match=r"embed_tokens.base_layer.weight' is a weight of another"
    ):
        read_peft(tmp_path, model, SEGMENT)


# What is refused, and why.

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change({name: tensor.clone() for name, tensor in load_file(folder / TENSORS).items()})
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / TENSORS)


def configure(folder: Path, **settings: Any) -> None:
    known = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(known | settings))


class Holder(nn.Module):
    """A model of one part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Any:
        return self.part(x)


class Attention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x)[0]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.once = self.again = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.again(self.once(x))
        return out


def encoder_layer() -> Holder:
    return Holder(nn.TransformerEncoderLayer(D, 2, 8, batch_first=True)).eval()


def test_why_attention_is_refused() -> None:
    """PEFT changes the output by twice what it should. (If this fails, PEFT was mended.)"""
    torch.manual_seed(0)
    plain = Holder(nn.MultiheadAttention(D, 2, batch_first=True)).eval()
    peft = get_peft_model(copy.deepcopy(plain), LoraConfig(r=2, target_modules=["part"]))
    moved(peft)
    layer = peft.base_model.model.part
    x = torch.randn(3, 4, D)
    with torch.no_grad():
        plain.part.in_proj_weight += layer.get_delta_weight("default")
        plain.part.out_proj.weight += 2 * layer.base_layer.out_proj.get_delta_weight("default")
        assert_same(layer(x, x, x)[0], plain.part(x, x, x)[0])


@pytest.mark.parametrize("names", [["self_attn"], ["linear1", "linear2"]])
def test_why_parts_of_an_encoder_layer_are_refused(names: list[str]) -> None:
    """At inference it reads the weights past PEFT's layers."""
    plain, x = encoder_layer(), torch.randn(3, 4, D)
    peft = get_peft_model(copy.deepcopy(plain), LoraConfig(r=2, target_modules=names)).eval()
    moved(peft)
    assert torch.equal(scores(peft, x), scores(plain, x))


def test_why_a_module_of_two_names_is_refused() -> None:
    plain, x = Twice(), torch.randn(3, D)
    peft = get_peft_model(copy.deepcopy(plain), LoraConfig(r=2, target_modules=["once", "again"]))
    moved(peft)
    assert_same(scores(peft, x), scores(plain.again, scores(peft.base_model.model.once, x)))


def test_why_dilation_is_refused() -> None:
    plain = Holder(nn.Conv1d(2, 4, 3, padding=2, dilation=2))
    peft = get_peft_model(plain, LoraConfig(r=2, target_modules=["part"]))
    assert peft.base_model.model.part.lora_A["default"].dilation == (1,)


def collection() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchrec.modules.embedding_configs import EmbeddingConfig
        from torchrec.modules.embedding_modules import EmbeddingCollection
    tables = [EmbeddingConfig(name="t", embedding_dim=D, num_embeddings=N, feature_names=["f"])]
    return Holder(EmbeddingCollection(tables=tables))


UNWRITABLE: dict[str, tuple[Callable[[], nn.Module], DeltaConfig, str]] = {
    "bias": (net, DeltaConfig(("deep.lin",), "bias"), "'deep.lin' has the kind `bias`"),
    "scale": (net, DeltaConfig(("users",), "scale"), "'users' has the kind `scale`"),
    "map": (net, DeltaConfig(("users",), "map", rank=2), "'users' has the kind `map`"),
    "basis": (net, DeltaConfig(("users",), "basis", rank=2), "'users' has the kind `basis`"),
    "magnitude": (
        net,
        DeltaConfig(("users",), "rows", rank=2, magnitude=True),
        "'users' has the kind `rows with magnitude`",
    ),
    "bag": (
        lambda: Holder(nn.EmbeddingBag(N, D)),
        DeltaConfig(("part",), "rows", rank=2),
        "'part' is an EmbeddingBag",
    ),
    "torchrec": (
        collection,
        DeltaConfig(("part.t",), "rows", rank=2),
        "'part.t' is an EmbeddingBag or a table of TorchRec",
    ),
    "attention": (
        lambda: Holder(nn.MultiheadAttention(D, 2, batch_first=True)),
        DeltaConfig(("part",), "low_rank", rank=2),
        "'part.q' is attention or a part of it",
    ),
    "encoder": (
        encoder_layer,
        DeltaConfig(("part.linear1",), "low_rank", rank=2),
        "'part.linear1' is in an nn.TransformerEncoderLayer",
    ),
    "dilation": (
        lambda: Holder(nn.Conv1d(2, 4, 3, padding=2, dilation=2)),
        DeltaConfig(("part",), "low_rank", rank=2),
        r"'part' has dilation \(2,\)",
    ),
    "twice": (Twice, DeltaConfig(("once",), "low_rank", rank=2), "'once' has several names"),
    "itself": (
        lambda: nn.Linear(D, D),
        DeltaConfig(("",), "low_rank", rank=2),
        "'' is the model itself",
    ),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_peft_cannot_score_is_not_written(tmp_path: Path, case: str) -> None:
    make, config, message = UNWRITABLE[case]
    model = make()
    adapter = adapter_of(model, [config])
    with pytest.raises(AdapterError, match=rf"segment '{SEGMENT}': module {message}.*merge\("):
        write_peft(adapter, model, tmp_path / "x")
    on_top = adapter_of(model, [config], parent=adapter)
    with pytest.raises(AdapterError, match=message):
        write_peft(on_top, model, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_adapters_of_something_else_are_not_written(tmp_path: Path) -> None:
    model = net()
    adapter = adapter_of(model, [DeltaConfig(("lin",), "low_rank", rank=1)])
    with torch.no_grad():
        model.lin.weight[0, 0] += 1
    with pytest.raises(AdapterError, match=f"{adapter.base_fingerprint}.*{fingerprint_of(model)}"):
        write_peft(adapter, model, tmp_path / "x")
    model, of_base = net(), Adapter("de", AdapterConfig(), adapter.base_fingerprint, {})
    for wrong in (of_base, replace(adapter, parent=of_base)):
        with pytest.raises(AdapterError, match="'de' is of a base model with two tables"):
            write_peft(wrong, model, tmp_path / "x")
    adapter.tensors["lin.low_rank.b"][0, 0] = torch.nan
    for wrong in (adapter, replace(adapter, segment="fr", parent=adapter)):
        with pytest.raises(AdapterError, match=f"lin.low_rank.b .*{SEGMENT}' holds NaN"):
            write_peft(wrong, model, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    model = net()
    adapter = adapter_of(model, [DeltaConfig(("lin",), "low_rank", rank=1)])
    (tmp_path / "empty").mkdir()
    write_peft(adapter, model, tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "empty", tmp_path / "file"):
        with pytest.raises(AdapterError, match=f"{folder} exists and is no empty folder"):
            write_peft(adapter, model, folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """Neither in the tensors nor, after them, in the settings."""
    model = net()
    adapter = adapter_of(model, [DeltaConfig(("lin",), "low_rank", rank=1)])
    write_peft(adapter, model, tmp_path / "whole")
    most = (tmp_path / "whole" / TENSORS).stat().st_size
    assert (tmp_path / "whole" / CONFIG).stat().st_size > most, "so that only they are too long"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most_bytes in (0, 40, most):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
        try:
            with pytest.raises(OSError):
                write_peft(adapter, model, tmp_path / "x")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [file.name for file in tmp_path.iterdir()] == ["whole"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora is set"),
    "bias": ({"bias": "lora_only"}, "bias is set"),
    "lora_bias": ({"lora_bias": True}, "lora_bias is set"),
    "modules_to_save": ({"modules_to_save": ["deep.l+n"]}, "modules_to_save is set"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "pissa_niter": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 1 LoRA tensor.s. have invalid shape")
def test_what_is_more_than_plain_lora_is_not_read(tmp_path: Path, case: str) -> None:
    """As PEFT itself saves it."""
    model, (changed, message) = net(), REFUSED[case]
    save(model, tmp_path, LoraConfig(r=2, target_modules=["deep.lin"], **changed))
    with pytest.raises(AdapterError, match=rf"{CONFIG}: {message}"):
        read_peft(tmp_path, model, SEGMENT)


@pytest.mark.parametrize("init", [True, False, "gaussian", "Gaussian", "orthogonal", "mica"])
def test_which_inits_leave_the_base_alone(tmp_path: Path, init: Any) -> None:
    model = net()
    config = LoraConfig(r=2, target_modules=["deep.lin"], init_lora_weights=init)
    save(model, tmp_path, config)
    wanted = scores(loaded(model, tmp_path), *inputs())
    assert_one_meaning(model, read_peft(tmp_path, model, SEGMENT), wanted, *inputs())


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"peft_type": "IA3"}, "peft_type must be LORA, got 'IA3'"),
    "no kind": ({"peft_type": None}, "peft_type must be LORA, got ''"),
    "loftq": ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
    "corda": ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga'"),
    "fan_in_fan_out": ({"fan_in_fan_out": True}, "fan_in_fan_out is set"),
    "alora": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
    "layers": ({"layers_to_transform": [0]}, "layers_to_transform is set"),
    "parameters": ({"target_parameters": ["lin.weight"]}, "target_parameters is set"),
    "replication": ({"layer_replication": [[0, 1]]}, "layer_replication is set"),
    "tokens": ({"trainable_token_indices": [3]}, "trainable_token_indices is set"),
    "kasa": ({"kasa_config": {"beta": 1.0}}, "kasa_config is set"),
    "tying": ({"ensure_weight_tying": True}, "ensure_weight_tying is set"),
    "to come": ({"use_something_new": True}, "use_something_new is set"),
    "r": ({"r": "4"}, "r must be int, got '4'"),
    "r of bool": ({"r": True}, "r must be int, got True"),
    "r of zero": ({"r": 0}, "rank must be at least 1"),
    "alpha": ({"lora_alpha": -8}, "alpha must be a positive number, got -8"),
    "alpha of nan": ({"lora_alpha": float("nan")}, "alpha must be a positive number, got nan"),
    "large alpha": ({"lora_alpha": 10**400}, "alpha must be a positive number"),
    "dropout": ({"lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1"),
    "rslora": ({"use_rslora": "yes"}, "use_rslora must be bool, got 'yes'"),
    "ranks": ({"rank_pattern": [3]}, "rank_pattern must be dict"),
    "rank": ({"rank_pattern": {"lin": 2.5}}, "rank_pattern has 2.5 for module 'deep.lin'"),
    "alphas": ({"alpha_pattern": {"lin": None}}, "alpha_pattern has None for module 'deep.lin'"),
    "pattern": ({"alpha_pattern": {"(": 3}}, r"alpha_pattern has '.*', which is no regular expr"),
    "target": ({"target_modules": "("}, r"target_modules has '\(', which is no regular expression"),
    "no target": ({"target_modules": None}, "target_modules does not name module 'deep.lin'"),
    "excluded": ({"exclude_modules": ["lin"]}, "does not name module 'deep.lin'"),
    "more": ({"target_modules": "deep.(lin|users)"}, "names module 'deep.users', of which"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_are_refused(tmp_path: Path, case: str) -> None:
    model, (changed, message) = net(), SETTINGS[case]
    save(model, tmp_path, LoraConfig(r=2, target_modules=["deep.lin"]))
    read_peft(tmp_path, model, SEGMENT)
    configure(tmp_path, **changed)
    with pytest.raises(AdapterError, match=rf"{CONFIG}.*{message}"):
        read_peft(tmp_path, model, SEGMENT)


def test_settings_that_change_nothing(tmp_path: Path) -> None:
    """And those that an older PEFT did not write."""
    model = net()
    save(model, tmp_path, LoraConfig(target_modules=["deep.lin"]))
    adapter = read_peft(tmp_path, model, SEGMENT)
    configure(tmp_path, task_type="FEATURE_EXTRACTION", revision="main", something_new=None)
    assert read_peft(tmp_path, model, SEGMENT).config == adapter.config
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA", "target_modules": ["deep.lin"]}')
    assert read_peft(tmp_path, model, SEGMENT).config == adapter.config


@pytest.mark.parametrize(
    "part, target, message",
    [
        (nn.MultiheadAttention(D, 2), "part", "is attention or a part of it"),
        (nn.TransformerEncoderLayer(D, 2, 8, batch_first=True), "linear1", "is in an nn.Transf"),
        (nn.Conv1d(2, 4, 3, dilation=2), "part", r"has dilation \(2,\)"),
        (nn.Conv3d(2, 4, 3), "part", "is of type Conv3d, which has no `low_rank` here"),
        (Twice(), "once", "has several names"),
        (nn.Conv1d(2, 4, 3, groups=2), "part", "has groups = 2"),
        (nn.Linear(D, D).double(), "part", "has a weight of torch.float64"),
        (nn.Embedding(N, D, max_norm=1.0), "part", "has max_norm"),
    ],
)
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")
def test_modules_that_are_refused(
    tmp_path: Path, part: nn.Module, target: str, message: str
) -> None:
    model = Holder(part)
    save(model, tmp_path, LoraConfig(r=2, target_modules=[target]))
    with pytest.raises(AdapterError, match=message):
        read_peft(tmp_path, model, SEGMENT)


FIRST = "base_model.model.deep.lin.lora_A.weight"
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
DAMAGE: dict[str, tuple[Change, str]] = {
    "none": (lambda t: {}, f"{TENSORS} holds no factors"),
    "one": (
        lambda t: {FIRST: t[FIRST]},
        r"'deep.lin': expected \['lora_A.weight', 'lora_B.weight'\]",
    ),
    "bias": (
        lambda t: t | {f"{FIRST[:-6]}bias": torch.ones(2)},
        "lora_A.bias' is neither a factor",
    ),
    "prefix": (
        lambda t: {name.removeprefix("base_model.model."): x for name, x in t.items()},
        "'deep.lin.lora_A.weight' is neither a factor nor",
    ),
    "shape": (
        lambda t: t | {FIRST: torch.ones(2, 3)},
        r"lora_A.weight of rank 2 .* \(2, 18\), got",
    ),
    "rank": (lambda t: t | {FIRST: torch.ones(3, 18)}, r"lora_A.weight of rank 2 .* \(3, 18\)"),
    "integers": (lambda t: t | {FIRST: torch.ones(2, 18).int()}, "must be floats .* torch.int32"),
    "nan": (
        lambda t: t | {FIRST: torch.full((2, 18), torch.nan)},
        "lora_A.weight holds NaN or inf",
    ),
    "beyond": (
        lambda t: t | {FIRST: torch.full((2, 18), 1e300, dtype=torch.float64)},
        "lora_A.weight holds NaN or infinity",
    ),
    "name": (
        lambda t: {name.replace("deep.lin", "deep.lim"): x for name, x in t.items()},
        "no module 'deep.lim' in the model; did you mean 'deep.lin'",
    ),
    "type": (
        lambda t: t | {"base_model.model.users.lora_A.weight": torch.ones(2, D)},
        "'users' is of type Embedding, which has no `low_rank` here",
    ),
    "table": (
        lambda t: t | {"base_model.model.lin.lora_embedding_B": torch.ones(2, D)},
        "'lin' is of type Linear, which has no `rows` here",
    ),
    "untargeted": (
        lambda t: t | {FIRST.replace("deep.lin", "lin"): torch.ones(2, D)},
        "target_modules does not name module 'lin'",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_tensors_that_are_refused(tmp_path: Path, case: str) -> None:
    model, (change, message) = net(), DAMAGE[case]
    save(model, tmp_path, LoraConfig(r=2, target_modules="deep.lin"))
    rewrite(tmp_path, change)
    with pytest.raises(AdapterError, match=f"{tmp_path}.*{message}"):
        read_peft(tmp_path, model, SEGMENT)


def test_a_changed_padding_row_is_refused(tmp_path: Path) -> None:
    model, name = net(), "base_model.model.users.lora_embedding_A"
    save(model, tmp_path, LoraConfig(r=2, target_modules=["users", "lin"]))
    rewrite(tmp_path, lambda t: t | {name: t[name].index_fill(1, torch.tensor([0]), 0.5)})
    with pytest.raises(AdapterError, match="'users': lora_embedding_A changes row 0, the padding"):
        read_peft(tmp_path, model, SEGMENT)


def test_files_that_are_refused(tmp_path: Path) -> None:
    model = net()

    def assert_refused(message: str) -> None:
        with pytest.raises(AdapterError, match=f"{tmp_path}.*{message}"):
            read_peft(tmp_path / "x", model, SEGMENT)

    assert_refused("expected adapter_config.json and adapter_model.safetensors, found nothing")
    save(model, tmp_path / "x", LoraConfig(r=2, target_modules=["deep.lin"]))
    (tmp_path / "x" / CONFIG).write_text("[" * 100_000)
    assert_refused("adapter_config.json cannot be read as JSON")
    (tmp_path / "x" / CONFIG).write_bytes(b"\xff{}")
    assert_refused("adapter_config.json cannot be read as JSON")
    (tmp_path / "x" / CONFIG).write_text("[]")
    assert_refused("adapter_config.json: expected an object, got list")
    (tmp_path / "x" / CONFIG).write_text('{"peft_type": "LORA"}')
    (tmp_path / "x" / TENSORS).write_bytes(b"\xff" * 100)
    assert_refused("adapter_model.safetensors cannot be read as safetensors")
    (tmp_path / "x" / TENSORS).rename(tmp_path / "x" / "adapter_model.bin")
    assert_refused("adapter_model.bin may hold pickled code and is not opened")
    (tmp_path / "x" / "adapter_model.bin").rename(tmp_path / "x" / "notes.txt")
    assert_refused("found README.md, adapter_config.json, notes.txt")
