"""This file is a model whose tables lie sharded over the ranks of a process group, by TorchRec.

The deltas are whole on every rank, and each rank has its own samples. So a forward needs nothing
but the pooled rows that TorchRec brings, and a backward ends with

    grad <- mean over the ranks of grad

of every number of the deltas, as torch's DistributedDataParallel has it: ranks that start with the
same numbers keep the same numbers. The gradients are sparse, which that wrapper does not take of
modules that are not its own.

Nothing here imports TorchRec: its modules are known by their names, as those of one process are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from reclora.configs import AdapterError

SHARDINGS = ("table_wise", "row_wise", "column_wise", "data_parallel")
"""Of a table; those that the tests hold against one process."""
READ_ROWS = 1 << 16
"""Rows that one rank shows the others at once."""


def is_sharded(module: nn.Module) -> bool:
    """Whether it is TorchRec's EmbeddingBagCollection as it lies on the ranks."""
    return _is(module, "embeddingbag.ShardedEmbeddingBagCollection")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in TorchRec's DistributedModelParallel, whose names are those of one process."""
    if not any(_is(module, "types.ShardedModule") for module in model.modules()):
        return model
    while isinstance(model, DistributedDataParallel) or _is(model, _WRAPPER):
        model = cast(nn.Module, model.module)
    return model


def why_not(collection: Any, name: str) -> str | None:
    """What stands against a delta on a table of a sharded collection."""
    config = _config(collection, name)
    if config.data_type.name != "FP32":
        return f"holds {config.data_type.name}: deltas are float32"
    return None


def stand_in(collection: Any, name: str) -> nn.EmbeddingBag:
    """A sharded table's shape and pooling; it has no row of its own."""
    config = _config(collection, name)
    shape = config.num_embeddings, config.embedding_dim
    return nn.EmbeddingBag(
        *shape,
        mode=config.pooling.value.lower(),
        include_last_offset=True,
        _weight=torch.zeros(1, 1).expand(shape),
    )


def shape_and_type(tensor: Any) -> tuple[tuple[int, ...], torch.dtype]:
    """Of a sharded tensor; asked of itself, it would warn that it is going to be another one."""
    about = tensor.metadata()
    return tuple(about.size), about.tensor_properties.dtype


def whole_rows(tensor: Any) -> Iterator[Tensor]:
    """A sharded tensor's rows in their order, part after part, on every rank; collective."""
    (num_rows, width), dtype = shape_and_type(tensor)
    own = {tuple(s.metadata.shard_offsets): s.tensor.detach() for s in tensor.local_shards()}
    for start in range(0, num_rows, READ_ROWS):
        stop = min(start + READ_ROWS, num_rows)
        rows = torch.empty(stop - start, width, dtype=dtype)
        for shard in tensor.metadata().shards_metadata:
            (first, column), (height, columns) = shard.shard_offsets, shard.shard_sizes
            low, high = max(start, first), min(stop, first + height)
            if low >= high:
                continue
            part = torch.empty(high - low, columns, dtype=dtype)
            if (first, column) in own:
                part.copy_(own[first, column][low - first : high - first])
            dist.broadcast(part, shard.placement.rank())
            rows[low - start : high - start, column : column + columns] = part
        yield rows


def in_order(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict in the order of the model's modules; a rank names the tables that lie on it
    before those that do not.
    """
    places = {path: place for place, (path, _) in enumerate(model.named_modules())}
    names = sorted(tensors, key=lambda name: places.get(name.rpartition(".")[0], len(places)))
    return {name: tensors[name] for name in names}


def anywhere(here: bool) -> bool:
    """Whether something is so on any rank; collective."""
    found = torch.tensor(int(here))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def check_same(digest: str, what: str) -> None:
    """Collective.

    Raises:
        AdapterError: the ranks come with different digests.
    """
    own = torch.tensor(list(digest.encode()), dtype=torch.uint8)
    first = own.clone()
    dist.broadcast(first, 0)
    if anywhere(not torch.equal(own, first)):
        raise AdapterError(f"{what} are not the same on all ranks: give all of them the same")


class Ranks:
    """The ranks that a model's tables are sharded over, all of the process group.

    TorchRec un-freezes what it shards: its tables take a step in every backward that reaches them.
    So what comes out of a sharded collection is cut off from where it came from.

    Attributes:
        collections: the sharded collections by path.
    """

    def __init__(self, collections: Mapping[str, nn.Module]) -> None:
        self.collections = collections
        self._task = -1

    @classmethod
    def of(cls, model: nn.Module) -> Ranks | None:
        """Those of an unwrapped model; None where all of it lies in this process.

        Raises:
            AdapterError: something else than an EmbeddingBagCollection is sharded, or one in a way
                that is not among `SHARDINGS`, not over all ranks, or not on the CPU.
        """
        found = {}
        for path, module in model.named_modules():
            if _is(module, _WRAPPER):
                raise AdapterError(
                    f"module {path!r} is a DistributedModelParallel: adapt that alone, or where it "
                    f"shards nothing the model that is in it"
                )
            if _is(module, "types.ShardedModule"):
                _check(path, module)
                found[path] = module
        return cls(found) if found else None

    def attach(self, parameters: Sequence[nn.Parameter]) -> list[Callable[[], None]]:
        """Freeze the collections, and average what the parameters learn; returns what ends it."""
        hook = partial(self._cut_off, parameters)
        return [module.register_forward_hook(hook).remove for module in self.collections.values()]

    def _cut_off(self, parameters: Sequence[nn.Parameter], _: nn.Module, __: Any, out: Any) -> Any:
        pooled = out.wait() if hasattr(out, "wait") else out
        # Asked for a gradient by all who read it, so that every rank's backward comes by here.
        anchor = torch.zeros((), requires_grad=True)
        meet = partial(self._meet, parameters)
        values = _Meeting.apply(pooled.values().detach(), anchor, meet)  # type: ignore[no-untyped-call]
        return type(pooled)(pooled.keys(), pooled.length_per_key(), values)

    def _meet(self, parameters: Sequence[nn.Parameter]) -> None:
        """At the end of the backward under way, once."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            Variable._execution_engine.queue_callback(partial(average_gradients, parameters))


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """grad <- mean over the ranks of grad; collective.

    What was averaged before is the same on all ranks, and their mean is itself: so gradients may
    be gathered over several backwards. Without one on any rank there stays none.
    """
    layouts = [0 if p.grad is None else 1 if p.grad.is_sparse else 2 for p in parameters]
    largest = torch.tensor(layouts)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    for parameter, layout in zip(parameters, largest.tolist(), strict=True):
        if layout == 0:
            continue
        grad = parameter.grad
        if grad is None:
            grad = torch.zeros_like(parameter, layout=torch.sparse_coo)
        grad = grad.to_dense() if layout == 2 else grad.coalesce()
        dist.all_reduce(grad)
        parameter.grad = grad / dist.get_world_size()


class _Meeting(torch.autograd.Function):
    """The identity; its backward calls `meet`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, anchor: Tensor, meet: Callable[[], None]) -> Tensor:
        ctx.meet = meet
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        ctx.meet()
        return None, None, None


_WRAPPER = "model_parallel.DistributedModelParallel"


def _is(module: nn.Module, name: str) -> bool:
    """Whether it is one of torchrec.distributed's."""
    return any(
        f"{kind.__module__}.{kind.__name__}" == f"torchrec.distributed.{name}"
        for kind in type(module).__mro__
    )


def _config(collection: Any, name: str) -> Any:
    return next(c for c in collection._embedding_bag_configs if c.name == name)


def _check(path: str, module: Any) -> None:
    if not is_sharded(module):
        raise AdapterError(
            f"module {path!r} is a {type(module).__name__}: of what TorchRec shards only an "
            f"EmbeddingBagCollection can stand in an adapted model; make it one, or leave it whole"
        )
    for name, parameters in module.module_sharding_plan.items():
        if parameters.sharding_type not in SHARDINGS:
            raise AdapterError(
                f"table {name!r} of {path!r} is sharded {parameters.sharding_type}: constrain the "
                f"planner to one of {', '.join(SHARDINGS)}"
            )
    if module._device.type != "cpu":
        raise AdapterError(f"{path!r} is sharded on {module._device}: deltas are on the CPU")
    if module._output_dtensor:
        raise AdapterError(f"{path!r} is sharded over a device mesh: give it a process group")
    ranks = module._env.process_group.size()
    if ranks != dist.get_world_size():
        raise AdapterError(
            f"{path!r} is sharded over {ranks} of {dist.get_world_size()} ranks: deltas are the "
            f"same on all of them; start a process group of those {ranks}"
        )
