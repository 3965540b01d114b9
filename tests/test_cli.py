"""The command line in processes of its own: verbs, exit codes, messages, interrupts."""

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import typer
from test_environment import distribution

from reclora.files import read_parquet
from reclora.pipelines.cli import app
from reclora.pipelines.retrain import retrain
from reclora.pipelines.run import RunSettings
from reclora.pipelines.settings import load
from reclora.store import AdapterStore
from tests.small_runs import (
    files_below,
    finished,
    planted_log,
    reclora,
    small_settings,
    write_toml,
)
from tests.small_stores import adapters

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
COMMAND = Path(sys.executable).with_name("reclora")
ESCAPE = "\x1b"

LIGHT = """
import sys
heavy, *words = sys.argv[1:]
sys.argv = ["reclora", *words]
from reclora.pipelines.cli import main
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
found = set(heavy.split()) & set(sys.modules)
sys.exit(f"imported {found}" if found else 0)
"""
"""Runs the command; its first word names what may not be imported by it."""


@pytest.mark.parametrize(
    "words",
    [["--help"], ["retrain", "--help"], ["demo", "--help"], ["--show-completion", "bash"]],
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    # Under `make` the shell above is sh, for which there is no completion: take the one named.
    env = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    heavy = "torch torchrec pandas pyarrow sklearn scipy duckdb"
    command = [sys.executable, "-c", LIGHT, heavy, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "Usage: reclora" in done.stdout or "_RECLORA_COMPLETE=complete_bash" in done.stdout


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_has_examples_that_are_valid_commands(verb: str, tmp_path: Path) -> None:
    """Each on a line of its own, in a terminal of 80 columns."""
    done = reclora(verb, "--help", cwd=tmp_path, COLUMNS="80")
    found = [
        line.removeprefix(" Example: ").strip()
        for line in done.stdout.splitlines()
        if line.startswith(" Example: ")
    ]
    written = re.findall(r"(?m)^ *Example: (.*)$", COMMANDS[verb].help)
    assert found == written != []
    for example in found:
        # torchrun starts the same command several times.
        own = example.partition(" > ")[0].rpartition(" --no-python ")[2]
        program, name, *words = shlex.split(own)
        assert (program, name) == ("reclora", verb)
        # Raises of an option, a value or a number of arguments that the verb does not take.
        COMMANDS[verb].make_context(verb, words)


def completed(line: str, cwd: Path) -> set[str]:
    """What bash offers at the end of a line: its words, as our completion function gives them."""
    script = (
        'eval "$("$RECLORA" --show-completion bash)"; '
        'read -ra COMP_WORDS <<< "$LINE"; [[ $LINE == *" " ]] && COMP_WORDS+=(""); '
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); "
        'function_name=$(complete -p reclora | grep -oP "(?<=-F )\\S+"); '
        '$function_name reclora; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "RECLORA": str(COMMAND), "LINE": line}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_verbs_options_and_values(tmp_path: Path) -> None:
    assert completed("reclora ", tmp_path) == set(COMMANDS)
    assert completed("reclora re", tmp_path) == {n for n in COMMANDS if n.startswith("re")}
    assert completed("reclora retrain run.toml --re", tmp_path) == {"--resume"}
    assert completed("reclora demo onl", tmp_path) == {"online-retail"}


@pytest.mark.parametrize("words", [["settings"], ["settings", "--schema"]])
def test_settings_load_nothing_that_only_comparing_needs(words: list[str]) -> None:
    command = [sys.executable, "-c", LIGHT, "torchrec scipy.stats sklearn plotly", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["history", "run.toml"], ["history", "work/store"]])
def test_verbs_on_a_store_import_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    AdapterStore(tmp_path / "work" / "store").publish(adapters({"de": 1}), reason="first")
    (tmp_path / "run.toml").write_text('folder = "work"\nlog.files = ["log.parquet"]\n')
    heavy = "torch torchrec sklearn scipy numba duckdb plotly"
    command = [sys.executable, "-c", LIGHT, heavy, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "first" in done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the reading verbs read: a run, a store, and lists of another system."""
    folder = tmp_path_factory.mktemp("reading")
    settings, outcome = finished(tmp_path_factory)
    (folder / "run").symlink_to(outcome.folder.path.absolute())
    write_toml(folder / "run.toml", replace(settings, runs=folder / "runs"))
    store = AdapterStore(folder / "store")
    store.publish(adapters({"de": 1, "fr": 1}), reason="<first>\x1b[31m")
    store.publish(adapters({"de": 2}), reason="second", metrics={"de": {"ndcg": 0.25}})
    lists = pd.DataFrame({"user_id": ["u", "v"] * 2, "item_id": ["a", "a", "b", "c"]})
    lists.assign(rank=[1, 1, 2, 2]).to_parquet(folder / "lists.parquet")
    lists[:2].to_parquet(folder / "next.parquet")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        "settings run.toml --explain",
        "settings",
        "settings --schema",
        "history store",
        "diff store",
        "verify store",
        "gc store --dry-run",
        "doctor",
        "retrain run.toml --dry-run",
        "recommend run.toml --into lists --dry-run",
        "evaluate run.toml",
        "report run",
        "evaluate --recommendations lists.parquet --holdout next.parquet -k 2",
    ],
)
def test_json_is_all_that_is_on_stdout(words: str, place: Path) -> None:
    done = reclora(*words.split(), "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(found, dict | list) and found
    assert ESCAPE not in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_the_verbs_that_read_are_all_tested_for_json() -> None:
    """Those that only write have no --json, and need none: what they make is in files."""
    able = {
        name
        for name, command in COMMANDS.items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert set(COMMANDS) - able == {"demo", "prepare", "pretrain", "segments"}


def test_a_report_is_markdown_on_stdout_and_a_wrong_folder_is_said(place: Path) -> None:
    done = reclora("report", "run", cwd=place)
    assert done.returncode == 0 and done.stdout == (place / "run/report.md").read_text("utf-8")
    assert done.stderr.strip() == "report    run/report.html"
    done = reclora("report", "store", cwd=place)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        "reclora: expected the folder of a complete run, with run.json in it, got store\n"
    )
    done = reclora("report", "run", "run", "run", cwd=place)
    assert done.returncode == 2 and "expected one run or two, got 3" in done.stderr


class Terminal:
    """The command in a terminal of its own, which a person may type into."""

    CONTROLLING = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )

    def __init__(self, *words: object, cwd: Path, **environment: str) -> None:
        self._here, there = pty.openpty()
        termios.tcsetwinsize(there, (24, 120))
        known = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TERM": "xterm-256color"}
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
            known.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CONTROLLING, COMMAND, *map(str, words)],
            cwd=cwd,
            env=known | environment,
            stdin=there,
            stdout=there,
            stderr=there,
            start_new_session=True,
        )
        os.close(there)
        self.text = ""

    def read(self, until: Callable[[str], object] = lambda text: False, seconds: float = 90) -> str:
        """All that it has shown, when `until` holds of it or it has ended."""
        end = time.monotonic() + seconds
        while not until(self.text) and time.monotonic() < end:
            if select.select([self._here], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self._here, 1 << 16).decode("utf-8", "replace")
                except OSError:
                    self.process.wait(10)
                    break
        return self.text

    def type(self, keys: bytes) -> None:
        os.write(self._here, keys)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._here)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def begin(*words: object, cwd: Path, **environment: str) -> Terminal:
        opened.append(Terminal(*words, cwd=cwd, **environment))
        return opened[-1]

    yield begin
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "retrain --help",
        "doctor",
        "history store",
        "retrian",
        "settings none.toml",
        "evaluate --recommendations lists.parquet --holdout next.parquet -k 2",
    ],
)
def test_no_codes_where_none_are_wanted(
    words: str, place: Path, terminal: Callable[..., Terminal]
) -> None:
    """Neither in a pipe nor, with NO_COLOR, in a terminal."""
    done = reclora(*words.split(), cwd=place)
    assert ESCAPE not in done.stdout + done.stderr
    shown = terminal(*words.split(), cwd=place, NO_COLOR="1")
    assert ESCAPE not in shown.read() and len(shown.text) > 20
    assert shown.process.returncode == done.returncode


@pytest.mark.parametrize("no_color", ["", "1"])
def test_an_interrupt_from_the_keyboard_says_how_to_go_on(
    no_color: str,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    terminal: Callable[..., Terminal],
) -> None:
    """Before it a bar shows what is done of how much, how fast, and how long it will take."""
    settings, _ = finished(tmp_path_factory)
    mine = replace(settings, folder=tmp_path / "work", runs=tmp_path / "runs", parent="none")
    shutil.copytree(settings.folder / "base", mine.base_folder)
    path = write_toml(tmp_path / "run.toml", mine)
    long = ["--set", f"search.l2={[n / 1e6 for n in range(10_000, 12_000)]}"]
    shown = terminal("retrain", path, *long, cwd=tmp_path, NO_COLOR=no_color)
    bar = re.compile(r"choosing rates.*\d+/[\d,]+  [\d.]+[kMG]?/s .*left \d+:\d\d:\d\d")

    def is_under_way(text: str) -> object:
        if no_color:
            return list(mine.runs.glob("*/events.jsonl"))
        return bar.search(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))

    assert is_under_way(shown.read(is_under_way)), shown.text
    shown.type(b"\x03")
    said = shown.read().rstrip()
    assert shown.process.returncode == 130
    assert said.endswith("interrupted; run the same command again: it goes on where it was")
    assert "Traceback" not in shown.text and (ESCAPE in shown.text) == (not no_color)


def test_prepare_pretrain_retrain(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each names the next; in a folder of its own the numbers are those of the library's run."""
    settings, outcome = finished(tmp_path_factory)
    log = planted_log(tmp_path / "log.parquet")
    mine = replace(
        settings,
        log=replace(settings.log, files=(Path("*.parquet"),)),
        folder=Path("work"),
        runs=Path("runs"),
    )
    write_toml(tmp_path / "my run.toml", mine)
    words = ["prepare", "my run.toml", "--set", "author=me & you"]
    for following in ("pretrain", "retrain"):
        done = reclora(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        expected = f"next: reclora {following} 'my run.toml' --set 'author=me & you'"
        assert done.stdout.splitlines()[-1] == expected
        words[0] = following
    base = files_below(tmp_path / "work" / "base")
    done = reclora(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ranking: per-segment adapters, seed 0: done in" in done.stderr
    assert files_below(tmp_path / "work" / "base") == base
    run = tmp_path / "runs" / outcome.folder.id
    found, expected_results = (
        read_parquet(path).to_pandas() for path in (run / "results.parquet", outcome.folder.results)
    )
    pd.testing.assert_frame_equal(found, expected_results, check_exact=True)
    packs = [
        sorted(path.name for path in (store / "packs").iterdir())
        for store in (tmp_path / "work" / "store", outcome.store)
    ]
    assert packs[0] == packs[1]
    about = json.loads((run / "run.json").read_text())
    assert about["settings"]["repeat"] == "reclora retrain 'my run.toml' --set 'author=me & you'"
    assert about["inputs"] == {"log.parquet": about["inputs"]["log.parquet"]}
    release = json.loads((tmp_path / "work/store/releases/00000001.json").read_text())
    assert release["author"] == "me & you"
    # Again: what is there is reused, and nothing is written.
    before = files_below(tmp_path)
    began = time.monotonic()
    again = reclora(*words, cwd=tmp_path)
    assert again.returncode == 0 and "was complete already" in again.stdout
    assert files_below(tmp_path) == before and time.monotonic() - began < 20
    # Another log in the same folder is refused, and what was there goes on.
    planted_log(log, seed=1)
    refused = reclora(*words, cwd=tmp_path)
    assert refused.returncode == 2 and "name another `folder`, or remove work/base" in (
        refused.stderr
    )
    planted_log(log)
    monkeypatch.chdir(tmp_path)
    assert retrain(load(Path("my run.toml"), RunSettings, ["author=me & you"])).was_there
    kept = {path: file for path, file in before.items() if "log" not in path.parts}
    kept.pop(log)
    after = files_below(tmp_path)
    assert {path: after[path] for path in kept} == kept


def test_settings_are_refused_with_their_place(tmp_path: Path) -> None:
    write_toml(tmp_path / "run.toml", small_settings(Path("."), Path("log.parquet")))
    with (tmp_path / "run.toml").open("a") as file:
        file.write("\nunknwon = 'grow'\n")
    line = (tmp_path / "run.toml").read_text().count("\n")
    done = reclora("retrain", "run.toml", "--set", "training.epohs=3", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert f"run.toml:{line}: unknwon: unknown key; did you mean unknown?" in done.stderr
    assert "override 'training.epohs=3': training.epohs: unknown key; did you mean epochs" in (
        done.stderr
    )
    done = reclora("pretrain", "none.toml", cwd=tmp_path)
    assert done.returncode == 2 and "none.toml: the settings cannot be read" in done.stderr
    done = reclora("retrian", "run.toml", cwd=tmp_path)
    assert done.returncode == 2 and "retrian" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run.toml"}


def test_a_bad_log_fails_with_its_place(tmp_path: Path) -> None:
    write_toml(tmp_path / "run.toml", small_settings(Path("."), Path("log.parquet")))
    table = pq.read_table(planted_log(tmp_path / "log.parquet"))
    pq.write_table(
        table.rename_columns(["User_id", *table.column_names[1:]]), tmp_path / "log.parquet"
    )
    done = reclora("retrain", "run.toml", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stdout == ""
    assert "log.parquet" in done.stderr and "user_id" in done.stderr and "User_id" in done.stderr
    assert not (tmp_path / "work" / "base").exists() and not (tmp_path / "runs").exists()


def test_a_wrong_triple_is_told_before_anything_else(tmp_path: Path) -> None:
    distribution(tmp_path, "torch", "2.12.1")
    done = reclora("retrain", "run.toml", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pip install torch==2.13.0  # torch 2.12.1 is of another line" in done.stderr
    helped = reclora("--help", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert helped.returncode == 0


def test_an_interrupt_ends_with_a_line_and_the_next_run_completes(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    settings, _ = finished(tmp_path_factory)
    mine = replace(settings, folder=tmp_path / "work", runs=tmp_path / "runs", parent="none")
    shutil.copytree(settings.folder / "base", mine.base_folder)
    path = write_toml(tmp_path / "run.toml", mine)
    # So long a search that the signal meets it at work.
    long = ["--set", f"search.l2={[n / 1e6 for n in range(10_000, 12_000)]}"]
    words = [str(Path(sys.executable).with_name("reclora")), "retrain", str(path)]
    with subprocess.Popen([*words, *long], stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not list(mine.runs.glob("*/events.jsonl")) and time.monotonic() < until:
            assert process.poll() is None, "it ended before it could be told to"
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read().splitlines()
    assert process.returncode == 130
    assert said[-1] == "interrupted; run the same command again: it goes on where it was"
    assert "Traceback" not in "".join(said)
    assert not mine.store_folder.exists() and not list(mine.runs.glob("*/run.json"))
    assert not list(tmp_path.rglob("*.tmp.*"))
    before = files_below(mine.base_folder)
    done = reclora("retrain", path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(mine.runs.glob("*/run.json"))) == 1
    assert files_below(mine.base_folder) == before
