"""The one form of a benchmark: figures with a target, measured one after the other.

A benchmark is a function of a `*_benchmarks.py` file beside this one, marked with its figures:

    @measures("help_seconds")
    def help_seconds() -> Figure:
        return Figure("help_seconds", seconds, "CPU-s", target="<= 0.4")
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reclora.pipelines.doctor import machine

TARGET: Final = re.compile(r"(<=|>=) (\d+(?:\.\d+)?)")
NO_ERROR: Final = "runs without an error"


@dataclass(frozen=True)
class Figure:
    """One measured number and what it must keep.

    Raises:
        ValueError: the target is not `<= number` or `>= number`.
    """

    name: str
    value: float
    unit: str
    target: str
    """Binds `ratio` where there is a peer, else `value`: `<= 0.4`, `>= 2`."""
    peer: str | None = None
    """What it is measured against in the same run, with its version, or a stated limit."""
    peer_value: float | None = None
    """The peer's number, in the same unit."""

    def __post_init__(self) -> None:
        if not TARGET.fullmatch(self.target):
            raise ValueError(f"target must be `<= number` or `>= number`, got {self.target!r}")
        if (self.peer is None) != (self.peer_value is None):
            raise ValueError(f"{self.name}: peer and peer_value go together, got one of them")

    @property
    def ratio(self) -> float | None:
        """`value / peer_value`, infinite where the peer's is 0; None without a peer."""
        if self.peer_value is None:
            return None
        return self.value / self.peer_value if self.peer_value else math.inf

    @property
    def holds(self) -> bool:
        """Whether the target is kept; NaN never keeps one."""
        sign, bound = self.target.split()
        bound_by = self.value if self.ratio is None else self.ratio
        return bound_by <= float(bound) if sign == "<=" else bound_by >= float(bound)


Benchmark = Callable[[], Figure | list[Figure]]
Record = dict[str, str | float | None]


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    cpu_seconds: float
    """Of the command and of the children it waited for."""
    peak_bytes: int
    """The largest resident set of the command, or of the largest of the children it waited for."""
    output: str
    """Its standard output."""


def measures(*names: str) -> Callable[[Benchmark], Benchmark]:
    """Mark a function as the benchmark of these figures: it returns exactly them."""

    def mark(benchmark: Benchmark) -> Benchmark:
        benchmark.measures = names  # type: ignore[attr-defined]
        return benchmark

    return mark


def usage(command: Sequence[str], env: Mapping[str, str] | None = None) -> Usage:
    """Run a command to its end and return what it took.

    Raises:
        RuntimeError: it ended with another exit code than 0; the message has the end of its stderr.
    """
    # Linux counts the memory of the process that forks as the child's own until exec. So a small
    # process forks, not this one, which may hold torch and tables.
    with tempfile.NamedTemporaryFile("r") as report:
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, report.name, *command]
        done = subprocess.run(launcher, capture_output=True, text=True, env=env)
        if done.returncode != 0:
            raise RuntimeError(
                f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}"
            )
        cpu_seconds, peak_bytes = json.load(report)
    return Usage(cpu_seconds, peak_bytes, done.stdout)


LAUNCHER: Final = """
import json, os, resource, sys
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, used = os.wait4(child, 0)
peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
with open(sys.argv[1], "w") as report:
    json.dump([used.ru_utime + used.ru_stime, peak], report)
code = os.waitstatus_to_exitcode(status)
sys.exit(code if code >= 0 else 128 - code)
"""


def median(runs: int, measure: Callable[[], float]) -> float:
    """Return the median of so many measurements, made one after the other."""
    return statistics.median(measure() for _ in range(runs))


def run(folder: Path, pattern: str, into: Path) -> int:
    """Run the benchmarks of a folder whose figures match, print the figures, write them as JSON.

    A figure matches when its name contains the pattern or fits it as a glob; an empty pattern
    matches all. A benchmark that raises is a miss, its traceback is printed, and the others go on;
    so is a file that does not import, whatever the pattern.

    Returns:
        The exit code: 0, 1 where a target is missed, 2 where nothing matches (nothing is written).
    """
    # Where nothing says how wide the output is, the table is not squeezed.
    console = Console(width=None if sys.stdout.isatty() else 150)
    benchmarks, broken = _collect(folder)
    known = [name for benchmark in benchmarks for name in _names(benchmark)]
    wanted = {name for name in known if pattern in name or fnmatchcase(name, pattern)}
    if not wanted and not broken:
        near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.4) or known
        console.print(f"no figure matches {pattern!r}; there is: {', '.join(near)}", markup=False)
        return 2
    here = _machine()
    records = [_miss(name, here) for name in broken]
    for benchmark in benchmarks:
        if wanted.intersection(_names(benchmark)):
            console.print(f"measuring {', '.join(_names(benchmark))}", markup=False)
            records += [each for each in _measure(benchmark, here) if each["name"] in wanted]
    into.parent.mkdir(parents=True, exist_ok=True)
    into.write_text(json.dumps(records, indent=2, allow_nan=False) + "\n")
    _show(records, console)
    console.print(f"{here}\nwritten to {into}", markup=False, soft_wrap=True)
    return 0 if all(record["holds"] for record in records) else 1


def _collect(folder: Path) -> tuple[list[Benchmark], list[str]]:
    """Return the marked functions of every benchmark file, and the files that do not import."""
    benchmarks, broken = [], []
    for path in sorted(folder.glob("*_benchmarks.py")):
        try:
            module = _load(path)
        except Exception:
            traceback.print_exc()
            broken.append(path.stem)
        else:
            benchmarks += [each for each in vars(module).values() if hasattr(each, "measures")]
    return benchmarks, broken


def _load(path: Path) -> ModuleType:
    # A name inside this package, so that `from .harness import Figure` works in every folder.
    spec = importlib.util.spec_from_file_location(f"{__package__}.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _names(benchmark: Benchmark) -> tuple[str, ...]:
    names: tuple[str, ...] = benchmark.measures  # type: ignore[attr-defined]
    return names


def _measure(benchmark: Benchmark, here: str) -> list[Record]:
    names = _names(benchmark)
    try:
        result = benchmark()
        figures = [result] if isinstance(result, Figure) else result
        if sorted(figure.name for figure in figures) != sorted(names):
            raise ValueError(f"expected the figures {names}, got {[each.name for each in figures]}")
    except Exception:
        traceback.print_exc()
        return [_miss(name, here) for name in names]
    return [_record(figure, here) for figure in figures]


def _record(figure: Figure, here: str) -> Record:
    return {
        "name": figure.name,
        "value": _finite(figure.value),
        "unit": figure.unit,
        "peer": figure.peer,
        "peer_value": _finite(figure.peer_value),
        "ratio": _finite(figure.ratio),
        "target": figure.target,
        "holds": figure.holds,
        "machine": here,
    }


def _miss(name: str, here: str) -> Record:
    nothing = dict.fromkeys(("value", "unit", "peer", "peer_value", "ratio"))
    return {"name": name, **nothing, "target": NO_ERROR, "holds": False, "machine": here}


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _machine() -> str:
    here = machine()
    threads = os.environ.get("OMP_NUM_THREADS", str(here.cores))
    return (
        f"{here.cpu}, {here.cores} cores, {threads} threads, {here.memory_gib} GiB, "
        f"{here.system}, Python {here.python}"
    )


def _show(records: Sequence[Record], console: Console) -> None:
    columns = ("name", "value", "unit", "peer", "peer_value", "ratio", "target")
    table = Table(*columns, "holds", box=None)
    for record in records:
        verdict = Text("yes", "green") if record["holds"] else Text("MISSED", "bold red")
        table.add_row(*(Text(_cell(record[column])) for column in columns), verdict)
    console.print(table)


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.4g}"
