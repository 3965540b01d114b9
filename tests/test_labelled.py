"""Scores against labels: by segment, pair by pair."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from reclora.comparison import compare
from reclora.evaluation import (
    ForeignError,
    LabelledRows,
    measure_labels,
    probabilities,
    read_labelled,
    user_log_likelihoods,
)
from reclora.interactions import IdMap, LogContract
from tests import reference
from tests.test_ranking import Matrix

USERS, ITEMS = IdMap(["ann", "bob", "cid"]), IdMap([10, 20])
ROWS = LabelledRows(
    np.array(["de", "us", "de", "us", "de"]),
    np.array([0, 1, 1, 2, 2]),
    np.array([0, 1, 1, 0, 1]),
    np.array([1, 0, 0, 1, 1]),
)


class Pairs(Matrix):
    """A matrix of scores that answers for pairs."""

    def pair_scores(self, user_rows_B: Tensor, item_rows_BC: Tensor) -> Tensor:
        return self.scores_UN[user_rows_B].gather(1, item_rows_BC)


DE, US = torch.tensor([[0.5, 0], [0, -1], [0, 2]]), torch.tensor([[0, 0], [0, 3.0], [-2, 0]])


def scorer_of(segment: str) -> Pairs:
    return Pairs({"de": DE, "us": US}[segment])


def test_probabilities_are_the_logistic_function_of_the_segments_own_scores() -> None:
    expected = [1 / (1 + math.exp(-score)) for score in (0.5, 3, -1, -2, 2)]
    assert probabilities(ROWS, scorer_of) == pytest.approx(expected)


def test_a_score_without_a_number_names_the_pair() -> None:
    bad = DE.clone()
    bad[1, 1] = math.nan
    with pytest.raises(ValueError, match="'de': the score of user row 1 and item row 1 is NaN"):
        probabilities(ROWS, lambda segment: Pairs(bad))


def test_a_scorer_of_whole_catalogues_is_refused() -> None:
    with pytest.raises(TypeError, match="'de': Matrix scores whole catalogues only"):
        probabilities(ROWS, lambda segment: Matrix(DE))


def test_metrics_in_all_and_in_each_segment() -> None:
    p = probabilities(ROWS, scorer_of)
    table = measure_labels(ROWS, p, model="m", run="r", seed=0)
    found = {
        (r.scope, r.segment, r.metric): (r.rows, r.positives, r.value) for r in table.itertuples()
    }
    for scope, name, own in (
        ("all", "", np.ones(5, bool)),
        ("segment", "de", ROWS.segments == "de"),
        ("segment", "us", ROWS.segments == "us"),
    ):
        labels, chances = ROWS.labels[own].tolist(), p[own].tolist()
        for metric in ("auc", "log_loss", "calibration_error"):
            rows, positives, value = found[scope, name, metric]
            assert (rows, positives) == (len(labels), sum(labels))
            assert value == pytest.approx(getattr(reference, metric)(labels, chances))
    assert len(found) == 9


def test_which_of_two_models_fits_whom_goes_through_compare() -> None:
    generator = np.random.default_rng(0)
    n = 4000
    rows = LabelledRows(
        np.where(generator.random(n) < 0.5, "de", "us"),
        generator.integers(0, 3, n),
        generator.integers(0, 2, n),
        generator.integers(0, 2, n),
    )
    users = IdMap([f"u{u}" for u in range(3)])
    good = np.where(rows.labels == 1, 0.7, 0.3)
    tables = [
        user_log_likelihoods(rows, p, users, model=name, run="r", seed=0)
        for name, p in (("good", good), ("chance", np.full(n, 0.5)))
    ]
    found = compare(pd.concat(tables), "good", "chance", metric="log_likelihood", k=0)
    assert found["difference"].tolist() == pytest.approx([math.log(0.7 / 0.5)] * 3)
    assert found["users"].tolist() == [6, 3, 3]


def write(path: Path, **columns: object) -> Path:
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_labelled_files_are_read_and_unknown_rows_counted(tmp_path: Path) -> None:
    one = write(
        tmp_path / "one.parquet",
        user_id=["bob", "who", "ann"],
        item_id=[20, 10, 10],
        label=[1.0, 0.0, 0.0],
        segment=["de", "de", "us"],
        timestamp=pd.to_datetime([30, 10, 20], unit="s", utc=True),
    )
    rows, dropped, first = read_labelled([one], USERS, ITEMS, LogContract())
    assert rows.user_rows.tolist() == [1, 0] and rows.item_rows.tolist() == [1, 0]
    assert rows.labels.tolist() == [1, 0] and rows.segments.tolist() == ["de", "us"]
    assert (dropped, first) == (1, 20_000_000)
    two = write(tmp_path / "two.parquet", user_id=["cid"], item_id=[10], label=[4])
    rows, _, first = read_labelled([one, two], USERS, ITEMS, LogContract(min_label=1))
    assert rows.labels.tolist() == [1, 0, 1] and rows.segments.tolist() == ["de", "us", "all"]
    assert first is None, "two.parquet has no times"


def test_integer_times_have_the_unit_of_the_log(tmp_path: Path) -> None:
    columns = {"user_id": ["ann"], "item_id": [10], "label": [1], "timestamp": [1_700_000_000_000]}
    path = write(tmp_path / "ms.parquet", **columns)
    assert (
        read_labelled([path], USERS, ITEMS, LogContract(time_unit="ms"))[2] == 1_700_000_000 * 10**6
    )
    with pytest.raises(ForeignError, match="ms.parquet: timestamps are integers; set log.contract"):
        read_labelled([path], USERS, ITEMS, LogContract())


def test_labelled_files_that_are_not_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for columns, message in (
        ({"label": [1, 3]}, r"x.parquet, column label, row 1 .*: 3 is neither 0 nor 1"),
        ({"label": [1, None]}, r"column label, row 1 .*: null"),
        ({"lable": [1, 1]}, "no column 'label'.*rename 'lable'"),
        ({"label": ["a", "b"]}, "column label must be numbers"),
        ({"label": [1, 1], "user_id": ["x", "y"]}, "know no user"),
        ({"label": [1, 1], "user_id": [1, 2]}, "x.parquet"),
    ):
        write(path, **({"user_id": ["ann", "bob"], "item_id": [10, 20]} | columns))
        with pytest.raises(ForeignError, match=message):
            read_labelled([path], USERS, ITEMS, LogContract())


def test_a_users_log_likelihood_is_a_mean_over_rows_of_the_segment_alone() -> None:
    rows = LabelledRows(
        np.array(["de", "de", "us"]),
        np.array([0, 0, 0]),
        np.array([0, 1, 0]),
        np.array([1, 0, 1]),
    )
    table = user_log_likelihoods(
        rows, np.array([0.5, 0.8, 0.25]), USERS, model="m", run="r", seed=0
    )
    assert table["segment"].tolist() == ["de", "us"]
    assert table["user_id"].tolist() == ["ann", "ann"]
    de = (math.log(0.5) + math.log(0.2)) / 2
    assert table["value"].tolist() == pytest.approx([de, math.log(0.25)])


@pytest.mark.parametrize("segment", [False, True])
def test_a_file_without_rows_is_refused(tmp_path: Path, segment: bool) -> None:
    columns = {
        "user_id": pa.array([], pa.string()),
        "item_id": pa.array([], pa.int64()),
        "label": pa.array([], pa.int64()),
    }
    if segment:
        columns["segment"] = pa.array([], pa.string())
    path = tmp_path / "none.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ForeignError, match="none.parquet"):
        read_labelled([path], USERS, ITEMS, LogContract())


def test_identifiers_beyond_64_bits_with_a_sign_are_refused(tmp_path: Path) -> None:
    columns = {"user_id": ["ann"], "item_id": pa.array([2**63], pa.uint64()), "label": [1]}
    path = tmp_path / "large.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ForeignError, match="large.parquet"):
        read_labelled([path], USERS, ITEMS, LogContract())
