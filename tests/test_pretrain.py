"""The base model of a run: trained or imported, made once, never mixed up with another."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reclora.base import BaseModel
from reclora.files import write_parquet
from reclora.interactions import Interactions, LogContract
from reclora.pipelines.base_settings import BaseSettings
from reclora.pipelines.prepare import prepare
from reclora.pipelines.pretrain import check_earlier, pretrain
from reclora.pipelines.run import LogSettings, RunSettings
from reclora.pipelines.settings import SettingsError
from reclora.splits import split
from tests.small_runs import files_below, finished, random_log, small_settings
from tests.test_prepare import cut_log


def tables(folder: Path, dim: int = 4, seed: int = 0) -> BaseSettings:
    """A base model to import: vectors of users and items of `random_log`, but for some items."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    sides = {"user": [f"u{u}" for u in range(60)], "item": [f"i{i}" for i in range(140)]}
    for side, ids in sides.items():
        vectors = pa.array(list(rng.standard_normal((len(ids), dim)).astype(np.float32)))
        write_parquet(folder / f"{side}s.parquet", pa.table({f"{side}_id": ids, "vector": vectors}))
    users, items = (folder / f"{side}s.parquet" for side in sides)
    return BaseSettings(import_users=users, import_items=items)


def made(settings: RunSettings) -> BaseModel:
    return pretrain(settings, prepare(settings).inputs)


def test_a_base_is_made_once_and_another_is_refused(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    settings, _ = finished(tmp_path_factory)
    before = files_below(settings.base_folder)
    inputs = prepare(settings).inputs
    assert pretrain(settings, inputs).fingerprint
    others = [
        (replace(settings, base=replace(settings.base, half_life=9.0)), inputs),
        (replace(settings, split=replace(settings.split, train=0.2, test=0.22)), inputs),
        (settings, {"other.parquet": "00" * 32}),
        (replace(settings, log=replace(settings.log, contract=LogContract(min_label=4))), inputs),
    ]
    for other, its_inputs in others:
        with pytest.raises(SettingsError, match="name another `folder`, or remove .*base and"):
            pretrain(other, its_inputs)
    moved = {f"elsewhere/{path}": sha256 for path, sha256 in inputs.items()}
    assert pretrain(settings, moved).fingerprint
    assert files_below(settings.base_folder) == before


def test_a_saved_base_that_knows_the_train_window_is_refused(tmp_path: Path) -> None:
    """Its rows must end before this run's train window begins."""
    log = random_log(tmp_path / "log.parquet", {"a": (0, 1), "b": (0, 1)})
    settings = small_settings(tmp_path, log)
    made(settings)
    whole = Interactions.read(settings.log_folder)
    saved = replace(settings, base=replace(settings.base, saved=settings.base_folder))
    check_earlier(saved, split(whole, settings.split))
    earlier = replace(settings.split, pretrain=0.5, train=0.35)
    with pytest.raises(SettingsError, match="was trained on rows up to .* window begins at"):
        check_earlier(saved, split(whole, earlier))
    own = replace(settings.split, by="user_time")
    with pytest.raises(SettingsError, match="cannot be told from this run's"):
        check_earlier(replace(saved, split=own), split(whole, own))
    check_earlier(settings, split(whole, earlier))


def test_the_base_of_given_windows_is_that_of_the_first(tmp_path: Path) -> None:
    """It stays when later windows move on, and never becomes that of another first window."""
    files = cut_log(tmp_path)
    settings = replace(small_settings(tmp_path, tmp_path), log=LogSettings(windows=files))
    base = made(settings)
    about = json.loads((settings.base_folder / "base.json").read_text())["provenance"]
    assert list(about["inputs"]) == [f"pretrain: {files.pretrain[0]}"]
    tonight = pq.read_table(files.test[0])
    write_parquet(files.test[0], tonight.slice(1))
    assert made(settings).fingerprint == base.fingerprint
    grown = replace(files, pretrain=files.pretrain + files.train, train=files.validation)
    grown = replace(grown, validation=files.test, test=(tmp_path / "whole.parquet",))
    swapped = replace(files, pretrain=files.train, train=files.pretrain)
    for other in (grown, swapped):
        with pytest.raises(SettingsError, match="another log or other"):
            made(replace(settings, log=LogSettings(windows=other)))


def test_an_imported_base_follows_its_tables_and_not_the_log(tmp_path: Path) -> None:
    log = random_log(tmp_path / "log.parquet", {"a": (0, 1)})
    settings = small_settings(tmp_path, log, base=tables(tmp_path / "tables"))
    base = made(settings)
    assert base.embedding_dim == 4 and base.tower is None and len(base.users) == 60
    tonight = random_log(tmp_path / "tonight.parquet", {"a": (0, 1), "b": (0.5, 1)})
    changed = replace(settings, log=replace(settings.log, files=(tonight,)))
    assert made(changed).fingerprint == base.fingerprint
    tables(tmp_path / "tables", seed=1)
    with pytest.raises(SettingsError, match="other tables made"):
        made(settings)
    (tmp_path / "tables" / "items.parquet").unlink()
    with pytest.raises(SettingsError, match=r"no file to import .*items\.parquet"):
        made(settings)
    assert BaseModel.load(settings.base_folder).fingerprint == base.fingerprint
