"""The harness of the benchmarks: which figures run, what is written, when it fails."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import harness
from benchmarks.harness import Figure, median, run, usage
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
KEYS = ["name", "value", "unit", "peer", "peer_value", "ratio", "target", "holds", "machine"]
FAST = """
from .harness import Figure, measures

@measures("lookup_ms")
def lookup() -> Figure:
    return Figure("lookup_ms", 2.0, "CPU-ms", ">= 1.5")

@measures("save_ms", "save_bytes")
def save() -> list[Figure]:
    return [
        Figure("save_ms", 3.0, "CPU-ms", "<= 0.5", peer="other 1.0", peer_value=12.0),
        Figure("save_bytes", 9.0, "bytes", "<= 8"),
    ]
"""
BROKEN = """
from .harness import Figure, measures

@measures("crash_ms")
def crash() -> Figure:
    raise OSError("disk gone")

@measures("promised_ms")
def promised() -> Figure:
    return Figure("other_ms", 1.0, "ms", "<= 2")
"""


def measured(folder: Path, pattern: str = "") -> tuple[int, dict[str, dict[str, object]]]:
    """Run the benchmarks of a folder; return the exit code and what was written, by name."""
    into = folder / "build" / "benchmarks.json"
    code = run(folder, pattern, into)
    records = json.loads(into.read_text()) if into.exists() else []
    assert all(list(record) == KEYS for record in records)
    return code, {record["name"]: record for record in records}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fast_benchmarks.py").write_text(FAST)
    return tmp_path


def test_figures_are_written_and_a_missed_target_fails(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, records = measured(folder)
    assert code == 1
    assert [record["holds"] for record in records.values()] == [True, True, False]
    machine = records["save_ms"].pop("machine")
    assert isinstance(machine, str) and "cores" in machine and "GiB" in machine
    assert records["save_ms"] == {
        "name": "save_ms",
        "value": 3.0,
        "unit": "CPU-ms",
        "peer": "other 1.0",
        "peer_value": 12.0,
        "ratio": 0.25,
        "target": "<= 0.5",
        "holds": True,
    }
    assert records["lookup_ms"]["ratio"] is None and records["lookup_ms"]["peer"] is None
    printed = capsys.readouterr().out
    assert "save_bytes" in printed and "MISSED" in printed


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("lookup_ms", {"lookup_ms"}),
        ("ms", {"lookup_ms", "save_ms"}),
        ("save_m*", {"save_ms"}),
        ("*_ms", {"lookup_ms", "save_ms"}),
        ("bytes", {"save_bytes"}),
    ],
)
def test_a_pattern_is_a_part_of_the_name_or_a_glob(
    folder: Path, pattern: str, names: set[str]
) -> None:
    code, records = measured(folder, pattern)
    assert set(records) == names
    assert code == (1 if "save_bytes" in names else 0)


def test_a_pattern_that_matches_nothing_gets_near_names(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measured(folder, "lokup_ms") == (2, {})
    assert "no figure matches 'lokup_ms'; there is: lookup_ms" in capsys.readouterr().out


def test_a_crash_is_a_miss_and_the_others_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a_benchmarks.py").write_text(BROKEN)
    (folder / "b_benchmarks.py").write_text("import no_such_package\n")
    code, records = measured(folder)
    assert code == 1
    assert {"crash_ms", "promised_ms", "b_benchmarks", "lookup_ms", "save_ms"} <= set(records)
    for name in ("crash_ms", "promised_ms", "b_benchmarks"):
        assert records[name]["holds"] is False and records[name]["value"] is None
    assert records["lookup_ms"]["holds"] is True
    told = capsys.readouterr().err
    assert "disk gone" in told and "no_such_package" in told
    assert "expected the figures ('promised_ms',), got ['other_ms']" in told


def test_a_file_that_does_not_import_is_a_miss_whatever_the_pattern(folder: Path) -> None:
    (folder / "b_benchmarks.py").write_text("import no_such_package\n")
    code, records = measured(folder, "lookup_ms")
    assert code == 1 and set(records) == {"b_benchmarks", "lookup_ms"}


@given(
    value=st.floats(),
    bound=st.decimals(0, 1000, places=2),
    sign=st.sampled_from(["<=", ">="]),
    peer_value=st.none() | st.floats(),
)
def test_a_target_binds_the_ratio_to_the_peer_or_the_value(
    value: float, bound: object, sign: str, peer_value: float | None
) -> None:
    peer = None if peer_value is None else "peer"
    figure = Figure("x", value, "s", f"{sign} {bound}", peer, peer_value)
    number = value if peer_value is None else figure.ratio
    assert number is not None
    limit = float(str(bound))
    assert figure.holds == (number <= limit if sign == "<=" else number >= limit)
    if math.isnan(value):
        assert not figure.holds
    json.dumps(harness._record(figure, "here"), allow_nan=False)


@pytest.mark.parametrize("target", ["", "0.4", "< 0.4", "<=0.4", "<= x", "<= 1 s"])
def test_a_target_that_says_nothing_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="target must be"):
        Figure("x", 1.0, "s", target)


def test_a_peer_needs_its_value() -> None:
    with pytest.raises(ValueError, match="peer and peer_value go together"):
        Figure("x", 1.0, "s", "<= 1", peer="other")


def test_usage_is_that_of_the_command_alone() -> None:
    ballast = bytearray(b"x") * 300_000_000
    idle = usage([sys.executable, "-c", "import time; time.sleep(0.3)"])
    busy = usage([sys.executable, "-c", "x = b'1' * 100_000_000; print(sum(range(20_000_000)))"])
    assert len(ballast) == 300_000_000
    assert idle.peak_bytes < 50_000_000, "the memory of the measuring process is not the command's"
    assert 100_000_000 < busy.peak_bytes < 200_000_000
    assert idle.cpu_seconds < 0.25 < busy.cpu_seconds + 0.2
    assert busy.cpu_seconds > idle.cpu_seconds
    assert busy.output == "199999990000000\n"


def test_usage_of_a_command_that_fails_raises_with_its_error() -> None:
    with pytest.raises(RuntimeError, match="exit code 3\nno such log"):
        usage([sys.executable, "-c", "import sys; print('no such log', file=sys.stderr); exit(3)"])
    with pytest.raises(RuntimeError, match="exit code 137"):
        usage([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    with pytest.raises(RuntimeError, match="No such file"):
        usage(["/no/such/command"])


def test_the_median_of_runs() -> None:
    values = iter([5.0, 1.0, 3.0])
    assert median(3, lambda: next(values)) == 3.0


def test_the_real_benchmarks_import_and_their_names_are_distinct() -> None:
    benchmarks, broken = harness._collect(ROOT / "tests" / "benchmarks")
    names = [name for benchmark in benchmarks for name in harness._names(benchmark)]
    assert broken == []
    assert "help_seconds" in names and len(set(names)) == len(names)


def test_the_command_of_make_bench_takes_a_pattern() -> None:
    command = [sys.executable, "-m", "tests.benchmarks", "hlep_seconds"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "help_seconds" in done.stdout
