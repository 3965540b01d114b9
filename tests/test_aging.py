"""How a run's adapters age: the past is what was there then, and all of it is kept."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from reclora.evaluation import evaluate, headline_of
from reclora.files import read_parquet
from reclora.interactions import Interactions
from reclora.pipelines.aging import check_ages, measure_drift, pasts_of
from reclora.pipelines.contenders import POOLED, train_contender
from reclora.pipelines.inputs import Inputs
from reclora.pipelines.learning import Learned, adapt_log, learn
from reclora.pipelines.plan import plan
from reclora.pipelines.retrain import retrain
from reclora.pipelines.run import RunSettings
from reclora.pipelines.settings import SettingsError
from reclora.pipelines.yardstick import Yardstick, yardstick_of
from reclora.recency import DAY, faded
from reclora.splits import Windows
from tests.small_runs import files_below, finished

AGES = (3.0, 9.0)


class Night:
    """A run up to where its drift is measured."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings, self.inputs = settings, Inputs.read(settings, ())

    @cached_property
    def learned(self) -> Learned:
        return learn(self.settings, self.inputs)

    @cached_property
    def yardstick(self) -> Yardstick:
        return yardstick_of(self.settings, self.inputs.base, self.inputs.windows, "run")


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    ready, _ = finished(tmp_path_factory)
    runs = tmp_path_factory.mktemp("aging")
    short = replace(ready.training, epochs=2)
    settings = replace(ready, runs=runs, ages=AGES, seeds=(0, 1), history="all", half_life=20.0)
    return Night(replace(settings, training=short, compared=(), kinds="given"))


def rows_of(log: Interactions) -> list[tuple[int, ...]]:
    columns = (log.segment_rows, log.timestamps, log.user_rows, log.item_rows)
    return [*zip(*(column.tolist() for column in columns), strict=True)]


@pytest.mark.parametrize("history", ["window", "all"])
def test_a_past_is_what_was_there_then(night: Night, history: str) -> None:
    windows = night.inputs.windows
    settings = replace(night.settings, history=history)
    trained = windows.train if history == "window" else windows.before_validation
    end, first = int(windows.train.timestamps.max()), int(trained.timestamps.min())
    v = int(windows.validation.timestamps.max()) - end
    known = sorted(rows_of(windows.before_test))
    pasts = list(pasts_of(settings, windows))
    assert [past.age for past in pasts] == [0, 3, 9]
    for past in pasts:
        then = end - int(past.age * DAY)
        begin = first + int((9 - past.age) * DAY)
        assert rows_of(past.log) == [r for r in rows_of(trained) if begin <= r[1] <= then]
        assert sorted(rows_of(past.validation)) == [r for r in known if then < r[1] <= then + v]
        assert sorted(rows_of(past.seen)) == [r for r in known if r[1] <= then]
        again = faded(replace(past.log, weights=None), 20.0)
        assert past.log.weights is not None and past.log.weights.max() == 1
        assert np.array_equal(past.log.weights, again.weights)
    assert rows_of(pasts[0].validation) == rows_of(windows.validation)
    assert rows_of(pasts[0].seen) == rows_of(windows.before_validation)


@pytest.mark.parametrize("parent", ["pooled", pytest.param("none", marks=pytest.mark.slow)])
def test_each_age_is_what_the_run_would_have_trained_then(
    night: Night, parent: str, tmp_path: Path
) -> None:
    if parent == "none":
        changed = replace(night.settings, parent="none", kinds="auto", seeds=(0,))
        night = Night(replace(changed, runs=tmp_path))
    settings, inputs, learned = night.settings, night.inputs, night.learned
    found = measure_drift(settings, inputs, learned, night.yardstick)
    assert found is not None
    table = found.table.set_index("age")
    only = headline_of(night.yardstick.held_out)
    frozen = inputs.base.scorer()
    below = evaluate(only, lambda _: frozen, model="", run="", seed=0)["value"].mean()
    (past,) = (past for past in pasts_of(settings, inputs.windows) if past.age == 9)
    own = replace(
        learned.ground,
        log=past.log,
        validation=past.validation,
        seen=past.seen,
        workshop=replace(learned.ground.workshop, folder=None),
    )
    choices = {choice.contender.model: choice for choice in learned.choices}
    assert learned.choices[-1].contender.has_parent == (parent == "pooled")
    means = []
    for seed in settings.seeds:
        ground = own
        if parent == "pooled":
            choice = choices[POOLED]
            pooled = train_contender(choice.contender, own, choice.config, seed)
            ground = replace(own, parent=pooled.bank.adapters()[0])
        choice = learned.choices[-1]
        trained = train_contender(choice.contender, ground, choice.config, seed)
        results = evaluate(only, trained.scorer_of(), model="", run="", seed=seed)
        means.append(results["value"].mean())
    assert table.at[9, "lift"] == pytest.approx(np.mean(means) - below, abs=1e-9)
    assert table.at[9, "rows"] == len(past.log) and table.at[9, "users"] == only.num_users
    assert found.says

    # What is there is not made again, to the same numbers.
    before = files_below(inputs.folder.training)
    again = measure_drift(settings, inputs, learned, night.yardstick)
    assert again is not None and again.table.equals(found.table)
    assert files_below(inputs.folder.training) == before
    assert sum("aged-" in str(path) for path in before) >= 3 * len(settings.seeds)


def test_the_past_knows_nothing_of_what_came_later(night: Night) -> None:
    """Whatever users took after the validation of that day, its adapters have the same lift."""
    windows = night.inputs.windows
    end = int(windows.train.timestamps.max())
    v = int(windows.validation.timestamps.max()) - end
    then = end - 9 * DAY + v

    def with_other_items(log: Interactions) -> Interactions:
        is_later = log.timestamps > then
        return replace(log, item_rows=np.where(is_later, log.item_rows[::-1], log.item_rows))

    later = [with_other_items(log) for log in (windows.train, windows.validation)]
    other = Windows(windows.pretrain, *later, windows.test)
    assert 0 < np.count_nonzero(later[0].item_rows != windows.train.item_rows) < len(later[0])
    inputs = replace(
        night.inputs, windows=other, folder=night.inputs.folder.beginning_from("other items")
    )
    workshop = replace(night.learned.ground.workshop, folder=inputs.folder.training)
    ground = replace(
        night.learned.ground,
        log=adapt_log(night.settings, other),
        validation=other.validation,
        seen=other.before_validation,
        workshop=workshop,
    )
    ours = measure_drift(night.settings, night.inputs, night.learned, night.yardstick)
    its = measure_drift(
        night.settings, inputs, replace(night.learned, ground=ground), night.yardstick
    )
    assert ours is not None and its is not None
    fresh, _, old = (ours.table["lift"] - its.table["lift"]).tolist()
    assert fresh != 0 and old == 0


def test_a_run_reports_how_its_adapters_age(night: Night, tmp_path: Path) -> None:
    """In its folder, on its page and in its summary; a dry run counts what it trains."""
    own = replace(night.settings, runs=tmp_path, folder=tmp_path / "work", seeds=(0,))
    settings = replace(own, parent="none", base=replace(own.base, saved=night.settings.base_folder))
    planned = plan(settings)
    assert planned.trainings - plan(replace(settings, ages=())).trainings == 1 + len(AGES)
    outcome = retrain(settings)
    table = read_parquet(outcome.folder.drift).to_pandas()
    assert table["age"].tolist() == [0, *AGES] and (table["change"].iloc[0] == 0)
    says = outcome.folder.summary()["aging"]
    page = outcome.folder.report.read_text(encoding="utf-8")
    assert "How adapters age" in page and says.split(":")[0] in page
    with pytest.raises(SettingsError, match="ages are of all segments"):
        plan(settings, only=outcome.decisions.table["segment"].head(1).tolist())


def test_without_ages_nothing_is_trained(night: Night) -> None:
    settings = replace(night.settings, ages=())
    check_ages(settings, night.inputs)
    before = files_below(night.inputs.folder.path)
    assert measure_drift(settings, night.inputs, night.learned, night.yardstick) is None
    assert files_below(night.inputs.folder.path) == before


def test_a_training_that_comes_to_nothing_spoils_no_run(
    night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    *others, last = night.learned.choices
    wild = replace(last.config, rows_lr=1e38, bias_lr=1e38, tower_lr=1e38, batch_rows=4)
    learned = replace(night.learned, choices=[*others, replace(last, config=wild)])
    assert measure_drift(night.settings, night.inputs, learned, night.yardstick) is None
    assert "how adapters age is left out: fresh: no segment" in capsys.readouterr().err
    assert '"left out"' in (night.inputs.folder.path / "events.jsonl").read_text()


def test_ages_that_cannot_be_measured_are_refused_before_training(night: Night) -> None:
    settings, inputs = night.settings, night.inputs
    check_ages(settings, inputs)
    with pytest.raises(
        ValueError, match="ages must be within the train window, 33.08 days.* got 40"
    ):
        check_ages(replace(settings, ages=(3.0, 40.0)), inputs)
    moments = inputs.windows.train.timestamps
    ends = inputs.windows.train.select((moments > moments.max() - DAY) | (moments == moments.min()))
    hollow = replace(inputs, windows=replace(inputs.windows, train=ends))
    with pytest.raises(ValueError, match="adapters 3 days older has no row: leave that age out"):
        check_ages(replace(settings, history="window"), hollow)
    with pytest.raises(ValueError, match="in the days after the train window of adapters 9 days"):
        check_ages(settings, hollow)
