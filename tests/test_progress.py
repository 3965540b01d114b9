"""Progress: lines where nobody watches, a bar where somebody does, nothing on stdout."""

import re

import pytest

from reclora.pipelines.progress import step

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
    with pytest.raises(ValueError, match="the reason"), step(TITLE):
        raise ValueError("the reason")
    assert "done in" not in capsys.readouterr().err
