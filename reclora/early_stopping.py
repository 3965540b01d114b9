"""Early stopping as a mask: which segments still train, and which epoch of each is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from reclora.bank import AdapterBank
from reclora.batches import segment_weights
from reclora.deltas import Delta
from reclora.interactions import Interactions

Judge = Callable[[AdapterBank, NDArray[np.int64]], NDArray[np.float64]]
"""How good a bank's adapters of some segments (codes) are: a number each, higher is better, NaN
where there is nothing to judge by."""


class EarlyStopping:
    """Which segments still train, and the best numbers of each so far."""

    def __init__(self, bank: AdapterBank, log: Interactions, patience: int) -> None:
        self._bank, self._names, self._patience = bank, log.segment_names, patience
        self.active = segment_weights(log) > 0
        self._best_score = np.full(len(self._names), -np.inf)
        self._best_epoch = np.zeros(len(self._names), dtype=np.int64)
        self._best: list[tuple[Delta, dict[str, Tensor]]] = []
        self._rows: list[tuple[int, int, float, float]] = []

    def note(self, epoch: int, training_loss: NDArray[np.float64]) -> None:
        """No judge: the last epoch is the best."""
        self._best_epoch[self.active] = epoch
        self._record(epoch, training_loss, np.full(len(self._names), np.nan))

    def judge(
        self, epoch: int, training_loss: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> None:
        """Keep the numbers of the segments that got better; stop those whose patience is over."""
        score_S = np.full(len(self._names), np.nan)
        score_S[self.active] = scores
        self._record(epoch, training_loss, score_S)
        self.active &= ~np.isnan(score_S)
        better = self.active & (score_S > self._best_score)
        self._best_score[better], self._best_epoch[better] = score_S[better], epoch
        if not self._best:
            self._best = [
                (delta, {name: p.detach().clone() for name, p in delta.named_parameters()})
                for delta in self._deltas()
            ]
        else:
            self._copy(np.flatnonzero(better))
        self.active &= epoch - self._best_epoch < self._patience

    def give_up(self, segments: NDArray[np.int64]) -> None:
        """Stop segments whose numbers are spoilt; zeros, which change nothing, take their place."""
        self.active[segments], self._best_epoch[segments] = False, 0
        banks = [(d, {name: p.data for name, p in d.named_parameters()}) for d in self._deltas()]
        for delta, numbers in [*banks, *self._best]:
            for segment in segments:
                for name, part in delta.slices(int(segment)).items():
                    numbers[name][part] = 0

    def state(self) -> dict[str, Tensor]:
        """All of it, but for the bank's numbers, as tensors."""
        rows = np.array(self._rows, dtype=np.float64).reshape(len(self._rows), 4)
        own = {
            "active": torch.from_numpy(self.active.copy()),
            "best_score": torch.from_numpy(self._best_score.copy()),
            "best_epoch": torch.from_numpy(self._best_epoch.copy()),
            "rows": torch.from_numpy(rows),
        }
        return own | {
            f"best.{at}.{name}": numbers
            for at, (_, best) in enumerate(self._best)
            for name, numbers in best.items()
        }

    def restore_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self.active = state["active"].numpy().copy()
        self._best_score = state["best_score"].numpy().copy()
        self._best_epoch = state["best_epoch"].numpy().copy()
        self._rows = [(int(s), int(e), t, v) for s, e, t, v in state["rows"].tolist()]
        if any(name.startswith("best.") for name in state):
            self._best = [
                (delta, {name: state[f"best.{at}.{name}"] for name, _ in delta.named_parameters()})
                for at, delta in enumerate(self._deltas())
            ]

    def _deltas(self) -> list[Delta]:
        return [delta for _, delta in self._bank.deltas()]

    def _copy(self, segments: NDArray[np.int64]) -> None:
        for delta, best in self._best:
            for segment in segments:
                for name, part in delta.slices(int(segment)).items():
                    best[name][part] = delta.get_parameter(name).detach()[part]

    @torch.no_grad()
    def restore(self) -> None:
        """Put every segment's best numbers back into the bank."""
        for delta, best in self._best:
            for name, numbers in best.items():
                delta.get_parameter(name).copy_(numbers)

    def _record(
        self, epoch: int, training: NDArray[np.float64], validation: NDArray[np.float64]
    ) -> None:
        for s in np.flatnonzero(self.active):
            self._rows.append((int(s), epoch, float(training[s]), float(validation[s])))

    def curves(self) -> pd.DataFrame:
        columns = ["segment", "epoch", "training_loss", "score"]
        rows = [(self._names[segment], *numbers) for segment, *numbers in self._rows]
        return pd.DataFrame(rows, columns=columns)

    def best_epochs(self) -> dict[str, int]:
        return {name: int(e) for name, e in zip(self._names, self._best_epoch, strict=True)}
