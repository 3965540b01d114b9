"""Foreign, hostile and misplaced files around the store and the base: rows 28, 29 and 32 to 35.

Each test is named after its row of the list of faults that a run survives.
"""

import inspect
import io
import json
import os
import pickle
import resource
import tempfile
import time
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.adapters import AdapterError
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.files import make_folder, sha256_of, write_parquet, write_text
from reclora.interactions import IdMap, Interactions, LogContract, LogError, prepare_log
from reclora.interchange import import_base
from reclora.pipelines.base_settings import BaseSettings
from reclora.pipelines.pretrain import pretrain
from reclora.store import AdapterStore, BaseMismatch, StoreError
from reclora.tables import BaseError
from tests.small_runs import HOSTILE, START, small_settings
from tests.small_stores import BASE, OTHER, adapter, adapters, contents, pack_of, value_of
from tests.small_worlds import KINDS, fill, make_base, make_log


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    """A store with one release of two segments."""
    made = AdapterStore(tmp_path / "store")
    made.publish(adapters({"de": 1, "fr": 2}), reason="first")
    return made


# --- rows 28 and 29: what belongs to another base, or to another time ---------------------------


def test_row_28_an_adapter_of_another_base_is_refused_showing_both_and_nothing_forces_it(
    store: AdapterStore,
) -> None:
    both = f"(?s){BASE}.*{OTHER}|{OTHER}.*{BASE}"
    with pytest.raises(BaseMismatch, match=both):
        store.load("de", base_fingerprint=OTHER)
    with pytest.raises(BaseMismatch, match=both):
        store.load_stacks(base_fingerprint=OTHER)
    with pytest.raises(BaseMismatch, match=both):
        store.publish([adapter("de", 3, OTHER)], reason="foreign")
    assert contents(store) == {"de": 1, "fr": 2} and store.releases() == [1]
    for verb in (store.load, store.load_stacks, store.publish, store.rollback, store.promote):
        assert not [name for name in inspect.signature(verb).parameters if "force" in name]


def test_row_28_an_adapter_of_other_ranks_shapes_or_ids_fits_no_bank() -> None:
    base = make_base()
    bank = AdapterBank.for_log(base, make_log(base), KINDS["rows"])
    fill(bank)
    name = bank.segment_names[0]
    good = bank.adapter(name)
    assert AdapterBank.of(base, [good]).segment_names == (name,)
    more_users = IdMap.of(pa.array([f"other {i}" for i in range(len(base.users))]))
    other = BaseModel.of(
        more_users, base.items, base.user_table.weight_ND, base.item_table.weight_ND
    )
    with pytest.raises(AdapterError, match=f"{base.fingerprint}, this base is {other.fingerprint}"):
        AdapterBank.of(other, [good])
    tensor = next(n for n, t in good.tensors.items() if t.is_floating_point() and t.dim() == 2)
    for wrong in (good.tensors[tensor][:, :1], good.tensors[tensor][:-1]):
        damaged = replace(good, tensors={**good.tensors, tensor: wrong})
        with pytest.raises(AdapterError, match=f"{name}.*{tensor}.*shape"):
            AdapterBank.of(base, [damaged])


def test_row_29_a_newer_format_says_which_reclora_it_needs(
    store: AdapterStore, tmp_path: Path
) -> None:
    make_base().save(tmp_path / "base")
    log = tmp_path / "log.parquet"
    write_parquet(log, log_of(["de"]))
    prepare_log([log], tmp_path / "log", LogContract())
    readers: dict[Path, Callable[[], object]] = {
        tmp_path / "base" / "base.json": lambda: BaseModel.load(tmp_path / "base"),
        tmp_path / "log" / "summary.json": lambda: Interactions.read(tmp_path / "log"),
        store.root / "releases" / "00000001.json": lambda: AdapterStore(store.root).current(),
    }
    for path, read in readers.items():
        read()
        about = json.loads(path.read_text())
        write_text(path, json.dumps(about | {"format": 2, "needs": "9.1"}))
        with pytest.raises(ValueError, match=r"needs reclora >= 9\.1"):
            read()
        write_text(path, json.dumps(about))
        read()


# --- row 32: hostile adapters -------------------------------------------------------------------


@contextmanager
def bounded() -> Iterator[None]:
    """Allow a second of CPU, and 100 MB beside what is there."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 10**6, hard))
    begin = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - begin < 1


def all_refuse(store: AdapterStore) -> None:
    """Every way to open what is live ends in an error, soon and without much memory."""
    fresh = AdapterStore(store.root)
    verbs: list[Callable[[], object]] = [
        lambda: fresh.load("de", base_fingerprint=BASE),
        lambda: fresh.load_all(base_fingerprint=BASE),
        lambda: fresh.load_stacks(base_fingerprint=BASE),
        fresh.verify,
    ]
    for verb in verbs:
        with bounded(), pytest.raises(StoreError, match=str(store.root)):
            verb()


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def parts_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: object, payload: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


def zipped() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../x", bytes(10**7))
    return archive.getvalue()


def extra(header: dict[str, Any], num: int) -> bytes:
    entry = '{"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}'
    more = ", ".join(f'"x{i}": {entry}' for i in range(num))
    return f"{{{more}, {json.dumps(header)[1:]}".encode()


def overlapping(header: dict[str, Any]) -> dict[str, Any]:
    return header | {"item_table.a": header["item_table.a"] | {"data_offsets": [0, 8]}}


def petabytes(header: dict[str, Any]) -> dict[str, Any]:
    return header | {"item_table.a": header["item_table.a"] | {"shape": [2**25, 2**25]}}


def doubled(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return text[:-1] + b', "item_table.a"' + text[text.index(b': {"dtype"') :]


FORGERIES: dict[str, Callable[[dict[str, Any], bytes], bytes]] = {
    "huge header": lambda header, rest: (2**60).to_bytes(8, "little") + rest,
    "petabytes": lambda header, rest: joined(petabytes(header), rest),
    "overlap": lambda header, rest: joined(overlapping(header), rest),
    "trailing bytes": lambda header, rest: joined(header, rest + b"x"),
    "extra tensors": lambda header, rest: joined(extra(header, 1), rest),
    "a million tensors": lambda header, rest: joined(extra(header, 10**6), rest),
    "duplicate keys": lambda header, rest: joined(doubled(header), rest),
    "zip": lambda header, rest: zipped(),
    "nothing": lambda header, rest: b"",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_row_32_a_forged_pack_is_refused_soon_and_cheaply(store: AdapterStore, name: str) -> None:
    pack = pack_of(store, "de", 1)
    pack.write_bytes(FORGERIES[name](*parts_of(pack.read_bytes())))
    all_refuse(store)


def test_row_32_numbers_that_are_not_finite_are_neither_published_nor_loaded(
    store: AdapterStore,
) -> None:
    with pytest.raises(StoreError, match=r"'it': item_table\.a has NaN or infinite"):
        store.publish([adapter("it", np.nan)], reason="bad")
    pack = pack_of(store, "de", 1)
    header, payload = parts_of(pack.read_bytes())
    first, last = header["item_table.a"]["data_offsets"]
    bad = np.full((last - first) // 4, np.nan, "<f4").tobytes()
    pack.write_bytes(joined(header, payload[:first] + bad + payload[last:]))
    all_refuse(store)


def test_row_32_pipes_and_devices_are_not_opened(store: AdapterStore) -> None:
    pack = pack_of(store, "de", 1)
    pack.unlink()
    os.mkfifo(pack)
    all_refuse(store)
    pack.unlink()
    pack.symlink_to("/dev/zero")
    all_refuse(store)


@settings(max_examples=60)
@given(st.data())
def test_row_32_any_damage_ends_in_an_error_and_never_in_other_numbers(data: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        store = AdapterStore(Path(name))
        store.publish(adapters({"de": 1, "fr": 2}), reason="first")
        pack = pack_of(store, "de", 1)
        whole = pack.read_bytes()
        first = data.draw(st.integers(0, len(whole) - 1))
        new = data.draw(st.binary(max_size=16))
        last = data.draw(st.integers(first, min(first + 16, len(whole))))
        damaged = whole[:first] + new + whole[last:]
        pack.write_bytes(damaged)
        fresh = AdapterStore(store.root)
        with bounded():
            try:
                found = contents(fresh)
                fresh.verify()
            except StoreError as error:
                assert damaged != whole and name in str(error)
            else:
                assert damaged == whole and found == {"de": 1, "fr": 2}


# --- row 33: pickles ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pkl", ".npy"])
def test_row_33_a_pickle_is_refused_wherever_it_is_offered_and_never_run(
    store: AdapterStore, tmp_path: Path, suffix: str
) -> None:
    trap = Trap(tmp_path / "ran")
    path = tmp_path / f"tables{suffix}"
    if suffix == ".npy":
        np.save(path, np.array([trap], object), allow_pickle=True)
    else:
        torch.save(trap, path) if suffix == ".pt" else path.write_bytes(pickle.dumps(trap))
    ids = tmp_path / "ids.parquet"
    write_parquet(ids, pa.table({"user_id": ["a"]}))
    with pytest.raises(BaseError, match=r"may hold pickled code.*safetensors\.torch\.save_file"):
        import_base(ids, ids, path)
    log = tmp_path / "log.parquet"
    write_parquet(log, log_of(["de"]))
    run = small_settings(tmp_path, log, base=BaseSettings(saved=path))
    with pytest.raises(ValueError, match=f"{path}.*convert them to safetensors or Parquet"):
        pretrain(run, {})
    base = tmp_path / "base"
    make_base().save(base)
    (base / "tables.safetensors").write_bytes(path.read_bytes())
    with pytest.raises(BaseError, match=str(base)):
        BaseModel.load(base)
    pack_of(store, "de", 1).write_bytes(path.read_bytes())
    all_refuse(store)
    with pytest.raises(LogError, match=f"{path}: not a whole Parquet file"):
        prepare_log([path], tmp_path / "log", LogContract())
    assert not (tmp_path / "ran").exists()


# --- row 34: names of segments ------------------------------------------------------------------

HARD = (
    *HOSTILE,
    *("..", "/etc/x", "a\\b", "a\0b", "CON", "x" * 4096, "Caf\u00e9", "CAFE\u0301"),
    unicodedata.normalize("NFD", "Caf\u00e9"),
    *("de", "DE", "de ", "\u202eed", ".tmp.", "\n"),
)
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


def log_of(names: list[str]) -> pa.Table:
    """Two rows of each segment."""
    num = 2 * len(names)
    return pa.table(
        {
            "user_id": [f"u{i}" for i in range(num)],
            "item_id": [f"i{i}" for i in range(num)],
            "timestamp": pa.array(START + np.arange(num), pa.timestamp("us", "UTC")),
            "segment": names * 2,
        }
    )


@settings(max_examples=20)
@given(st.lists(TEXTS | st.sampled_from(HARD), min_size=1, max_size=8, unique=True))
def test_row_34_any_text_names_a_segment_and_no_file(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_parquet(root / "log.parquet", log_of(names))
        summary = prepare_log([root / "log.parquet"], root / "laid out", LogContract())
        assert summary.segments == dict.fromkeys(names, 2)
        assert list(Interactions.read(root / "laid out").segment_names) == sorted(
            names, key=str.encode
        )
        store = AdapterStore(root / "store")
        store.publish([adapter(name, at) for at, name in enumerate(names)], reason="names")
        for at, name in enumerate(names):
            assert value_of(store.load(name, base_fingerprint=BASE)) == at
        assert {path.name for path in root.iterdir()} == {"log.parquet", "laid out", "store"}
        for path in (root / "store").rglob("*"):
            assert path.is_dir() or all(c in "0123456789abcdef" for c in path.stem)


def test_row_34_a_name_that_is_empty_or_no_text_is_refused(
    store: AdapterStore, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "log.parquet", log_of(["", "de"]))
    with pytest.raises(LogError, match="row 0, column 'segment': segment is empty"):
        prepare_log([tmp_path / "log.parquet"], tmp_path / "log", LogContract())
    with pytest.raises(StoreError, match="half of a surrogate pair"):
        store.publish([adapter("\ud800", 1)], reason="no text")


# --- row 35: links ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["packs", "releases", "maps"])
def test_row_35_a_symbolic_link_in_the_store_is_refused(
    store: AdapterStore, tmp_path: Path, kind: str
) -> None:
    folder = {"maps": store.root / "releases" / "maps"}.get(kind, store.root / kind)
    path = next(path for path in folder.iterdir() if path.is_file())
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    fresh = AdapterStore(store.root)
    with pytest.raises(StoreError, match=f"{path.name} is a symbolic link"):
        fresh.verify()
    with pytest.raises(StoreError, match="symbolic link"):
        fresh.load("de", base_fingerprint=BASE)


def test_row_35_nothing_is_written_through_a_link(store: AdapterStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "symbolic.txt").symlink_to(outside)
    os.link(outside, tmp_path / "hard.txt")
    for name in ("symbolic.txt", "hard.txt"):
        write_text(tmp_path / name, "ours")
        assert (tmp_path / name).read_text() == "ours" and outside.read_text() == "mine"
    pack = pack_of(store, "de", 1)
    os.link(pack, tmp_path / "copy")
    before = sha256_of(pack)
    store.publish(adapters({"de": 1, "fr": 2}), reason="again")
    assert sha256_of(tmp_path / "copy") == before
    with (tmp_path / "copy").open("r+b") as other_name:
        other_name.write(b"x")
    assert contents(AdapterStore(store.root)) == {"de": 1, "fr": 2}, "written anew by the publish"


def test_row_35_a_link_in_the_input_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "logs")
    write_parquet(tmp_path / "real.parquet", log_of(["de"]))
    link = tmp_path / "logs" / "log.parquet"
    link.symlink_to(tmp_path / "real.parquet")
    with pytest.raises(LogError, match=f"{link}: is a symbolic link; name the file"):
        prepare_log([link], tmp_path / "log", LogContract())
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(LogError, match=f"{link}: is a symbolic link"):
        prepare_log([link], tmp_path / "log", LogContract())
    assert not (tmp_path / "log").exists()
