"""Airflow 3: one task for all segments, every night.

Any exit code but 0 fails the task: 1 failed, 2 wrong settings, 4 some segments quarantined, 5 the
gate let nothing pass, 130 interrupted. A retry is the same command: after 130 or a kill it goes on
where it was. `skip_on_exit_code` is not for 4 and 5: a skip would skip what follows, too, and hide
a night that somebody must look at; after 4 the release is out, after 5 all that was live stays.
"""

# mypy: ignore-errors

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id="reclora_retrain",
    schedule="30 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
):
    BashOperator(
        task_id="retrain",
        bash_command="/srv/reclora/.venv/bin/reclora retrain run.toml --json",
        cwd="/srv/reclora",
        retries=3,
        retry_delay=timedelta(minutes=5),
        do_xcom_push=False,  # the last line of the JSON says nothing
    )
