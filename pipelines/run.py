"""One run: its settings, and the folder where everything about it is written."""

from __future__ import annotations

import contextlib
import glob
import json
import math
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

from reclora.configs import AdapterConfig
from reclora.evaluation import EvaluationConfig
from reclora.files import make_folder, write_text
from reclora.gate import GateConfig
from reclora.interactions import LogContract
from reclora.recency import check_half_life
from reclora.splits import WINDOWS, SplitConfig
from reclora.training import TrainingConfig

from .base_settings import BaseSettings
from .figures import FIGURES
from .settings import resolved


@dataclass(frozen=True)
class WindowFiles:
    """A log that is cut already: the files of each window."""

    pretrain: tuple[Path, ...]
    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    test: tuple[Path, ...]

    def __post_init__(self) -> None:
        empty = [window for window in WINDOWS if not getattr(self, window)]
        if empty:
            raise ValueError(f"each window needs a file at least, got none for {', '.join(empty)}")


@dataclass(frozen=True)
class LogSettings:
    """Where the interaction log is and what is declared about it."""

    files: tuple[Path, ...] = ()
    """Parquet files with user_id, item_id, timestamp, segment, and optionally label and weight."""
    windows: WindowFiles | None = None
    """Instead of `files`: the files of each window. Then [split] cuts nothing, and its `by` says
    what a row of a later window may not be earlier than: with `global_time` any row of the windows
    before, otherwise any row of its own user there."""
    contract: LogContract = LogContract()
    memory_limit: str = "2GB"
    """What sorting the log may use."""

    def __post_init__(self) -> None:
        if bool(self.files) == (self.windows is not None):
            raise ValueError(
                "files and windows are two ways to give the log; give exactly one of them"
            )


FULL_FINE_TUNE: Final = "full fine-tune"
SEGMENT_FULL: Final = "segment full fine-tune"
NO_PARENT: Final = "no parent"
EACH_KIND: Final = "each kind"
RESIDUAL: Final = "residual"
FROM_SCRATCH: Final = "from scratch"
Compared = Literal[
    "full fine-tune",
    "segment full fine-tune",
    "no parent",
    "each kind",
    "residual",
    "from scratch",
]


@dataclass(frozen=True)
class Search:
    """The grid on which every compared model's rates and penalties are chosen, on validation.

    It takes the place of what [training] says of them; an empty list leaves that as it is.
    """

    rows_lr: tuple[float, ...] = (0.005, 0.02, 0.05)
    bias_lr: tuple[float, ...] = (0.03, 0.1, 0.3)
    l2: tuple[float, ...] = (0.05,)
    shrinkage: tuple[float, ...] = ()


@dataclass(frozen=True)
class RunSettings:
    """All of a run; a section of the TOML file is a field."""

    log: LogSettings
    name: str = "run"
    """Names the run's folder, together with a digest of everything that decides its numbers."""
    folder: Path = Path("runs/work")
    """What runs share: the laid-out log, the base model, the store."""
    runs: Path = Path("runs")
    """Each run gets a folder of its own in here."""
    split: SplitConfig = SplitConfig()
    base: BaseSettings = BaseSettings()
    adapter: AdapterConfig = AdapterConfig()
    """Of the pooled adapter, and the most that a segment's own adapter may have."""
    parent: Literal["pooled", "none", "auto"] = "auto"
    """What a segment's adapter changes: the `pooled` adapter (trained on all segments, then
    frozen), which also serves the segments whose own adapter does not help; the base alone; or
    `auto`: of the two the one of fewer numbers, unless validation likes the other better by more
    than a standard error."""
    kinds: Literal["auto", "given"] = "auto"
    """Which deltas a segment's own adapter has: `auto` picks by how much data segments have, judged
    on validation (see `reclora.ladder`); `given`: all that [adapter] says, for every segment."""
    history: Literal["window", "all"] = "window"
    """What adapters train on: the adapt `window`, or `all` before validation, for segments whose
    window says little; then give a half-life, or the window drowns in what was before."""
    half_life: float = 0.0
    """Days after which an interaction counts for half in training adapters, from the last moment
    before validation; 0: all count alike."""
    training: TrainingConfig = TrainingConfig()
    search: Search = Search()
    unknown: Literal["drop", "grow"] = "drop"
    """Interactions whose user or item the base does not know: `drop` them, or `grow` the base by a
    row at the table's mean for each, which the adapters change."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every trained model is trained once a seed; the first seed's adapters are published."""
    start: Literal["fresh", "current"] = "fresh"
    """What segments train from: `fresh`, or their adapters in the `current` release, on the parent
    that most of those stand on; a segment without an adapter on that parent is fresh."""
    compared: tuple[Compared, ...] = (FULL_FINE_TUNE, NO_PARENT)
    """What else is trained to compare with: `full fine-tune`, pooled, with its pooled adapter;
    `segment full fine-tune`, each segment alone; per-segment adapters with `no parent`; those of
    `each kind`, without a parent; the `residual` on the pooled adapter with all that [adapter]
    says; and a base retrained `from scratch` on all before validation. A nightly pass needs none.
    """
    ages: tuple[float, ...] = ()
    """Days, such as [7, 30]: what is published is trained again as it would have been so long ago,
    and the report says how adapters age and how often to retrain; ages within the train window.
    Empty: not measured, as a nightly pass needs none."""
    gate: GateConfig = GateConfig()
    """What a segment's adapter must show on validation to go live."""
    workers: int = 1
    """Processes that share the segments; results do not depend on it."""
    chunk_rows: int = 200_000
    """Rows of the log that are trained on at once, in whole segments: memory follows it."""
    tracking: str = ""
    """MLflow's tracking URI, for one run a night there; empty for none."""
    evaluation: EvaluationConfig = EvaluationConfig()
    candidates: Path | None = None
    """Parquet with item_id, and perhaps segment: the items that are ranked, where
    evaluation.candidates is `given`."""
    labelled: tuple[Path, ...] = ()
    """Parquet with user_id, item_id, label, and perhaps segment and timestamp: rows of the test
    window, taken and not taken, that the models' scores are held against."""
    deadline_minutes: float = 60.0
    """Under torchrun: how long a rank waits for another before it takes it for hung, and all are
    ended; longer than a chunk of segments takes to train, and than the first rank takes for what it
    does alone: to prepare the log and to pretrain, or to rank by popularity and measure it."""
    threads: int = 1
    """Threads of torch. Steps are small and gain little by more; results may change their last
    digits with it."""
    author: str = ""
    """Written into the release."""
    repeat: str = "reclora retrain SETTINGS.toml"
    """The command that makes this run, printed in its report."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different numbers, at least one, got {self.seeds}")
        for name in ("threads", "workers", "chunk_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_half_life(self.half_life)
        if not 0 < self.deadline_minutes < 1e6:
            raise ValueError(
                f"deadline_minutes must be a positive number, got {self.deadline_minutes}"
            )
        if self.workers > 1 and self.threads > 1:
            raise ValueError("several workers have one thread each: set threads = 1")
        if len(set(self.compared)) < len(self.compared):
            raise ValueError(f"compared names a model twice: {self.compared}")
        if any(not a < b for a, b in pairwise((0.0, *self.ages, math.inf))):
            raise ValueError(f"ages must be days that ascend from above 0, got {list(self.ages)}")
        if self.ages and self.split.by != "global_time":
            raise ValueError(
                f"ages need split.by = 'global_time', got {self.split.by!r}: with cuts of each "
                "user's own the windows of all users end at no common moment"
            )
        if self.evaluation.candidates == "given" and self.candidates is None:
            raise ValueError("evaluation.candidates is 'given': name their file, candidates = PATH")
        if self.evaluation.candidates != "given" and self.candidates is not None:
            raise ValueError(
                "candidates names a file of items to rank; say so: evaluation.candidates = 'given'"
            )
        if self.base.keep and self.split.by != "global_time":
            raise ValueError(
                f"base.keep needs split.by = 'global_time', got {self.split.by!r}: with cuts of "
                "each user's own nobody can tell what an earlier base was trained on"
            )
        is_pretrained = self.base.saved is None and self.base.import_users is None
        if (
            is_pretrained
            and self.log.contract.declined == "keep"
            and self.base.factorisation.loss != "bce"
        ):
            raise ValueError(
                "log.contract.declined = 'keep' keeps rows that pretraining takes with "
                f"base.factorisation.loss = 'bce' alone, got {self.base.factorisation.loss!r}: "
                "give that loss, or log.contract.declined = 'drop'"
            )
        if self.log.windows is not None and self.split.k_core:
            raise ValueError("k_core is taken of one log before it is cut, not of log.windows")
        if not self.name or any(c in self.name for c in "/\\\0") or self.name.startswith("."):
            raise ValueError(f"name must be usable as part of a folder's name, got {self.name!r}")

    @property
    def log_folder(self) -> Path:
        return self.folder / "log"

    @property
    def base_folder(self) -> Path:
        return self.folder / "base"

    @property
    def store_folder(self) -> Path:
        return self.folder / "store"


def digest(*parts: object) -> str:
    """Ten hex digits of the sha256 of JSON-able parts."""
    return sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:10]


def window_file(window: str, path: str) -> str:
    """What a file of a given window is called among a run's inputs."""
    return f"{window}: {path}"


def contents(log: LogSettings, inputs: Mapping[str, str]) -> list[str]:
    """The sha256s of a run's inputs, wherever their files lie; where windows are given, each with
    its window: the same files in other windows are another log.
    """
    if log.windows is None:
        return sorted(inputs.values())
    return sorted(window_file(name.partition(": ")[0], sha) for name, sha in inputs.items())


def versions() -> dict[str, str]:
    """The packages that decide a run's numbers."""
    names = ("reclora", "torch", "numba", "numpy", "scipy", "pandas", "pyarrow", "duckdb")
    return {name: metadata.version(name) for name in names}


def git_commit() -> str | None:
    """The commit of the code, with `+` where files differ from it; None outside its repository."""
    code = Path(__file__)
    try:
        # The first fails where the code is only installed inside somebody else's repository.
        _, commit, changes = (
            subprocess.run(
                ["git", *arguments],
                cwd=code.parent,
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for arguments in (
                ("ls-files", "--error-unmatch", code.name),
                ("rev-parse", "HEAD"),
                ("status", "--porcelain"),
            )
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")


NOT_DECIDING = (
    "folder",
    "runs",
    "author",
    "repeat",
    "workers",
    "deadline_minutes",
    "tracking",
)
"""Settings that change no number of a run. What a store in `folder` holds does: `began_from`."""


TRAINING, MEASURING = "training", "measuring"
LEFT_ALONE = 7 * 24 * 3600.0
"""Seconds after which what an unfinished run goes on from is removed by the next of its name."""


class RunFolder:
    """`runs/<id>/`: settings, versions, events and results of one run.

    `run.json` is written last: its presence says that the run is complete.
    """

    def __init__(
        self,
        settings: RunSettings,
        base_fingerprint: str,
        inputs: Mapping[str, str],
        began_from: object = None,
    ) -> None:
        """Args:
        began_from: what was live when it began, and whatever else decides its numbers, JSON-able.
        """
        self._settings, self._base, self._inputs = settings, base_fingerprint, dict(inputs)
        decides = resolved(settings) | dict.fromkeys(NOT_DECIDING, "")
        files = contents(settings.log, inputs)
        decides["log"] |= {"files": files, "windows": "", "memory_limit": ""}
        self._commit = git_commit()
        self._decides = decides, base_fingerprint, versions(), self._commit
        self._began = time.monotonic()
        self._begin_from(began_from)

    def beginning_from(self, began_from: object) -> RunFolder:
        """The folder of the same run, had it begun from something else."""
        other = copy(self)
        other._begin_from(began_from)
        return other

    def _begin_from(self, began_from: object) -> None:
        self._began_from = began_from
        self.id = f"{self._settings.name}-{digest(*self._decides, began_from)}"
        self.path = self._settings.runs / self.id

    @property
    def results(self) -> Path:
        return self.path / "results.parquet"

    @property
    def comparison(self) -> Path:
        return self.path / "comparison.parquet"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def figures(self) -> Path:
        return self.path / FIGURES

    @property
    def decisions(self) -> Path:
        return self.path / "decisions.parquet"

    @property
    def drift(self) -> Path:
        """The table of `reclora.drift`, where ages are measured."""
        return self.path / "drift.parquet"

    @property
    def training(self) -> Path:
        """Where checkpoints are while the run is under way."""
        return self.path / TRAINING

    @property
    def measuring(self) -> Path:
        """Where lists and tables are kept while the run is under way."""
        return self.path / MEASURING

    @property
    def has_begun(self) -> bool:
        """Whether there is something to go on from."""
        return (self.path / "events.jsonl").exists() and not self.is_complete

    @property
    def is_complete(self) -> bool:
        files = self.path / "run.json", self.results, self.comparison, self.report
        return all(file.exists() for file in files)

    def begin(self) -> None:
        """Make the folder; what an interrupted run has left in it is gone on from."""
        resumed = self.has_begun
        make_folder(self.path)
        if not resumed:
            (self.path / "events.jsonl").unlink(missing_ok=True)
        (self.path / "run.json").unlink(missing_ok=True)
        for leftover in self.path.rglob("*.tmp.*"):
            leftover.unlink(missing_ok=True)
        self._tidy_others()
        self.event("resume" if resumed else "begin")

    def _tidy_others(self) -> None:
        """What broken runs of this name go on from is gigabytes, and nobody comes back to a log of
        last week.
        """
        for other in self.path.parent.glob(f"{glob.escape(self._settings.name)}-*/events.jsonl"):
            with contextlib.suppress(OSError):
                if other.stat().st_mtime < time.time() - LEFT_ALONE:
                    _remove_work(other.parent)

    def forget(self) -> None:
        """Throw away what an interrupted run has left (OSError: it cannot be removed)."""
        for left in self.path.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def event(self, what: str, **facts: object) -> None:
        """Append one line to `events.jsonl`: what happened, and seconds since the beginning."""
        line = {"event": what, "seconds": round(time.monotonic() - self._began, 3), **facts}
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def complete(self, summary: Mapping[str, Any]) -> None:
        """Write `run.json`; what was kept to go on from is needed no more."""
        self.event("complete")
        about = {
            "format": 1,
            "id": self.id,
            "settings": resolved(self._settings),
            "versions": versions(),
            "commit": self._commit,
            "inputs": self._inputs,
            "base": self._base,
            "began_from": self._began_from,
            **summary,
        }
        write_text(self.path / "run.json", json.dumps(about, indent=2, default=str) + "\n")
        self.tidy()

    def tidy(self) -> None:
        """Remove what an unfinished run goes on from: a complete one needs it no more."""
        _remove_work(self.path)

    @property
    def bytes_held(self) -> int:
        """What an interrupted run has written already."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def summary(self) -> dict[str, Any]:
        """What `complete` wrote."""
        return dict(json.loads((self.path / "run.json").read_text(encoding="utf-8")))


def _remove_work(run: Path) -> None:
    for name in (TRAINING, MEASURING):
        shutil.rmtree(run / name, ignore_errors=True)


def files_of(patterns: Sequence[Path]) -> list[Path]:
    """The files that paths name; a pattern such as `logs/*.parquet` names all that match, sorted.

    A path of a file that is there is that file, whatever characters are in it.

    Raises:
        FileNotFoundError: a pattern matches nothing, or a file is not there.
    """
    found: list[Path] = []
    for pattern in patterns:
        if pattern.is_file():
            found.append(pattern)
            continue
        root = Path(pattern.anchor)
        matches = sorted(root.glob(str(pattern.relative_to(root)))) if pattern.name else []
        if not matches:
            raise FileNotFoundError(
                f"no log file matches {pattern.absolute()}; paths are taken from where the "
                f"command is run"
            )
        found += matches
    return found
