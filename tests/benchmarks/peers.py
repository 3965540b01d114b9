"""The peers of the engine's benchmarks: PEFT, and full fine-tuning with sparse gradients."""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from .engine_worlds import (
    BATCH,
    LAYERS,
    RANK,
    Batch,
    FourLayers,
    Ranker,
    TwoTables,
    batches,
    cpu_ms,
    cpu_seconds,
    logistic_loss,
    mixed_rows,
    peak_bytes,
    segment_batches,
)

# peft takes seconds to import: it is asked for where it is measured.
if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

PEFT: Final = f"PEFT {version('peft')}"
TABLES: Final = ("users", "items")
TOWER: Final = ("hidden", "output")
LR: Final = 1e-3


def peft_step(num_users: int, *, fused: bool, distinct_users: int | None = None) -> float:
    """CPU-ms of a step of PEFT's LoRA on both tables and both layers of `Ranker`, with Adam.

    Args:
        fused: `Adam(fused=True)`, else Adam as it comes.
        distinct_users: see `batches`.
    """
    model = lora(Ranker(num_users), [*TABLES, *TOWER])
    optimizer = torch.optim.Adam(_trained(model), LR, fused=fused or None)
    return cpu_ms(stepper(model, [optimizer], batches(num_users, distinct_users=distinct_users)))


def full_sparse_step(num_users: int, *, distinct_users: int | None = None) -> float:
    """CPU-ms of a step of full fine-tuning: SparseAdam for the tables, Adam for the tower."""
    model = Ranker(num_users, sparse=True)
    tables = torch.optim.SparseAdam([model.users.weight, model.items.weight], LR)
    tower = torch.optim.Adam([*model.hidden.parameters(), *model.output.parameters()], LR)
    data = batches(num_users, distinct_users=distinct_users)
    return cpu_ms(stepper(model, [tables, tower], data))


def peft_memory(num_users: int, targets: Sequence[str]) -> float:
    """Peak bytes over the frozen base while PEFT wraps `Ranker` and takes 5 steps of default Adam.

    With `TABLES` among the targets and without: the difference is what the tables' deltas take.
    """
    torch.set_num_threads(1)
    _wrap_and_train(Ranker(BATCH, BATCH), batches(BATCH, BATCH, count=1), targets)
    base, data = Ranker(num_users), batches(num_users, count=5)
    return peak_bytes(lambda: _wrap_and_train(base, data, targets))


def peft_seconds_per_segment(
    batch_rows: int, epochs: int, *, fused: bool, segments: int = 3
) -> float:
    """CPU-s that PEFT takes for one segment after another: wrap `TwoTables`, train, unwrap.

    The median of `segments` after one more as warm-up.
    """
    torch.set_num_threads(1)
    base = TwoTables()

    def one(segment: int) -> None:
        model = lora(base, TABLES)
        optimizer = torch.optim.Adam(_trained(model), LR, fused=fused or None)
        for users_B, items_B, negatives_J in segment_batches(segment, batch_rows, epochs):
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(model(users_B, items_B, negatives_J))
            optimizer.step()
        model.unload()

    one(segments)
    return statistics.median(cpu_seconds(partial(one, segment)) for segment in range(segments))


def peft_mixed_batch(num_adapters: int) -> float:
    """CPU-ms of a forward of `mixed_rows` through PEFT's `FourLayers`, without gradients."""
    model = _many(num_adapters).eval()
    rows_BD, segments_B = mixed_rows(num_adapters)
    names = [_name(segment) for segment in segments_B.tolist()]
    with torch.no_grad():
        return cpu_ms(lambda: model(rows_BD, adapter_names=names))


def peft_save_load(num_adapters: int) -> float:
    """CPU-s in which PEFT saves so many adapters of `FourLayers`, or loads them on a fresh one,
    whichever takes longer.

    For each adapter it holds the keys of all against the names of all: time grows nearly with the
    cube of their number.
    """
    from peft import PeftModel

    torch.set_num_threads(1)
    model = _many(num_adapters)
    with tempfile.TemporaryDirectory() as folder:
        saving = cpu_seconds(lambda: model.save_pretrained(folder))

        def load() -> None:
            first, *others = (_name(segment) for segment in range(num_adapters))
            loaded = PeftModel.from_pretrained(FourLayers(), f"{folder}/{first}", first)
            for name in others:
                loaded.load_adapter(f"{folder}/{name}", name)

        return max(saving, cpu_seconds(load))


def lora(model: nn.Module, targets: Sequence[str], name: str = "default") -> PeftModel:
    """The model, wrapped in place, with PEFT's LoRA of rank `RANK` on these modules."""
    from peft import get_peft_model

    return get_peft_model(model, _config(targets), name)


def stepper(
    model: Callable[[Tensor, Tensor], Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    data: Sequence[Batch],
) -> Callable[[], None]:
    """A function that trains on the next batch, over and over."""
    following = itertools.cycle(data)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(logistic_loss(model, next(following)))
        for optimizer in optimizers:
            optimizer.step()

    return step


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _config(targets: Sequence[str]) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(targets))


def _many(num_adapters: int) -> PeftModel:
    model = lora(FourLayers(), LAYERS, _name(0))
    for segment in range(1, num_adapters):
        model.add_adapter(_name(segment), _config(LAYERS))
    return model


def _name(segment: int) -> str:
    return f"segment_{segment}"


def _wrap_and_train(base: Ranker, data: Sequence[Batch], targets: Sequence[str]) -> None:
    model = lora(base, targets)
    step = stepper(model, [torch.optim.Adam(_trained(model), LR)], data)
    for _ in data:
        step()
