"""Who may work beside whom: pinned releases stay, gc waits, and eight processes lose nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from reclora.store import AdapterStore, StoreError, pins
from tests.small_stores import BASE, adapters, candidates, contents

ROOT = Path(__file__).parents[1]
NOW = timedelta(0)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    found = AdapterStore(tmp_path / "store")
    for value in range(1, 5):
        found.publish(adapters({"de": value}), reason=f"{value}")
    return found


def test_gc_keeps_what_is_pinned(store: AdapterStore) -> None:
    reader = AdapterStore(store.root)
    with reader.pin(2) as release:
        assert release.number == 2
        collected = store.gc(keep=1, grace=NOW)
        assert (collected.retired, collected.pinned) == ((1, 3), (2,))
        assert contents(AdapterStore(store.root), release) == {"de": 2}
    assert store.gc(keep=1, grace=NOW).retired == (2,)
    with pytest.raises(StoreError, match="was removed by gc: release 2 is older"):
        contents(reader, 2)
    for number in (1, 2, 3):
        with (
            pytest.raises(StoreError, match=f"was removed by gc: release {number} is older"),
            reader.pin(number),
        ):
            pass


def test_the_current_release_is_pinned(store: AdapterStore) -> None:
    with AdapterStore(store.root).pin() as release:
        store.publish(adapters({"de": 5}), reason="5")
        assert release.number == 4
        assert store.gc(keep=1, grace=NOW).pinned == (4,)
        assert contents(store, release) == {"de": 4}
    with pytest.raises(StoreError, match="no release yet"), AdapterStore(store.root / "none").pin():
        pass
    assert not (store.root / "none").exists()


def test_several_pin_one_release_and_the_last_counts(store: AdapterStore) -> None:
    with store.pin(1):
        with AdapterStore(store.root).pin(1), store.pin(2):
            pass
        assert store.gc(keep=1, grace=NOW).pinned == (1,)
    assert store.gc(keep=1, grace=NOW).retired == (1,)


def test_a_dead_reader_pins_nothing(store: AdapterStore) -> None:
    script = (
        "import pathlib, sys, time; from reclora.store import AdapterStore\n"
        "with AdapterStore(pathlib.Path(sys.argv[1])).pin(1): print('pinned', flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(store.root)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == "pinned\n"
        assert store.gc(keep=1, grace=NOW).pinned == (1,)
        reader.send_signal(signal.SIGKILL)
    assert store.gc(keep=1, grace=NOW).retired == (1,)


def test_gc_waits_for_a_publish_but_not_for_long(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins, "PATIENCE_S", 0.2)
    begin = time.monotonic()
    with (
        pins.beside_others(store.root / "releases"),
        pytest.raises(StoreError, match="a publish is at work in .*releases; nothing was removed"),
    ):
        store.gc(keep=1, grace=NOW)
    assert time.monotonic() - begin < 2
    assert contents(store, 1) == {"de": 1}


def test_a_writer_and_a_reader_wait_for_gc(store: AdapterStore) -> None:
    script = (
        "import pathlib, sys; from reclora.store import AdapterStore\n"
        "store = AdapterStore(pathlib.Path(sys.argv[1]))\n"
        "if sys.argv[2] == 'pin':\n"
        "    with store.pin(): pass\n"
        "else:\n"
        "    store.rollback(reason='x')"
    )
    for verb in ("pin", "rollback"):
        with pins.alone(store.root / "releases"):
            command = [sys.executable, "-c", script, str(store.root), verb]
            waiting = subprocess.Popen(command)
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(timeout=1.5)
        assert waiting.wait(timeout=20) == 0


def test_a_file_system_without_locks(store: AdapterStore) -> None:
    """Readers and writers go on, gc refuses (as over NFS without its lock service)."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace, to have locks refused")
    script = (
        "import pathlib, sys; from reclora.store import AdapterStore, StoreError\n"
        "store = AdapterStore(pathlib.Path(sys.argv[1]))\n"
        "store.rollback(reason='without')\n"
        "with store.pin(1) as release: print(release.number)\n"
        "try: store.gc(keep=1)\n"
        "except StoreError as error: print(error)"
    )
    for error in ("ENOLCK", "EOPNOTSUPP", "EIO"):
        inject = ["strace", "-qq", "-f", "-o", "/dev/null", "-e", f"inject=flock:error={error}"]
        ran = subprocess.run(
            [*inject, sys.executable, "-c", script, str(store.root)], capture_output=True, text=True
        )
        if "ptrace" in ran.stderr:
            pytest.skip(f"strace cannot trace here: {ran.stderr}")
        if error == "EIO":
            # This is no file system without locks, but a broken one.
            assert ran.returncode == 1 and "Input/output error" in ran.stderr
        else:
            first, second = ran.stdout.splitlines()
            assert first == "1" and "has no locks" in second and "nothing was removed" in second
    assert [release.reason for release in store.history()][:3] == ["without", "without", "4"]


def test_a_pin_needs_no_right_to_write(store: AdapterStore, tmp_path: Path) -> None:
    with read_only(store.root, tmp_path / "mounted") as mounted:
        reader = AdapterStore(mounted)
        with reader.pin() as release:
            assert contents(reader, release) == {"de": 4}
        reader.verify()
        assert reader.check().problems == ()
        assert len(reader.history()) == 4
        for refused in (
            lambda: reader.publish(adapters({"de": 5}), reason="x"),
            lambda: reader.rollback(reason="x"),
            lambda: reader.gc(),
            reader.check_writable,
        ):
            with pytest.raises(OSError, match=f"cannot be written to.*{mounted}/packs"):
                refused()
        fresh = AdapterStore(mounted / "new")
        with pytest.raises(OSError, match=f"{mounted}/new"):
            fresh.check_writable()
    store.check_writable()
    AdapterStore(tmp_path / "new").check_writable()
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]


class read_only:
    """A read-only view of a folder, as another mount."""

    def __init__(self, folder: Path, at: Path) -> None:
        self._folder, self._at = folder, at

    def __enter__(self) -> Path:
        self._at.mkdir()
        for words in (["--bind", self._folder, self._at], ["-o", "remount,ro,bind", self._at]):
            ran = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
            if ran.returncode:
                subprocess.run(["umount", str(self._at)], capture_output=True)
                pytest.skip(f"a folder cannot be mounted read-only here: {ran.stderr}")
        return self._at

    def __exit__(self, *error: object) -> None:
        subprocess.run(["umount", str(self._at)], check=True)


# --- eight processes -------------------------------------------------------------------------

WORKER = """
import json, os, random, sys, time
from datetime import timedelta
from pathlib import Path
import torch
from reclora.store import AdapterStore, StoreError
from tests.small_stores import adapters, contents

torch.set_num_threads(1)
root = Path(sys.argv[1])
for own in range(1, 9):
    if os.fork() == 0:
        break
else:
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(8)]
    sys.exit(any(codes))
choose = random.Random(own)
store = AdapterStore(root)
done = dict.fromkeys(("publish", "canary", "promote", "rollback", "gc", "pin", "refused"), 0)

def some():
    return choose.sample(["de", "fr", "it", f"own {own}"], choose.randint(1, 3))

def publish(verb, turn):
    values = dict.fromkeys(some(), float(100 * own + turn))
    share = choose.random() if verb == "canary" else None
    reason = json.dumps({"verb": verb, "values": values})
    metrics = {segment: {"value": value} for segment, value in values.items()}
    store.publish(adapters(values), reason=reason, metrics=metrics, canary=share)

def rollback():
    to = choose.choice(store.releases()[-4:])
    segments = choose.choice([None, sorted(store.release(to).segments)[:1] or None])
    reason = json.dumps({"verb": "rollback", "to": to, "segments": segments})
    store.rollback(to, segments, reason=reason)

def read():
    with store.pin(choose.choice([None, *store.releases()[-4:]])) as release:
        wanted = {name: place.metrics["value"] for name, place in release.segments.items()}
        for _ in range(4):
            # A reader that has read nothing yet.
            assert contents(AdapterStore(root), release) == wanted
            time.sleep(choose.random() / 50)

for turn in range(16):
    verb = choose.choice(["publish", "canary", "promote", "rollback", "gc", "pin", "pin"])
    try:
        if verb in ("publish", "canary"):
            publish(verb, turn)
        elif verb == "promote":
            store.promote(reason=json.dumps({"verb": "promote"}))
        elif verb == "rollback":
            rollback()
        elif verb == "gc":
            store.gc(keep=2, grace=timedelta(0))
        else:
            read()
        done[verb] += 1
    except StoreError as error:
        allowed = (
            "no candidate to promote",
            "removed by gc",
            "a publish is at work",
            "is what is live already",
        )
        assert any(text in str(error) for text in allowed), error
        done["refused"] += 1
print(json.dumps(done) + "\\n", end="", flush=True)
"""


def replayed(reasons: list[str]) -> list[tuple[dict[str, float], dict[str, float]]]:
    """What every release should have, current and candidates, told by what its writer did."""
    states: list[tuple[dict[str, float], dict[str, float]]] = []
    for text in reasons:
        current, waiting = states[-1] if states else ({}, {})
        done: dict[str, Any] = json.loads(text)
        values = done.get("values", {})
        if done["verb"] == "publish":
            waiting = {name: value for name, value in waiting.items() if name not in values}
            current = {**current, **values}
        elif done["verb"] == "canary":
            waiting = {**waiting, **values}
        elif done["verb"] == "promote":
            current, waiting = {**current, **waiting}, {}
        elif done["segments"] is None:
            current, waiting = states[done["to"] - 1]
        else:
            (name,) = done["segments"]
            current = {**current, name: states[done["to"] - 1][0][name]}
        states.append((current, waiting))
    return states


def test_row_31_eight_processes_of_random_verbs_lose_nothing(tmp_path: Path) -> None:
    """No update is lost, a pinned reader reads its release, and what is kept is whole."""
    store = AdapterStore(tmp_path / "store")
    values = {"de": 0.0}
    store.publish(
        adapters(values),
        reason=json.dumps({"verb": "publish", "values": values}),
        metrics={"de": {"value": 0.0}},
    )
    ran = subprocess.run(
        [sys.executable, "-c", WORKER, str(store.root)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=True,
    )
    done = [json.loads(output) for output in ran.stdout.splitlines()]
    assert len(done) == 8
    total = {verb: sum(counts[verb] for counts in done) for verb in done[0]}
    assert all(total.values()), total
    releases = store.history()[::-1]
    written = sum(total[verb] for verb in ("publish", "canary", "promote", "rollback"))
    assert [release.number for release in releases] == list(range(1, written + 2))
    states = replayed([release.reason for release in releases])
    for release, (current, waiting) in zip(releases, states, strict=True):
        maps = [release.segments, release.canary.segments if release.canary else {}]
        for wanted, found in zip((current, waiting), maps, strict=True):
            assert {name: place.metrics["value"] for name, place in found.items()} == wanted
    for number in store.releases()[-2:]:
        assert contents(store, number) == states[number - 1][0]
        if states[number - 1][1]:
            assert candidates(store, number) == states[number - 1][1]
    found = store.check()
    assert found.problems == () and found.retired
    assert BASE == releases[-1].base_fingerprint
