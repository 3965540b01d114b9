"""Tune a run's settings on validation: trials that train a sample of its segments in one pass each.

    defaults   what the settings say, as a run would choose by them
    trial 0    the same, as far as it lies in the space; then what the sampler proposes
    best.toml  the settings with the values of the best trial; as they were, where none is better

A trial that is behind the median of the others after an epoch is pruned, from epoch `patience` on.
Every trial is written down in a journal that several processes share, on one machine or on several
with one disk. Needs the extra `tune`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from reclora.comparison import compare
from reclora.files import make_folder, read_parquet, write_text
from reclora.report import write_csv
from reclora.report.tuning import Tuning, write_tuning
from reclora.training import TrainingError
from reclora.workers import run_tasks

from .alone import Busy, alone_in
from .assessment import write_table
from .progress import step
from .run import RunFolder, RunSettings, digest, versions
from .search_space import Space, with_values
from .settings import flat, resolved
from .settings_shown import WIDTH, Shown, as_toml
from .trial import Judged, Material

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.study import Study as OptunaStudy
    from optuna.trial import FrozenTrial

JOURNAL, STUDY = "journal.log", "tuning"
DEFAULTS, TUNED = "defaults", "tuned"
STARTUP: Final = 5
"""Nothing is pruned before so many trials are done."""
WAITS: Final = 0.5
"""Seconds between two looks at whether another run has left the folder."""


@dataclass(frozen=True)
class Tuned:
    """What became of a study."""

    folder: Path
    trials: pd.DataFrame
    """trial, state, value, epochs, seconds, why, and a column for each key of the space."""
    best: int | None
    """The best trial; None where none is better than the defaults."""
    values: Mapping[str, Any]
    """What the best trial has of each key; empty for the defaults."""
    outcome: str
    """What came of it, in sentences."""
    compared: Mapping[str, Any]
    """The best trial against the defaults, of the users who judge: a row of
    `reclora.comparison.compare`. It is the best of many, which flatters it."""

    @property
    def told(self) -> dict[str, Any]:
        """`compared`, JSON-able: what is not known is null."""
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in self.compared.items()}
        return {
            key: None if isinstance(value, float) and not isfinite(value) else value
            for key, value in plain.items()
        }

    @property
    def best_settings(self) -> Path:
        """The settings file of the best."""
        return self.folder / "best.toml"

    @property
    def page(self) -> Path:
        """What was tried, as a page."""
        return self.folder / "tuning.html"


def tune(
    settings: RunSettings,
    space: Space,
    *,
    trials: int = 50,
    segments: int = 200,
    workers: int = 1,
) -> Tuned:
    """Search the space on validation, and write `best.toml`, `tuning.html` and `trials.csv`.

    The study of the same log, settings, space and code is gone on with: what has ended, also of
    other processes that work on it now, counts as trials.

    Args:
        trials: how many are to have ended, pruned ones among them.
        segments: how many are trained; see `reclora.pipelines.trial.sampled`.
        workers: processes that try at once. Several propose other trials than one.

    Raises:
        LogError, SettingsError, BaseError, ValueError: what is wrong with input or settings.
        TrainingError: with the settings as they are no segment can be trained.
        RuntimeError: Optuna is not installed.
        OSError: a file cannot be written.
        KeyboardInterrupt: it was told to stop; the same call goes on.
    """
    _optuna()
    with _alone_at_last(settings.folder):
        material = Material.read(settings, segments)
    named = replace(settings, name=f"{settings.name}-tuning")
    drawn = list(material.windows.train.segment_names)
    folder = RunFolder(named, material.base.fingerprint, material.inputs, [space.plain, drawn])
    make_folder(folder.path)
    study = Study(folder.path, settings, space, material, trials)
    with _joined(study) as who:
        if workers == 1:
            study.work(who)
        else:
            tasks = [(at,) for at in range(workers)]
            ended = run_tasks(tasks, lambda one: study.work(f"{who} {one[0]}"), workers)
            # What failed in a worker fails again here, with its error.
            for (at,) in ended.failed:
                study.work(f"{who} {at}")
            for why in ended.given_up.values():
                print(f"a worker was lost, {why}: fewer trials than asked for", file=sys.stderr)
    return study.finish()


@dataclass(frozen=True)
class Study:
    """The trials of a folder, and how one more is made."""

    folder: Path
    settings: RunSettings
    space: Space
    material: Material
    wanted: int
    """How many trials are to have ended."""

    @property
    def has_begun(self) -> bool:
        """Whether it is known what the defaults are worth."""
        return self._values_of(DEFAULTS).exists()

    def begin(self) -> None:
        """Judge the defaults, and let go of trials whose process has died. To be called by one that
        is alone.
        """
        _mend(self.folder / JOURNAL)
        optuna, study = _optuna(), self._open()
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if not self.has_begun:
            with step("the defaults, as a run chooses by them") as progress:
                judged = self.material.judge(self.settings, progress=progress)
            # A space that names only one of them leaves the others to [search].
            study.set_user_attr(DEFAULTS, judged.chosen)
            self._keep(DEFAULTS, judged)
            print(f"defaults: {judged.mean:.4f}", file=sys.stderr)
        states = optuna.trial.TrialState
        alive = (states.COMPLETE, states.PRUNED, states.WAITING)
        if not any(DEFAULTS in t.user_attrs for t in study.get_trials(states=alive)):
            chosen = with_values(self.settings, study.user_attrs[DEFAULTS])
            study.enqueue_trial(self.space.inside(chosen), user_attrs={DEFAULTS: True})

    def work(self, who: str) -> None:
        """Make trials until enough have ended or are under way.

        Args:
            who: a name that no other process on the study has; it decides what is proposed.
        """
        optuna, study = _optuna(), self._open()
        states = optuna.trial.TrialState
        ended = (states.COMPLETE, states.PRUNED)
        while len(study.get_trials(False, (*ended, states.RUNNING))) < self.wanted:
            # By what has ended, so that a study that was broken off proposes what it would have.
            so_far = len(study.get_trials(False, ended))
            seed = int(digest(self.settings.seeds[0], so_far, who)[:8], 16) % 2**31
            study.sampler = optuna.samplers.TPESampler(seed=seed)
            study.optimize(self._try, n_trials=1, callbacks=[self._say])

    def finish(self) -> Tuned:
        """Write down what came of it."""
        states = _optuna().trial.TrialState
        study = self._open()
        trials = study.get_trials()
        defaults = self._read(DEFAULTS)
        known = [t for t in trials if t.state == states.COMPLETE]
        if not known and trials and all("why" in t.user_attrs for t in trials):
            raise ValueError(f"no trial could be trained: {trials[0].user_attrs['why']}")
        best = max(known, key=_value_of, default=None)
        if best is not None and _value_of(best) <= float(defaults["value"].mean()):
            best = None
        tuned = defaults if best is None else self._read(str(best.number))
        values = {} if best is None else dict(best.params)
        number, table = None if best is None else best.number, self._table(trials)
        compared = self._compared(tuned, defaults)
        outcome = self._outcome(number, table, compared)
        result = Tuned(self.folder, table, number, values, outcome, compared)
        write_csv(self.folder / "trials.csv", result.trials)
        write_text(result.best_settings, self._best_toml(result))
        write_tuning(result.page, self._page(result, study))
        return result

    def _open(self) -> OptunaStudy:
        """The study, which every process opens for itself."""
        optuna = _optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        study: OptunaStudy = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self.folder / JOURNAL))),
            study_name=STUDY,
            direction="maximize",
            # A slow start is no reason: a segment, too, waits so long for a better score.
            pruner=optuna.pruners.MedianPruner(STARTUP, self.settings.training.patience),
            load_if_exists=True,
        )
        return study

    def _try(self, trial: Trial) -> float:
        """Train and judge one trial."""
        optuna = _optuna()
        values = self.space.suggest(trial)

        def tell(epoch: int, score: float) -> None:
            trial.report(score, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            judged = self.material.judge(with_values(self.settings, values), tell)
        except (TrainingError, ValueError) as error:
            # Values that do not go together, or rates at which numbers are lost: no better than
            # what is pruned.
            trial.set_user_attr("why", str(error))
            raise optuna.TrialPruned from error
        self._keep(str(trial.number), judged)
        return judged.mean

    def _say(self, study: OptunaStudy, trial: FrozenTrial) -> None:
        """A line about a trial that has ended."""
        states = _optuna().trial.TrialState
        ended = len(study.get_trials(False, (states.COMPLETE, states.PRUNED)))
        said = "pruned" if trial.value is None else f"{trial.value:.4f}"
        if trial.state == states.PRUNED:
            said = f"pruned: {trial.user_attrs.get('why', f'epoch {trial.last_step}')}"
        print(f"trial {trial.number}: {said}; {ended} of {self.wanted}", file=sys.stderr)

    def _values_of(self, what: str) -> Path:
        return self.folder / "values" / f"{what}.parquet"

    def _keep(self, what: str, judged: Judged) -> None:
        make_folder(self.folder / "values")
        write_table(self._values_of(what), judged.values)

    def _read(self, what: str) -> pd.DataFrame:
        values: pd.DataFrame = read_parquet(self._values_of(what)).to_pandas()
        return values

    def _compared(self, tuned: pd.DataFrame, defaults: pd.DataFrame) -> dict[str, Any]:
        evaluation = self.settings.evaluation
        parts = [tuned.assign(model=TUNED), defaults.assign(model=DEFAULTS)]
        lifts = compare(
            pd.concat(parts, ignore_index=True),
            TUNED,
            DEFAULTS,
            metric=evaluation.metrics[0],
            k=evaluation.ks[0],
        )
        return {str(key): value for key, value in lifts.iloc[0].to_dict().items()}

    def _table(self, trials: list[FrozenTrial]) -> pd.DataFrame:
        rows = [
            {
                "trial": t.number,
                "state": t.state.name.lower(),
                "value": _value_of(t) if t.state.name == "COMPLETE" else float("nan"),
                "epochs": max(t.intermediate_values, default=0),
                "seconds": float("nan") if t.duration is None else t.duration.total_seconds(),
                "why": str(t.user_attrs.get("why", "")),
            }
            | {key: t.params.get(key) for key in self.space.bounds}
            for t in trials
        ]
        # As they are: a trial that was killed at once has no value, and whole ones stay whole.
        return pd.DataFrame(rows).astype(dict.fromkeys(self.space.bounds, object))

    @cached_property
    def _sample(self) -> str:
        drawn = self.material.windows.train.num_segments
        return f"{drawn:,} of {self.material.segments:,} segments"

    def _outcome(self, best: int | None, trials: pd.DataFrame, c: Mapping[str, Any]) -> str:
        measure = self.settings.evaluation.headline
        ended = trials["state"].isin(["complete", "pruned"]).sum()
        before = f"{measure} of the defaults on validation is {c['baseline_mean']:.4f}"
        if best is None:
            return f"None of {ended:,} trials is better than the defaults: {before}."
        return (
            f"{before}, of trial {best} {c['model_mean']:.4f}: {c['difference']:+.4f} "
            f"[{c['low']:.4f}, {c['high']:.4f}] over {c['users']:,} users, {c['verdict']}. "
            f"The best of {ended:,} trials is flattered by having been chosen on these users; "
            "test, which chose nothing, says what it is worth."
        )

    def _best_toml(self, result: Tuned) -> str:
        settings = with_values(self.settings, result.values)
        settings = replace(settings, repeat=RunSettings.repeat)
        emptied = [f"search.{key.rpartition('.')[2]}" for key in result.values]
        tuned = {*result.values, *emptied}
        sources = {
            key: f"trial {result.best}" if key in tuned else "as it was"
            for key in flat(resolved(settings))
        }
        said = [f"Tuned on validation, on {self._sample}, by", self.settings.repeat]
        said += textwrap.wrap(result.outcome, WIDTH - 2)
        # A comment holds what can be printed, in a line.
        inert = ("".join(c if c.isprintable() else "?" for c in line) for line in said)
        comments = "".join(f"# {line}\n" for line in inert)
        return f"{comments}\n{as_toml(Shown(settings, sources), explain=False)}"

    def _page(self, result: Tuned, study: OptunaStudy) -> Tuning:
        curves = [
            {"trial": t.number, "epoch": epoch, "value": value}
            for t in study.get_trials(False)
            for epoch, value in sorted(t.intermediate_values.items())
        ]
        chosen = study.user_attrs[DEFAULTS]
        said = flat(resolved(with_values(self.settings, chosen)))
        return Tuning(
            title=f"Tuning {self.settings.name}",
            run=self.folder.name,
            measure=self.settings.evaluation.headline,
            outcome=result.outcome,
            defaults=float(result.compared["baseline_mean"]),
            best=result.best,
            trials=result.trials,
            curves=pd.DataFrame(curves, columns=["trial", "epoch", "value"]),
            keys={key: self.space.is_log(key) for key in self.space.bounds},
            importances=_importances(study),
            values=pd.DataFrame(
                [
                    {"setting": key, DEFAULTS: said[key], "best": result.values.get(key, said[key])}
                    for key in self.space.bounds
                ],
                dtype=object,
            ),
            notes=(
                f"Trained on {self._sample}, drawn from every size, in one pass a trial; epochs "
                "are chosen by other users than those who judge. The test window is not read.",
            ),
            versions=versions(),
            repeat=self.settings.repeat,
        )


def _importances(study: OptunaStudy) -> dict[str, float]:
    """How much of the spread among the best trials each key explains; empty where too few tell."""
    optuna = _optuna()
    with warnings.catch_warnings():
        # It is called experimental, and wants more trials than some have the patience for.
        warnings.simplefilter("ignore")
        try:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError):
            return {}
    return {str(key): float(value) for key, value in found.items()}


def _value_of(trial: FrozenTrial) -> float:
    assert trial.value is not None, "a complete trial has a value"
    return float(trial.value)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise RuntimeError(f"tuning needs Optuna: pip install optuna ({error})") from None
    # What a trial ends with is told once, by us.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _mend(journal: Path) -> None:
    """Cut off what a process was writing when it was killed, and let go of its lock; for one that
    is alone.
    """
    for lock in journal.parent.glob(f"{journal.name}.lock*"):
        lock.unlink(missing_ok=True)
    if journal.exists():
        with journal.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


@contextlib.contextmanager
def _alone_at_last(folder: Path) -> Iterator[None]:
    """`alone_in`, when whoever is at work there has left."""
    with contextlib.ExitStack() as held:
        said = False
        while True:
            try:
                held.enter_context(alone_in(folder))
                break
            except Busy as error:
                if not said:
                    print(f"waiting: {error}", file=sys.stderr)
                said = True
                time.sleep(WAITS)
        yield


@contextlib.contextmanager
def _joined(study: Study) -> Iterator[str]:
    """Be among those who work on a study; one that is alone begins it first.

    Yields:
        A name among them: empty for the one that was alone.
    """
    descriptor = os.open(study.folder, os.O_RDONLY)
    try:
        yield _joining(descriptor, study)
    finally:
        os.close(descriptor)


def _joining(descriptor: int, study: Study) -> str:
    other = f"{socket.gethostname()} {os.getpid()}"
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Until the one that is alone has begun, or has died over it.
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if study.has_begun:
                    return other
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            else:
                study.begin()
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                return ""
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        print(f"{study.folder} has no locks: begin no two studies there at once", file=sys.stderr)
        if not study.has_begun:
            study.begin()
        return other
