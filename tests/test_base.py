"""The base model: whole on disk or refused, read lazily, grown by unknown identifiers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from reclora.base import BaseModel
from reclora.interactions import IdMap
from reclora.tables import BaseError
from tests.small_worlds import make_base, make_tower

FILES = (
    "base.json",
    "tables.safetensors",
    "tower.safetensors",
    "user_ids.parquet",
    "item_ids.parquet",
)


def bytes_of(base: BaseModel) -> list[bytes]:
    tensors = [base.user_table, base.item_table, base.item_bias]
    tower = [*base.tower.weights, *base.tower.biases] if base.tower else []
    return [
        t.numpy().tobytes()
        for t in [*(x.weight_ND for x in tensors), *(x.mean_D for x in tensors), *tower]
    ]


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")


@pytest.mark.parametrize("hidden", [(), (12,), (6, 5)])
def test_a_base_comes_back_bit_for_bit(tmp_path: Path, hidden: tuple[int, ...]) -> None:
    base = make_base(hidden=hidden)
    base.save(tmp_path / "deep" / "base", {"from": "a test", "numbers": [1, 2]})
    loaded = BaseModel.load(tmp_path / "deep" / "base")
    assert bytes_of(loaded) == bytes_of(base)
    assert (loaded.users, loaded.items) == (base.users, base.items)
    assert loaded.fingerprint == base.fingerprint
    loaded.verify()
    users = torch.arange(len(base.users))
    assert torch.equal(loaded.scorer().scores(users), base.scorer().scores(users))
    about = json.loads((tmp_path / "deep" / "base" / "base.json").read_text())
    assert about["provenance"] == {"from": "a test", "numbers": [1, 2]}
    assert sorted(p.name for p in (tmp_path / "deep" / "base").iterdir()) == sorted(FILES)


@given(st.integers(0, 4), st.integers(0, 4), st.booleans())
@settings(deadline=None, max_examples=10)
def test_bases_of_any_size_come_back(
    tmp_path_factory: pytest.TempPathFactory, users: int, items: int, strings: bool
) -> None:
    kind = pa.string() if strings else pa.int64()
    base = BaseModel.of(
        IdMap(pa.array(range(users), pa.int64()).cast(kind)),
        IdMap(pa.array(range(items), pa.int64()).cast(kind)),
        torch.ones(users, 3),
        torch.ones(items, 3),
    )
    folder = tmp_path_factory.mktemp("bases") / "base"
    base.save(folder)
    loaded = BaseModel.load(folder)
    loaded.verify()
    assert bytes_of(loaded) == bytes_of(base)


def test_tables_are_read_lazily(tmp_path: Path) -> None:
    # Long rows, so that next to the table the identifiers, which are in memory, count for nothing.
    num_users, dim = 1000, 1 << 14
    table_bytes = 4 * num_users * dim
    users = IdMap(np.arange(num_users))
    BaseModel.of(users, IdMap([0]), torch.ones(num_users, dim), torch.ones(1, dim)).save(
        tmp_path / "base"
    )
    before = anonymous_bytes()
    base = BaseModel.load(tmp_path / "base")
    base.user_table.lookup(torch.arange(0, num_users, 100))
    lazily = anonymous_bytes() - before
    copy = base.user_table.materialised()
    wholly = anonymous_bytes() - before
    assert len(copy) == num_users and wholly > 0.9 * table_bytes
    assert lazily < 0.1 * table_bytes


def test_a_base_is_immutable_on_disk(tmp_path: Path) -> None:
    make_base().save(tmp_path / "base")
    before = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    with pytest.raises(BaseError, match="exists, and a base model is immutable"):
        make_base(seed=1).save(tmp_path / "base")
    assert {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()} == before


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        make_base().save(tmp_path / "base", {"not JSON": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_a_damaged_base_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "base"
    make_base().save(folder)
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(BaseError, match=str(folder)):
        BaseModel.load(folder)


@pytest.mark.parametrize("about", ["[]", "null", '{"format": "x"}', '{"format": null}', "{}", "7"])
def test_a_strange_description_is_refused(tmp_path: Path, about: str) -> None:
    make_base().save(tmp_path / "base")
    (tmp_path / "base" / "base.json").write_text(about)
    with pytest.raises(BaseError, match="no whole base model"):
        BaseModel.load(tmp_path / "base")


def test_a_newer_format_says_so(tmp_path: Path) -> None:
    make_base().save(tmp_path / "base")
    path = tmp_path / "base" / "base.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(BaseError, match="format 2; this reclora reads up to 1"):
        BaseModel.load(tmp_path / "base")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tables.safetensors", "user_table must be float32 40 x 8 as base.json says"),
        ("tower.safetensors", "weights must be of shapes .* as base.json says, got None"),
        ("user_ids.parquet", "count users and items differently"),
    ],
)
def test_a_file_of_another_base_is_refused(tmp_path: Path, name: str, message: str) -> None:
    make_base().save(tmp_path / "base")
    make_base(num_users=41, hidden=()).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, tmp_path / "base" / name)
    with pytest.raises(BaseError, match=message):
        BaseModel.load(tmp_path / "base")


def test_tables_of_another_precision_are_refused(tmp_path: Path) -> None:
    make_base().save(tmp_path / "base")
    path = tmp_path / "base" / "tables.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    with pytest.raises(BaseError, match="float16"):
        BaseModel.load(tmp_path / "base")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("tables.safetensors", "user_table"),
        ("tables.safetensors", "item_bias_table"),
        ("tables.safetensors", "item_mean"),
        ("tower.safetensors", "0.weight"),
        ("tower.safetensors", "1.bias"),
    ],
)
def test_verify_finds_one_flipped_bit(tmp_path: Path, name: str, tensor: str) -> None:
    make_base().save(tmp_path / "base")
    path = tmp_path / "base" / name
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    tensors[tensor].view(-1).view(torch.int32)[-1] ^= 1
    save_file(tensors, path)
    loaded = BaseModel.load(tmp_path / "base")
    with pytest.raises(BaseError, match=f"saved as {loaded.fingerprint}"):
        loaded.verify()


def test_fingerprints_tell_bases_apart() -> None:
    base = make_base()
    parts = {
        "users": base.users,
        "items": base.items,
        "user_table_ND": base.user_table.weight_ND,
        "item_table_ND": base.item_table.weight_ND,
        "item_bias_N": base.item_bias.weight_ND.squeeze(1),
        "tower": base.tower,
    }
    other = make_base(seed=1)
    changes = {
        "users": IdMap(np.arange(40)),
        "items": IdMap([f"{number}" for number in range(30)]),
        "user_table_ND": other.user_table.weight_ND,
        "item_table_ND": other.item_table.weight_ND,
        "item_bias_N": None,
        "tower": None,
    }
    found = [BaseModel.of(**parts | {name: change}) for name, change in changes.items()]  # type: ignore[arg-type]
    fingerprints = {one.fingerprint for one in found}
    assert len(fingerprints) == len(changes) and base.fingerprint not in fingerprints
    assert BaseModel.of(**parts).fingerprint == base.fingerprint  # type: ignore[arg-type]


def test_grown_rows_are_the_mean_and_old_scores_stay(tmp_path: Path) -> None:
    base = make_base()
    grown = base.grown(base.users.extended([1000, 999]), base.items.extended(["new"]))
    assert (len(grown.users), len(grown.items)) == (42, 31)
    assert grown.fingerprint == base.fingerprint
    assert torch.equal(grown.user_table.lookup(torch.tensor([41]))[0], base.user_table.mean_D)
    users = torch.arange(40)
    scores = grown.scorer().scores(users)
    torch.testing.assert_close(scores[:, :30], base.scorer().scores(users))
    with pytest.raises(IndexError):
        base.user_table.lookup(torch.tensor([41]))
    with pytest.raises(BaseError, match="grown base"):
        grown.save(tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_a_map_that_does_not_extend_the_bases_is_refused() -> None:
    base = make_base()
    with pytest.raises(BaseError, match="grown item id map must begin with the base's own 30"):
        base.grown(base.users, IdMap(["new"]).extended(base.items.ids))
    with pytest.raises(BaseError, match="grown user"):
        base.grown(IdMap(base.users.ids[:-1]), base.items)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_table_ND": torch.zeros(39, 8)}, "the user table has 39 rows, its id map 40"),
        ({"item_bias_N": torch.zeros(29)}, "the item bias table has 29 rows, its id map 30"),
        ({"item_table_ND": torch.zeros(30, 9)}, "of one length, got 8 and 9"),
        ({"tower": make_tower(7, (4,))}, "reads 21 numbers, but .* has 24"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    base = make_base()
    parts: dict[str, object] = {
        "user_table_ND": base.user_table.weight_ND,
        "item_table_ND": base.item_table.weight_ND,
    }
    with pytest.raises(BaseError, match=message):
        BaseModel.of(base.users, base.items, **parts | change)  # type: ignore[arg-type]


def test_a_random_base_is_small_and_repeatable() -> None:
    users, items = IdMap(np.arange(300)), IdMap(np.arange(200))
    base = BaseModel.random(users, items, 16, [8], seed=3)
    assert base.user_table.weight_ND.norm(dim=1).mean() == pytest.approx(0.1, rel=0.1)
    assert BaseModel.random(users, items, 16, [8], seed=3).fingerprint == base.fingerprint
    assert BaseModel.random(users, items, 16, [8], seed=4).fingerprint != base.fingerprint
    assert BaseModel.random(users, items, 16, [], seed=3).tower is None
    assert "300 users, 200 items, D=16, tower [48, 8, 1]" in repr(base)
    assert "no tower" in repr(replace(base, tower=None))
