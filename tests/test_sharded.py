"""A model that TorchRec sharded takes deltas as one of one process does.

Run as a program this file is the ranks: one process loads TorchRec and forks groups of 1, 2 and 3.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from small_ranks import start_ranks
from torch import Tensor, nn

from reclora.adapters import Adapter
from reclora.configs import AdapterError, DeltaConfig
from reclora.modules import AdaptedModel, adapt
from reclora.modules.sharded import SHARDINGS, unwrapped
from reclora.optim import RowwiseAdagrad
from reclora.store import AdapterStore

with warnings.catch_warnings():
    # TorchRec warns of itself as it is imported.
    warnings.simplefilter("ignore")
    from torchrec.models.dlrm import DLRM
    from torchrec.modules.embedding_configs import (
        DataType,
        EmbeddingBagConfig,
        EmbeddingConfig,
        PoolingType,
    )
    from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

WORLDS = (1, 2, 3)
NAMES = ("de", "fr", "日本")
D, B = 8, 24
"""Numbers that FBGEMM takes; samples that 1, 2 and 3 ranks share evenly."""
SIZES = {"users": 70_001, "places": 30, "still": 13}
"""More users than one rank shows the others at once."""
APART = 1750
"""Between the users who are seen: they lie on all ranks."""
EBC = "sparse_arch.embedding_bag_collection"
CONFIGS = (
    DeltaConfig(("over_arch.model.0*", "dense_arch.*"), "low_rank", rank=2, alpha=3.0),
    DeltaConfig(("dense_arch.model._mlp.0*",), "bias"),
    DeltaConfig((f"{EBC}.users", f"{EBC}.places"), "rows", rank=2),
    DeltaConfig((f"{EBC}.users",), "map", rank=2),
    DeltaConfig((f"{EBC}.places",), "scale"),
)
TOUCHED = torch.arange(0, 20), torch.arange(10, 41), torch.tensor([3])
ROWS = {f"{EBC}.users": [places * APART for places in TOUCHED]}
PARENT = DeltaConfig((f"{EBC}.users", f"{EBC}.still"), "rows", rank=3)
STEPS = 5
ALL = slice(None)


def collection(
    weighted: bool = False, data_type: DataType = DataType.FP32
) -> EmbeddingBagCollection:
    """`places` serves two features, by mean where rows have no weights; `still` is not adapted."""
    features = {"users": ["user"], "places": ["home", "work"], "still": ["hour"]}
    tables = [
        EmbeddingBagConfig(
            name=name,
            embedding_dim=D,
            num_embeddings=rows,
            feature_names=features[name],
            data_type=data_type,
            pooling=PoolingType.MEAN if name == "places" and not weighted else PoolingType.SUM,
        )
        for name, rows in SIZES.items()
    ]
    return EmbeddingBagCollection(tables=tables, is_weighted=weighted)


def dlrm(weighted: bool = False) -> DLRM:
    torch.manual_seed(0)
    model = DLRM(collection(weighted), 5, [6, D], [8, 1])
    with torch.no_grad():
        for table in model.sparse_arch.parameters():
            table.normal_(std=0.5)  # TorchRec starts the smaller the more rows there are.
    return model


Batch = tuple[Tensor, KeyedJaggedTensor, Tensor, Tensor]


def batch(step: int, mine: slice, weighted: bool = False) -> Batch:
    """Dense features, ids (none to three of each feature in a sample), codes and labels.

    The last samples, which are all that the last rank of three has, are nobody's: that rank's
    deltas get no gradient of their own.
    """
    generator = torch.Generator().manual_seed(step)
    keys = {"user": "users", "home": "places", "work": "places", "hour": "still"}
    lengths = {key: torch.randint(4, (B,), generator=generator) for key in keys}
    ids = {
        key: torch.randint(SIZES[name], (int(lengths[key].sum()),), generator=generator)
        for key, name in keys.items()
    }
    ids["user"] = ids["user"] % 41 * APART
    weights = {key: torch.rand(len(ids[key]), generator=generator) for key in keys}
    dense = torch.randn(B, 5, generator=generator)
    codes = torch.randint(-1, len(NAMES), (B,), generator=generator)
    codes[-B // 3 :] = -1
    labels = torch.rand(B, generator=generator).round()

    def part(values: Tensor, key: str) -> Tensor:
        return torch.cat(values.split(lengths[key].tolist())[mine])

    return (
        dense[mine],
        KeyedJaggedTensor.from_lengths_sync(
            keys=[*keys],
            values=torch.cat([part(ids[key], key) for key in keys]),
            lengths=torch.cat([lengths[key][mine] for key in keys]),
            weights=torch.cat([part(weights[key], key) for key in keys]) if weighted else None,
        ),
        codes[mine],
        labels[mine],
    )


@torch.no_grad()
def filled(adapted: AdaptedModel) -> AdaptedModel:
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        parameter[:-1] = torch.randn(parameter[:-1].shape, generator=generator) * 0.3
    return adapted


def scores(adapted: AdaptedModel, step: int, mine: slice, weighted: bool = False) -> Tensor:
    dense, ids, codes, _ = batch(step, mine, weighted)
    with torch.no_grad():
        found: Tensor = adapted(dense, ids, segments=codes)
    return found.squeeze(1)


def trained(adapted: AdaptedModel, mine: slice, optimizer: str) -> AdaptedModel:
    """Some steps; each gathers the gradients of two batches."""
    parameters = adapted.parameters()
    # With a small eps Adagrad makes a whole step of the last bits of a gradient near zero.
    taken: torch.optim.Optimizer = (
        RowwiseAdagrad(parameters, lr=0.05, eps=1e-3)
        if optimizer == "adagrad"
        else torch.optim.SGD(parameters, lr=0.5)
    )
    for step in range(STEPS):
        taken.zero_grad()
        for half in range(2):
            dense, ids, codes, labels = batch(2 * step + half, mine)
            logits = adapted(dense, ids, segments=codes).squeeze(1)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
            torch.autograd.backward(loss)
        taken.step()
    return adapted


def parent_of(model: nn.Module) -> Adapter:
    pooled = filled(adapt(model, PARENT, ["all"]))
    parent = pooled.adapter("all")
    pooled.remove()
    return parent


def place(adapter: Adapter) -> int:
    return NAMES.index(adapter.segment)


# The ranks.


def be_rank(number: int, world: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / f"store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=number, world_size=world)
    mine = slice(number * B // world, (number + 1) * B // world)
    for sharding in SHARDINGS:
        own = folder / f"{world}-{number}-{sharding}"
        own.mkdir()
        tensors, about = lived(own, sharding, mine)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, own / "numbers")
        (own / "about.json").write_text(json.dumps(about))
    dist.barrier()
    dist.destroy_process_group()


def sharded(model: nn.Module, sharding: str, group: dist.ProcessGroup | None = None) -> nn.Module:
    """The model on all ranks, with its own numbers."""
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.types import ParameterConstraints
    from torchrec.distributed.types import ShardingEnv

    class OnCPU(EmbeddingBagCollectionSharder):
        """TorchRec does not list it for the CPU, and can shard by rows there."""

        def sharding_types(self, compute_device_type: str) -> list[str]:
            return [*super().sharding_types(compute_device_type), "row_wise", "table_row_wise"]

    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    group = group or dist.group.WORLD
    assert group is not None
    ranks = dist.get_world_size(group)
    kernel = "dense" if sharding == "data_parallel" else "fused"
    constraint = ParameterConstraints(
        sharding_types=[sharding], compute_kernels=[kernel], min_partition=4
    )
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=ranks, local_world_size=ranks, compute_device="cpu"),
        constraints=dict.fromkeys([*SIZES, "sequence"], constraint),
    )
    sharders: list[Any] = [OnCPU(), EmbeddingCollectionSharder()]
    on_ranks: nn.Module = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(group),
        device=torch.device("cpu"),
        plan=planner.collective_plan(model, sharders, group),
        sharders=sharders,
    )
    with torch.no_grad():
        for name, tensor in on_ranks.state_dict().items():
            if not hasattr(tensor, "local_shards"):
                tensor.copy_(whole[name])
                continue
            for shard in tensor.local_shards():
                row, column = shard.metadata.shard_offsets
                height, width = shard.metadata.shard_sizes
                shard.tensor.copy_(whole[name][row : row + height, column : column + width])
    return on_ranks


def here(model: nn.Module) -> list[bytes]:
    """All bytes of the model that lie on this rank."""
    found = []
    for tensor in model.state_dict().values():
        parts = (
            [shard.tensor for shard in tensor.local_shards()]
            if hasattr(tensor, "local_shards")
            else [tensor]
        )
        found += [part.detach().contiguous().numpy().tobytes() for part in parts]
    return found


def lived(own: Path, sharding: str, mine: slice) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a rank has to tell of a model that is adapted, trained, saved and loaded."""
    model = sharded(dlrm(), sharding)
    before = here(model)
    found: dict[str, Tensor] = {}
    about: dict[str, Any] = {"parts": [len(part) for part in before]}
    dense, ids, _, _ = batch(0, mine)
    with torch.no_grad():
        found["frozen"] = model.eval()(dense, ids).squeeze(1)

    adapted = adapt(model, CONFIGS, NAMES, ROWS)
    found["fresh"] = scores(adapted, 0, mine)
    found["filled"] = scores(filled(adapted), 0, mine)
    adapted.remove()
    for optimizer in ("adagrad", "sgd"):
        adapted = trained(filled(adapt(model, CONFIGS, NAMES, ROWS)).train(), mine, optimizer)
        for name, tensor in adapted.state_dict().items():
            found[f"{optimizer} {name}"] = tensor
        stack = adapted.stack()
        adapted.remove()
    about["unchanged"] = here(model) == before
    about["fingerprint"] = stack.base_fingerprint
    if dist.get_rank() == 0:
        AdapterStore(own / "store").publish(stack, reason="of ranks")
    kept = AdapterStore(own.parent / "store").load_all(base_fingerprint=stack.base_fingerprint)
    served = AdaptedModel.of(model, sorted(kept, key=place))
    found["loaded"] = scores(served, 1, mine)
    served.remove()

    on_parent = filled(adapt(model, CONFIGS, NAMES, ROWS, parent=parent_of(model)))
    found["on a parent"] = scores(on_parent, 2, mine)
    trained(on_parent, mine, "sgd")
    found["on a parent, trained"] = scores(on_parent, 2, mine)
    about["unchanged at last"] = here(model) == before
    if sharding == "row_wise":
        about["refused"] = refusals(on_parent, mine)
        weighted = filled(adapt(sharded(dlrm(True), sharding), CONFIGS, NAMES, ROWS))
        found["weighted"] = scores(weighted, 3, mine, weighted=True)

    on_parent.remove()
    torch.autograd.backward(unwrapped(model)(dense, ids).sum())
    about["trains without"] = here(model) != before
    return found, about


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        config = EmbeddingConfig(
            name="sequence", embedding_dim=D, num_embeddings=9, feature_names=["goods"]
        )
        self.ec = EmbeddingCollection(tables=[config])


def refusals(adapted: AdaptedModel, mine: slice) -> dict[str, str]:
    """What is said of what cannot be."""
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.types import ShardingPlan

    model, number, world = adapted.model, dist.get_rank(), dist.get_world_size()
    dense, ids, codes, _ = batch(0, mine)
    beyond = KeyedJaggedTensor.from_lengths_sync(
        keys=ids.keys(), values=ids.values() + SIZES["users"], lengths=ids.lengths()
    )

    def table(name: str, kind: str) -> DeltaConfig:
        return DeltaConfig((f"{EBC}.{name}",), kind)

    sequences = sharded(Sequences(), "table_wise")
    half = sharded(DLRM(collection(data_type=DataType.FP16), 5, [D], [8, 1]), "table_wise")
    hosts, fresh = sharded(dlrm(), "table_row_wise"), sharded(dlrm(), "table_wise")
    tables = adapt(sharded(dlrm(), "row_wise"), table("users", "rows"), NAMES)
    nothing = DistributedModelParallel(nn.Linear(2, 2), plan=ShardingPlan({}))
    calls: dict[str, Callable[[], Any]] = {
        "merge": lambda: adapted.merge("de"),
        "twice": lambda: adapt(model, CONFIGS, NAMES),
        "outside": lambda: model(dense, ids),
        "samples": lambda: tables(dense, ids, segments=codes[1:]),
        "rows": lambda: adapted(dense, beyond, segments=codes),
        "no such table": lambda: adapt(fresh, table("plces", "rows"), NAMES),
        "no such kind": lambda: adapt(fresh, table("places", "bias"), NAMES),
        "no such module": lambda: adapt(sequences, DeltaConfig(("*",), "rows"), NAMES),
        "half": lambda: adapt(half, table("users", "scale"), NAMES),
        "no such sharding": lambda: adapt(hosts, CONFIGS, NAMES),
        "nothing sharded": lambda: adapt(nothing, DeltaConfig(("*",), "bias"), NAMES),
        "sharded in part": lambda: adapt(nn.Sequential(fresh), CONFIGS, NAMES),
    }
    if world > 1:
        all_but_one = dist.new_group([*range(world - 1)])
        if number < world - 1:
            part = sharded(dlrm(), "table_wise", all_but_one)
            calls["some ranks"] = lambda: adapt(part, CONFIGS, NAMES)
        calls["other seeds"] = lambda: adapt(fresh, CONFIGS, NAMES, ROWS, seed=number)
        calls["other numbers"] = lambda: load(adapt(fresh, CONFIGS, NAMES, ROWS), number)
    said = {}
    for name, call in calls.items():
        with pytest.raises(AdapterError) as told:
            call()
        said[name] = str(told.value)
    return said


def load(adapted: AdaptedModel, number: int) -> None:
    stack = adapted.stack()
    stack.tensors[f"{EBC}.users.rows.a"][0] = number
    adapted.load(stack)


# What the test's process knows without them.

Case = tuple[int, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ranks have left behind, in groups of each size."""
    folder = tmp_path_factory.mktemp("ranks")
    AdapterStore(folder / "store").publish(alone().stack(), reason="of one process")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(params=[(world, how) for world in WORLDS for how in SHARDINGS], ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@cache
def alone(optimizer: str | None = None, weighted: bool = False) -> AdaptedModel:
    """Of one process, trained or not."""
    adapted = filled(adapt(dlrm(weighted), CONFIGS, NAMES, ROWS))
    return adapted if optimizer is None else trained(adapted, ALL, optimizer)


def about(folder: Path, case: Case) -> list[dict[str, Any]]:
    """What each rank of a group says."""
    world, how = case
    places = [folder / f"{world}-{number}-{how}" / "about.json" for number in range(world)]
    return [json.loads(place.read_text(encoding="utf-8")) for place in places]


def numbers(folder: Path, case: Case) -> list[dict[str, Tensor]]:
    world, how = case
    return [load_file(folder / f"{world}-{number}-{how}" / "numbers") for number in range(world)]


def together(folder: Path, case: Case, name: str) -> Tensor:
    """Scores of the batch that the ranks share."""
    return torch.cat([each[name] for each in numbers(folder, case)])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_tables_lie_as_they_are_sharded(folder: Path) -> None:
    dense = sum(t.nbytes for name, t in dlrm().state_dict().items() if "embedding_bags" not in name)
    tables = sum(SIZES.values()) * D * 4
    for how in SHARDINGS:
        held = [sum(each["parts"]) - dense for each in about(folder, (3, how))]
        if how == "data_parallel":
            assert held == [tables] * 3
        else:
            assert sum(held) == tables
        if how == "row_wise":
            assert max(held) < tables * 0.34


def test_fresh_deltas_change_no_output(folder: Path, case: Case) -> None:
    dense, ids, _, _ = batch(0, ALL)
    with torch.no_grad():
        close(together(folder, case, "frozen"), dlrm().eval()(dense, ids).squeeze(1))
    assert torch.equal(together(folder, case, "fresh"), together(folder, case, "frozen"))


def test_the_base_keeps_its_bytes(folder: Path, case: Case) -> None:
    """Without deltas a backward moves what TorchRec shards, though nobody takes a step."""
    ranks = about(folder, case)
    assert all(each["unchanged"] and each["unchanged at last"] for each in ranks)
    assert any(each["trains without"] for each in ranks) == (case[1] != "data_parallel")


def test_the_fingerprint_is_that_of_one_process(folder: Path, case: Case) -> None:
    told = [each["fingerprint"] for each in about(folder, case)]
    assert told == [alone().base_fingerprint] * case[0]


def test_scores_are_those_of_one_process(folder: Path, case: Case) -> None:
    expected = scores(alone(), 0, ALL)
    close(together(folder, case, "filled"), expected)
    of_a_segment = batch(0, ALL)[2] >= 0
    moved = (expected - together(folder, case, "frozen")).abs() > 1e-4
    assert torch.equal(moved, of_a_segment)


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd"])
def test_training_is_that_of_one_process(folder: Path, case: Case, optimizer: str) -> None:
    ranks, start = numbers(folder, case), alone().state_dict()
    for name, expected in alone(optimizer).state_dict().items():
        found = [each[f"{optimizer} {name}"] for each in ranks]
        assert all(torch.equal(found[0], other) for other in found), "the same bits on all ranks"
        close(found[0], expected)
        if expected.is_floating_point():
            assert (expected - start[name]).abs().max() > 1e-4


def test_adapters_of_one_process_serve_on_ranks(folder: Path, case: Case) -> None:
    close(together(folder, case, "loaded"), scores(alone(), 1, ALL))


def test_adapters_of_ranks_serve_in_one_process(folder: Path, case: Case) -> None:
    world, how = case
    store = AdapterStore(folder / f"{world}-0-{how}" / "store")
    adapters = store.load_all(base_fingerprint=alone().base_fingerprint)
    served = AdaptedModel.of(dlrm(), sorted(adapters, key=place))
    close(scores(served, 1, ALL), scores(alone("sgd"), 1, ALL))


def test_a_parent_stands_under_them(folder: Path, case: Case) -> None:
    model = dlrm()
    stood = filled(adapt(model, CONFIGS, NAMES, ROWS, parent=parent_of(model)))
    close(together(folder, case, "on a parent"), scores(stood, 2, ALL))
    trained(stood, ALL, "sgd")
    close(together(folder, case, "on a parent, trained"), scores(stood, 2, ALL))


@pytest.mark.parametrize("world", WORLDS)
def test_rows_have_weights(folder: Path, world: int) -> None:
    expected = scores(alone(weighted=True), 3, ALL, weighted=True)
    close(together(folder, (world, "row_wise"), "weighted"), expected)


def test_the_program_in_the_docs_runs(tmp_path: Path) -> None:
    page = Path(__file__).parent.parent / "docs" / "your-model.md"
    _, _, section = page.read_text(encoding="utf-8").partition("## Your model, sharded")
    (program,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    (tmp_path / "ranks.py").write_text(program, encoding="utf-8")
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(
        [sys.executable, "ranks.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", **address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert 0 < float(done.stdout) < 0.69
    assert len(AdapterStore(tmp_path / "adapters-of-ranks").releases()) == 1


REFUSED = {
    "merge": "the model's tables are sharded.*put stack.. on the model of one process",
    "twice": "adapted already",
    "outside": "is adapted, but was called outside",
    "samples": f"table '{EBC}.users': the KeyedJaggedTensor has .* samples, but `segments` has",
    "rows": f"feature 'user' has ids from .* table '{EBC}.users' has rows 0 to 70000",
    "no such table": f"{EBC}.plces.*did you mean '{EBC}.places'",
    "no such kind": "takes the kinds scale, map, basis, rows, not `bias`",
    "no such module": "module 'ec' is a ShardedEmbeddingCollection: of what TorchRec shards only",
    "half": f"module '{EBC}.users' .*holds FP16: deltas are float32",
    "no such sharding": "table 'users' of .* is sharded table_row_wise: constrain the planner to",
    "nothing sharded": "module '' is a DistributedModelParallel: .* where it shards nothing",
    "sharded in part": "module '0' is a DistributedModelParallel: adapt that alone",
    "some ranks": f"'{EBC}' is sharded over . of . ranks",
    "other seeds": "segments, configs, rows and seed are not the same on all ranks",
    "other numbers": "the adapters to load are not the same on all ranks",
}


@pytest.mark.parametrize("world", WORLDS)
def test_what_cannot_be_is_refused(folder: Path, world: int) -> None:
    ranks = about(folder, (world, "row_wise"))
    told = {name for each in ranks for name in each["refused"]}
    of_many = {"some ranks", "other seeds", "other numbers"}
    assert told == REFUSED.keys() - (of_many if world == 1 else set())
    for each in ranks:
        for name, said in each["refused"].items():
            assert re.search(REFUSED[name], said), said


if __name__ == "__main__":
    start_ranks(WORLDS, be_rank, Path(sys.argv[1]))
