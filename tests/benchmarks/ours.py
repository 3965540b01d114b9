"""Our side of the engine's benchmarks: each function is the twin of one of the peers'."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig, DeltaConfig
from reclora.interactions import IdMap, Interactions
from reclora.modules import AdaptedModel, adapt
from reclora.optim import RowwiseAdagrad
from reclora.store import AdapterStore
from reclora.training import TrainingConfig, train

from .engine_worlds import (
    BATCH,
    LAYERS,
    NEGATIVES,
    RANK,
    SEGMENT_ITEMS,
    SEGMENT_ROWS,
    SEGMENT_USERS,
    Batch,
    FourLayers,
    Ranker,
    TwoTables,
    batches,
    cpu_ms,
    cpu_seconds,
    mixed_rows,
    peak_bytes,
    segment_pairs,
)
from .peers import TABLES, TOWER, stepper

LR: Final = 0.05


def step(num_users: int, *, distinct_users: int | None = None) -> float:
    """CPU-ms of a step of `adapt` on both tables and both layers of `Ranker`, one segment."""
    data = batches(num_users, distinct_users=distinct_users)
    model = _adapted(Ranker(num_users), [*TABLES, *TOWER], data)
    optimizer = RowwiseAdagrad(model.parameters(), LR)
    return cpu_ms(stepper(partial(model, segments=_all_of_one()), [optimizer], data))


def memory(num_users: int, targets: Sequence[str]) -> float:
    """Peak bytes over the frozen base while `Ranker` is adapted and takes 5 steps of training.

    The data has `BATCH` users in each of 25 batches: 1e5 of 4e6.
    """
    torch.set_num_threads(1)
    _adapt_and_train(Ranker(BATCH, BATCH), batches(BATCH, BATCH, count=1), targets)
    base, data = Ranker(num_users), batches(num_users)
    return peak_bytes(lambda: _adapt_and_train(base, data, targets))


def seconds_in_one_pass(num_segments: int, batch_rows: int, epochs: int) -> float:
    """CPU-s of one pass over so many segments, from the log to trained deltas."""
    torch.set_num_threads(1)
    base, log = _two_tables(), _log(num_segments)
    _train(base, _log(1), batch_rows, epochs)
    return cpu_seconds(lambda: _train(base, log, batch_rows, epochs))


def seconds_per_segment(batch_rows: int, epochs: int, *, segments: int = 5) -> float:
    """CPU-s of a pass over one segment by the same code: the median of so many, after a warm-up."""
    torch.set_num_threads(1)
    base, logs = _two_tables(), [_log(1, first) for first in range(segments + 1)]
    _train(base, logs.pop(), batch_rows, epochs)
    return statistics.median(
        cpu_seconds(partial(_train, base, log, batch_rows, epochs)) for log in logs
    )


def peak_of_one_pass(num_segments: int, batch_rows: int) -> float:
    """The peak of the resident set over all of a pass, its log and its base included, in bytes."""
    torch.set_num_threads(1)

    def everything() -> None:
        base = _two_tables()
        _train(base, _log(num_segments), batch_rows, epochs=1)

    return peak_bytes(everything)


def mixed_batch(num_adapters: int) -> float:
    """CPU-ms of a forward of `mixed_rows` through the adapted `FourLayers`, without gradients."""
    model = _many(num_adapters)
    rows_BD, segments_B = mixed_rows(num_adapters)
    with torch.no_grad():
        return cpu_ms(lambda: model(rows_BD, segments=segments_B))


def gathered_batch(num_adapters: int) -> float:
    """CPU-ms of the same by torch's own operators: fetch each row's factors, then bmm."""
    layers, (rows_BD, segments_B) = FourLayers(), mixed_rows(num_adapters)
    model = _many(num_adapters)
    factors = model.stack().tensors
    a = [factors[f"{layer}.low_rank.a"].view(num_adapters, RANK, -1) for layer in LAYERS]
    b = [factors[f"{layer}.low_rank.b"].view(num_adapters, -1, RANK) for layer in LAYERS]

    def forward() -> None:
        x_BI = rows_BD
        for at in range(len(LAYERS)):
            hidden_BR1 = torch.bmm(a[at][segments_B], x_BI.unsqueeze(2))
            change_BO = torch.bmm(b[at][segments_B], hidden_BR1).squeeze(2)
            x_BI = (layers[2 * at](x_BI) + change_BO).relu()

    with torch.no_grad():
        return cpu_ms(forward)


def save_load(num_adapters: int) -> float:
    """CPU-s in which so many adapters of `FourLayers` are published, or loaded into it by a store
    that has read nothing yet, whichever takes longer.
    """
    torch.set_num_threads(1)
    model = _many(num_adapters)
    stack = model.stack()
    with tempfile.TemporaryDirectory() as folder:
        store = AdapterStore(Path(folder) / "warm")
        store.publish(stack, reason="warm-up")
        model.load(store.load_stacks(base_fingerprint=stack.base_fingerprint)[0])
        root = Path(folder) / "store"
        saving = cpu_seconds(lambda: AdapterStore(root).publish(stack, reason="benchmark"))

        def load() -> None:
            (loaded,) = AdapterStore(root).load_stacks(base_fingerprint=stack.base_fingerprint)
            model.load(loaded)

        return max(saving, cpu_seconds(load))


def open_one(num_adapters: int) -> float:
    """CPU-ms in which a fresh reader opens one adapter of so many; the median of 15."""
    stack = _many(num_adapters).stack()
    base, name = stack.base_fingerprint, stack.segments[num_adapters // 2]
    with tempfile.TemporaryDirectory() as folder:
        AdapterStore(Path(folder)).publish(stack, reason="benchmark")
        return cpu_ms(lambda: AdapterStore(Path(folder)).load(name, base_fingerprint=base))


def _adapted(base: Ranker, targets: Sequence[str], data: Sequence[Batch]) -> AdaptedModel:
    """Adapted for one segment, with the rows that its data touches.

    The last layer has one output, so that its rank is 1 here; PEFT takes `RANK` there as well.
    """
    configs = [DeltaConfig((name,), *KINDS[name]) for name in targets]
    touched = {
        "users": torch.cat([batch.users_B for batch in data]),
        "items": torch.cat([batch.items_B for batch in data]),
    }
    rows = {name: [touched[name]] for name in targets if name in TABLES}
    return adapt(base, configs, ["de"], rows=rows).train()


KINDS: Final = {
    "users": ("rows", RANK),
    "items": ("rows", RANK),
    "hidden": ("low_rank", RANK),
    "output": ("low_rank", 1),
}


def _all_of_one() -> Tensor:
    return torch.zeros(BATCH, dtype=torch.int64)


def _adapt_and_train(base: Ranker, data: Sequence[Batch], targets: Sequence[str]) -> None:
    model = _adapted(base, targets, data)
    optimizer = RowwiseAdagrad(model.parameters(), LR)
    take = stepper(partial(model, segments=_all_of_one()), [optimizer], data)
    for _ in data[:5]:
        take()


def _two_tables() -> BaseModel:
    model = TwoTables()
    return BaseModel.of(
        IdMap(range(SEGMENT_USERS)),
        IdMap(range(SEGMENT_ITEMS)),
        model.users.weight.detach(),
        model.items.weight.detach(),
    )


def _log(num_segments: int, first: int = 0) -> Interactions:
    pairs = [segment_pairs(segment) for segment in range(first, first + num_segments)]
    users, items = (torch.cat(side).numpy() for side in zip(*pairs, strict=True))
    return Interactions.from_arrays(
        users=IdMap(range(SEGMENT_USERS)),
        items=IdMap(range(SEGMENT_ITEMS)),
        segment_names=[str(first + segment) for segment in range(num_segments)],
        segments=np.repeat(np.arange(num_segments), SEGMENT_ROWS),
        user_rows=users,
        item_rows=items,
        timestamps=np.zeros(len(users), dtype=np.int64),
    )


def _train(base: BaseModel, log: Interactions, batch_rows: int, epochs: int) -> None:
    bank = AdapterBank.for_log(
        base, log, AdapterConfig(rank=RANK, alpha=RANK, item_bias="none", tower="none")
    )
    config = TrainingConfig(
        epochs=epochs, batch_rows=batch_rows, num_negatives=NEGATIVES, rows_lr=LR
    )
    train(bank, log, config, judge=None)


def _many(num_adapters: int) -> AdaptedModel:
    """`FourLayers` adapted for so many segments, with factors that change something."""
    names = [str(segment) for segment in range(num_adapters)]
    model = adapt(FourLayers(), DeltaConfig(LAYERS, "low_rank", RANK), names)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[:-1].normal_()
    return model.eval()
