"""The base model of a run: trained or imported, made once, never mixed up with another."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from reclora.base import BaseModel
from reclora.files import write_parquet
from reclora.interactions import Interactions, LogContract
from reclora.pipelines.base_settings import BaseSettings
from reclora.pipelines.prepare import prepare
from reclora.pipelines.pretrain import check_earlier, pretrain
from reclora.pipelines.run import LogSettings, RunSettings, digest
from reclora.pipelines.settings import SettingsError, resolved
from reclora.splits import split
from tests.small_runs import START, files_below, finished, random_log, small_settings
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


def test_a_base_is_kept_when_the_log_has_grown(tmp_path: Path) -> None:
    """From the first night on with the same settings; what else made it is refused as before."""
    log = random_log(tmp_path / "log.parquet", {"a": (0, 1), "b": (0, 1)})
    settings = small_settings(tmp_path, log)
    keeping = replace(settings, base=replace(settings.base, keep=True))
    first = made(keeping)
    before = files_below(keeping.base_folder)
    grown = random_log(tmp_path / "grown.parquet", {"a": (0, 1), "b": (0, 1)}, rows=1200)
    later = replace(keeping, log=replace(settings.log, files=(grown,)))
    assert pretrain(later, prepare(later).inputs).fingerprint == first.fingerprint
    assert files_below(keeping.base_folder) == before
    with pytest.raises(SettingsError, match="base.keep = true goes on with it"):
        pretrain(replace(later, base=settings.base), prepare(later).inputs)
    factorisation = replace(settings.base.factorisation, lr=0.02)
    other = replace(later, base=replace(later.base, factorisation=factorisation))
    with pytest.raises(SettingsError, match="holds a base model that"):
        pretrain(other, prepare(later).inputs)
    whole = Interactions.read(later.log_folder)
    with pytest.raises(SettingsError, match="was trained on rows up to .* window begins at"):
        check_earlier(later, split(whole, replace(later.split, pretrain=0.4, train=0.45)))
    with pytest.raises(ValueError, match="base.keep needs split.by = 'global_time'"):
        replace(keeping, split=replace(settings.split, by="user_time"))


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


def shown_log(path: Path, seed: int) -> pa.Table:
    """A log of what was shown, label 1 where it was taken.

    Users are shown one of four departments each, and take in it what is as dear as they like: so
    what was taken tells of the department, and what was declined of the price.
    """
    rng = np.random.default_rng(seed)
    is_dear, likes_dear = rng.integers(0, 2, 160), rng.integers(0, 2, 48)
    pairs = [
        (user, item)
        for user in range(48)
        for item in rng.choice(np.arange(user % 4, 160, 4), 30, replace=False)
    ]
    user, item = rng.permutation(pairs).T
    chance = np.where(is_dear[item] == likes_dear[user], 0.9, 0.2)
    table = pa.table(
        {
            "user_id": [f"u{u}" for u in user],
            "item_id": [f"i{i}" for i in item],
            "timestamp": pa.array(START + np.arange(len(user)) * 10**9, pa.timestamp("us", "UTC")),
            "segment": ["a"] * len(user),
            "label": (rng.random(len(user)) < chance).astype(float),
        }
    )
    write_parquet(path, table)
    return table


def ordered(base: BaseModel, later: pa.Table) -> float:
    """The share of (taken, declined) pairs of a user's later rows that the base puts in order."""
    users, items = base.users.ids.to_pylist(), base.items.ids.to_pylist()
    scores = base.scorer().scores(torch.arange(len(users))).tolist()
    rows = [r for r in later.to_pylist() if r["user_id"] in users and r["item_id"] in items]
    of_user: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        score = scores[users.index(row["user_id"])][items.index(row["item_id"])]
        of_user.setdefault(row["user_id"], {0.0: [], 1.0: []})[row["label"]].append(score)
    wins = [yes > no for own in of_user.values() for yes in own[1.0] for no in own[0.0]]
    assert len(wins) > 500
    return float(np.mean(wins))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_base_that_knows_what_was_declined_tells_it_from_what_was_taken(
    tmp_path: Path, seed: int
) -> None:
    log = tmp_path / "log.parquet"
    table = shown_log(log, seed)
    dropped = LogContract(min_label=1.0)
    kept = replace(dropped, declined="keep")
    shares = {}
    for name, contract, num_negatives in (
        ("dropped", dropped, None),
        ("beside", kept, None),
        ("alone", kept, 0),
    ):
        settings = small_settings(tmp_path / name, log)
        tables_of = replace(settings.base.factorisation, loss="bce", num_negatives=num_negatives)
        settings = replace(
            settings,
            log=replace(settings.log, contract=contract),
            base=replace(settings.base, factorisation=tables_of, hidden=()),
        )
        base = made(settings)
        end = json.loads((settings.base_folder / "base.json").read_text())["provenance"]
        is_later = pc.greater(table["timestamp"].cast(pa.int64()), end["last_moment"])
        shares[name] = ordered(base, table.filter(is_later))
        assert pretrain(settings, prepare(settings).inputs).fingerprint == base.fingerprint
    assert min(shares["beside"], shares["alone"]) > shares["dropped"] + 0.05
    assert min(shares["beside"], shares["alone"]) > 0.7


def test_declined_rows_and_a_loss_without_them_are_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.parquet"
    shown_log(log, 0)
    settings = small_settings(tmp_path, log)
    keep = LogContract(min_label=1.0, declined="keep")
    with pytest.raises(ValueError, match="base.factorisation.loss = 'bce' alone, got 'softmax'"):
        made(replace(settings, log=replace(settings.log, contract=keep)))
    alone = replace(settings.base.factorisation, loss="bce", num_negatives=0)
    with pytest.raises(ValueError, match="keep the log.s declined rows"):
        made(replace(settings, base=replace(settings.base, factorisation=alone)))
    assert not settings.base_folder.exists()


def test_a_base_of_dropped_rows_is_that_of_before_they_could_be_kept(tmp_path: Path) -> None:
    """What it was made from is told in the same words: a folder of then goes on to serve."""
    log = tmp_path / "log.parquet"
    shown_log(log, 0)
    settings = small_settings(tmp_path, log)
    contract = LogContract(min_label=1.0)
    settings = replace(settings, log=replace(settings.log, contract=contract))
    inputs = prepare(settings).inputs
    made(settings)
    about = json.loads((settings.base_folder / "base.json").read_text())["provenance"]
    said = resolved(contract)
    assert said.pop("declined") == "drop"
    base = resolved(settings.base)
    assert base.pop("keep") is False
    then = digest(base, resolved(settings.split), said, sorted(inputs.values()))
    assert about["made_from"] == then
    bce = replace(settings.base.factorisation, loss="bce")
    kept = replace(contract, declined="keep")
    settings = replace(settings, base=replace(settings.base, factorisation=bce))
    with pytest.raises(SettingsError, match="name another `folder`"):
        made(replace(settings, log=replace(settings.log, contract=kept)))


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
