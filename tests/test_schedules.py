"""The examples of schedulers: each is read without its scheduler, and what it runs is run."""

import ast
import json
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from reclora.pipelines import cli
from reclora.pipelines.run import Search
from reclora.splits import SplitConfig
from reclora.training import TrainingConfig
from tests.small_runs import planted_log, small_settings, write_toml

SCHEDULES = Path(__file__).parents[1] / "pipelines" / "schedules"
HOME = "/srv/reclora"
COMMAND = f"{HOME}/.venv/bin/reclora retrain run.toml --json"
EVERY_NIGHT = "30 2 * * *"


def cron() -> tuple[str, str]:
    """When the one line runs, and what the shell is given."""
    lines = (SCHEDULES / "reclora.cron").read_text().splitlines()
    (line,) = [line for line in lines if line and not line.startswith("#")]
    found = re.fullmatch(r"((?:[\d*/,-]+ ){5})(\S.*)", line)
    assert found, line
    assert "%" not in line, "cron ends a command there"
    return found[1].strip(), found[2]


def unit(name: str) -> ConfigParser:
    parser = ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string((SCHEDULES / name).read_text())
    return parser


def nodes(name: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse((SCHEDULES / name).read_text())))


def calls(name: str, function: str) -> list[dict[str | None, ast.expr]]:
    """The named arguments of every call of a function whose name ends so."""
    return [
        {keyword.arg: keyword.value for keyword in node.keywords}
        for node in nodes(name)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(function)
    ]


def airflow_task() -> dict[str | None, ast.expr]:
    (task,) = calls("airflow_dag.py", "Operator")
    return task


def dagster_op() -> ast.FunctionDef:
    (op,) = [
        node
        for node in nodes("dagster_definitions.py")
        if isinstance(node, ast.FunctionDef)
        and {"op", "asset"} & {ast.unparse(decorator) for decorator in node.decorator_list}
    ]
    return op


def commands() -> dict[str, tuple[str, str]]:
    """File -> (the folder it works in, its command)."""
    words = list(shlex.shlex(cron()[1], posix=True, punctuation_chars=True))
    assert words[0] == "cd" and words[2] == "&&"
    service = unit("reclora-retrain.service")["Service"]
    task = airflow_task()
    command = next(node.value for node in dagster_op().body if isinstance(node, ast.Assign))
    (run,) = calls("dagster_definitions.py", "subprocess.run")
    return {
        "reclora.cron": (words[1], shlex.join(words[3 : words.index(">>")])),
        "reclora-retrain.service": (service["WorkingDirectory"], service["ExecStart"]),
        "airflow_dag.py": (
            ast.literal_eval(task["cwd"]),
            ast.literal_eval(task["bash_command"]),
        ),
        "dagster_definitions.py": (
            ast.literal_eval(run["cwd"]),
            shlex.join(ast.literal_eval(command)),
        ),
    }


def test_each_has_one_task_and_all_run_the_same_command() -> None:
    files = {path.name for path in SCHEDULES.iterdir() if path.is_file()}
    assert files == {*commands(), "reclora-retrain.timer"}
    assert set(commands().values()) == {(HOME, COMMAND)}


def test_all_run_it_at_the_same_time() -> None:
    (dag,) = calls("airflow_dag.py", "DAG")
    (schedule,) = calls("dagster_definitions.py", "ScheduleDefinition")
    times = [cron()[0], *map(ast.literal_eval, (dag["schedule"], schedule["cron_schedule"]))]
    assert times == [EVERY_NIGHT] * 3
    assert unit("reclora-retrain.timer")["Timer"]["OnCalendar"] == "*-*-* 02:30:00"


def test_systemd_goes_on_after_an_interrupt_and_waits_for_an_orderly_end() -> None:
    service = unit("reclora-retrain.service")["Service"]
    assert service["RestartForceExitStatus"] == "130"
    assert service["Restart"] == "on-abnormal", "after a kill, and not after an error"
    assert service["SuccessExitStatus"] == "5"
    assert service["Type"] != "oneshot", "it refuses RestartForceExitStatus"
    assert int(service["TimeoutStopSec"].removesuffix("s")) > 10
    assert service["KillMode"] == "mixed", "workers are stopped by their parent"


def test_airflow_tries_again_and_skips_nothing() -> None:
    task = airflow_task()
    assert ast.literal_eval(task["retries"]) >= 1 and "skip_on_exit_code" not in task


@pytest.mark.parametrize("name", sorted(commands()))
def test_each_says_what_becomes_of_every_exit_code(name: str) -> None:
    """Those of the command line, but for 3, which `retrain` never ends with."""
    text = (SCHEDULES / name).read_text()
    head = ast.get_docstring(ast.parse(text)) if name.endswith(".py") else text.split("[Unit]")[0]
    codes = set(re.findall(r"^    (\d+) ", cli.__doc__ or "", re.MULTILINE)) - {"3"}
    assert codes == {"0", "1", "2", "4", "5", "130"}
    assert codes <= set(re.findall(r"\b\d+\b", head or ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as the examples expect at `HOME`, of which nothing has been run."""
    folder = tmp_path_factory.mktemp("site")
    bin_folder = folder / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "reclora").symlink_to(Path(sys.executable).with_name("reclora"))
    settings = small_settings(
        folder,
        planted_log(folder / "log.parquet"),
        split=SplitConfig("global_time", pretrain=0.5, train=0.3, validation=0.08, test=0.12),
        training=TrainingConfig(epochs=6, batch_rows=32, num_negatives=32),
        search=Search((0.05,), (0.2,), (0.01,)),
    )
    write_toml(folder / "run.toml", settings)
    return folder


def shell(line: str, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a line in a bare environment, as cron does."""
    return subprocess.run(
        ["/bin/sh", "-c", line.replace(HOME, str(site))],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_command_runs_and_a_second_start_finds_the_night_done(
    site: Path, tmp_path: Path
) -> None:
    """First as cron's whole line, then as the command that all have."""
    night = shell(cron()[1], site, tmp_path)
    log = (site / "retrain.log").read_text()
    assert night.returncode == 0, log
    assert night.stdout == night.stderr == "", "cron would mail it"
    assert '"release": 1,' in log and '"reused": false' in log
    again = shell(COMMAND, site, site)
    assert again.returncode == 0, again.stderr
    outcome = json.loads(again.stdout)
    assert outcome["reused"] and outcome["release"] == 1 and outcome["segments"]["promoted"]


def test_cron_mails_the_exit_code_of_a_failure(site: Path, tmp_path: Path) -> None:
    line = cron()[1].replace("run.toml", "no.toml")
    failed = shell(line, site, tmp_path)
    assert failed.stdout == f"reclora retrain: exit code 2, see {site}/retrain.log\n"
    assert "no.toml" in (site / "retrain.log").read_text()
