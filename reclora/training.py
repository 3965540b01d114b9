"""The one loop: every segment in one pass, each as if it trained alone.

Per step, with b rows of each of G segments,

    loss = sum_s ( mean over the rows of s of w loss(s+, s-)
                   + (l2 + shrinkage / n_s) * mean squared change of the vectors used )

and nothing but the sum joins the segments: row-wise Adagrad moves only rows with a gradient, and
early stopping is a mask per segment. So training all segments together gives what training each
alone gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.bank import AdapterBank
from reclora.batches import Batch, segment_seeds, stratified_batches
from reclora.checkpoints import Checkpoint, undisturbed
from reclora.counted import U64, mix
from reclora.deltas import RowDropout
from reclora.early_stopping import EarlyStopping, Judge
from reclora.interactions import Interactions
from reclora.losses import LOSSES
from reclora.negatives import Sampler
from reclora.notebook import as_html
from reclora.optim import RowwiseAdagrad
from reclora.tower import all_scores, paired_scores

BEYOND = 1e8
"""A delta with a larger number has diverged: products of two such and of two vectors made of them
still are float32, those of larger ones need not be."""
VALIDATION_EPOCH = 1 << 20
"""The epoch number that draws the validation negatives: fixed, and out of reach of training."""


class TrainingError(RuntimeError):
    """No segment could be trained; the message names segment, epoch and what to change."""

    def __init__(self, message: str, training: Training) -> None:
        super().__init__(message)
        self.training = training
        """What it did all the same."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a bank is trained.

    Raises:
        ValueError: a number out of its range, named with the range.
    """

    loss: Literal["softmax", "bpr"] = "softmax"
    """The objective, see `reclora.losses`."""
    epochs: int = 20
    """Passes over a segment's rows at the most; at least 1."""
    patience: int = 3
    """A segment stops after so many epochs without a better score; at least 1."""
    batch_rows: int = 64
    """Rows of each segment in a step; at least 1."""
    num_negatives: int = 64
    """Negatives of each segment in a step, common to its rows (see `reclora.negatives`); at least
    1."""
    rows_lr: float = 0.05
    """Learning rate of the tables' factors; positive."""
    bias_lr: float = 0.05
    """Learning rate of the item bias, which often wants a larger one; positive."""
    tower_lr: float = 0.01
    """Learning rate of the tower's factors; positive."""
    lr_ratio: float = 1.0
    """The rate of a factor that starts at zero over that of the one that starts at random, which
    is divided by it; positive. Source: Hayou et al., "LoRA+", ICML 2024, section 4."""
    row_dropout: float = 0.0
    """Share of the numbers of the row factors (`rows`, `basis`) that a step drops; 0 <= p < 1."""
    l2: float = 0.0
    """Weight of the squared change of the vectors used, against the parent; item biases and the
    tower are free; 0 or more."""
    shrinkage: float = 0.0
    """How many rows of data the parent counts for: adds shrinkage / n_s to `l2` in a segment of
    n_s rows, so that the fewer rows it has the nearer it stays to its parent; 0 or more."""
    step_rows: int = 8192
    """Rows in a step at the most, all segments together, but at least one segment's `batch_rows`:
    memory follows it, results do not."""

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        for name in ("epochs", "patience", "batch_rows", "num_negatives", "step_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("rows_lr", "bias_lr", "tower_lr", "lr_ratio"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        for name in ("l2", "shrinkage"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.row_dropout < 1:
            raise ValueError(f"row_dropout must be at least 0 and below 1, got {self.row_dropout}")


@dataclass(frozen=True, repr=False)
class Training:
    """What training did.

    Attributes:
        curves: segment, epoch (0 is before training), training_loss (NaN at 0), score (what the
            judge said; NaN without one).
        best_epoch: per segment, the epoch whose numbers the bank holds now; 0 is the untouched
            base, or what the bank held before.
        steps: optimizer steps taken.
        quarantined: segment -> why. What had become of it was not finite, or beyond `BEYOND`; its
            numbers are zero now, which changes nothing, whatever an earlier epoch was worth.
        seconds: CPU time of the steps, without the judge's.
    """

    curves: pd.DataFrame
    best_epoch: dict[str, int]
    steps: int
    quarantined: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __repr__(self) -> str:
        helped = sum(epoch > 0 for epoch in self.best_epoch.values())
        spoilt = f", {len(self.quarantined):,} quarantined" if self.quarantined else ""
        return (
            f"Training({helped:,} of {len(self.best_epoch):,} segments better than before{spoilt}, "
            f"{self.steps:,} steps, {self.seconds:.1f} CPU-s)"
        )

    def _repr_html_(self) -> str:
        names = list(self.best_epoch)
        why = [self.quarantined.get(name, "") for name in names]
        columns = {"best epoch": list(self.best_epoch.values()), "quarantined": why}
        return as_html(self, {"segment": names, **columns})


def train(
    bank: AdapterBank,
    log: Interactions,
    config: TrainingConfig,
    *,
    judge: Judge | None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Checkpoint | None = None,
    taken: Interactions | None = None,
) -> Training:
    """Train every segment of a bank on its part of a log, in place.

    With a judge each segment keeps the epoch that it finds best, the untouched base among them; a
    segment that it cannot judge stays at the base, since nothing could show that it helps. Without
    a judge every segment trains all epochs. A segment without a delta of its own trains nothing.
    Where the bank has a parent, read parent for base. A segment whose loss becomes NaN or infinite,
    or whose numbers do or go beyond `BEYOND`, is quarantined, and the others go on.

    Args:
        log: on the base's id maps, with the bank's segments in the bank's order.
        judge: asked before training and after every epoch; see `Judge`.
        progress: told (epochs done, epochs at most) after every epoch.
        checkpoint: where what it has reached is kept: every so many seconds, when it is interrupted
            (KeyboardInterrupt) and when it is done. What is there already is gone on from, to the
            same bytes as without the break.
        taken: what users have taken before the log, on the same id maps and segments: it is none
            of their negatives, as what they take in the log is none. To a dense log this matters.

    Raises:
        ValueError: the log is not on the bank's id maps or segments, the bank has no delta, or
            no row factor to drop from.
        TrainingError: every segment that trained is quarantined.
        OSError: the checkpoint cannot be written.
    """
    _check_log(bank, log)
    seeds_S = segment_seeds(seed, log)
    _check_deltas(bank, config)
    groups = _parameter_groups(bank, config)
    penalty_S = torch.from_numpy(config.l2 + config.shrinkage / np.maximum(np.diff(log.offsets), 1))
    if taken is not None:
        _check_log(bank, taken)
    course = _Course(bank, log, config, groups, _sampler(log, config, taken))
    if checkpoint is None:
        return course.checked(course.run(judge, seeds_S, penalty_S, progress, lambda: None))
    course.take_up(checkpoint)

    was_done = course.is_done

    def keep() -> None:
        if checkpoint.is_due():
            course.keep(checkpoint)

    try:
        training = course.run(judge, seeds_S, penalty_S, progress, keep)
    except KeyboardInterrupt:
        course.keep(checkpoint)
        raise
    if not was_done:
        course.keep(checkpoint)
    return course.checked(training)


class _Course:
    """A training on its way: what it has reached, and how it goes on."""

    def __init__(
        self,
        bank: AdapterBank,
        log: Interactions,
        config: TrainingConfig,
        groups: list[dict[str, object]],
        sampler: Sampler,
    ) -> None:
        self._bank, self._log, self._config, self._sampler = bank, log, config, sampler
        self._keeper = EarlyStopping(bank, log, config.patience)
        self._optimizer = RowwiseAdagrad(groups, lr=config.rows_lr) if groups else None
        self._losses = _SegmentMeans(log.num_segments)
        self._has_begun = self.is_done = False
        self._epoch, self._step, self._steps = 1, 0, 0
        """The epoch under way, the steps taken in it, and in all."""
        self._seconds = 0.0
        self._spoilt: dict[int, str] = {}
        """Segment -> why it is quarantined."""

    def run(
        self,
        judge: Judge | None,
        seeds_S: U64,
        penalty_S: Tensor,
        progress: Callable[[int, int], None] | None,
        keep: Callable[[], None],
    ) -> Training:
        """Go on to the end; `keep` is called wherever what is reached can be kept."""
        keeper, config = self._keeper, self._config
        if not self._has_begun:
            self._begin(judge)
        while self._epoch <= config.epochs and keeper.active.any() and not self.is_done:
            active = np.flatnonzero(keeper.active)
            batches = _batches(
                self._log, active, config, self._sampler, seeds_S, self._epoch, self._step
            )
            for batch in batches:
                self._take_step(batch, penalty_S)
                keep()
            self._end_epoch(active, judge)
            if progress is not None:
                progress(self._epoch - 1, config.epochs)
            keep()
        if not self.is_done:
            with undisturbed():
                keeper.restore()
                self.is_done = True
        return self._training()

    def _begin(self, judge: Judge | None) -> None:
        keeper, num_segments = self._keeper, self._log.num_segments
        untrained = np.full(num_segments, np.nan)
        scores = None if judge is None else judge(self._bank, np.flatnonzero(keeper.active))
        with undisturbed():
            if scores is not None:
                keeper.judge(0, untrained, scores)
            keeper.active &= np.array([self._bank.has_delta(s) for s in range(num_segments)])
            self._has_begun = True

    def _take_step(self, batch: Batch, penalty_S: Tensor) -> None:
        assert self._optimizer is not None, "a segment trains only if it has a delta"
        began = time.process_time()
        self._optimizer.zero_grad(set_to_none=True)
        drops = _drops(self._config, batch)
        loss_G, objective_G = _losses(self._bank, batch, self._config, drops, penalty_S)
        torch.autograd.backward(objective_G.sum())
        with undisturbed():
            self._optimizer.step()
            self._step, self._steps = self._step + 1, self._steps + 1
            self._losses.add(batch, loss_G.detach())
            wrong_G = ~torch.isfinite(loss_G.detach())
            if bool(wrong_G.any()):
                self._note(batch.segments_G[wrong_G].tolist())
            self._seconds += time.process_time() - began

    def _note(self, segments: list[int]) -> None:
        """Note which segments' losses are not finite, where first, and by which tensor."""
        for segment in segments:
            where = f"epoch {self._epoch}, step {self._step}"
            wrong = _diverged(self._bank, segment)
            of = f"; {wrong}" if wrong else ""
            why = f"the loss is not finite in {where}{of}: lower its learning rates"
            self._spoilt.setdefault(segment, why)

    def _end_epoch(self, active: NDArray[np.int64], judge: Judge | None) -> None:
        training_loss = self._losses.means()
        with undisturbed():
            self._check_numbers()
            if self._spoilt:
                self._keeper.give_up(np.array(sorted(self._spoilt)))
            active = np.flatnonzero(self._keeper.active)
        scores = None if judge is None or not len(active) else judge(self._bank, active)
        with undisturbed():
            if scores is not None:
                self._keeper.judge(self._epoch, training_loss, scores)
            else:
                self._keeper.note(self._epoch, training_loss)
            self._losses = _SegmentMeans(self._log.num_segments)
            self._epoch, self._step = self._epoch + 1, 0

    def _check_numbers(self) -> None:
        """The last step comes after the last loss: what it has spoilt no loss has seen, and no
        judge could rank by.
        """
        if all(_is_sound(p) for _, delta in self._bank.deltas() for p in delta.parameters()):
            return
        for code in range(self._log.num_segments):
            if wrong := _diverged(self._bank, code):
                why = f"{wrong} after epoch {self._epoch}: lower its learning rates"
                self._spoilt.setdefault(code, why)

    def checked(self, training: Training) -> Training:
        """Refuse a training of which nothing is left."""
        trained = [code for code in range(self._log.num_segments) if self._has_trained(code)]
        if self._spoilt and all(code in self._spoilt for code in trained):
            code = min(self._spoilt)
            others = f" (and {len(self._spoilt) - 1} more)" if len(self._spoilt) > 1 else ""
            raise TrainingError(
                f"no segment is left to train: {self._log.segment_names[code]!r}{others}: "
                f"{self._spoilt[code]}",
                training,
            )
        return training

    def _has_trained(self, code: int) -> bool:
        rows = self._log.offsets[code + 1] - self._log.offsets[code]
        return bool(rows > 0) and self._bank.has_delta(code)

    def _training(self) -> Training:
        names = self._log.segment_names
        return Training(
            self._keeper.curves(),
            self._keeper.best_epochs(),
            self._steps,
            {names[code]: why for code, why in sorted(self._spoilt.items())},
            self._seconds,
        )

    # To the disk and back.

    def keep(self, checkpoint: Checkpoint) -> None:
        """Write down all that it has reached."""
        tensors = {f"now.{name}": numbers for name, numbers in self._numbers()}
        tensors |= {f"keeper.{name}": tensor for name, tensor in self._keeper.state().items()}
        if self.is_done:
            tensors = {n: t for n, t in tensors.items() if not n.startswith("keeper.best.")}
        elif self._optimizer is not None:
            tensors |= {f"sum.{at}": total for at, total in enumerate(self._sums())}
            tensors |= {f"losses.{n}": t for n, t in self._losses.state().items()}
        facts = {
            "has_begun": self._has_begun,
            "is_done": self.is_done,
            "epoch": self._epoch,
            "step": self._step,
            "steps": self._steps,
            "seconds": self._seconds,
            "spoilt": {str(code): why for code, why in self._spoilt.items()},
        }
        with undisturbed():
            checkpoint.save(tensors, facts)

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Go on from what was kept, if there is something."""
        kept = checkpoint.load()
        if kept is None:
            return
        tensors, facts = kept
        with torch.no_grad():
            for name, numbers in self._numbers():
                numbers.copy_(tensors[f"now.{name}"])
            if not facts["is_done"]:
                for at, total in enumerate(self._sums()):
                    total.copy_(tensors[f"sum.{at}"])
                self._losses.restore(_named(tensors, "losses."))
        self._keeper.restore_state(_named(tensors, "keeper."))
        self._has_begun, self.is_done = facts["has_begun"], facts["is_done"]
        self._epoch, self._step, self._steps = facts["epoch"], facts["step"], facts["steps"]
        self._seconds = facts["seconds"]
        self._spoilt = {int(code): why for code, why in facts["spoilt"].items()}

    def _numbers(self) -> Iterator[tuple[str, Tensor]]:
        for at, (name, delta) in enumerate(self._bank.deltas()):
            for parameter, numbers in delta.named_parameters():
                yield f"{at}.{name}.{delta.kind}.{parameter}", numbers

    def _sums(self) -> list[Tensor]:
        """The optimizer's state, in the order of its parameters."""
        if self._optimizer is None:
            return []
        groups = self._optimizer.param_groups
        return [self._optimizer.state[p]["sum"] for group in groups for p in group["params"]]


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _is_sound(numbers: Tensor) -> bool:
    """Whether all of them are finite, and none is beyond `BEYOND`."""
    if not numbers.numel():
        return True
    least, most = torch.aminmax(numbers.detach())
    return bool(-least <= BEYOND) and bool(most <= BEYOND)


def _diverged(bank: AdapterBank, code: int) -> str:
    """What is wrong with the first tensor of a segment that is not sound; empty where all are."""
    for name, delta in bank.deltas():
        for part, where in delta.slices(code).items():
            numbers = delta.get_parameter(part)[where]
            if not _is_sound(numbers):
                is_finite = bool(torch.isfinite(numbers).all())
                said = f"has numbers beyond {BEYOND:.0e}" if is_finite else "is not finite"
                return f"{name}.{part} {said}"
    return ""


def _losses(
    bank: AdapterBank,
    batch: Batch,
    config: TrainingConfig,
    drops: tuple[RowDropout | None, RowDropout | None] = (None, None),
    penalty_S: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Per segment: the mean over its rows of weight times loss, and that with the penalty on the
    mean squared change of the vectors used. `drops`: from the users' row factors and the items'.
    """
    segments_G, weight_GB = batch.segments_G, batch.weight_GB
    sizes = [batch.item_GB.shape[1], batch.negative_GJ.shape[1]]
    # Positives and negatives are looked up at once: a step of few rows is mostly calls.
    item_GK = torch.cat([batch.item_GB, batch.negative_GJ], 1)
    u_GBD, u_below_GBD = bank.users(batch.user_GB, segments_G, drops[0])
    item_GKD, item_below_GKD = bank.items(item_GK, segments_G, drops[1])
    p_GBD, n_GJD = item_GKD.split(sizes, 1)
    positive_bias_GB, negative_bias_GJ = bank.biases(item_GK, segments_G).split(sizes, 1)
    positive_GB = (u_GBD * p_GBD).sum(-1) + positive_bias_GB
    offset_GJ = negative_bias_GJ - batch.log_chance_GJ
    negative_GBJ = u_GBD @ n_GJD.transpose(1, 2) + offset_GJ.unsqueeze(1)
    layers = bank.layers(segments_G)
    if layers:
        positive_GB = positive_GB + paired_scores(layers, u_GBD, p_GBD)
        negative_GBJ = negative_GBJ + all_scores(layers, u_GBD, n_GJD)
    loss_GB = LOSSES[config.loss](positive_GB, negative_GBJ.masked_fill(batch.own_GBJ, -torch.inf))
    share_GB = weight_GB / batch.rows_G.unsqueeze(1)
    loss_G = (share_GB * loss_GB).sum(1)
    if penalty_S is None or not penalty_S.any():
        return loss_G, loss_G
    user_change_GB = (u_GBD - u_below_GBD).square().sum(-1)
    item_change_GK = (item_GKD - item_below_GKD).square().sum(-1)
    positive_change_GB, negative_change_GJ = item_change_GK.split(sizes, 1)
    change_GB = user_change_GB + positive_change_GB
    change_G = (share_GB * change_GB).sum(1) + negative_change_GJ.mean(1)
    return loss_G, loss_G + penalty_S[segments_G].float() * change_G


def _drops(config: TrainingConfig, batch: Batch) -> tuple[RowDropout | None, RowDropout | None]:
    """Of a step, for users and for items; row i of one does not drop as row i of the other."""
    if not config.row_dropout:
        return None, None
    streams = batch.streams_G, mix(batch.streams_G)
    return RowDropout(config.row_dropout, streams[0]), RowDropout(config.row_dropout, streams[1])


class HeldOutLoss:
    """A judge: minus the objective on each segment's held-out rows, against fixed negatives."""

    def __init__(self, validation: Interactions, config: TrainingConfig, seed: int = 0) -> None:
        self._log, self._config, self._seeds_S = validation, config, segment_seeds(seed, validation)
        self._sampler = _sampler(validation, config)

    @torch.no_grad()
    def __call__(self, bank: AdapterBank, segments: NDArray[np.int64]) -> NDArray[np.float64]:
        """Minus the mean loss of each of `segments`; NaN where it has no held-out rows."""
        _check_log(bank, self._log)
        losses = _SegmentMeans(self._log.num_segments)
        config, seeds_S = self._config, self._seeds_S
        for batch in _batches(
            self._log, segments, config, self._sampler, seeds_S, VALIDATION_EPOCH
        ):
            losses.add(batch, _losses(bank, batch, config)[0])
        return -losses.means()[segments]


class _SegmentMeans:
    """The weighted mean of the rows' losses in each segment, batch by batch."""

    def __init__(self, num_segments: int) -> None:
        self._totals_S, self._weights_S = np.zeros(num_segments), np.zeros(num_segments)

    def add(self, batch: Batch, loss_G: Tensor) -> None:
        segments_G = batch.segments_G.numpy()
        self._totals_S[segments_G] += (loss_G * batch.rows_G).numpy()
        self._weights_S[segments_G] += batch.weight_GB.sum(1).numpy()

    def means(self) -> NDArray[np.float64]:
        """NaN for a segment without rows, or without weight."""
        return self._totals_S / np.where(self._weights_S > 0, self._weights_S, np.nan)

    def state(self) -> dict[str, Tensor]:
        """As tensors."""
        return {
            "totals": torch.from_numpy(self._totals_S),
            "weights": torch.from_numpy(self._weights_S),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self._totals_S = state["totals"].numpy().copy()
        self._weights_S = state["weights"].numpy().copy()


def _sampler(
    log: Interactions, config: TrainingConfig, taken: Interactions | None = None
) -> Sampler:
    return Sampler(log, config.num_negatives, config.loss == "softmax", taken)


def _batches(
    log: Interactions,
    segments: NDArray[np.int64],
    config: TrainingConfig,
    sampler: Sampler,
    seeds_S: U64,
    epoch: int,
    first: int = 0,
) -> Iterator[Batch]:
    return stratified_batches(
        log,
        segments,
        seeds_S=seeds_S,
        epoch=epoch,
        batch_rows=config.batch_rows,
        sampler=sampler,
        segments_per_step=max(1, config.step_rows // config.batch_rows),
        first_step=first,
    )


def _parameter_groups(bank: AdapterBank, config: TrainingConfig) -> list[dict[str, object]]:
    rates = {
        "user_table": config.rows_lr,
        "item_table": config.rows_lr,
        "item_bias": config.bias_lr,
    }
    groups: list[dict[str, object]] = []
    for name, delta in bank.deltas():
        lr = rates.get(name, config.tower_lr)
        for parameter, numbers in delta.named_parameters():
            ratio = config.lr_ratio if parameter in delta.random_start else 1.0
            groups.append({"params": [numbers], "lr": lr / ratio})
    return groups


def _check_deltas(bank: AdapterBank, config: TrainingConfig) -> None:
    deltas = [delta for _, delta in bank.deltas()]
    if not deltas and bank.parent is None:
        raise ValueError(
            "the bank has no delta to train: every kind of its config is `none`, or the base has "
            "no tower"
        )
    if config.row_dropout and not any(delta.kind in ("rows", "basis") for delta in deltas):
        raise ValueError(
            f"row_dropout is {config.row_dropout}, but no delta has a row factor to drop from: "
            f"take the kind `rows` or `basis`, or row_dropout = 0"
        )


def _check_log(bank: AdapterBank, log: Interactions) -> None:
    if log.users != bank.base.users or log.items != bank.base.items:
        raise ValueError(
            "the log is not on the base's id maps, as the bank's adapters and their parent extend "
            "them; take log.onto(bank.base.users, bank.base.items)"
        )
    if log.segment_names != bank.segment_names:
        raise ValueError(
            f"the log's segments are not the bank's: {log.segment_names[:3]}... "
            f"against {bank.segment_names[:3]}..."
        )
