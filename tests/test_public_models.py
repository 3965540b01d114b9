"""Public architectures, built from their libraries, keep the laws when they are adapted."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reclora.configs import AdapterError, DeltaConfig
from reclora.modules import AdaptedModel, adapt
from reclora.modules.torchrec import CollectionSite
from reclora.optim import RowwiseAdagrad

NAMES = ("de", "fr", "日本")
CODES = torch.tensor([2, 0, -1, 0, 1, 2, -1, 0])
B, N, D = len(CODES), 20, 8


@contextmanager
def others_warnings() -> Iterator[None]:
    """Of TorchRec and transformers about themselves, while they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


with others_warnings():
    from torchrec.models.deepfm import SimpleDeepFMNN
    from torchrec.models.dlrm import DLRM, DLRM_DCN
    from torchrec.modules.embedding_configs import (
        EmbeddingBagConfig,
        EmbeddingConfig,
        PoolingType,
    )
    from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
    from torchrec.modules.mlp import MLP
    from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor
    from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel


def bags(weighted: bool = False) -> EmbeddingBagCollection:
    """`places` serves two features, home and work."""
    pooling = PoolingType.SUM if weighted else PoolingType.MEAN
    tables = [
        EmbeddingBagConfig(name="users", embedding_dim=D, num_embeddings=N, feature_names=["user"]),
        EmbeddingBagConfig(
            name="places",
            embedding_dim=D,
            num_embeddings=N,
            feature_names=["home", "work"],
            pooling=pooling,
        ),
    ]
    return EmbeddingBagCollection(tables=tables, is_weighted=weighted)


def features(weighted: bool = False, num_samples: int = B) -> KeyedJaggedTensor:
    """0 to 3 ids of each feature in each sample."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(4, (3 * num_samples,), generator=generator)
    total = int(lengths.sum())
    return KeyedJaggedTensor.from_lengths_sync(
        keys=["user", "home", "work"],
        values=torch.randint(N, (total,), generator=generator),
        lengths=lengths,
        weights=torch.rand(total, generator=generator) if weighted else None,
    )


class TwoTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ebc = bags(weighted=True)
        self.query, self.candidate = MLP(D, [8, 4]), MLP(2 * D, [8, 4])

    def forward(self, kjt: KeyedJaggedTensor) -> Tensor:
        pooled = self.ebc(kjt)
        query = self.query(pooled["user"])
        candidate = self.candidate(torch.cat([pooled["home"], pooled["work"]], 1))
        return (query * candidate).sum(1)


class Sequences(nn.Module):
    """Rows of an EmbeddingCollection, averaged over each sample's sequence."""

    def __init__(self) -> None:
        super().__init__()
        config = EmbeddingConfig(
            name="goods", embedding_dim=D, num_embeddings=N, feature_names=["home", "work"]
        )
        other = EmbeddingConfig(
            name="people", embedding_dim=D, num_embeddings=N, feature_names=["user"]
        )
        self.ec = EmbeddingCollection(tables=[other, config], need_indices=True)
        self.over = nn.Linear(D, 3)

    def forward(self, kjt: KeyedJaggedTensor) -> Tensor:
        rows = self.ec(kjt)
        assert list(rows) == ["user", "home", "work"]
        parts = []
        for name in rows:
            assert isinstance(rows[name], JaggedTensor)
            assert torch.equal(rows[name].weights(), kjt[name].values())
            parts.append(rows[name].to_padded_dense(3).sum(1))
        out: Tensor = self.over(torch.stack(parts).sum(0).tanh())
        return out


def low_rank(*targets: str) -> DeltaConfig:
    return DeltaConfig(targets, "low_rank", rank=2, alpha=3.0)


def table(*targets: str, kind: str = "rows") -> DeltaConfig:
    return DeltaConfig(targets, kind, rank=2)


def dense(width: int) -> Tensor:
    return torch.randn(B, width, generator=torch.Generator().manual_seed(4))


def bert() -> nn.Module:
    config = BertConfig(
        vocab_size=N,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=10,
    )
    model: nn.Module = BertModel(config)
    return model


def bert_inputs() -> dict[str, Tensor]:
    ids = torch.randint(1, N, (B, 6), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(6) < torch.arange(1, B + 1).unsqueeze(1)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def resnet() -> nn.Module:
    """The shape of ResNet-18, narrow."""
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[2, 2, 2, 2],
        layer_type="basic",
    )
    model: nn.Module = ResNetModel(config)
    return model


Case = tuple[Callable[[], nn.Module], tuple[Any, ...], dict[str, Any], tuple[DeltaConfig, ...], str]

CASES: dict[str, Case] = {
    "dlrm": (
        lambda: DLRM(bags(), 5, [8, D], [8, 1]),
        (dense(5), features()),
        {},
        (low_rank("dense_arch.*", "over_arch.model.0*"), table("*.users", "*.places")),
        "over_arch.modle.1",
    ),
    "dlrm with crosses": (
        lambda: DLRM_DCN(bags(), 5, [8, D], [8, 1], dcn_num_layers=2, dcn_low_rank_dim=4),
        (dense(5), features()),
        {},
        (
            low_rank("over_arch.model.0.*"),
            table("sparse_arch.embedding_bag_collection.places", kind="map"),
        ),
        "sparse_arch.embedding_bag_collection.place",
    ),
    "deepfm": (
        lambda: SimpleDeepFMNN(5, bags(), hidden_layer_size=8, deep_fm_dimension=4),
        (dense(5), features()),
        {},
        (low_rank("dense_arch*", "inter_arch*"), table("sparse_arch*")),
        "inter_arch.deepfm",
    ),
    "two towers": (
        TwoTower,
        (features(weighted=True),),
        {},
        (low_rank("query.*", "candidate.*"), table("ebc.users", "ebc.places"))
        + (table("ebc.places", kind="scale"),),
        "ebc.user",
    ),
    "sequences": (
        Sequences,
        (features(),),
        {},
        (low_rank("over"), table("ec.goods"), table("ec.people", kind="map")),
        "ec.good",
    ),
    "bert": (
        bert,
        (),
        bert_inputs(),
        (
            low_rank("encoder.layer.*.query", "encoder.layer.*.value", "*.dense"),
            table("embeddings.*"),
        ),
        "encoder.layer.0.attention.self.qeury",
    ),
    "resnet": (
        resnet,
        (torch.randn(B, 3, 24, 24, generator=torch.Generator().manual_seed(1)),),
        {},
        (low_rank("*.convolution"), DeltaConfig(("encoder.stages.3*",), "scale")),
        "encoder.stages.0.layers.0.layer.0.convolutoin",
    ),
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output.flatten(1) if output.dim() > 1 else output.unsqueeze(1)
    found: Tensor = output.pooler_output
    return found.flatten(1)


def make(case: Case) -> AdaptedModel:
    torch.manual_seed(0)
    adapted = adapt(case[0](), case[3], NAMES)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter[:-1] = torch.randn(parameter[:-1].shape, generator=generator) * 0.3
    return adapted


def frozen_bytes(model: nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.state_dict().values()]


def test_one_meaning_mixed_equals_alone_equals_merged(case: Case) -> None:
    _, args, kwargs, _, _ = case
    adapted = make(case)
    before = frozen_bytes(adapted.model)
    names = [*adapted.model.state_dict()]
    with torch.no_grad():
        mixed = tensor(adapted(*args, segments=CODES, **kwargs))
        assert mixed.isfinite().all()
        for code, name in enumerate(NAMES):
            mine = code == CODES
            alone = tensor(adapted(*args, segments=torch.full((B,), code), **kwargs))
            adapted.merge(name)
            merged = tensor(adapted(*args, **kwargs))
            adapted.unmerge()
            torch.testing.assert_close(mixed[mine], alone[mine], atol=1e-5, rtol=1e-3)
            torch.testing.assert_close(merged, alone, atol=1e-5, rtol=1e-3)
        assert frozen_bytes(adapted.model) == before
        assert [*adapted.model.state_dict()] == names
        adapted.remove()
        base = tensor(adapted.model(*args, **kwargs))
    torch.testing.assert_close(mixed[CODES < 0], base[CODES < 0], atol=1e-6, rtol=1e-5)
    assert ((mixed - base).abs().amax(1) > 1e-4)[CODES >= 0].all(), "every segment changes scores"


def test_mixed_batches_train_their_segments_alone(case: Case) -> None:
    _, args, kwargs, _, _ = case
    adapted = make(case).train()
    before, frozen = [*adapted.stack()], frozen_bytes(adapted.model)
    codes = torch.where(CODES == 1, 2, CODES)
    optimizer = RowwiseAdagrad(adapted.parameters(), lr=0.03)
    known = (codes >= 0).unsqueeze(1)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = (tensor(adapted(*args, segments=codes, **kwargs)) * known).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for code, (old, new) in enumerate(zip(before, [*adapted.stack()], strict=True)):
        same = [torch.equal(old.tensors[name], new.tensors[name]) for name in old.tensors]
        assert all(same) if code == 1 else not all(same)
    assert frozen_bytes(adapted.model) == frozen


def test_a_misspelt_name_is_answered_with_the_nearest(case: Case) -> None:
    model, wrong = case[0](), case[4]
    kind = "rows" if "e" in wrong.split(".")[-1][:5] and wrong.startswith(("ebc", "ec.")) else "map"
    with pytest.raises(AdapterError, match=f"{wrong}.*did you mean"):
        adapt(model, DeltaConfig((wrong,), kind), NAMES)


def test_adapters_come_back_whole(case: Case) -> None:
    _, args, kwargs, _, _ = case
    adapted = make(case)
    with torch.no_grad():
        expected = tensor(adapted(*args, segments=CODES, **kwargs))
        adapters = [*adapted.stack()]
        adapted.remove()
        again = AdaptedModel.of(adapted.model, adapters[::-1])
        codes = again.codes([NAMES[code] if code >= 0 else "?" for code in CODES.tolist()])
        torch.testing.assert_close(tensor(again(*args, segments=codes, **kwargs)), expected)


def test_the_output_of_a_collection_keeps_its_type() -> None:
    adapted = adapt(bags(), table("users"), NAMES)
    output = adapted(features(), segments=CODES)
    assert isinstance(output, KeyedTensor) and output.keys() == ["user", "home", "work"]
    adapted = adapt(Sequences().ec, table("goods"), NAMES)
    assert isinstance(adapted.sites[0], CollectionSite)
    assert isinstance(adapted(features(), segments=CODES)["home"], JaggedTensor)


def test_a_table_of_a_collection_has_two_names_and_one_delta() -> None:
    both = table("ebc.embedding_bags.users", "ebc.users")
    adapted = adapt(TwoTower(), both, NAMES)
    assert [*adapted.adapter("de").tensors] == [
        "ebc.users.rows",
        "ebc.users.rows.a",
        "ebc.users.rows.b",
    ]


def test_a_batch_of_another_size_is_refused() -> None:
    for model, target, message in (
        (Sequences(), "ec.goods", "has 8 samples, but `segments` has 3"),
        (bags(), "users", "pooled 8 bags, but there are 3 samples"),
    ):
        adapted = adapt(model, table(target), NAMES)
        with pytest.raises(AdapterError, match=message):
            adapted(features(), segments=torch.tensor([0, 1, 2]))


def test_a_batch_of_several_sizes_is_refused() -> None:
    adapted = adapt(Sequences(), table("ec.goods"), NAMES)
    several = KeyedJaggedTensor(
        keys=["user", "home", "work"],
        values=torch.arange(4),
        lengths=torch.tensor([1, 1, 1, 1]),
        stride_per_key_per_rank=[[1], [2], [1]],
    )
    with pytest.raises(AdapterError, match="one batch size for all features"):
        adapted.sites[0]._adapted(  # type: ignore[attr-defined]
            None, (several,), {}
        )


@pytest.mark.parametrize("wrong", [-1, N])
def test_an_id_outside_its_table_is_an_error(wrong: int) -> None:
    kjt = KeyedJaggedTensor.from_lengths_sync(
        keys=["user", "home", "work"],
        values=torch.tensor([0, 1, wrong]),
        lengths=torch.tensor([1, 1, 1]),
    )
    for model, target in ((bags(), "places"), (Sequences(), "ec.goods")):
        adapted = adapt(model, table(target), NAMES)
        with pytest.raises((IndexError, RuntimeError)):
            adapted(kjt, segments=torch.tensor([0]))
