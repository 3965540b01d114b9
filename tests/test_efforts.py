"""What models of a run cost: counted once more from the logs, tensors and trainings themselves."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from reclora.adapters import Adapter
from reclora.interactions import Interactions
from reclora.pipelines.contenders import ALONE, ON_POOLED, POOLED, POOLED_FULL, SUBJECT, Trained
from reclora.pipelines.efforts import efforts_of
from reclora.pipelines.figures import Effort
from reclora.pipelines.inputs import Inputs
from reclora.pipelines.learning import Learned, learn
from reclora.pipelines.run import FULL_FINE_TUNE, NO_PARENT, RESIDUAL, RunSettings
from reclora.pipelines.scratch import SCRATCH, Retrained
from reclora.pipelines.yardstick import BASE, POPULARITY_ALL, POPULARITY_RECENT
from tests.small_runs import finished, random_log, small_settings
from tests.test_pretrain import tables

Run = tuple[RunSettings, Inputs, Learned]


def learned_by(settings: RunSettings) -> Run:
    inputs = Inputs.read(settings, ())
    inputs.folder.begin()
    return settings, inputs, learn(settings, inputs)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings, _ = finished(tmp_path_factory)
    return learned_by(
        replace(
            settings,
            runs=tmp_path_factory.mktemp("efforts"),
            training=replace(settings.training, epochs=4),
            compared=(FULL_FINE_TUNE, NO_PARENT, RESIDUAL),
            seeds=(0, 1, 2),
        )
    )


@pytest.fixture(scope="module")
def efforts(run: Run) -> dict[str, Effort]:
    settings, inputs, learned = run
    return efforts_of(settings, inputs, learned, Retrained(inputs.base, 12.5))


def of(learned: Learned, model: str) -> Trained:
    (found,) = (t for t in learned.trained if t.contender.model == model)
    return found


def floats(adapter: Adapter) -> int:
    return sum(math.prod(t.shape) for t in adapter.tensors.values() if t.is_floating_point())


def test_every_model_has_its_effort_and_the_subject_comes_last(
    run: Run, efforts: dict[str, Effort]
) -> None:
    trained = [POOLED_FULL, POOLED, ALONE, ON_POOLED, SUBJECT]
    assert list(efforts) == [POPULARITY_ALL, POPULARITY_RECENT, BASE, SCRATCH, *trained]
    assert [effort.seeds for effort in efforts.values()] == [1, 1, 1, *[3] * 6]
    settings, inputs, learned = run
    without = efforts_of(settings, inputs, learned, None)
    assert list(without) == [model for model in efforts if model != SCRATCH]


def test_popularity_stores_each_item_of_each_segment_once(
    run: Run, efforts: dict[str, Effort]
) -> None:
    _, inputs, _ = run

    def pairs(*logs: Interactions) -> int:
        rows = [(s, i) for log in logs for s, i in zip(names(log), log.item_rows, strict=True)]
        return len(set(rows))

    def names(log: Interactions) -> list[str]:
        return [log.segment_names[code] for code in log.segment_rows]

    windows = inputs.windows
    whole = windows.pretrain, windows.train, windows.validation
    assert efforts[POPULARITY_ALL].numbers == pairs(*whole) < sum(map(len, whole))
    assert efforts[POPULARITY_RECENT].numbers == pairs(windows.train) < len(windows.train)
    for model in (POPULARITY_ALL, POPULARITY_RECENT):
        assert math.isnan(efforts[model].seconds)


def test_a_base_stores_its_tables_and_tower(run: Run, efforts: dict[str, Effort]) -> None:
    settings, _, _ = run
    stored = {
        name: math.prod(tensor.shape)
        for file in ("tables", "tower")
        for name, tensor in load_file(settings.base_folder / f"{file}.safetensors").items()
    }
    numbers = sum(n for name, n in stored.items() if not name.endswith("_mean"))
    assert efforts[BASE].numbers == efforts[SCRATCH].numbers == numbers > 1000
    about = json.loads((settings.base_folder / "base.json").read_text())
    assert efforts[BASE].seconds == about["provenance"]["seconds"] > 0
    assert efforts[SCRATCH].seconds == 12.5


@pytest.mark.parametrize("model", [SUBJECT, ON_POOLED])
def test_what_stands_on_a_parent_has_its_numbers_and_seconds_once(
    run: Run, efforts: dict[str, Effort], model: str
) -> None:
    _, _, learned = run
    pooled, own = of(learned, POOLED), of(learned, model)
    assert own.parent is not None and len(own.bank.segment_names) == 4
    mine = sum(floats(own.bank.adapter(name)) for name in own.helped)
    assert efforts[model].numbers == floats(own.parent) + mine
    assert efforts[model].seconds == own.training.seconds + pooled.training.seconds
    assert own.training.seconds > 0 and pooled.training.seconds > 0


def test_what_stands_on_a_live_parent_cost_nobody_knows_what(run: Run) -> None:
    """The pooled adapter was trained by an earlier run; its numbers are there all the same."""
    settings, inputs, learned = run
    later = replace(learned, trained=[t for t in learned.trained if t.contender.model != POOLED])
    before, after = (efforts_of(settings, inputs, each, None) for each in (learned, later))
    for model in (SUBJECT, ON_POOLED):
        assert math.isnan(after[model].seconds)
        assert after[model].numbers == before[model].numbers
    assert after[ALONE] == before[ALONE]


@pytest.mark.parametrize("model", [POOLED_FULL, POOLED, ALONE])
def test_what_stands_on_the_base_alone_has_its_own(
    run: Run, efforts: dict[str, Effort], model: str
) -> None:
    trained = of(run[2], model)
    assert trained.parent is None
    assert efforts[model].numbers == sum(floats(trained.bank.adapter(n)) for n in trained.helped)
    assert efforts[model].seconds == trained.training.seconds > 0


def test_a_segment_that_was_not_helped_stores_nothing(run: Run) -> None:
    trained = of(run[2], ALONE)
    name, *others = trained.helped
    best = trained.training.best_epoch | {name: 0}
    less = replace(trained, training=replace(trained.training, best_epoch=best))
    assert less.helped == others
    assert trained.num_numbers - less.num_numbers == floats(trained.bank.adapter(name)) > 0


def test_an_imported_base_cost_nobody_knows_what(tmp_path: Path) -> None:
    log = random_log(tmp_path / "log.parquet", {"a": (0, 1), "b": (0, 1)})
    base = tables(tmp_path / "tables")
    settings = small_settings(tmp_path, log, base=base, parent="none", compared=())
    _, inputs, learned = learned_by(settings)
    efforts = efforts_of(settings, inputs, learned, None)
    assert list(efforts) == [POPULARITY_ALL, POPULARITY_RECENT, BASE, SUBJECT]
    assert math.isnan(efforts[BASE].seconds)
    assert efforts[BASE].numbers == 60 * 4 + 140 * 4 + 140
    assert efforts[SUBJECT].seconds == learned.subject.training.seconds
