"""The main job: what it publishes, writes and refuses, and that it does nothing twice."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig, AdapterError
from reclora.files import read_parquet, write_parquet
from reclora.gate import GateConfig
from reclora.interactions import IdMap, Interactions
from reclora.ladder import rungs
from reclora.pipelines import learning
from reclora.pipelines import retrain as pipeline
from reclora.pipelines.base_settings import BaseSettings
from reclora.pipelines.contenders import (
    ALONE,
    ON_POOLED,
    OWN_FULL,
    POOLED,
    POOLED_FULL,
    SEARCHED,
    SUBJECT,
    Choice,
    Contender,
    Ground,
    Trained,
    choose,
    contenders,
    headline_values,
    train_contender,
)
from reclora.pipelines.figures import read_figures
from reclora.pipelines.inputs import Inputs, onto_base
from reclora.pipelines.learning import Learned, learn
from reclora.pipelines.retrain import RELEASED, Outcome, retrain
from reclora.pipelines.run import Compared, LogSettings, RunSettings, Search
from reclora.pipelines.scratch import SCRATCH
from reclora.pipelines.settings import SettingsError
from reclora.pipelines.yardstick import (
    BASE,
    POPULARITY_ALL,
    POPULARITY_RECENT,
    yardstick_of,
)
from reclora.splits import SplitConfig, Windows, k_core, split
from reclora.store import AdapterStore, BaseMismatch
from reclora.training import TrainingConfig
from tests.small_runs import (
    HOSTILE,
    NUM_ITEMS,
    START,
    files_below,
    finished,
    planted_log,
    random_log,
    small_settings,
)
from tests.small_worlds import numbers
from tests.test_prepare import cut_log
from tests.test_pretrain import tables
from tests.test_trial import BASE as SHORT_BASE
from tests.test_trial import SPLIT as SHORT_SPLIT

RESULTS = ["run", "model", "segment", "seed", "user_id", "metric", "k", "value"]


def results_of(outcome: Outcome) -> pd.DataFrame:
    return read_parquet(outcome.folder.results).to_pandas()


def windows_of(settings: RunSettings) -> tuple[BaseModel, Windows]:
    whole = split(Interactions.read(settings.log_folder), settings.split)
    base, windows, _ = onto_base(BaseModel.load(settings.base_folder), whole, settings)
    return base, windows


def trained_again(settings: RunSettings, outcome: Outcome) -> AdapterBank:
    """The adapters of a run, trained once more with what the run says that it chose."""
    base, windows = windows_of(settings)
    seen = windows.pretrain.joined(windows.train)
    ground = Ground(base, windows.train, windows.validation, seen, settings.evaluation)
    lines = (outcome.folder.path / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]

    def config_of(model: str) -> TrainingConfig:
        (said,) = [e for e in events if e["event"] == "chosen" and e["model"] == model]
        return TrainingConfig(**said["config"])

    contender = contenders(settings)[-1]
    if settings.parent == "none":
        return train_contender(contender, ground, config_of(SUBJECT), settings.seeds[0]).bank
    pooled = train_contender(contenders(settings)[1], ground, config_of(POOLED), settings.seeds[0])
    ground = replace(ground, parent=pooled.bank.adapter("pooled"))
    contender = replace(contender, config=kinds_of(settings, outcome, windows.train))
    return train_contender(contender, ground, config_of(SUBJECT), settings.seeds[0]).bank


def kinds_of(
    settings: RunSettings, outcome: Outcome, train_window: Interactions
) -> tuple[AdapterConfig, ...]:
    """Each segment's kinds, by its rows and the run's own list of what was picked for which."""
    picked = pd.DataFrame(outcome.folder.summary()["kinds"]).query("chosen").sort_values("rows")
    rungs_at = [
        picked.loc[picked["rows"] >= rows, "rung"].iloc[0] for rows in np.diff(train_window.offsets)
    ]
    return tuple(rungs(settings.adapter)[rung] for rung in rungs_at)


def published(settings: RunSettings) -> dict[str, AdapterBank]:
    """The banks of the current release, by the segments that each serves."""
    base = BaseModel.load(settings.base_folder)
    stored = AdapterStore(settings.store_folder)
    stored.verify()
    groups: dict[int, list[Adapter]] = {}
    for adapter in stored.load_all(base_fingerprint=base.fingerprint):
        groups.setdefault(id(adapter.parent), []).append(adapter)
    banks = [AdapterBank.of(base, group) for group in groups.values()]
    return {name: bank for bank in banks for name in bank.segment_names}


def placed(outcome: Outcome) -> dict[str, bool]:
    """Segment -> whether its parent serves it, in the current release."""
    release = AdapterStore(outcome.store).current()
    places = {} if release is None else release.segments
    return {name: place.serves_parent for name, place in places.items()}


def store_of(settings: RunSettings) -> AdapterStore:
    return AdapterStore(settings.store_folder)


def by_user(results: pd.DataFrame, model: str) -> pd.Series:
    """The values of a model, in an order that is the same for every model."""
    own = results[results["model"] == model]
    return own.set_index(["seed", "segment", "metric", "k", "user_id"])["value"].sort_index()


def test_the_results_table_is_as_documented(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings, outcome = finished(tmp_path_factory)
    results = results_of(outcome)
    assert results.columns.tolist() == RESULTS
    assert set(results["run"]) == {outcome.folder.id} and set(results["seed"]) == {0}
    assert set(results["model"]) == {
        "segment popularity, all time",
        "segment popularity, recent",
        "frozen base",
        "pooled full fine-tune",
        "pooled adapter",
        "per-segment adapters, no parent",
        SUBJECT,
        "live after the run",
    }
    assert not results.duplicated(RESULTS[:-1]).any()
    assert results["value"].between(0, 1).all()
    sizes = results.groupby(["model", "metric", "k"]).size()
    assert sizes.nunique() == 1 and len(sizes) == 8 * 4
    base, windows = windows_of(settings)
    of_test = base.users.ids_of(np.unique(windows.test.user_rows)).to_pylist()
    assert set(results["user_id"]) <= set(of_test)


def test_the_files_say_how_the_run_was_made(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings, outcome = finished(tmp_path_factory)
    text = (outcome.folder.path / "run.json").read_text()
    about = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert about["release"] == outcome.release == 1
    assert about["settings"]["search"]["rows_lr"] == [0.05]
    assert about["inputs"].keys() == {str(path) for path in settings.log.files}
    assert about["base"] == BaseModel.load(settings.base_folder).fingerprint
    assert about["versions"].keys() >= {"reclora", "torch", "numpy", "pandas", "pyarrow"}
    assert about["settings"]["parent"] == "pooled" and about["settings"]["kinds"] == "auto"
    kinds = pd.DataFrame(about["kinds"])
    assert kinds["rung"].tolist() == ["parent", "bias", "map", "basis", "top"]
    assert kinds["chosen"].sum() == 1 and set(kinds["segments"]) == {4}
    assert [s["model"] for s in about["search"]][-2:] == [ALONE, SUBJECT]
    assert all({*SEARCHED, "value", "chosen"} < set(line) for line in about["search"])
    assert "commit" in about and about["data_quality"]["rows read"] == 10_000
    events = (outcome.folder.path / "events.jsonl").read_text().splitlines()
    happened = [json.loads(line)["event"] for line in events]
    assert happened == ["begin", *["chosen", "trained"] * 4, "decided", "published", "complete"]
    assert not list(settings.folder.rglob("*.tmp.*")) + list(settings.runs.rglob("*.tmp.*"))


def test_adapters_beat_the_base_where_the_world_shifted(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    _, outcome = finished(tmp_path_factory)
    compared = read_parquet(outcome.folder.comparison).to_pandas()
    row = compared[
        (compared["scope"] == "all")
        & (compared["model"] == SUBJECT)
        & (compared["baseline"] == "frozen base")
        & (compared["metric"] == "ndcg")
        & (compared["k"] == 10)
    ].iloc[0]
    assert row["difference"] > 0 and row["verdict"] == "better"


def test_the_release_scores_like_the_trained_bank(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Bit for bit; and training again from the run's own files gives the same bytes."""
    settings, outcome = finished(tmp_path_factory)
    bank, live = trained_again(settings, outcome), published(settings)
    states = placed(outcome)
    assert set(states) == set(live) == set(bank.segment_names)
    assert sorted(states.values()) == [False, False, True, True], "of both there are some"
    assert bank.parent_adapter is not None
    parent = {name: tensor.tolist() for name, tensor in bank.parent_adapter.tensors.items()}
    users = torch.arange(len(bank.base.users))
    for name, is_served in states.items():
        found = live[name].scorer(name).scores(users)
        assert torch.equal(found, bank.scorer(name).scores(users))
        below = live[name].adapter(name).parent
        assert live[name].has_delta(live[name].code(name)) != is_served
        assert below is not None and below.parent is None
        assert {part: tensor.tolist() for part, tensor in below.tensors.items()} == parent
        if not is_served:
            assert numbers(live[name], name) == numbers(bank, name)
    release = AdapterStore(settings.store_folder).current()
    assert release is not None and outcome.folder.id in release.reason
    assert len({place.pack for name, place in release.segments.items() if states[name]}) == 1
    decisions = store_of(settings).decisions(release).set_index("segment")
    assert dict(decisions["status"] == "fell back") == states
    for name, placement in release.segments.items():
        row = decisions.loc[name]
        assert placement.metrics["validation ndcg@10"] == row["candidate"]
        was_live = placement.metrics["validation ndcg@10 of what was live"]
        assert was_live == pytest.approx(row["frozen base"], abs=1e-12)
        assert not states[name] or row["candidate"] == pytest.approx(row["parent"], abs=1e-12)


def test_segments_on_their_parent_have_its_results(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    _, outcome = finished(tmp_path_factory)
    results = results_of(outcome)
    for name, is_served in placed(outcome).items():
        here = results[results["segment"] == name]
        own, pooled, base = (by_user(here, model) for model in (SUBJECT, POOLED, BASE))
        assert own.equals(pooled) == is_served and not pooled.equals(base)


def test_no_segment_ends_below_its_parent(tmp_path_factory: pytest.TempPathFactory) -> None:
    """And the whole is better than it, where segments shift apart."""
    _, outcome = finished(tmp_path_factory)
    compared = read_parquet(outcome.folder.comparison).to_pandas()
    own = compared[(compared["model"] == SUBJECT) & (compared["baseline"] == POOLED)]
    assert set(own["metric"]) == {"ndcg", "recall"} and set(own["scope"]) == {"all", "segment"}
    assert "worse" not in set(own["verdict"])
    headline = (own["scope"] == "all") & (own["metric"] == "ndcg") & (own["k"] == 10)
    assert own.loc[headline, "verdict"].item() == "better"


def told_of(outcome: Outcome) -> pd.DataFrame:
    """What the report says of each segment."""
    return pd.read_csv(outcome.folder.report.with_suffix(".csv"), keep_default_na=False)


def test_the_report_says_what_each_segment_stands_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    _, outcome = finished(tmp_path_factory)
    page = outcome.folder.report.read_text()
    served = sum(placed(outcome).values())
    told = told_of(outcome)
    assert set(told["reason"]) == {"no gate: rule = none"} and "no gate: rule = none" in page
    assert (told["decision"] == "fell back").sum() == served == 2
    assert (told["decision"] == "promoted").sum() == 2
    (picked,) = pd.DataFrame(outcome.folder.summary()["kinds"]).query("chosen")["rung"]
    assert picked == "bias" and page.count("<td>bias</td>") == 4
    assert "rows: bias (4 segments)" in page and "the lowest is taken" in page
    assert "2 promoted, 2 fell back" in page


def test_without_a_parent_segments_stand_on_the_base(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """The same numbers as those of the adapters that a run with parents compares with."""
    settings, with_parents = finished(tmp_path_factory)
    shutil.copytree(settings.base_folder, tmp_path / "work" / "base")
    own = {"folder": tmp_path / "work", "runs": tmp_path / "runs"}
    mine = replace(settings, **own, parent="none", kinds="given")
    outcome = retrain(mine)
    assert outcome.folder.id != with_parents.folder.id
    results = results_of(outcome)
    assert ALONE not in set(results["model"]) and "kinds" not in outcome.folder.summary()
    pd.testing.assert_series_equal(
        by_user(results, SUBJECT), by_user(results_of(with_parents), ALONE), check_exact=True
    )
    states, bank, live = placed(outcome), trained_again(mine, outcome), published(mine)
    assert states and not any(states.values())
    release = AdapterStore(outcome.store).release(1)
    for name, place in release.segments.items():
        assert live[name].parent is None and numbers(live[name], name) == numbers(bank, name)
        better, base = (place.metrics[f"validation ndcg@10{s}"] for s in ("", " of the base"))
        assert better != base
    page = outcome.folder.report.read_text()
    assert "fell back" not in page and "picked by its size" not in page
    assert "fell back" not in set(told_of(outcome)["decision"])


def test_each_seed_stands_on_its_own_parent_and_choices_on_one_stopped_by_half(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What `learn` and `measure` hand to choosing and to training, watched as it passes."""
    settings, _ = finished(tmp_path_factory)
    base, windows = windows_of(settings)
    mine = replace(
        settings, runs=tmp_path, seeds=(3, 8), training=replace(settings.training, epochs=3)
    )
    chosen: dict[str, tuple[Sequence[Ground], Choice]] = {}
    trained: dict[tuple[str, int], tuple[Ground, Trained]] = {}

    def choosing(contender: Contender, folds: Sequence[Ground], *rest: Any) -> Choice:
        choice = choose(contender, folds, *rest)
        chosen[contender.model] = folds, choice
        return choice

    def training(contender: Contender, ground: Ground, config: Any, seed: int) -> Trained:
        found = train_contender(contender, ground, config, seed)
        trained[contender.model, seed] = ground, found
        return found

    monkeypatch.setattr(learning, "choose", choosing)
    for module in (learning, pipeline):
        monkeypatch.setattr(module, "train_contender", training)
    inputs = Inputs.read(mine, ())
    inputs.folder.begin()
    learned = learn(mine, inputs)
    decisions = pipeline._decide(mine, inputs, learned)
    yardstick = yardstick_of(mine, inputs.base, inputs.windows, inputs.folder.id)
    assessment, _ = pipeline.measure(mine, inputs, learned, decisions, yardstick)
    assert [part.model for part in assessment.parts].count(SUBJECT) == 2
    assert learned.subject is trained[SUBJECT, 3][1]
    folds, choice = chosen[SUBJECT]
    below, pooled = chosen[POOLED]
    assert [f.users for f in folds] == ["even", "odd"] and choice.rungs is not None
    for fold, before, stopped in zip(folds, below, choice.stopped, strict=True):
        again = train_contender(pooled.contender, before, pooled.config, 3).bank
        assert before.parent is None and before.users == fold.users
        assert fold.parent is not None and same(fold.parent, again.adapter("pooled"))
        assert stopped.parent is fold.parent
    ground, other = folds
    assert ground.parent is not None and other.parent is not None
    assert not same(ground.parent, other.parent)
    for seed in (3, 8):
        parent = trained[POOLED, seed][1].bank.adapter("pooled")
        own_ground, own = trained[SUBJECT, seed]
        assert own.parent is own_ground.parent and own.parent is not None
        assert same(own.parent, parent) and own_ground.users == "even"
        assert own.contender == choice.contender
    first, second = (trained[SUBJECT, seed][1].parent for seed in (3, 8))
    assert first is not None and second is not None and not same(first, second)
    # What settings were compared on is what is judged at the gate and published.
    assert same(first, ground.parent)


def learned_by(settings: RunSettings, runs: Path, **changes: Any) -> Learned:
    """What a run of the finished one's settings would learn, with these changes."""
    mine = replace(settings, runs=runs, compared=(), **changes)
    inputs = Inputs.read(mine, ())
    inputs.folder.begin()
    return learn(mine, inputs)


def test_a_parent_is_kept_where_validation_likes_it(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both are chosen and trained; of the other one nothing is left."""
    settings, _ = finished(tmp_path_factory)
    choices: list[Choice] = []
    trainings: list[Trained] = []
    monkeypatch.setattr(learning, "choose", lambda *a: choices.append(choose(*a)) or choices[-1])
    monkeypatch.setattr(
        learning,
        "train_contender",
        lambda *a: trainings.append(train_contender(*a)) or trainings[-1],
    )
    short = replace(settings.training, epochs=3)
    learned = learned_by(settings, tmp_path, parent="auto", training=short)
    assert [t.contender.model for t in trainings] == [POOLED, SUBJECT, SUBJECT]
    assert [t.contender.has_parent for t in trainings] == [False, False, True]
    fewer, more = sorted((1, 2), key=lambda at: trainings[at].num_numbers)
    assert trainings[fewer].num_numbers < trainings[more].num_numbers
    behind = paired(choices[more]) - paired(choices[fewer])
    error = behind.std(ddof=1) / len(behind) ** 0.5
    at = more if behind.mean() > max(error, 0) else fewer
    assert learned.subject is trainings[at]
    assert [t.contender.model for t in learned.trained] == [POOLED, SUBJECT]
    assert learned.choices == [choices[0], choices[at]] and learned.rungs is choices[at].rungs
    assert learned.searches["model"].tolist() == [POOLED, SUBJECT]
    assert (learned.subject.parent is not None) == (at == 2)


def paired(choice: Choice) -> pd.Series:
    """What users said of it, in their order."""
    values = choice.values.astype({"segment": str})
    return values.set_index(["segment", "user_id"])["value"].sort_index()


@pytest.mark.parametrize("better", [False, True], ids=["without", "with"])
def test_of_two_subjects_the_better_is_kept(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, better: bool
) -> None:
    """The one that learns, and not the one that stays what it began as."""
    settings, _ = finished(tmp_path_factory)
    base, windows = windows_of(settings)
    seen = windows.pretrain.joined(windows.train)
    ground = Ground(base, windows.train, windows.validation, seen, settings.evaluation)
    pooled, *subjects = contenders(replace(settings, parent="auto", compared=()))
    still = replace(settings.training, rows_lr=1e-9, bias_lr=1e-9, epochs=1)
    moving = replace(settings.training, rows_lr=0.05, bias_lr=0.2, epochs=4)
    trained = [train_contender(pooled, ground, moving, 0)]
    above = replace(ground, parent=trained[0].bank.adapter("pooled"))
    for subject in subjects:
        config = moving if subject.has_parent == better else still
        trained.append(train_contender(subject, above, config, 0))
    values = [headline_values(ground.opposite, t) for t in trained]
    choices = [
        Choice(t.contender, moving, pd.DataFrame(), value, (t,))
        for t, value in zip(trained, values, strict=True)
    ]
    expected = [trained[0], trained[1 + better]]
    learning._keep_the_better(choices, trained)
    assert trained == expected and [c.stopped for c in choices] == [(t,) for t in expected]


@pytest.mark.parametrize("half_life", [0.0, 3.0])
def test_adapters_train_on_the_window_or_on_all_before_validation(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, half_life: float
) -> None:
    settings, _ = finished(tmp_path_factory)
    _, windows = windows_of(settings)
    ours = replace(settings, half_life=half_life)
    everything = replace(ours, history="all")
    for mine, parts in ((ours, [windows.train]), (everything, [windows.pretrain, windows.train])):
        log = learning.adapt_log(mine, windows)
        assert log.segment_names == windows.train.segment_names
        assert rows_of(log) == sorted(sum(map(rows_of, parts), []))
        ages = (windows.train.timestamps.max() - log.timestamps) / 86.4e9
        expected = 0.5 ** (ages / half_life) if half_life else np.ones(len(log))
        weights = np.ones(len(log)) if log.weights is None else log.weights
        assert weights == pytest.approx(expected, rel=1e-5)
        assert half_life == 0 or weights.min() < 0.5 * weights.max()
    some = windows.of_segments(windows.train.segment_names[1:3])
    log = learning.adapt_log(everything, some)
    assert log.segment_names == windows.train.segment_names[1:3]
    kept = [row for row in rows_of(windows.before_validation) if row[0] in log.segment_names]
    assert rows_of(log) == kept


def rows_of(log: Interactions) -> list[tuple[str, int, int, int]]:
    names = [log.segment_names[code] for code in log.segment_rows]
    columns = (log.user_rows, log.item_rows, log.timestamps)
    return sorted(zip(names, *(column.tolist() for column in columns), strict=True))


def test_what_is_learned_is_learned_from_the_history(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    settings, _ = finished(tmp_path_factory)
    short = replace(settings.training, epochs=2)
    change: dict[str, Any] = {"training": short, "parent": "none", "kinds": "given"}
    window, faded, whole = (
        learned_by(settings, tmp_path, **change, history=history, half_life=half_life)
        for history, half_life in (("window", 0.0), ("window", 2.0), ("all", 2.0))
    )
    sizes = [len(learned.ground.log) for learned in (window, faded, whole)]
    _, windows = windows_of(settings)
    assert sizes == [len(windows.train)] * 2 + [len(windows.before_validation)]
    found = [
        [numbers(learned.subject.bank, name) for name in windows.train.segment_names]
        for learned in (window, faded, whole)
    ]
    assert found[0] != found[1] != found[2] != found[0]


def test_all_that_can_be_compared_is_measured_on_every_seed(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    settings, _ = finished(tmp_path_factory)
    shutil.copytree(settings.base_folder, tmp_path / "work" / "base")
    mine = replace(
        settings,
        folder=tmp_path / "work",
        runs=tmp_path / "runs",
        parent="auto",
        history="all",
        half_life=2.0,
        compared=get_args(Compared),
        seeds=(0, 5),
        training=replace(settings.training, epochs=2),
        evaluation=replace(settings.evaluation, ks=(10,), metrics=("ndcg",)),
    )
    outcome = retrain(mine)
    results = results_of(outcome)
    lower = [f"per-segment {kind}" for kind in ("bias", "map", "basis")]
    trained = [POOLED_FULL, OWN_FULL, *lower, POOLED, ALONE, ON_POOLED, SUBJECT]
    once = [POPULARITY_ALL, POPULARITY_RECENT, BASE]
    assert set(results["model"]) == {*once, SCRATCH, *trained, RELEASED}
    for model in (SCRATCH, *trained):
        own = results[results["model"] == model]
        first, second = (own[own["seed"] == seed]["value"].to_numpy() for seed in mine.seeds)
        assert len(first) == len(second) > 0 and not np.array_equal(first, second)
    figures = read_figures(outcome.folder.figures)
    assert [figure.model for figure in figures] == [*once, SCRATCH, *trained]
    assert [figure.seeds for figure in figures] == [1] * 3 + [2] * 10
    means = results.groupby("model")["value"].mean()
    for figure in figures:
        assert figure.value == pytest.approx(means[figure.model], abs=1e-5)
        assert figure.low < figure.value < figure.high and figure.numbers > 0
    assert outcome.folder.is_complete and not outcome.folder.training.exists()


def same(one: Adapter, other: Adapter) -> bool:
    return all(torch.equal(one.tensors[name], tensor) for name, tensor in other.tensors.items())


def test_a_complete_run_is_reused(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings, outcome = finished(tmp_path_factory)
    folders = settings.folder, settings.runs
    before = [files_below(folder) for folder in folders]
    again = retrain(replace(settings, author="another", repeat="again"))
    assert again.was_there and again.release == outcome.release
    assert again.decisions.table.equals(outcome.decisions.table)
    assert [files_below(folder) for folder in folders] == before


def test_the_same_input_in_another_folder_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """And a run that was complete for one store is none for another."""
    settings, outcome = finished(tmp_path_factory)
    runs = tmp_path / "runs"
    shutil.copytree(settings.runs, runs)
    other = replace(
        settings,
        folder=tmp_path / "elsewhere",
        runs=runs,
        log=replace(settings.log, files=(planted_log(tmp_path / "copy.parquet"),)),
    )
    again = retrain(other)
    assert not again.was_there and again.folder.id == outcome.folder.id
    pd.testing.assert_frame_equal(results_of(again), results_of(outcome), check_exact=True)
    packs = [
        {path.name: path.read_bytes() for path in (each.store / "packs").iterdir()}
        for each in (outcome, again)
    ]
    assert packs[0] == packs[1]


def test_a_store_of_another_base_is_refused_before_training(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    settings, _ = finished(tmp_path_factory)
    log = random_log(tmp_path / "log.parquet", {"a": (0, 1)})
    mine = small_settings(tmp_path, log, base=tables(tmp_path / "tables"))
    shutil.copytree(settings.store_folder, mine.store_folder)
    before = files_below(mine.store_folder)
    with pytest.raises(BaseMismatch, match="name another `folder`, or remove .*store"):
        retrain(mine)
    assert files_below(mine.store_folder) == before and not mine.runs.exists()


def test_segments_without_train_or_validation_rows_are_served_by_the_parent(tmp_path: Path) -> None:
    """Of an imported base, too; and one whose rows end before the adapt window has no results."""
    parts: dict[str, tuple[float, float]] = {
        "whole": (0, 1),
        "no train rows": (0.86, 1),
        "no validation rows": (0, 0.84),
        "ended": (0, 0.6),
    }
    log = random_log(tmp_path / "log.parquet", parts, users=60, rows=3000)
    base = tables(tmp_path / "tables")
    settings = small_settings(tmp_path, log, base=base)
    outcome = retrain(settings)
    assert outcome.release == 1 and placed(outcome) == dict.fromkeys(parts, True)
    results = results_of(outcome)
    assert set(results["segment"]) == {"whole", "no train rows"}
    of_first = results[results["segment"] == "no train rows"].pivot(
        index=["user_id", "metric", "k"], columns="model", values="value"
    )
    assert (of_first[SUBJECT] == of_first[POOLED]).all()
    assert (of_first[ALONE] == of_first["frozen base"]).all()
    page = outcome.folder.report.read_text()
    assert (told_of(outcome)["decision"] == "fell back").sum() == len(parts)
    assert page.count("<td>fell back</td>") == len(parts)
    assert "of the tower" not in page, "the base has none"
    live = published(settings)
    users = torch.arange(4)
    bare = live["no train rows"].scorer("no train rows").scores(users)
    assert torch.equal(bare, live["ended"].scorer("ended").scores(users))
    quality = outcome.folder.summary()["data_quality"]
    assert quality["unknown to the base, train window"] > 0


def test_a_base_that_knows_hardly_anybody_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be of another log."""
    log = random_log(tmp_path / "log.parquet", {"all": (0, 1)}, users=24)
    items = IdMap([f"i{n}" for n in range(NUM_ITEMS)])
    for users, is_said in ((24, False), (4, True)):
        base = tmp_path / f"base of {users}"
        known = IdMap([f"u{n}" for n in range(users)])
        BaseModel.of(known, items, torch.ones(users, 4), torch.ones(NUM_ITEMS, 4)).save(base)
        settings = small_settings(tmp_path / str(users), log)
        Inputs.read(replace(settings, base=BaseSettings(saved=base)), ())
        told = capsys.readouterr().err
        assert ("the base knows 4 of 24 users of the train window, and" in told) == is_said


@pytest.fixture(scope="module")
def newcomers(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    """A log in which half of the users come in the adapt window, in a segment of their own."""
    folder = tmp_path_factory.mktemp("newcomers")
    parts: dict[str, tuple[float, float]] = {"new": (0.6, 1), "old": (0, 1)}
    log = random_log(folder / "log.parquet", parts, users=40, rows=2500)
    return small_settings(folder, log, split=SplitConfig(pretrain=0.6, train=0.2, test=0.15))


def test_the_next_log_adapts_the_base_that_is_there(tmp_path: Path) -> None:
    """Another log is refused beside a base, unless the settings say to keep that base."""
    first = small_settings(tmp_path, random_log(tmp_path / "1.parquet", {"a": (0, 1), "b": (0, 1)}))
    retrain(first)
    log = random_log(tmp_path / "2.parquet", {"a": (0, 1), "b": (0, 1), "c": (0.5, 1)}, rows=1000)
    second = replace(first, log=replace(first.log, files=(log,)))
    with pytest.raises(SettingsError, match="to adapt it whatever made it, set base.saved"):
        retrain(second)
    before = files_below(first.base_folder)
    kept = replace(second, base=replace(second.base, saved=first.base_folder))
    outcome = retrain(kept)
    assert files_below(first.base_folder) == before
    assert outcome.folder.summary()["base"] == BaseModel.load(first.base_folder).fingerprint


def test_nothing_of_test_chooses_or_trains(tmp_path: Path) -> None:
    """Law 10: with other items in the test window, base, rates and adapters are the same."""
    parts: dict[str, tuple[float, float]] = {"a": (0, 1), "b": (0, 1)}
    table = pq.read_table(random_log(tmp_path / "a.parquet", parts, users=60, rows=2500))
    table = table.sort_by("timestamp")
    first = round(0.9 * len(table))
    items = table["item_id"].to_pylist()
    moved = items[:first] + items[first:][::-1]
    write_parquet(tmp_path / "b.parquet", table.set_column(1, "item_id", pa.array(moved)))
    found = []
    for name in ("a", "b"):
        settings = small_settings(tmp_path / name, tmp_path / f"{name}.parquet")
        grid = Search((1e-6, 0.1), (0.1,), (0.01,))
        contract = replace(settings.log.contract, duplicates="exact")
        log = replace(settings.log, contract=contract)
        outcome = retrain(replace(settings, search=grid, log=log))
        assert outcome.release is not None
        store = AdapterStore(outcome.store)
        fingerprint = outcome.folder.summary()["base"]
        adapters = store.load_all(base_fingerprint=fingerprint)
        tensors = [(a.segment, {n: t.tolist() for n, t in a.tensors.items()}) for a in adapters]
        found.append((outcome.folder.summary()["search"], fingerprint, tensors))
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def dropped(newcomers: RunSettings) -> Outcome:
    return retrain(newcomers)


def test_a_run_that_lost_a_file_is_made_again(
    newcomers: RunSettings, dropped: Outcome, tmp_path: Path
) -> None:
    mine = replace(newcomers, folder=tmp_path / "work", runs=tmp_path / "runs")
    shutil.copytree(newcomers.folder, mine.folder)
    shutil.copytree(newcomers.runs, mine.runs)
    outcome = retrain(mine)
    assert outcome.was_there and outcome.folder.id == dropped.folder.id
    outcome.folder.report.unlink()
    again = retrain(mine)
    assert not again.was_there and again.folder.is_complete
    pd.testing.assert_frame_equal(results_of(again), results_of(dropped), check_exact=True)


def test_unknown_users_are_dropped_and_counted(newcomers: RunSettings, dropped: Outcome) -> None:
    assert set(results_of(dropped)["segment"]) == {"old"}
    whole = split(Interactions.read(newcomers.log_folder), newcomers.split)
    quality = dropped.folder.summary()["data_quality"]
    of_new = int(np.diff(whole.train.offsets)[whole.train.segment_names.index("new")])
    assert quality["unknown to the base, train window"] >= of_new > 50


def test_unknown_users_grow_into_their_adapter(newcomers: RunSettings) -> None:
    grown = replace(newcomers, unknown="grow", folder=newcomers.folder.with_name("grown"))
    outcome = retrain(grown)
    assert outcome.release is not None and "new" in placed(outcome)
    results = results_of(outcome)
    base = BaseModel.load(grown.base_folder)
    of_new = set(results.loc[results["segment"] == "new", "user_id"])
    assert of_new and not of_new & set(base.users.ids.to_pylist())
    quality = outcome.folder.summary()["data_quality"]
    assert "unknown to the base, train window" not in quality
    bank, live = trained_again(grown, outcome), published(grown)
    for name, its_bank in live.items():
        # New rows may stand in another order in a bank of what was published.
        mine, its = (
            b.scorer(name).scores(torch.from_numpy(b.base.users.rows_of(sorted(of_new)[:3])))
            for b in (bank, its_bank)
        )
        order = torch.from_numpy(its_bank.base.items.rows_of(bank.base.items.ids))
        assert torch.equal(mine[:, order >= 0], its[:, order[order >= 0]])


def test_hostile_names_of_segments_are_only_names(tmp_path: Path) -> None:
    log = random_log(tmp_path / "log.parquet", dict.fromkeys(HOSTILE, (0, 1)), users=60, rows=2500)
    inside = tmp_path / "inside"
    outcome = retrain(small_settings(inside, log, base=tables(tmp_path / "tables")))
    assert set(results_of(outcome)["segment"]) == set(HOSTILE)
    page = outcome.folder.report.read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    assert {path.name for path in tmp_path.iterdir()} == {"inside", "tables", "log.parquet"}
    assert {path.name for path in inside.iterdir()} == {"work", "runs"}
    assert outcome.release is not None and set(placed(outcome)) == set(HOSTILE)


def test_lists_longer_than_the_catalogue_and_other_metrics_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = random_log(tmp_path / "log.parquet", {"pooled": (0, 1)})
    evaluation = replace(
        small_settings(tmp_path, log).evaluation, ks=(1000, 1), metrics=("recall", "ndcg")
    )
    mine = small_settings(tmp_path, log, base=tables(tmp_path / "tables"), evaluation=evaluation)
    outcome = retrain(mine)
    told = "evaluation.ks has 1,000, and there are 140 items: such lists hold them all"
    assert told in capsys.readouterr().err
    results = results_of(outcome)
    whole = results[(results["metric"] == "recall") & (results["k"] == 1000)]
    assert (whole["value"] == 1).all(), "the whole catalogue holds all that is relevant"
    assert outcome.release is None, "where every list is whole no adapter can be better"
    compared = read_parquet(outcome.folder.comparison).to_pandas()
    assert compared[["metric", "k"]].iloc[0].tolist() == ["recall", 1000]
    page = outcome.folder.report.read_text()
    assert "an adapter of its own did not help segments of its size" in page
    assert "<td>skipped</td>" in page and "fell back" not in page


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (AdapterConfig(rank=5), "rank 5 is above the tables' embedding_dim 4"),
        (AdapterConfig("none", "none", "none", "low_rank"), "the bank has no delta to train"),
        (AdapterConfig("full", "full", rank=5), "rank 5 is above the tables' embedding_dim 4"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_training(
    tmp_path: Path, adapter: AdapterConfig, message: str
) -> None:
    log = random_log(tmp_path / "log.parquet", {"a": (0, 1)})
    mine = small_settings(tmp_path, log, base=tables(tmp_path / "tables"), adapter=adapter)
    with pytest.raises((AdapterError, ValueError), match=message):
        retrain(mine)
    assert not list(mine.runs.glob("*/events.jsonl")) and not mine.store_folder.exists()


def test_a_base_that_knows_nobody_is_refused(tmp_path: Path) -> None:
    log = random_log(tmp_path / "log.parquet", {"a": (0, 1)})
    table = read_parquet(log)
    strangers = table.set_column(0, "user_id", [[f"stranger {i % 9}" for i in range(len(table))]])
    numbered = table.set_column(0, "user_id", [np.arange(len(table)) % 9])
    for name, changed, message in (
        ("strangers", strangers, 'knows no user with an item of the train window.*"grow"'),
        ("numbered", numbered, "user_id is int64 in the log and large_string in the base model"),
    ):
        path = tmp_path / f"{name}.parquet"
        write_parquet(path, changed)
        mine = small_settings(tmp_path / name, path, base=tables(tmp_path / "tables"))
        with pytest.raises(ValueError, match=message):
            retrain(mine)


def test_a_test_window_with_nothing_new_is_refused(tmp_path: Path) -> None:
    """Eight items, all of them seen by each of five users long before the end."""
    rows = np.arange(400)
    moments = pa.array(START + rows * 10**6, pa.timestamp("us", "UTC"))
    columns = {
        "user_id": [f"u{row % 5}" for row in rows],
        "item_id": [f"i{row // 5 % 8}" for row in rows],
        "timestamp": moments,
        "segment": ["a"] * len(rows),
    }
    write_parquet(tmp_path / "log.parquet", pa.table(columns))
    mine = small_settings(tmp_path, tmp_path / "log.parquet", base=tables(tmp_path / "tables"))
    contract = replace(mine.log.contract, duplicates="exact")
    with pytest.raises(ValueError, match="nobody has an item in the test window that is new"):
        retrain(replace(mine, log=replace(mine.log, contract=contract)))
    assert not mine.store_folder.exists()


def test_given_windows_and_last_rows_run_to_the_report(tmp_path: Path) -> None:
    files = LogSettings(windows=cut_log(tmp_path / "files"))
    given = replace(small_settings(tmp_path / "given", tmp_path), log=files)
    outcome = retrain(given)
    assert outcome.folder.is_complete
    assert retrain(given).was_there
    last = small_settings(
        tmp_path / "last",
        random_log(tmp_path / "log.parquet", {"a": (0, 1), "b": (0, 1)}, users=40),
        split=SplitConfig("leave_last", leave_last=2, k_core=2),
    )
    outcome = retrain(last)
    results = results_of(outcome)
    assert results.groupby("model")["user_id"].nunique().eq(40).all()
    page = outcome.folder.report.read_text()
    assert "2-core of the log" in page and "items outside the k-core" in page
    quality = outcome.folder.summary()["data_quality"]
    log = Interactions.read(last.log_folder)
    core = k_core(log, 2)
    assert quality["of those outside the k-core"] == len(log) - len(core) > 0
    alone = np.bincount(log.item_rows) == 1
    assert quality["items outside the k-core"] >= alone.sum() > 0


def test_another_file_of_labels_is_another_run(tmp_path: Path) -> None:
    mine = small_settings(tmp_path, random_log(tmp_path / "log.parquet", {"a": (0, 1)}))
    labels = tmp_path / "labels.parquet"
    rows = {"user_id": ["u1", "u2"], "item_id": ["i1", "i2"], "label": [1, 0]}
    write_parquet(labels, pa.table(rows))
    mine = replace(mine, labelled=(labels,))
    first = retrain(mine)
    assert retrain(mine).was_there
    write_parquet(labels, pa.table(rows | {"label": [0, 1]}))
    second = retrain(mine)
    assert not second.was_there and second.folder.id != first.folder.id


def test_a_run_says_what_flips(tmp_path: Path) -> None:
    log = random_log(tmp_path / "log.parquet", {n: (0, 1) for n in "abcdef"}, users=60, rows=2000)
    mine = small_settings(
        tmp_path,
        log,
        base=SHORT_BASE,
        split=SHORT_SPLIT,
        seeds=(0, 1, 2),
        gate=GateConfig(rule="each", confidence=0.5),
        compared=(),
        kinds="given",
        parent="none",
        search=Search((0.4,), (0.1,), (0.0,)),
    )
    outcome = retrain(mine)
    table = outcome.decisions.table.set_index("segment")
    flips = table["across_seeds"] == "not decided"
    assert 0 < flips.sum() < len(table)
    assert (table["across_seeds"] == table["status"].replace("skipped", "kept"))[~flips].all()
    assert (
        table["reason"][flips]
        .str.contains("not decided: .* under seed 0; .* under seed 1; .* under seed 2; ")
        .all()
    )
    page = outcome.folder.report.read_text()
    assert page.count(", not decided</td>") == flips.sum()
    assert re.search(rf"Not decided in {flips.sum()}: other seeds come to something else", page)
    kept = read_parquet(outcome.folder.decisions).to_pandas().set_index("segment")
    pd.testing.assert_frame_equal(kept, table)
    # Each seed as a run of its own comes to what is said of it.
    for seed in (1, 2):
        alone = retrain(replace(mine, seeds=(seed,), folder=tmp_path / str(seed)))
        statuses = alone.decisions.table.set_index("segment")["status"].replace("skipped", "kept")
        for name in table.index[flips]:
            assert f"{statuses[name]} under seed {seed}" in table["reason"][name]
