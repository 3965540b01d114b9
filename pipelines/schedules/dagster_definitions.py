"""Dagster: one op for all segments, every night.

0 (done) and 5 (nothing went live, all that was live stays) are successes. After 130
(interrupted) or a kill the op is tried again: the same command goes on where it was. 4 (the release
is out, some segments are quarantined), 1 (failed) and 2 (wrong settings) are failures to look at,
without a retry: the same again would end the same.
"""

# mypy: ignore-errors

import subprocess

from dagster import Definitions, Failure, RetryRequested, ScheduleDefinition, job, op


@op
def retrain() -> None:
    command = ["/srv/reclora/.venv/bin/reclora", "retrain", "run.toml", "--json"]
    code = subprocess.run(command, cwd="/srv/reclora").returncode
    if code == 130 or code < 0:
        raise RetryRequested(max_retries=3, seconds_to_wait=300)
    if code not in (0, 5):
        raise Failure(f"reclora retrain: exit code {code}", allow_retries=False)


@job
def nightly() -> None:
    retrain()


definitions = Definitions(
    jobs=[nightly], schedules=[ScheduleDefinition(job=nightly, cron_schedule="30 2 * * *")]
)
