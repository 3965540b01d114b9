"""Progress: lines where nobody watches, a bar where somebody does, nothing on stdout."""

import re
import time

import pytest

from reclora.pipelines import progress
from reclora.pipelines.progress import per_second, step

TITLE = "training [red] 日本"


def test_without_a_terminal_a_step_ends_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with step(TITLE) as tell:
        for done in range(3):
            tell(done, 3)
    printed = capsys.readouterr()
    assert re.fullmatch(re.escape(TITLE) + r": done in \d+\.\d s\n", printed.err)
    assert printed.out == ""


def test_in_a_terminal_a_step_is_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with step(TITLE) as tell:
        tell(2, 4)
    printed = capsys.readouterr()
    assert TITLE in printed.err and "2/4" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.err)
    assert printed.out == ""


@pytest.mark.parametrize("terminal", ["", "1"])
def test_a_failed_step_is_not_said_to_be_done(
    terminal: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", terminal)
        monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(ValueError, match="the reason"), step(TITLE):
        raise ValueError("the reason")
    assert "done in" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (0.254, "0.25/s"),
        (0.999, "1.0/s"),
        (3.44, "3.4/s"),
        (9.96, "10/s"),
        (999.4, "999/s"),
        (999.6, "1.0k/s"),
        (12_345, "12k/s"),
        (1.2e8, "120M/s"),
        (5e13, "50000G/s"),
    ],
)
def test_a_rate_is_short(rate: float, said: str) -> None:
    assert per_second(rate) == said


def test_a_line_says_what_is_done_and_about_how_long_it_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.2)
    with step(TITLE) as tell:
        tell(1, 4000)
        time.sleep(0.25)
        tell(1000, 4000)
        tell(2000, 4000)
        time.sleep(0.25)
        tell(0, 0)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(re.escape(TITLE) + r": 1,000 of 4,000, \d+ s, about \d+ s left", lines[0])
    assert lines[1] == f"{TITLE}: 0 of 0, {lines[1].rpartition(', ')[2]}"
    assert len(lines) == 3 and "done in" in lines[2]


@pytest.mark.parametrize("terminal", ["dumb", "unknown"])
def test_a_terminal_without_codes_gets_lines(
    terminal: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", terminal)
    with step(TITLE) as tell:
        tell(2, 4)
    printed = capsys.readouterr().err
    assert "\x1b" not in printed and printed.startswith(f"{TITLE}: done in")
