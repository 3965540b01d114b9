"""Which rank a run needs: the curves are those of adapters trained by hand, as they would serve."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from reclora.configs import AdapterConfig, AdapterError
from reclora.pipelines.contenders import (
    POOLED,
    SUBJECT,
    Contender,
    headline_values,
    train_contender,
)
from reclora.pipelines.rank_curve import RankChoice, as_served, choose_rank
from reclora.pipelines.run import LogSettings, RunSettings, Search
from reclora.pipelines.settings import SettingsError
from reclora.training import TrainingError
from reclora.truncation import RankCurve, rank_curve
from tests.small_runs import poisoned_windows, random_log, small_settings
from tests.test_stability_cli import SEGMENTS, pooled_by_hand
from tests.test_trial import BASE, SPLIT


def settings_in(folder: Path, segments: Mapping[str, tuple[float, float]]) -> RunSettings:
    return small_settings(
        folder,
        random_log(folder / "log.parquet", segments, users=240, rows=6000),
        base=BASE,
        split=SPLIT,
        adapter=AdapterConfig(rank=4, alpha=2.0),
        # Of each list the first is taken, and the first seed.
        search=Search((0.2, 9.0), (0.1,), (0.01,)),
        seeds=(4, 1),
        parent="auto",
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    return settings_in(tmp_path_factory.mktemp("rank curve"), SEGMENTS)


@pytest.fixture(scope="module")
def found(settings: RunSettings) -> RankChoice:
    return choose_rank(settings)


def test_they_are_the_curves_of_adapters_trained_by_hand(
    settings: RunSettings, found: RankChoice
) -> None:
    ground, config, pooled = pooled_by_hand(settings)
    base, judges = ground.base, ground.pooled.opposite.held_out
    curves = {POOLED: rank_curve(pooled.bank.adapters(), base, judges)}
    own = train_contender(Contender("", settings.adapter, False, True), ground, config, 4)
    judges = ground.opposite.held_out
    curves[SUBJECT] = rank_curve(own.bank.adapters(), base, judges)
    assert found.ranks == {model: curve.smallest_rank() for model, curve in curves.items()}
    assert found.rank == max(found.ranks.values())
    whole = found.whole.set_index(["model", "rank"])
    for model, trained in ((POOLED, pooled), (SUBJECT, own)):
        check(found, model, curves[model])
        # At the largest rank it is what was trained, judged by those who chose no epoch.
        values = headline_values((ground.pooled if model == POOLED else ground).opposite, trained)
        at_largest = whole.loc[(model, 4)]
        assert at_largest["mean"] == pytest.approx(values["value"].mean())
        assert at_largest["users"] == len(values)
        assert whole.loc[model].index.tolist() == [0, 1, 2, 4]
        assert whole.loc[model]["mean"].nunique() > 1
        assert found.told_apart[model] == (whole["behind"] > whole["error"])[model].any()
    # Bytes are those of adapters that a run would publish.
    assert 0 < found.helped == len(own.helped) < found.segments == len(SEGMENTS)
    of_helped = curves[SUBJECT].bytes_SK.loc[own.helped].sum()
    assert whole.loc[SUBJECT]["bytes"].tolist() == of_helped.tolist()
    served = {adapter.segment: adapter for adapter in as_served(own)}
    assert {*served} == {*SEGMENTS} and served["old"].is_served
    assert {s for s, adapter in served.items() if adapter.num_numbers} == {*own.helped}


def check(found: RankChoice, model: str, curve: RankCurve) -> None:
    """What users say, of all and of each segment."""
    table = curve.table()
    if model == POOLED:
        table = table[table["scope"] == "all"]
    told = found.curves[found.curves["model"] == model].reset_index(drop=True)
    columns = ["scope", "segment", "rank", "users", "mean", "behind", "error", "chosen"]
    pd.testing.assert_frame_equal(told[columns], table[columns])


def test_it_publishes_nothing_and_writes_a_table(settings: RunSettings, found: RankChoice) -> None:
    assert not settings.store_folder.exists()
    table = pd.read_csv(found.table)
    assert table["rank"].tolist() == [0, 1, 2, 4] * (2 + len(SEGMENTS))
    assert table["mean"].tolist() == pytest.approx(found.curves["mean"].tolist(), nan_ok=True)
    assert (found.folder / "run.json").exists() and not (found.folder / "training").exists()
    assert found.folder.name.startswith("small-rank-curve-")


def test_the_test_window_has_no_say(settings: RunSettings, tmp_path: Path) -> None:
    """Other test rows, of the same users and items, and every number stays as it is."""
    table, ends = pq.read_table(settings.log.files[0]), (0, 2400, 4200, 5400, 6000)
    told = []
    for night, windows in poisoned_windows(table, ends, tmp_path).items():
        log = LogSettings(windows=windows)
        told.append(choose_rank(replace(settings, log=log, folder=tmp_path / night)))
    clean, poisoned = told
    assert clean.folder != poisoned.folder
    pd.testing.assert_frame_equal(clean.curves, poisoned.curves, check_exact=True)


NO_BIAS = AdapterConfig(rank=4, alpha=2.0, item_bias="none", rank_stabilised=True)
NO_PRODUCT = {"user_table": "none", "item_table": "none", "tower": "none"}


@pytest.mark.parametrize(
    ("changes", "rank", "to_set", "higher"),
    [
        # Segments differ by one direction. The scaling stays: alpha / R, alpha / sqrt(R).
        ({}, 1, {"rank": 1, "alpha": 0.5}, {}),
        ({"adapter": NO_BIAS}, 1, {"rank": 1, "alpha": 1.0}, {}),
        ({"adapter": AdapterConfig(rank=1, alpha=3.0)}, 1, {}, {"rank": 2, "alpha": 6.0}),
        ({"adapter": replace(NO_BIAS, rank=1)}, 1, {}, {"rank": 2, "alpha": 8**0.5}),
        # Products that stay as they began.
        ({"search": Search((1e-12,), (0.3,), (0.0,))}, 0, NO_PRODUCT, {}),
        # Nothing helps.
        ({"search": Search((1e-12,), (1e-12,), (0.0,))}, 0, {}, {}),
    ],
)
def test_what_to_set(
    settings: RunSettings,
    changes: dict[str, Any],
    rank: int,
    to_set: dict[str, Any],
    higher: dict[str, Any],
    tmp_path: Path,
) -> None:
    told = choose_rank(replace(settings, parent="none", runs=tmp_path, **changes))
    assert told.rank == rank and told.ranks == {SUBJECT: rank}
    assert told.changes == prefixed(to_set) and told.higher == prefixed(higher)


def prefixed(values: dict[str, Any]) -> dict[str, Any]:
    """As keys of the settings; numbers up to rounding."""
    return {
        f"adapter.{key}": pytest.approx(value) if isinstance(value, float) else value
        for key, value in values.items()
    }


def test_above_the_tables_embedding_dim_there_is_none_to_try(
    settings: RunSettings, tmp_path: Path
) -> None:
    log = random_log(tmp_path / "log.parquet", {"de": (0, 1), "fr": (0, 1)}, users=240, rows=6000)
    mine = replace(
        settings,
        log=LogSettings((log,)),
        folder=tmp_path / "work",
        runs=tmp_path,
        base=replace(BASE, factorisation=replace(BASE.factorisation, embedding_dim=2)),
        adapter=AdapterConfig(rank=2, alpha=2.0, item_bias="none"),
        parent="none",
    )
    told = choose_rank(mine)
    assert told.rank == told.largest == 2 and told.changes == told.higher == {}


def test_what_cannot_be_is_refused_before_anything_is_trained(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = replace(settings, runs=tmp_path)
    refused = {
        "cannot be cut to ranks: .* learned magnitude": AdapterConfig(rank=2, magnitude=True),
        "cannot be cut to ranks: .*`basis`, whose dire": AdapterConfig("rows", "basis", rank=2),
        "have no rank: .* got item_bias = 'bias'": AdapterConfig("none", "none", rank=2),
        "rank 99 is above": AdapterConfig(rank=99),
    }
    for words, adapter in refused.items():
        with pytest.raises(AdapterError, match=words):
            choose_rank(replace(mine, adapter=adapter))
    assert not [*tmp_path.iterdir()]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="start it without torchrun"):
        choose_rank(settings)


def test_rates_at_which_numbers_are_lost(settings: RunSettings, tmp_path: Path) -> None:
    wild = replace(settings, parent="none", search=Search((1e38,), (1e38,), ()), runs=tmp_path)
    told = choose_rank(wild)
    # `old` has nobody to be judged by, and does not train.
    assert told.quarantined == 3 and told.helped == 0 and told.told_apart == {}
    assert told.rank == 0 and told.changes == {} and not told.curves["bytes"].any()
    log = random_log(tmp_path / "log.parquet", {"de": (0, 1), "fr": (0, 1)})
    all_lost = replace(wild, log=LogSettings((log,)), folder=tmp_path / "work")
    with pytest.raises(TrainingError, match="no segment is left to train: .*not finite"):
        choose_rank(all_lost)
