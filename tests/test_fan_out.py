"""Independent runs beside each other: real processes, and a real Ray cluster of one machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reclora.pipelines.fan_out import Ended, fan_out

GOOD = ["history", "work/store", "--json"]
COMMANDS = [GOOD, ["history", "nowhere"], ["settings", "no.toml"], GOOD]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where there is a store, and nothing else."""
    from small_stores import adapters

    from reclora.store import AdapterStore

    AdapterStore(tmp_path / "work" / "store").publish(adapters({"de": 1}), reason="first")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(ended: list[Ended]) -> None:
    assert [each.words for each in ended] == [tuple(words) for words in COMMANDS]
    assert [each.code for each in ended] == [0, 2, 2, 0]
    assert "nowhere" in ended[1].said and "no.toml" in ended[2].said


@pytest.mark.parametrize("at_once", [1, 3])
def test_one_that_fails_stops_no_other(folder: Path, at_once: int) -> None:
    check(fan_out(COMMANDS, at_once=at_once))


HEAD = """
import sys
import ray
print(ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False).address_info["address"])
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster that another program has started."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert head.stdout is not None
    try:
        yield head.stdout.readline().strip()
    finally:
        head.communicate("")
        assert not ray.is_initialized()


def test_a_ray_cluster_runs_them(folder: Path, cluster: str) -> None:
    check(fan_out(COMMANDS, ray=cluster))


def test_without_a_cluster_it_says_so(folder: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    with pytest.raises(ConnectionError):
        fan_out([GOOD], ray="auto")


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeError, match="pip install ray"):
        fan_out([["doctor"]], ray="auto")


def test_what_it_says_can_be_written_down() -> None:
    assert json.dumps(Ended(("retrain",), 0, "").__dict__)
