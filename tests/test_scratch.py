"""A base retrained from scratch: on the run's identifiers, as its base was chosen, once a seed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reclora.base import BaseModel
from reclora.pipelines import scratch as module
from reclora.pipelines.base_settings import BaseSearch, BaseSettings
from reclora.pipelines.inputs import Inputs
from reclora.pipelines.run import RunSettings
from reclora.pipelines.scratch import Retrained, from_scratch
from reclora.pipelines.train_base import Pretrained, train_base
from tests.small_runs import files_below, finished, random_log, small_settings
from tests.test_pretrain import tables

Run = tuple[RunSettings, Inputs]
SEARCH = BaseSearch(temperature=(0.01, 0.3), half_life=(0.0, 0.001))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose base was chosen from four settings, the last of the temperatures."""
    ready, _ = finished(tmp_path_factory)
    base = replace(ready.base, hidden=(), search=SEARCH)
    folder = tmp_path_factory.mktemp("scratch")
    settings = replace(ready, folder=folder / "work", runs=folder / "runs", base=base)
    return settings, Inputs.read(settings, ())


@pytest.fixture(scope="module")
def retrained(run: Run) -> Retrained:
    return from_scratch(*run, seed=3)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[BaseSettings]:
    """The settings of every base that is trained, watched as they pass."""
    seen: list[BaseSettings] = []

    def training(window: Any, settings: BaseSettings, *rest: Any, **named: Any) -> Pretrained:
        seen.append(settings)
        return train_base(window, settings, *rest, **named)

    monkeypatch.setattr(module, "train_base", training)
    return seen


def test_it_is_trained_on_all_before_validation_as_the_base_was_chosen(
    run: Run, retrained: Retrained
) -> None:
    settings, inputs = run
    about = json.loads((settings.base_folder / "base.json").read_text())["provenance"]
    (chosen,) = (row for row in about["tried"] if row["chosen"])
    factorisation = replace(settings.base.factorisation, temperature=chosen["temperature"])
    own = replace(
        settings.base,
        factorisation=factorisation,
        half_life=chosen["half_life"],
        search=BaseSearch(()),
        seed=3,
    )
    window = inputs.windows.pretrain.joined(inputs.windows.train)
    made = train_base(window, own, settings.split.by, own_ids=False)
    assert retrained.base.fingerprint == made.base.fingerprint
    assert own != replace(settings.base.grid()[0], seed=3), "the first of the grid was not chosen"


def test_what_it_ranks_is_on_the_runs_identifiers(run: Run, retrained: Retrained) -> None:
    _, inputs = run
    assert retrained.base.users == inputs.base.users
    assert retrained.base.items == inputs.base.items
    assert retrained.base.fingerprint != inputs.base.fingerprint
    assert retrained.seconds > 0


def test_it_is_kept_and_not_trained_again(
    run: Run, retrained: Retrained, trainings: list[BaseSettings]
) -> None:
    settings, inputs = run
    before = files_below(inputs.folder.training)
    again = from_scratch(settings, inputs, seed=3)
    assert trainings == [] and files_below(inputs.folder.training) == before
    assert again.base.fingerprint == retrained.base.fingerprint
    assert again.seconds == retrained.seconds


def test_another_seed_is_another_base(
    run: Run, retrained: Retrained, trainings: list[BaseSettings]
) -> None:
    other = from_scratch(*run, seed=4)
    assert [settings.seed for settings in trainings] == [4]
    assert other.base.fingerprint != retrained.base.fingerprint


def test_the_runs_own_base_stays_as_it_is(run: Run, retrained: Retrained) -> None:
    settings, inputs = run
    assert BaseModel.load(settings.base_folder).fingerprint == inputs.base.fingerprint


def test_beside_a_base_that_chose_nothing_all_is_tried(
    tmp_path: Path, trainings: list[BaseSettings]
) -> None:
    """An imported one says nothing of settings; its identifiers are kept, rows or no rows."""
    log = random_log(tmp_path / "log.parquet", {"a": (0, 1), "b": (0, 1)})
    imported = tables(tmp_path / "tables")
    small = small_settings(tmp_path, log)
    base = replace(
        imported, factorisation=small.base.factorisation, search=BaseSearch(temperature=(0.2, 0.4))
    )
    settings = replace(small, base=base)
    inputs = Inputs.read(settings, ())
    made = from_scratch(settings, inputs, seed=0)
    assert trainings == [replace(base, seed=0)]
    assert len(made.base.users) == 60 and made.base.users == inputs.base.users
    assert made.base.embedding_dim == 8, "that of [base.factorisation], not of the tables"
