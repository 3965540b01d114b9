"""The verb `reclora rank-curve`: what it prints, and what it advises."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from reclora.configs import AdapterConfig
from reclora.pipelines.rank_curve import choose_rank
from reclora.pipelines.rank_curve_cli import advice, verbs
from reclora.pipelines.run import RunSettings, Search
from tests.small_runs import write_toml
from tests.test_rank_curve import settings_in

SEGMENTS = {"de": (0, 1), "fr": (0, 1), "=日本": (0, 0.9)}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    return settings_in(tmp_path_factory.mktemp("rank curve cli"), SEGMENTS)


def test_what_is_said(settings: RunSettings) -> None:
    place = settings.folder.parent
    toml = write_toml(place / "run.toml", settings)
    words = [str(toml), "--set", "training.epochs=2"]
    done = CliRunner().invoke(verbs, words, env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.exception
    text = done.stdout
    assert re.search(r"ndcg@10 on validation by rank, \d+ users, seed 4", text)
    rows = re.findall(r"(?m)^ +((?:pooled|per-segment) adapters?) +(\d) +.*$", text)
    assert rows == [(m, r) for m in ("pooled adapter", "per-segment adapters") for r in "0124"]
    assert len(re.findall(r"(?m) chosen *$", text)) == 2
    (folder,) = place.glob("runs/small-rank-curve-*")
    *_, segments, table = text.splitlines()
    assert table == f"table     {folder / 'rank-curve.csv'}"
    assert re.fullmatch(r"segments  \d of 3 have an adapter that helps; .*", segments)
    repeat = json.loads((folder / "run.json").read_text())["settings"]["repeat"]
    assert repeat == shlex.join(["reclora", "rank-curve", *words])
    said = CliRunner().invoke(verbs, [*words, "--json"])
    assert said.exit_code == 0, said.exception
    told = json.loads(said.stdout)
    assert told["folder"] == str(folder) and told["seed"] == 4
    assert told["rank"] == max(told["ranks"].values())
    assert {row["segment"] for row in told["curves"]} == {"", *SEGMENTS}
    assert told["set"] or told["try"]


ALPHA = "          alpha goes with it: so the scaling stays, and with it the size of a step"
LESS = "          a run has one rank for all; the per-segment adapters would do with 0"
NOT_TOLD = (
    "rank      users cannot tell the per-segment adapters of these ranks apart: take the smallest"
)
RANK_2 = "set       adapter.rank = 2, adapter.alpha = 1.0"
NO_PRODUCT = [
    'set       adapter.user_table = "none", adapter.item_table = "none", adapter.tower = "none"',
    "          the kinds that are no product suffice",
]
LARGEST = [
    "rank      1 is chosen, the largest that was trained",
    "          try a higher one: --set adapter.rank=2 --set adapter.alpha=4.0",
    ALPHA,
]
STILL = 1e-12
"""A rate at which nothing moves."""


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, [NOT_TOLD, RANK_2, ALPHA, LESS]),
        ({"parent": "none"}, [RANK_2, ALPHA]),
        ({"parent": "none", "adapter": AdapterConfig(rank=1, alpha=2.0)}, LARGEST),
        (
            {"parent": "none", "search": Search((STILL,), (0.3,), (0.0,))},
            [NOT_TOLD, *NO_PRODUCT],
        ),
        (
            {"parent": "none", "search": Search((STILL,), (STILL,), (0.0,))},
            ["set       nothing: users cannot tell adapters at these rates from none"],
        ),
    ],
)
def test_what_is_advised(
    settings: RunSettings, changes: dict[str, Any], lines: list[str], tmp_path: Path
) -> None:
    found = choose_rank(replace(settings, runs=tmp_path, **changes))
    assert [*advice(found)] == lines
    if found.higher:
        said = [*advice(replace(found, higher={}))]
        assert said[1:] == ["          it is the tables' embedding_dim, above which there is none"]


def test_its_examples_are_commands() -> None:
    command = typer.main.get_command(verbs)
    assert command.help is not None
    examples = re.findall(r"(?m)^ *Example: reclora rank-curve (.*)$", command.help)
    assert len(examples) == 2
    for example in examples:
        words = shlex.split(example)
        assert command.make_context("rank-curve", words).params["settings"] == Path("run.toml")
