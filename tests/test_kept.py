"""What a run keeps while it is under way: read when it is there, made once when it is not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from reclora.pipelines.kept import Kept

TABLE = pd.DataFrame(
    {
        "segment": pd.Categorical(["a", "b", "a"], ["b", "a", "c"]),
        "user_id": pd.Series(["x", "日本", ""], dtype="str"),
        "value": [0.5, np.nan, 1e-300],
    }
)


def jobs(folder: Path, count: int) -> list[tuple[tuple[object, ...], Callable[[], pd.DataFrame]]]:
    """Tables of one number, each of which writes down by whom it was made."""

    def made(number: int) -> pd.DataFrame:
        with (folder / f"made {number}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return pd.DataFrame({"number": [number]})

    return [(("number", number), partial(made, number)) for number in range(count)]


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "deep" / "down")
    assert kept.read("results", 1) is None
    kept.write(TABLE, "results", 1)
    found = kept.read("results", 1)
    assert found is not None
    pd.testing.assert_frame_equal(found, TABLE)
    assert kept.read("results", 2) is None and kept.read("results") is None
    kept.write(pd.DataFrame(), "none")
    assert kept.read("none") is not None and len(kept.read("none")) == 0


@pytest.mark.parametrize("processes", [1, 3])
def test_only_what_is_missing_is_made(tmp_path: Path, processes: int) -> None:
    kept = Kept(tmp_path / "kept", processes)

    def times() -> list[int]:
        tables = kept.tables(jobs(tmp_path, 5))
        assert [table["number"].item() for table in tables] == [0, 1, 2, 3, 4]
        return [len((tmp_path / f"made {n}").read_text().splitlines()) for n in range(5)]

    assert times() == times() == [1] * 5
    damaged = sorted(kept.folder.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-7])
    assert sorted(times()) == [1, 1, 1, 1, 2]
    makers = {(tmp_path / f"made {n}").read_text().splitlines()[0] for n in range(5)}
    assert (str(os.getpid()) in makers) == (processes == 1)


def test_a_killed_process_costs_only_time(tmp_path: Path) -> None:
    parent = os.getpid()

    def made(number: int) -> pd.DataFrame:
        if number == 1 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return pd.DataFrame({"number": [number]})

    tables = Kept(tmp_path, 2).tables([((n,), partial(made, n)) for n in range(3)])
    assert [table["number"].item() for table in tables] == [0, 1, 2]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_error_of_a_job_is_raised_and_the_others_stay(tmp_path: Path, processes: int) -> None:
    def made(number: int) -> pd.DataFrame:
        if number == 2:
            raise ValueError("number 2 is no good")
        return pd.DataFrame({"number": [number]})

    kept = Kept(tmp_path, processes)
    with pytest.raises(ValueError, match="number 2 is no good"):
        kept.tables([((n,), partial(made, n)) for n in range(3)])
    assert kept.read(0) is not None and kept.read(2) is None
