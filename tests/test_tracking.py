"""Nights told to a real MLflow that keeps them in an SQLite database."""

import math
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from reclora.files import read_parquet
from reclora.pipelines.tracking import Night, track


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, as MLflow takes seconds to make one; it is made by the first night."""
    return tmp_path_factory.mktemp("tracking") / "my data" / "mlflow.db"


@pytest.fixture
def uri(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of the test's own experiment."""
    return f"the shop's {request.node.name}"


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own; and `track` sets the variables that are not set, for good."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


@pytest.fixture
def night(tmp_path: Path) -> Night:
    report = tmp_path / "report.html"
    report.write_text("<p>better</p>")
    return Night(
        run='shop\'s "big" night-1f2e',
        params={"measure": "ndcg@10", "rank": "8"},
        metrics={"segment popularity, recent": 0.25, "frozen base": 0.5, "of nobody": math.nan},
        table=pd.DataFrame(
            {"segment": ["de", "日本"], "status": ["promoted", "kept"], "gain": [0.1, math.nan]}
        ),
        report=report,
        release=7,
    )


def runs(uri: str, name: str) -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(name)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def test_a_night_is_one_run_with_everything_in_it(uri: str, name: str, night: Night) -> None:
    run = track(uri, name, night)
    (found,) = runs(uri, name)
    assert found.info.run_id == run and found.info.status == "FINISHED"
    assert found.info.run_name == found.data.tags["reclora.run"] == night.run
    assert found.data.tags["reclora.release"] == "7"
    assert found.data.params == night.params
    metrics = found.data.metrics
    assert metrics.keys() == {"segment popularity_ recent", "frozen base", "of nobody"}
    assert metrics["segment popularity_ recent"] == 0.25 and metrics["frozen base"] == 0.5
    assert math.isnan(metrics["of nobody"])
    client = MlflowClient(uri)
    assert [a.path for a in client.list_artifacts(run)] == ["decisions.parquet", "report.html"]
    table = read_parquet(Path(client.download_artifacts(run, "decisions.parquet"))).to_pandas()
    pd.testing.assert_frame_equal(table, night.table)
    assert Path(client.download_artifacts(run, "report.html")).read_text() == "<p>better</p>"


def test_artifacts_lie_beside_the_database(
    uri: str, name: str, night: Night, database: Path, tmp_path: Path
) -> None:
    """Whatever folder the night was started in, and nothing is left in that one."""
    run = track(uri, name, night)
    assert {path.name for path in database.parent.iterdir()} == {"mlflow.db", "mlartifacts"}
    assert (database.parent / "mlartifacts" / run / "artifacts" / "decisions.parquet").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"report.html"}


def test_an_experiment_that_exists_keeps_its_artifacts_where_they_are(
    uri: str, name: str, night: Night, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    MlflowClient(uri).create_experiment(name, artifact_location=elsewhere.as_uri())
    track(uri, name, night)
    assert len(list(elsewhere.rglob("decisions.parquet"))) == 1


def test_a_second_night_is_a_second_run_of_the_same_experiment(
    uri: str, name: str, night: Night
) -> None:
    first = track(uri, name, night)
    second = track(uri, name, replace(night, run="another", report=None, release=None))
    found = {run.info.run_id: run for run in runs(uri, name)}
    assert found.keys() == {first, second}
    assert "reclora.release" not in found[second].data.tags
    artifacts = MlflowClient(uri).list_artifacts(second)
    assert [artifact.path for artifact in artifacts] == ["decisions.parquet"]


def test_a_night_that_is_told_twice_is_one_run(uri: str, name: str, night: Night) -> None:
    """And the second telling changes nothing of it."""
    first = track(uri, name, night)
    (before,) = runs(uri, name)
    assert track(uri, name, night) == first
    (after,) = runs(uri, name)
    assert after.info.end_time == before.info.end_time


def test_a_telling_that_was_cut_off_is_finished_in_its_run(
    uri: str, name: str, night: Night
) -> None:
    """Its numbers are entered once."""
    assert night.report is not None
    content = night.report.read_text()
    night.report.unlink()
    with pytest.raises(OSError, match="report.html"):
        track(uri, name, night)
    (begun,) = runs(uri, name)
    assert begun.info.status == "RUNNING"
    night.report.write_text(content)
    assert track(uri, name, night) == begun.info.run_id
    (ended,) = runs(uri, name)
    assert ended.info.status == "FINISHED"
    client = MlflowClient(uri)
    assert len(client.get_metric_history(begun.info.run_id, "frozen base")) == 1
    assert len(client.list_artifacts(begun.info.run_id)) == 2


def test_a_server_that_is_down_raises_what_is_documented(uri: str, name: str, night: Night) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        with pytest.raises(MlflowException, match="Connection refused"):
            track(f"http://127.0.0.1:{taken.getsockname()[1]}", name, night)


def test_a_database_that_cannot_be_made_raises_what_is_documented(
    uri: str, name: str, night: Night, tmp_path: Path
) -> None:
    with pytest.raises(OSError, match=r"report\.html"):
        track(f"sqlite:///{tmp_path}/report.html/mlflow.db", name, night)


def test_without_mlflow_the_extra_is_named(
    uri: str, name: str, night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(RuntimeError, match="pip install mlflow-skinny"):
        track(uri, name, night)
