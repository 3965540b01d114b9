"""The demo: from files in a public format to a report, in one command."""

import gzip
import json
import random
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest

from reclora.files import read_parquet
from reclora.pipelines.demo import Name, demo, demo_of_bases, settings_of
from reclora.pipelines.figures import FIGURES, TITLES, read_figures
from reclora.pipelines.run import RunSettings
from reclora.pipelines.settings import SettingsError, load
from tests.small_runs import reclora
from tests.test_movielens import ml_100k  # noqa: F401

QUICK = (
    "seeds=[0]",
    "base.factorisation.epochs=4",
    "base.search.temperature=[]",
    "training.epochs=2",
)
GRID = ("search.rows_lr=[0.05]", "search.bias_lr=[0.05]")
SETTINGS = [word for setting in (*QUICK, *GRID) for word in ("--set", setting)]


def write_movielens(folder: Path) -> Path:
    """A few thousand ratings in the form of MovieLens 1M."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    users, ratings = [], []
    for user in range(1, 121):
        age, gender = rng.choice([1, 18, 25, 35]), rng.choice("FM")
        users.append(f"{user}::{gender}::{age}::{rng.randrange(21)}::48067")
        moment = 978_300_000 + rng.randrange(10**6)
        for item in rng.sample(range(1, 201), 25):
            moment += rng.randrange(1, 60)
            ratings.append(f"{user}::{item}::{rng.randrange(1, 6)}::{moment}")
    (folder / "users.dat").write_text("\n".join(users) + "\n")
    (folder / "ratings.dat").write_text("\n".join(ratings) + "\n")
    return folder


def test_the_demo_of_ones_own_files(tmp_path: Path) -> None:
    """Folders with quotes and brackets in their names are folders; everything goes into one."""
    data = write_movielens(tmp_path / "it's [ml]")
    folder = tmp_path / 'runs "of" [it\'s]'
    words = ["--data", data, "--folder", folder, "--segment-by", "gender", *SETTINGS]
    done = reclora("demo", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = folder.glob("movielens-gender-*")
    assert {path.name for path in folder.iterdir()} == {"demo", run.name}
    assert {path.name for path in tmp_path.iterdir()} == {data.name, folder.name}
    results = read_parquet(run / "results.parquet").to_pandas()
    assert set(results["segment"]) == {"F", "M"} and results["user_id"].between(1, 120).all()
    about = json.loads((run / "run.json").read_text())
    assert about["settings"]["split"]["by"] == "user_time"
    assert about["settings"]["repeat"].startswith(
        "reclora demo movielens --segment-by gender --folder "
    )
    assert "--set 'seeds=[0]'" in about["settings"]["repeat"]
    assert str(run / "report.html") in done.stdout
    following = done.stdout.splitlines()[-1]
    assert following.startswith(
        "next      reclora demo movielens --segment-by occupation --folder "
    )


def write_xmarket(folder: Path) -> Path:
    """Two markets of users who review on a hundred days, gzipped."""
    rng = random.Random(0)
    folder.mkdir()
    for market in ("de", "in"):
        lines = ["userId itemId rate date"]
        for user in range(60):
            for item in rng.sample(range(80), 20):
                day = date(2016, 1, 1) + timedelta(rng.randrange(100))
                lines.append(f"{market}{user} I{item} {rng.randrange(1, 6)}.0 {day}")
        text = "\n".join(lines) + "\n"
        (folder / f"{market}_5core.txt.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def write_online_retail(folder: Path) -> Path:
    """Customers of two countries, a line an invoice."""
    rng = random.Random(0)
    folder.mkdir()
    lines = ["Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"]
    for user in range(120):
        for item in rng.sample(range(80), 20):
            moment = datetime(2010, 12, 1) + timedelta(minutes=rng.randrange(144_000))
            country = "EIRE" if user % 2 else "United Kingdom"
            lines.append(f"LAMP {item},1,{moment},1.0,{user},{country}")
    (folder / "Online Retail.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "write", "segments"),
    [
        ("xmarket", write_xmarket, {"de", "in"}),
        ("online-retail", write_online_retail, {"EIRE", "United Kingdom"}),
        ("movielens-1m", write_movielens, None),
    ],
)
def test_every_demo_of_segments_runs_from_public_files(
    tmp_path: Path, name: Name, write: Callable[[Path], Path], segments: set[str] | None
) -> None:
    """By its own settings, but for their sizes."""
    data, folder = write(tmp_path / "data"), tmp_path / "runs"
    small = [*QUICK, *GRID, "base.search.half_life=[]", "compared=[]", "adapter.rank=1"]
    outcome = demo(name, data, folder, small, "reclora demo")
    results = read_parquet(outcome.folder.path / "results.parquet").to_pandas()
    assert segments is None or set(results["segment"]) == segments
    assert {figure.log for figure in read_figures(outcome.folder.path / FIGURES)} == {name}


@pytest.mark.parametrize("name", get_args(Name))
def test_settings_of_a_demo_load_and_its_figures_have_a_title(name: Name) -> None:
    settings = load(settings_of(name), RunSettings, ['log.files=["log.parquet"]'])
    assert settings.split.by in ("user_time", "global_time") and settings.base.grid()
    assert name in TITLES or f"{name}-age_group" in TITLES


@pytest.mark.parametrize("name", ["xmarket", "online-retail", "movielens-1m"])
def test_data_that_cannot_be_taken_are_asked_for(name: Name, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not taken from anywhere: .* --data FOLDER"):
        demo(name, None, tmp_path / "runs", [], "reclora demo")
    with pytest.raises(SettingsError, match="gowalla is not taken from anywhere"):
        demo_of_bases(None, tmp_path / "runs", [], "reclora demo gowalla")
    assert not (tmp_path / "runs").exists()


def test_a_folder_without_data_and_an_unknown_segmentation_are_named(tmp_path: Path) -> None:
    done = reclora("demo", "--data", tmp_path, "--folder", tmp_path / "runs", cwd=tmp_path)
    assert done.returncode == 1 and "expected one of ml-100k.inter, u.data" in done.stderr
    data = write_movielens(tmp_path / "data")
    done = reclora("demo", "--data", data, "--segment-by", "gendr", cwd=tmp_path)
    assert done.returncode == 2 and "'gendr' is not one of 'age_group', 'gender'" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_demo_of_the_real_data(ml_100k: Path, tmp_path: Path) -> None:  # noqa: F811
    home = tmp_path / "runs" / "demo" / "movielens"
    home.mkdir(parents=True)
    for file in ml_100k.iterdir():
        (home / file.name).write_bytes(file.read_bytes())
    settings = [w for s in (*GRID, "seeds=[0]", "training.epochs=6") for w in ("--set", s)]
    done = reclora("demo", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"(NDCG|ndcg)@10 on test, [\d,]+ users", done.stdout)
    (run,) = (tmp_path / "runs").glob("movielens-age_group-*")
    compared = read_parquet(run / "comparison.parquet").to_pandas()
    headline = compared[
        (compared["scope"] == "all")
        & (compared["metric"] == "ndcg")
        & (compared["k"] == 10)
        & (compared["baseline"] == "frozen base")
    ].set_index("model")
    assert headline.at["per-segment adapters", "verdict"] != "worse"
    assert headline.at["segment popularity, all time", "verdict"] == "worse"
    assert len(compared.loc[compared["scope"] == "segment", "segment"].unique()) == 7
