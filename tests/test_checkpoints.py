"""A training that is broken anywhere goes on to the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from select import select
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_worlds import make_base, make_log, numbers
from torch import Tensor

from reclora.bank import AdapterBank
from reclora.checkpoints import Checkpoint, undisturbed
from reclora.configs import AdapterConfig
from reclora.training import HeldOutLoss, Training, TrainingConfig, train

BASE = make_base()
LOG = make_log(BASE)
VALIDATION = make_log(BASE, seed=1)
CONFIG = TrainingConfig(epochs=4, patience=2, batch_rows=16, num_negatives=8, step_rows=64, l2=0.01)
ADAPTER = AdapterConfig(rank=3, magnitude=True)


class Breaking(Checkpoint):
    """Is due after every step, and is told to stop right after it was kept for the nth time."""

    def __init__(self, path: Path, last: int) -> None:
        super().__init__(path, "a", seconds=0)
        self.left = last

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        super().save(tensors, facts)
        self.left -= 1
        if self.left == 0:
            # As if killed: what is raised is not what makes it keep its state once more.
            raise SystemExit


def trained(checkpoint: Checkpoint | None, judged: bool = True) -> tuple[AdapterBank, Training]:
    bank = AdapterBank.for_log(BASE, LOG, ADAPTER)
    judge = HeldOutLoss(VALIDATION, CONFIG) if judged else None
    return bank, train(bank, LOG, CONFIG, judge=judge, checkpoint=checkpoint)


def same(left: tuple[AdapterBank, Training], right: tuple[AdapterBank, Training]) -> bool:
    (bank, done), (other, expected) = left, right
    assert done.best_epoch == expected.best_epoch
    assert done.steps == expected.steps
    assert done.curves.equals(expected.curves)
    return all(numbers(bank, name) == numbers(other, name) for name in LOG.segment_names)


@cache
def whole(judged: bool = True) -> tuple[AdapterBank, Training]:
    return trained(None, judged)


@settings(max_examples=12)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.booleans())
def test_broken_anywhere_it_goes_on_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, breaks: list[int], judged: bool
) -> None:
    path = tmp_path_factory.mktemp("broken") / "checkpoint.safetensors"
    for last in breaks:
        try:
            trained(Breaking(path, last), judged)
        except SystemExit:
            continue
        break
    assert same(trained(Checkpoint(path, "a"), judged), whole(judged))


def test_what_is_done_is_not_trained_again(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "folder" / "checkpoint.safetensors", "a")
    assert same(trained(checkpoint), whole())
    before = checkpoint.path.stat().st_mtime_ns

    def judge(*_: object) -> Any:
        raise AssertionError("it is done")

    bank = AdapterBank.for_log(BASE, LOG, ADAPTER)
    again = Checkpoint(checkpoint.path, "a", seconds=1e9)
    assert same((bank, train(bank, LOG, CONFIG, judge=judge, checkpoint=again)), whole())
    assert checkpoint.path.stat().st_mtime_ns >= before


@pytest.mark.parametrize("damage", ["another's", "a flipped bit", "cut short", "empty", "a folder"])
def test_what_is_not_its_own_or_damaged_is_trained_anew(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(SystemExit):
        trained(Breaking(path, 5))
    raw = bytearray(path.read_bytes())
    of = "b" if damage == "another's" else "a"
    if damage == "a flipped bit":
        raw[-5] ^= 4
        path.write_bytes(raw)
    elif damage == "cut short":
        path.write_bytes(raw[: len(raw) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    assert Checkpoint(path, of).load() is None
    if damage == "a folder":
        path.rmdir()
    assert same(trained(Checkpoint(path, of)), whole())


def test_a_flipped_bit_of_the_facts_is_found(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint = Checkpoint(path, "a")
    checkpoint.save({"x": torch.arange(3)}, {"epoch": 3})
    data = path.read_bytes()
    assert data.count(b'\\"epoch\\": 3') == 1
    path.write_bytes(data.replace(b'\\"epoch\\": 3', b'\\"epoch\\": 7'))
    assert checkpoint.is_there() and checkpoint.load() is None
    path.write_bytes(data.replace(b'\\"epoch\\": 3', b'\\"epoch\\"; 3'))
    assert checkpoint.load() is None
    path.write_bytes(data)
    kept = checkpoint.load()
    assert kept is not None and kept[1] == {"epoch": 3}
    assert not Checkpoint(path, "b").is_there()
    assert not Checkpoint(tmp_path / "none", "a").is_there()


def test_an_interrupt_keeps_what_is_reached(tmp_path: Path) -> None:
    """Long before it is due; the judge of the second epoch is where it comes."""
    path, asked = tmp_path / "checkpoint.safetensors", []

    def judge(bank: AdapterBank, segments: Any) -> Any:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return HeldOutLoss(VALIDATION, CONFIG)(bank, segments)

    bank = AdapterBank.for_log(BASE, LOG, ADAPTER)
    with pytest.raises(KeyboardInterrupt):
        train(bank, LOG, CONFIG, judge=judge, checkpoint=Checkpoint(path, "a", seconds=1e9))
    kept = Checkpoint(path, "a").load()
    assert kept is not None and kept[1]["epoch"] == 2 and kept[1]["step"] > 0
    assert same(trained(Checkpoint(path, "a")), whole())


def test_signals_wait_for_the_end_of_a_step() -> None:
    order = []
    with pytest.raises(KeyboardInterrupt), undisturbed():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        order.append("the step ends")
    assert order == ["the step ends"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with undisturbed():
        order.append("nothing came")


def test_a_full_disk_is_an_error_and_the_last_one_stays(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", "a")
    checkpoint.save({"x": torch.arange(3)}, {"epoch": 1})
    script = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from reclora.checkpoints import Checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    Checkpoint(Path(sys.argv[1]), 'a').save({'x': torch.zeros(9999)}, {})\n"
        "except OSError as error:\n"
        "    sys.exit(f'refused: {error}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, checkpoint.path], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith("refused: "), done.stderr
    assert str(checkpoint.path) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    kept = checkpoint.load()
    assert kept is not None and kept[0]["x"].tolist() == [0, 1, 2] and kept[1] == {"epoch": 1}


TRAIN_WHEN_TOLD = """
import os, sys
from pathlib import Path
import torch
import torch._dynamo  # the first optimizer would, for seconds
torch.set_num_threads(1)
from test_checkpoints import ADAPTER, BASE, CONFIG, LOG, VALIDATION, long
from reclora.bank import AdapterBank
from reclora.checkpoints import Checkpoint
from reclora.training import HeldOutLoss, train

for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            bank = AdapterBank.for_log(BASE, LOG, ADAPTER)
            print(os.getpid(), flush=True)
            train(bank, LOG, long(), judge=HeldOutLoss(VALIDATION, CONFIG),
                  checkpoint=Checkpoint(Path(sys.argv[1]), "a", seconds=0.05))
            code = 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def long() -> TrainingConfig:
    """A training of a second or more."""
    return replace(CONFIG, epochs=40, patience=40)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_goes_on_to_the_same_bytes(tmp_path: Path, number: int) -> None:
    """Again and again, wherever it happens to be, until it is done."""
    path, kills, codes = tmp_path / "checkpoint.safetensors", 0, []
    # One process imports, and forks those that train.
    with subprocess.Popen(
        [sys.executable, "-c", TRAIN_WHEN_TOLD, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    ) as trainers:
        assert trainers.stdin is not None and trainers.stdout is not None
        while 0 not in codes and len(codes) < 50:
            trainers.stdin.write("train\n")
            trainers.stdin.flush()
            pid = int(trainers.stdout.readline())
            if not select([trainers.stdout], [], [], 0.3 + 0.17 * kills)[0]:
                os.kill(pid, number)
                kills += 1
            codes.append(int(trainers.stdout.readline()))
    assert kills >= 1 and codes[-1] == 0
    assert set(codes[:-1]) == {-number if number == signal.SIGKILL else 1}
    resumed = AdapterBank.for_log(BASE, LOG, ADAPTER)
    unbroken = AdapterBank.for_log(BASE, LOG, ADAPTER)
    judge = HeldOutLoss(VALIDATION, CONFIG)
    done = train(resumed, LOG, long(), judge=judge, checkpoint=Checkpoint(path, "a"))
    expected = train(unbroken, LOG, long(), judge=judge)
    assert same((resumed, done), (unbroken, expected))
