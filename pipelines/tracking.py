"""Tell MLflow of a night: one run, whatever the number of segments, which are rows of its table.

A run costs MLflow about a quarter of a second, so one for each of 5,000 segments would take longer
than training them. Needs the extra `mlflow`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd

from .assessment import write_table

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RUN, RUN_DIGEST, RELEASE = "reclora.run", "reclora.run_sha256", "reclora.release"
"""Tags: the run's id, its sha256, and the number of the release."""
TABLE = "decisions.parquet"
"""The artifact that has the table of the segments."""
ARTIFACTS = "mlartifacts"
"""The folder of artifacts beside an SQLite database."""
NOT_IN_NAMES = re.compile(r"[^\w.\- :/]")
"""MLflow refuses parameters and metrics with such a character in their names."""


@dataclass(frozen=True)
class Night:
    """What there is to tell of one night; MLflow takes at most 100 parameters and 900 metrics."""

    run: str
    """The run's id: a night that is told twice under one id stays one run of MLflow."""
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    table: pd.DataFrame
    """One row a segment: what was decided, and by which numbers."""
    report: Path | None = None
    """The page that was written."""
    release: int | None = None
    """The number of what was published; None where nothing was."""


def track(uri: str, experiment: str, night: Night) -> str:
    """Write the night as one run of the experiment, which is made when it is not there.

    A run of that id that is finished is left as it is; one that was cut off is finished. In the
    names of parameters and metrics `_` replaces what MLflow refuses there, such as a comma.
    A new experiment in `sqlite:///FILE` keeps its artifacts in `mlartifacts` beside the file.

    MLflow's usage reports are turned off, and a server that does not answer is given up after two
    more tries of 30 s each, unless MLflow's environment variables say otherwise.

    Args:
        uri: MLflow's tracking URI, such as `sqlite:////data/mlflow.db` or `http://host:5000`.
        experiment: its name.
        night: what to tell.

    Returns:
        MLflow's id of the run.

    Raises:
        RuntimeError: MLflow is not installed.
        mlflow.exceptions.MlflowException: the server or database does not answer, or refuses.
        OSError: the database or an artifact cannot be written.
        ImportError: the database needs a driver that is not installed.
        requests.exceptions.RequestException: the upload of an artifact broke off; an OSError too.

    These are no reason for a night to fail: whoever calls catches `Exception` and says so.
    """
    client = _client(uri)
    run, finished = _run_of(client, _experiment_of(client, uri, experiment), night)
    if not finished:
        _log(client, run, night)
        client.set_terminated(run)
    return run


def _client(uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise RuntimeError(
            f"tracking in MLflow needs it: pip install mlflow-skinny sqlalchemy alembic ({error})"
        ) from None
    return MlflowClient(uri)


def _experiment_of(client: MlflowClient, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return client.create_experiment(name, artifact_location=_artifacts_of(uri))


def _artifacts_of(uri: str) -> str | None:
    """Of a database file: MLflow would take the folder that the process happens to be in."""
    if not uri.startswith("sqlite:///"):
        return None
    database = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    return (database.absolute().parent / ARTIFACTS).as_uri()


def _run_of(client: MlflowClient, experiment: str, night: Night) -> tuple[str, bool]:
    """MLflow's id of the night's run, and whether it is finished."""
    # An id may hold quotes, for which MLflow's filters have no escape; its digest holds none.
    digest = sha256(night.run.encode()).hexdigest()
    for run in client.search_runs([experiment], f"tags.`{RUN_DIGEST}` = '{digest}'"):
        return run.info.run_id, run.info.status == "FINISHED"
    tags = {RUN: night.run, RUN_DIGEST: digest}
    if night.release is not None:
        tags[RELEASE] = str(night.release)
    return client.create_run(experiment, tags=tags, run_name=night.run).info.run_id, False


def _log(client: MlflowClient, run: str, night: Night) -> None:
    from mlflow.entities import Metric, Param

    # The time of the run: what a cut-off attempt has logged is the same entry, no second one.
    begun = client.get_run(run).info.start_time
    client.log_batch(
        run,
        metrics=[Metric(_name(k), float(v), begun, 0) for k, v in night.metrics.items()],
        params=[Param(_name(k), v) for k, v in night.params.items()],
    )
    with TemporaryDirectory() as folder:
        table = Path(folder) / TABLE
        write_table(table, night.table)
        client.log_artifact(run, str(table))
    if night.report is not None:
        client.log_artifact(run, str(night.report))


def _name(key: str) -> str:
    return NOT_IN_NAMES.sub("_", key)
