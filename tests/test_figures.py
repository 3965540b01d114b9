"""The figures of runs: from means to a file, to a table in a README, and published again."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reclora.pipelines.figures import (
    BEGIN,
    END,
    FIGURES,
    TITLES,
    Effort,
    Figure,
    figures_of,
    gathered,
    publish,
    read_figures,
    tables_of,
    with_tables,
    write_figures,
)

ROOT = Path(__file__).parent.parent
ONE = Figure("ml", "base", "ndcg", 10, 0.05, 0.045, 0.0561, 1234, 1, 5000, None, "reclora demo")
OTHER = replace(ONE, model="adapters", value=0.0612, seeds=3, numbers=70, seconds=4.25)
README = f"before\n\n{BEGIN}\nstale\n{END}\n\nafter\n"


def means() -> pd.DataFrame:
    columns = ["scope", "segment", "model", "metric", "k", "users", "mean", "low", "high"]
    rows = [
        ("all", "", "base", "ndcg", 10, 9, 0.1234567, 0.1, 0.2),
        ("all", "", "base", "recall", 20, 9, 0.3, 0.25, 0.35),
        ("all", "", "adapters", "ndcg", 10, 9, 0.2, 0.1, 0.3),
        ("all", "", "nobody's", "ndcg", 10, 9, 0.9, 0.8, 1.0),
        ("segment", "a", "base", "ndcg", 10, 4, 0.5, 0.4, 0.6),
    ]
    return pd.DataFrame(rows, columns=columns)


def test_figures_are_the_means_over_all_of_models_whose_effort_is_known() -> None:
    efforts = {"adapters": Effort(3, 70, 4.26), "base": Effort(1, 5000, float("nan"))}
    found = figures_of("ml", means(), efforts, "reclora demo")
    assert found == [
        Figure("ml", "adapters", "ndcg", 10, 0.2, 0.1, 0.3, 9, 3, 70, 4.3, "reclora demo"),
        Figure("ml", "base", "ndcg", 10, 0.12346, 0.1, 0.2, 9, 1, 5000, None, "reclora demo"),
        Figure("ml", "base", "recall", 20, 0.3, 0.25, 0.35, 9, 1, 5000, None, "reclora demo"),
    ]


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(st.characters(exclude_categories=["Cs"]))
COUNTS = st.integers(0, 2**60)
SOME = st.builds(
    Figure,
    *(WORDS, WORDS, WORDS, COUNTS, NUMBERS, NUMBERS, NUMBERS),
    *(COUNTS, COUNTS, COUNTS, st.none() | NUMBERS, WORDS),
)


@given(st.lists(SOME, max_size=4))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, some: object) -> None:
    assert isinstance(some, list)
    path = tmp_path_factory.getbasetemp() / FIGURES
    write_figures(path, some)
    assert read_figures(path) == some
    assert len(json.loads(path.read_text(encoding="utf-8"))) == len(some)


@pytest.mark.parametrize("text", ["{", '{"log": "ml"}', "[1]", '[{"log": "ml"}]', "3"])
def test_a_file_of_something_else_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / FIGURES
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{FIGURES}: expected a list of figures"):
        read_figures(path)


def test_a_logs_new_figures_take_the_place_of_all_its_old_ones() -> None:
    elsewhere = replace(ONE, log="zoo"), replace(ONE, log="a log")
    new = replace(OTHER, value=0.07)
    assert gathered([elsewhere[0], ONE, OTHER], [[new], [elsewhere[1]]]) == [
        elsewhere[1],
        new,
        elsewhere[0],
    ]
    assert gathered([ONE, OTHER], []) == [ONE, OTHER]
    for other in (new, replace(ONE, metric="recall"), replace(ONE, command="reclora retrain")):
        with pytest.raises(ValueError, match="ml: expected one run of a log, got 2; publish one"):
            gathered([], [[ONE, OTHER], [elsewhere[0]], [other]])


def test_a_table_a_log() -> None:
    recall = [replace(f, metric="recall", k=20, value=1.0, high=1.0) for f in (ONE, OTHER)]
    elsewhere = replace(ONE, log="zoo", model="a|b", command="reclora demo zoo")
    assert tables_of([ONE, recall[0], OTHER, recall[1], elsewhere]).splitlines() == [
        "**ml**, 1,234 test users: `reclora demo`",
        "",
        "| model | NDCG@10 | recall@20 | seeds | numbers stored | CPU-s |",
        "|---|---|---|---|---|---|",
        "| base | .0500 [.0450, .0561] | 1.0000 [.0450, 1.0000] | 1 | 5,000 |  |",
        "| adapters | .0612 [.0450, .0561] | 1.0000 [.0450, 1.0000] | 3 | 70 | 4.2 |",
        "",
        "**zoo**, 1,234 test users: `reclora demo zoo`",
        "",
        "| model | NDCG@10 | seeds | numbers stored | CPU-s |",
        "|---|---|---|---|---|",
        r"| a\|b | .0500 [.0450, .0561] | 1 | 5,000 |  |",
    ]


def test_only_what_is_between_the_marks_changes() -> None:
    named = replace(ONE, command=r"reclora demo --set 'a=\1'")
    text = with_tables(README, [named])
    assert text.startswith(f"before\n\n{BEGIN}\n\n**ml**") and text.endswith(f"{END}\n\nafter\n")
    assert "stale" not in text and named.command in text
    assert with_tables(text, [named]) == text
    for broken in ("no marks", f"{BEGIN}\n", f"{END}\n{BEGIN}\n"):
        with pytest.raises(ValueError, match="has no lines"):
            with_tables(broken, [ONE])


def test_a_demos_run_takes_the_place_of_its_published_figures(tmp_path: Path) -> None:
    """It writes its own name and the folders of one machine; published are neither."""
    published = read_figures(ROOT / "docs" / "results.json")
    of_retail = [f for f in published if f.command == "reclora demo online-retail --data FOLDER"]
    command = (
        "reclora demo online-retail --folder 'my runs' --data '/home/me/on line' --set 'a=[1]'"
    )
    made = [replace(f, log="online-retail", command=command) for f in of_retail]
    (tmp_path / "docs").mkdir()
    write_figures(tmp_path / "docs" / "results.json", published)
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "run").mkdir()
    write_figures(tmp_path / "run" / FIGURES, made)
    publish(tmp_path, [tmp_path / "run"])
    again = "reclora demo online-retail --data FOLDER --set 'a=[1]'"
    assert read_figures(tmp_path / "docs" / "results.json") == [
        replace(f, command=again) if f in of_retail else f for f in published
    ]
    assert "/home" not in (tmp_path / "README.md").read_text()


def test_every_title_is_that_of_published_figures() -> None:
    logs = {figure.log for figure in read_figures(ROOT / "docs" / "results.json")}
    assert set(TITLES.values()) <= logs


def test_runs_are_published_again(tmp_path: Path) -> None:
    """A run's figures replace what its log had; a fault changes neither file."""
    readme, results = tmp_path / "README.md", tmp_path / "docs" / "results.json"
    readme.write_text(README)
    runs = []
    for number, figures in enumerate(([ONE, OTHER], [replace(ONE, log="zoo")], [OTHER])):
        runs.append(tmp_path / f"run {number}")
        runs[-1].mkdir()
        write_figures(runs[-1] / FIGURES, figures)
    publish(tmp_path, runs[:2])
    assert read_figures(results) == [ONE, OTHER, replace(ONE, log="zoo")]
    assert readme.read_text().count("| base |") == 2
    publish(tmp_path, runs[2:])
    assert read_figures(results) == [OTHER, replace(ONE, log="zoo")]
    assert tables_of(read_figures(results)) in readme.read_text()
    before = readme.read_bytes(), results.read_bytes()
    with pytest.raises(FileNotFoundError):
        publish(tmp_path, [runs[0], tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="expected one run of a log"):
        publish(tmp_path, [runs[0], runs[2]])
    assert (readme.read_bytes(), results.read_bytes()) == before
