"""A study of bases, on a small log in Gowalla's form: what is chosen, trained, kept and told."""

import gzip
import io
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from reclora.base import read_provenance
from reclora.datasets.gowalla import write_logs
from reclora.evaluation import EvaluationConfig, evaluate, hold_out
from reclora.factorisation import Factorisation, FactorisationConfig, factorise
from reclora.files import read_parquet, write_parquet
from reclora.interactions import IdMap, Interactions
from reclora.pipelines import bases
from reclora.pipelines.bases import Studied, hold_back, study_bases
from reclora.pipelines.bases_settings import POPULARITY, StudySettings
from reclora.pipelines.figures import FIGURES, read_figures
from reclora.pipelines.settings import SettingsError, load
from reclora.popularity import popularity
from reclora.splits import LeakageError

TOML = """
name = "small"
seeds = [0, 1]
[models."softmax".factorisation]
embedding_dim = 4
batch_users = 8
epochs = 4
judge_every = 2
lr = 0.1
[models."iALS".factorisation]
loss = "ials"
embedding_dim = 4
l2 = 0.01
epochs = 3
judge_every = 1
[models."iALS".search]
unobserved_weight = [0.01, 0.1]
"""


def write_gowalla(folder: Path, seed: int = 0) -> Path:
    """Sixty users of two tastes among forty items, a quarter of whose items are for test."""
    rng = np.random.default_rng(seed)
    train, test = [], []
    for user in range(60):
        own = np.arange(40) % 2 == user % 2
        items = rng.choice(40, 12, replace=False, p=np.where(own, 0.9, 0.1) / 20)
        train.append(f"{user} {' '.join(map(str, items[:9]))}")
        test.append(f"{user} {' '.join(map(str, items[9:]))}")
    folder.mkdir(parents=True)
    (folder / "train.txt.gz").write_bytes(gzip.compress("\n".join(train).encode()))
    (folder / "test.txt").write_text("\n".join(test) + "\n")
    return folder


def settings_in(folder: Path, *overrides: str) -> StudySettings:
    train, test = write_logs(folder / "gowalla", folder / "logs")
    toml = folder / "small.toml"
    toml.write_text(TOML)
    given = {"train": train, "test": test, "folder": folder / "work", "runs": folder / "runs"}
    places = [f"{key}={json.dumps(str(path))}" for key, path in given.items()]
    return load(toml, StudySettings, [*places, *overrides])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudySettings, Studied]:
    folder = tmp_path_factory.mktemp("study")
    write_gowalla(folder / "gowalla")
    settings = settings_in(folder)
    return settings, study_bases(settings)


def table(studied: Studied, name: str) -> pd.DataFrame:
    return read_parquet(studied.folder / f"{name}.parquet").to_pandas()


def logs_of(settings: StudySettings) -> list[Interactions]:
    train, test = (Interactions.read(settings.folder / name) for name in ("train", "test"))
    return [train.pooled(), test.onto(train.users, train.items)[0].pooled()]


def test_validation_chooses_setting_epochs_and_model(done: tuple[StudySettings, Studied]) -> None:
    judged = table(done[1], "validation")
    softmax, ials = (judged[judged["model"] == model] for model in ("softmax", "iALS"))
    assert list(softmax["epochs"]) == [2, 4]
    assert list(ials["unobserved_weight"]) == [0.01] * 3 + [0.1] * 3
    for rows in (softmax, ials):
        assert list(rows.index[rows["chosen"]]) == [rows["value"].idxmax()]
    best = judged.loc[judged["value"].idxmax(), "model"]
    assert set(table(done[1], "comparison")["model"]) == {best}
    assert json.loads((done[1].folder / "run.json").read_text())["best"] == best


def test_what_is_reported_is_what_the_bases_of_all_training_rows_are_worth_on_test(
    done: tuple[StudySettings, Studied],
) -> None:
    """Each seed's base, trained again by hand on the whole log, gives the same values on test."""
    settings, studied = done
    train, test = logs_of(settings)
    held_out = hold_out(test, train, EvaluationConfig((20,)))
    judged, results = table(studied, "validation"), table(studied, "results")
    assert set(results["model"]) == {"softmax", "iALS", POPULARITY}
    (chosen,) = judged[judged["chosen"] & (judged["model"] == "iALS")].to_dict("records")
    config = replace(
        settings.models["iALS"].factorisation, unobserved_weight=chosen["unobserved_weight"]
    )
    for seed in settings.seeds:
        scorer = factorise(train, config, seed=seed, epochs=chosen["epochs"]).base.scorer()
        again = evaluate(held_out, lambda segment, s=scorer: s, model="", run="", seed=0)
        own = results[(results["model"] == "iALS") & (results["seed"] == seed)]
        assert own["value"].tolist() == again["value"].tolist()
    popular = evaluate(held_out, popularity(train), model="", run="", seed=0)
    own = results[results["model"] == POPULARITY]
    assert own["value"].tolist() == popular["value"].tolist()


def test_the_figures_of_every_model(done: tuple[StudySettings, Studied]) -> None:
    results = table(done[1], "results")
    figures = {(f.model, f.metric): f for f in read_figures(done[1].folder / FIGURES)}
    assert len(figures) == 6
    for (model, metric), figure in figures.items():
        own = results[(results["model"] == model) & (results["metric"] == metric)]
        assert figure.value == pytest.approx(own["value"].mean(), abs=1e-5)
        assert (figure.log, figure.k, figure.users) == ("small", 20, 60)
        assert figure.seeds == (1 if model == POPULARITY else 2)
        assert figure.numbers == (40 if model == POPULARITY else 60 * 4 + 40 * 4 + 40)
        assert (figure.seconds is None) == (model == POPULARITY)
    lifts = table(done[1], "comparison").set_index(["baseline", "metric"])
    assert len(lifts) == 4
    for (other, metric), lift in lifts.iterrows():
        of_pair = figures[lift["model"], metric].value, figures[other, metric].value
        assert lift["difference"] == pytest.approx(of_pair[0] - of_pair[1], abs=2e-5)


def test_the_table_has_every_model_best_first(done: tuple[StudySettings, Studied]) -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(done[1].table)
    lines = console.export_text().splitlines()
    figures = [f for f in read_figures(done[1].folder / FIGURES) if f.metric == "ndcg"]
    rows = [next(line for line in lines if line.strip().startswith(f.model)) for f in figures]
    for figure, row in zip(figures, rows, strict=True):
        assert f"{figure.value:.4f}" in row and f"[{figure.low:.4f}, {figure.high:.4f}]" in row
    order = sorted(range(3), key=lambda at: -figures[at].value)
    places = [lines.index(row) for row in rows]
    assert [places[at] for at in order] == sorted(places)


def test_a_complete_study_is_not_done_again(
    done: tuple[StudySettings, Studied], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where only the files' places and the command are others."""
    settings, studied = done
    monkeypatch.setattr("reclora.pipelines.bases_chosen.factorise", None)
    moved = settings.train.rename(settings.train.with_name("moved.parquet"))
    again = study_bases(replace(settings, train=moved, repeat="reclora demo gowalla"))
    moved.rename(settings.train)
    assert again.was_there and again.folder == studied.folder


def test_a_study_that_was_killed_goes_on_where_it_was(
    done: tuple[StudySettings, Studied], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each of its seven trainings, it ends in the same bytes."""
    shutil.copytree(done[0].train.parent.parent / "gowalla", tmp_path / "gowalla")
    settings = settings_in(tmp_path)
    asked = 0

    def every_other(log: Interactions, config: FactorisationConfig, **how: Any) -> Factorisation:
        nonlocal asked
        asked += 1
        if asked % 2:
            raise KeyboardInterrupt
        return factorise(log, config, **how)

    monkeypatch.setattr("reclora.pipelines.bases_chosen.factorise", every_other)
    for _ in range(7):
        with pytest.raises(KeyboardInterrupt):
            study_bases(settings)
        assert not list(settings.runs.glob("*/run.json"))
    assert study_bases(settings).folder.name == done[1].folder.name
    assert asked == 14 and len(list((settings.folder / "bases").iterdir())) == 4
    for name in ("results", "comparison", "validation"):
        files = [next(s.runs.glob(f"*/{name}.parquet")) for s in (settings, done[0])]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_another_log_or_setting_is_another_study(
    done: tuple[StudySettings, Studied], tmp_path: Path
) -> None:
    """In one folder: of another log nothing is taken that the first one's bases know."""
    settings, studied = done
    lone = {"iALS": settings.models["iALS"]}
    one = study_bases(replace(settings, models=lone))
    train, test = write_logs(write_gowalla(tmp_path / "gowalla", seed=1), tmp_path / "logs")
    other = study_bases(replace(settings, models=lone, train=train, test=test))
    assert len({studied.folder, one.folder, other.folder}) == 3
    whole, fewer, others = (table(each, "results") for each in (studied, one, other))
    is_lone = whole["model"] == "iALS"
    assert (
        whole.loc[is_lone, "value"].tolist()
        == fewer.loc[fewer["model"] == "iALS", "value"].tolist()
    )
    assert others["value"].tolist() != fewer["value"].tolist()


def test_what_other_code_trained_is_not_taken(
    done: tuple[StudySettings, Studied], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study names one commit: its bases and its choices are that one's."""
    work = tmp_path / "work"
    shutil.copytree(done[0].folder, work)
    before = {kind: set((work / kind).iterdir()) for kind in ("tried", "bases")}
    monkeypatch.setattr(bases, "git_commit", lambda: "another")
    again = study_bases(replace(done[0], folder=work))
    about = json.loads((again.folder / "run.json").read_text())
    assert about["commit"] == "another"
    trained = [Path(path) for paths in about["bases"].values() for path in paths]
    assert {read_provenance(path)["commit"] for path in trained} == {"another"}
    new = {kind: len(set((work / kind).iterdir()) - files) for kind, files in before.items()}
    assert new == {"tried": 3, "bases": 4}


def test_a_study_with_nothing_to_choose_by_says_so(
    done: tuple[StudySettings, Studied], tmp_path: Path
) -> None:
    """Of its own logs: there is no [split] here."""
    train = read_parquet(done[0].train)
    users = train["user_id"].to_numpy()
    path = tmp_path / "train.parquet"
    write_parquet(path, train.take(np.unique(users, return_index=True)[1]))
    match = "in the validation rows that is new to them, of 0 .*: give a train log of users with"
    with pytest.raises(ValueError, match=match):
        study_bases(replace(done[0], train=path, folder=tmp_path / "work"))


def test_pairs_of_both_logs_are_refused(
    done: tuple[StudySettings, Studied], tmp_path: Path
) -> None:
    """They have other times in the two logs, and are the same pairs all the same."""
    train, test = (read_parquet(path) for path in (done[0].train, done[0].test))
    shared = train.slice(7, 2).set_column(2, "timestamp", test["timestamp"].slice(0, 2))
    path = tmp_path / "test.parquet"
    write_parquet(path, pa.concat_tables([test, shared]))
    user, item = (train[name][7].as_py() for name in ("user_id", "item_id"))
    match = rf"user {user} has item {item} in .*train.parquet and in .*test.parquet, with 2 such"
    with pytest.raises(LeakageError, match=match):
        study_bases(replace(done[0], test=path, folder=tmp_path / "work"))


def test_test_rows_of_strangers_are_counted_and_left_out(
    done: tuple[StudySettings, Studied], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = read_parquet(done[0].test)
    strangers = test.slice(0, 3).set_column(0, "user_id", pa.array([900, 900, 901]))
    path = tmp_path / "test.parquet"
    write_parquet(path, pa.concat_tables([test, strangers]))
    found = study_bases(replace(done[0], test=path))
    assert "test: 3 rows left out, of 2 users and 0 items" in capsys.readouterr().err
    columns = ["model", "user_id", "metric", "value"]
    assert table(found, "results")[columns].equals(table(done[1], "results")[columns])


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any),
    st.floats(0.01, 0.99),
)
def test_so_many_rows_of_each_user_are_held_back(sizes: list[int], share: float) -> None:
    user_rows = np.repeat(np.arange(len(sizes)), sizes)
    log = Interactions.from_arrays(
        users=IdMap(np.arange(len(sizes))),
        items=IdMap(np.arange(12)),
        segment_names=("all",),
        segments=np.zeros(len(user_rows), np.int64),
        user_rows=user_rows,
        item_rows=np.concatenate([np.arange(size) for size in sizes]),
        timestamps=np.zeros(len(user_rows), np.int64),
    )
    left, back = hold_back(log, share)
    whole = left.joined(back)
    assert whole.user_rows.tolist() == log.user_rows.tolist()
    assert whole.item_rows.tolist() == log.item_rows.tolist()
    for user, size in enumerate(sizes):
        wanted = min(size - 1, max(1, math.floor(share * size + 0.5))) if size > 1 else 0
        assert np.count_nonzero(back.user_rows == user) == wanted


def test_rows_are_held_back_at_random(done: tuple[StudySettings, Studied]) -> None:
    """Not the first items of each user; and each place of nine about as often."""
    train, _ = logs_of(done[0])
    _, back = hold_back(train, 0.5)
    counts = np.bincount(np.searchsorted(_pairs(train), _pairs(back)) % 9, minlength=9)
    assert counts.sum() == 60 * 5 and counts.min() > 20 and counts.max() < 47


def _pairs(log: Interactions) -> Any:
    return log.user_rows * len(log.items) + log.item_rows


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("validation=1.0", "validation must be a share within 0 to 1, got 1.0"),
        ("seeds=[1, 1]", "seeds must be different numbers"),
        ("threads=0", "threads must be at least 1"),
        ("name='a/b'", "name must be usable as part of a folder's name"),
        ("models={}", "models must have one at least"),
        ("models.popularity.search.lr=[0.1]", "models has 'popularity', which is always there"),
        ("models.iALS.search.l2=[0.1, 0.0]", "ials solves by l2 > 0"),
        ("models.softmax.search.lr=[-1.0]", "lr must be a positive number, got -1.0"),
        ("models.softmax.serach.lr=[1.0]", "did you mean search?"),
        ("evaluation.retrieve=50", "ranks the whole catalogue"),
    ],
)
def test_settings_that_are_refused(
    done: tuple[StudySettings, Studied], override: str, says: str
) -> None:
    toml = done[0].train.parents[1] / "small.toml"
    given = [f'{key}="{getattr(done[0], key)}"' for key in ("train", "test")]
    with pytest.raises(SettingsError, match=re.escape(says)):
        load(toml, StudySettings, [*given, override])


def test_the_settings_of_gowalla() -> None:
    """They load as they stand, but for the two logs, and every model has its grid."""
    toml = Path(bases.__file__).with_name("gowalla.toml")
    settings = load(toml, StudySettings, ["train=a.parquet", "test=b.parquet"])
    assert settings.name == "gowalla" and settings.evaluation.headline == "ndcg@20"
    assert {c.embedding_dim for m in settings.models.values() for c in m.grid()} == {64}
