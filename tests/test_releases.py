"""Releases and their maps: what is written is read back; what is damaged is refused."""

import hashlib
import json
import math
import os
import time as clock
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reclora.interactions.ids import STRING
from reclora.store import maps, placements
from reclora.store.layout import HashedFile, header_of
from reclora.store.maps import MAX_BYTES as MAX_MAP
from reclora.store.maps import TWINS, SegmentMap, map_file
from reclora.store.placements import Placement, PlacementTable, hash_of
from reclora.store.reading import StoreError
from reclora.store.releases import (
    MAX_BYTES,
    Canary,
    PackSummary,
    Release,
    read_release,
    release_numbers,
    release_path,
    write_release,
)

PACK = "0123456789abcdef" * 4
OTHER = "f" * 64


def written(folder: Path, segments: Mapping[str, Placement]) -> SegmentMap:
    """The map of these, on the disk."""
    (folder / "maps").mkdir(exist_ok=True)
    table = PlacementTable.of(segments)
    file = map_file(table)
    file.write(folder / "maps")
    return SegmentMap(folder / "maps", file.name, len(table), table.packs)


def release(folder: Path, number: int = 7, **segments: Placement) -> Release:
    time = datetime(2026, 7, 1, 3, 30, tzinfo=UTC)
    found = written(folder, segments)
    packs = tuple(PackSummary(pack, {"rank": 8}, None) for pack in found.packs)
    return Release(number, time, "ann", "nightly", number - 1, "ba5e", packs, found)


numbers = st.floats(allow_infinity=False, allow_nan=False)
places = st.builds(
    Placement,
    st.sampled_from([PACK, OTHER, "0" * 64]),
    st.integers(0, 2**60),
    st.dictionaries(st.text(max_size=3), numbers, max_size=3),
    st.booleans(),
)
segment_maps = st.dictionaries(st.text(), places, max_size=8)


# --- maps ------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(segment_maps, st.text())
def test_a_map_gives_back_what_was_placed(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, Placement], absent: str
) -> None:
    found = written(tmp_path_factory.mktemp("maps"), wanted)
    assert len(found) == len(wanted)
    for segment, place in wanted.items():
        assert found[segment] == place
    assert "table" not in found.__dict__, "nothing but what was asked for is read"
    assert (absent in found) == (absent in wanted)
    assert "\ud800" not in found
    assert list(found) == sorted(wanted) and dict(found) == wanted


@settings(max_examples=100, deadline=None)
@given(segment_maps, segment_maps)
def test_a_map_on_top_of_another_is_their_union(
    older: dict[str, Placement], newer: dict[str, Placement]
) -> None:
    """And its bytes are those of the union made at once."""
    on_top = PlacementTable.of(newer).on_top_of(PlacementTable.of(older))
    assert map_file(on_top).name == map_file(PlacementTable.of({**older, **newer})).name
    assert on_top.packs == tuple(sorted({p.pack for p in {**older, **newer}.values()}))


@settings(max_examples=100, deadline=None)
@given(segment_maps, st.lists(st.text()), st.randoms(use_true_random=False))
def test_rows_of_segments_are_taken_and_left(
    places: dict[str, Placement], others: list[str], random: Random
) -> None:
    """And the bytes of both are those of the tables made of these alone."""
    chosen = {*random.sample(sorted(places), len(places) // 2), *others}
    table = PlacementTable.of(places)
    for found, wanted in (
        (table.only(chosen), {name: place for name, place in places.items() if name in chosen}),
        (table.without(chosen), {n: place for n, place in places.items() if n not in chosen}),
    ):
        assert map_file(found).name == map_file(PlacementTable.of(wanted)).name


def test_names_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of names that the first byte decides, as if sha256 were that bad."""
    for module in (maps, placements):
        monkeypatch.setattr(module, "hash_of", lambda name: sum(name[:1]))
    wanted = {f"{a}{b}": Placement(PACK, ord(b), {}) for a in "abc" for b in "0123456789"}
    found = written(tmp_path, wanted)
    assert all(found[segment] == place for segment, place in wanted.items())
    assert "ax" not in found and "x" not in found and dict(found) == wanted
    older, newer = PlacementTable.of(wanted), {"b3": Placement(OTHER, 1, {})}
    on_top = PlacementTable.of(newer).on_top_of(older)
    assert sorted(on_top.names()) == sorted(wanted)
    assert [on_top.names()[row] for row in on_top.rows_of(OTHER)] == ["b3"]
    with pytest.raises(StoreError, match="hashes do not ascend"):
        written(tmp_path, {f"a{i}": Placement(PACK, i, {}) for i in range(TWINS + 1)}).read()


def test_one_of_many_is_found_with_a_few_reads(tmp_path: Path) -> None:
    wanted = {f"segment {i}": Placement(PACK, i, {"ndcg": i / 7}) for i in range(5_000)}
    found = written(tmp_path, wanted)
    assert all(found[f"segment {i}"] == wanted[f"segment {i}"] for i in range(0, 5_000, 7))
    assert "table" not in found.__dict__
    size = found.path.stat().st_size
    tracemalloc.start()
    try:
        assert found["segment 4321"].index == 4321
        assert tracemalloc.get_traced_memory()[1] < size / 5
    finally:
        tracemalloc.stop()


def test_any_reader_of_safetensors_opens_a_map(tmp_path: Path) -> None:
    wanted = {"ä": Placement(PACK, 3, {"ndcg": 0.5}), "b": Placement(OTHER, 0, {}, True)}
    columns = safetensors.numpy.load_file(written(tmp_path, wanted).path)
    rows = [0, 1] if hash_of("ä".encode()) < hash_of(b"b") else [1, 0]
    assert columns["hashes"].tolist() == sorted(hash_of(name.encode()) for name in wanted)
    assert columns["packs"][rows].tolist() == [0, 1]
    assert columns["indexes"][rows].tolist() == [3, 0]
    assert columns["serves_parent"][rows].tolist() == [0, 1]
    np.testing.assert_array_equal(columns["metrics"][rows], [[0.5], [math.nan]])
    assert hashlib.sha256(b"b").digest()[:8] in columns["hashes"].tobytes()


def test_what_is_unknown_of_all_is_no_metric(tmp_path: Path) -> None:
    found = written(tmp_path, {"de": Placement(PACK, 0, {"ndcg": math.nan, "recall": 0.25})})
    assert found["de"].metrics == {"recall": 0.25} and found.table.metrics == ("recall",)


GOOD = {
    "de": Placement(PACK, 1, {"ndcg": 0.5}),
    "fr": Placement(PACK, 0, {}),
    "it": Placement(OTHER, 0, {"recall": 0.25}, serves_parent=True),
}


METRICS = {"metrics": '{"ndcg": 0, "recall": 1}'}
TYPE_OF = {"<u8": "U64", "<f8": "F64", "<i8": "I64", "<u4": "U32", "|u1": "U8", "<f4": "F32"}


def forged(folder: Path, **columns: Any) -> SegmentMap:
    """The good map with other columns, under the sha256 of what then is its content."""
    arrays = {**PlacementTable.of(GOOD).columns, **columns}
    header = header_of(METRICS, {n: (TYPE_OF[a.dtype.str], a.shape) for n, a in arrays.items()})
    return stored(folder, b"".join([header, *(array.tobytes() for array in arrays.values())]))


def stored(folder: Path, data: bytes) -> SegmentMap:
    (folder / "maps").mkdir(exist_ok=True)
    path = HashedFile.of([data]).write(folder / "maps")
    return SegmentMap(folder / "maps", path.stem, len(GOOD), (PACK, OTHER))


def assert_refused(found: SegmentMap, message: str) -> None:
    """When all is read, and when any segment is asked for that is not found: within 1 CPU-second
    and 100 MB. What is found is one of those that were placed.
    """
    begin = clock.process_time()
    tracemalloc.start()
    try:
        for ask in (found.read, lambda: list(found), lambda: "absent" in found):
            with pytest.raises(StoreError, match=message) as caught:
                ask()
            assert str(found.path) in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert clock.process_time() - begin < 1
    for segment in GOOD:
        try:
            assert found[segment].pack in (PACK, OTHER)
        except StoreError:
            pass


def test_a_forged_map_that_is_good_is_read(tmp_path: Path) -> None:
    assert dict(forged(tmp_path)) == GOOD


def u(dtype: str, *values: float) -> np.ndarray[Any, Any]:
    return np.array(values, dtype)


HASHES = PlacementTable.of(GOOD).columns["hashes"]
FORGERIES: dict[str, tuple[dict[str, Any], str]] = {
    "unsorted": ({"hashes": HASHES[::-1].copy()}, "hashes do not ascend"),
    "other hashes": ({"hashes": u("<u8", 1, 2, 3)}, "a hash is not that of its segment's name"),
    "hash is I64": ({"hashes": HASHES.view("<i8")}, "expected .*'U64'.*got .*'I64'"),
    "too few rows": ({"indexes": u("<i8", 0, 1)}, r"expected .*'indexes'.*\(3,\).*got .*\(2,\)"),
    "flat metrics": ({"metrics": np.zeros(6)}, r"expected .*'metrics'.*\(3, 2\)"),
    "small metrics": ({"metrics": np.zeros((3, 2), "<f4")}, "'F64'.*got .*'F32'"),
    "another column": ({"x": u("u1", 1)}, r"expected \[\('x', None\)\]"),
    "names are a table": ({"names": np.zeros((6, 2), "u1")}, "expected .*'names'"),
    "no such pack": ({"packs": u("<u4", 0, 2, 0)}, "none of its 2 packs"),
    "negative index": ({"indexes": u("<i8", 0, -1, 0)}, "no place"),
    "flag": ({"serves_parent": u("u1", 0, 2, 0)}, "no place"),
    "infinite metric": ({"metrics": np.full((3, 2), math.inf)}, "a metric is infinite"),
    "offsets fall": ({"names.offsets": u("<i8", 0, 4, 2, 6)}, "do not rise from 0 to 6"),
    "offsets end early": ({"names.offsets": u("<i8", 0, 2, 4, 5)}, "do not rise from 0 to 6"),
    "offsets are huge": ({"names.offsets": u("<i8", 0, 2**62, 4, 6)}, "do not rise from 0 to 6"),
    "no text": ({"names": u("u1", *b"de\xff\xffit")}, "can't decode"),
    "twice": ({"names": u("u1", *b"dedede")}, "twice"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_map_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    columns, message = FORGERIES[name]
    assert_refused(forged(tmp_path, **columns), message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut short"),
        (b"\xff" * 64, "claims"),
        ((2**20).to_bytes(8, "little") + b"{}", "cut short"),
        ((2).to_bytes(8, "little") + b"{}", "no metadata"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    assert_refused(stored(tmp_path, data), message)


@pytest.mark.parametrize("metrics", ['{"a": 1, "b": 0}', '{"a": 0, "a": 1}', "[]", "{"])
def test_metrics_that_are_not_numbered_are_refused(tmp_path: Path, metrics: str) -> None:
    data = forged(tmp_path).path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    payload = data[8 + int.from_bytes(data[:8], "little") :]
    header["__metadata__"]["metrics"] = metrics
    text = json.dumps(header).encode()
    assert_refused(stored(tmp_path, len(text).to_bytes(8, "little") + text + payload), "damaged")


def test_trailing_bytes_are_refused(tmp_path: Path) -> None:
    assert_refused(stored(tmp_path, forged(tmp_path).path.read_bytes() + b"\0"), "tensors end at")


def test_a_map_that_is_missing_or_a_link_is_refused(tmp_path: Path) -> None:
    found = written(tmp_path, GOOD)
    moved = found.path.rename(tmp_path / "elsewhere")
    assert_refused(found, "is missing")
    found.path.symlink_to(moved)
    assert_refused(found, "symbolic link")


def test_a_map_of_another_number_of_segments_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD).path
    for claimed in (0, 2, 4, 2**60):
        found = SegmentMap(path.parent, path.stem, claimed, (PACK, OTHER))
        with pytest.raises(StoreError, match="expected .*hashes"):
            found["de"]


def test_a_sparse_map_is_not_read_whole(tmp_path: Path) -> None:
    columns, size = PlacementTable.of(GOOD).columns, 2 * MAX_MAP
    shapes = {name: (dtype, columns[name].shape) for name, dtype in maps.TYPES.items()}
    header = header_of(METRICS, {**shapes, "names": ("U8", (size,))})
    found = stored(tmp_path, header + b"".join(columns[name].tobytes() for name in maps.TYPES))
    os.truncate(found.path, found.path.stat().st_size - len(columns["names"]) + size)
    assert_refused(found, f"at most {MAX_MAP:,}")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_map_with_a_flipped_bit_finds_nothing_that_was_not_placed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """And the whole of it is refused, and with it that a segment is absent."""
    found = written(tmp_path_factory.mktemp("flip"), GOOD)
    flipped = bytearray(found.path.read_bytes())
    cut = data.draw(st.integers(0, len(flipped)) | st.just(len(flipped)))
    bit = data.draw(st.integers(0, 8 * len(flipped) - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    found.path.write_bytes(flipped[:cut])
    with pytest.raises(StoreError):
        found.read()
    for segment in ("de", "fr", "it", "absent"):
        try:
            assert found[segment].pack in (PACK, OTHER) and segment in GOOD
        except StoreError:
            pass


# --- releases --------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.text(),
    st.none() | st.text(),
    st.text(),
    st.none() | st.integers(1),
    segment_maps,
    st.none() | st.just(PACK),
    st.dictionaries(st.text(), st.text() | st.integers() | numbers | st.lists(st.text())),
    st.none() | st.text(),
    st.none() | st.just(OTHER),
    st.none() | st.tuples(st.floats(0, 1, exclude_min=True, exclude_max=True), segment_maps),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    reason: str,
    author: str | None,
    base: str,
    parent: int | None,
    segments: dict[str, Placement],
    pack_parent: str | None,
    config: dict[str, Any],
    run: str | None,
    decisions: str | None,
    candidates: tuple[float, dict[str, Placement]] | None,
) -> None:
    folder = tmp_path_factory.mktemp("releases")
    time = datetime(2026, 7, 1, 3, 30, tzinfo=UTC)
    found = written(folder, segments)
    canary = candidates and Canary(candidates[0], written(folder, candidates[1]))
    names = dict.fromkeys([*found.packs, *(canary.segments.packs if canary else ())])
    packs = tuple(PackSummary(pack, config, pack_parent) for pack in names)
    wanted = Release(1, time, author, reason, parent, base, packs, found, run, decisions, canary)
    write_release(folder, wanted)
    assert read_release(folder, 1) == wanted
    text = release_path(folder, 1).read_bytes()
    assert text.isascii()
    for key, value in (("run", run), ("decisions", decisions), ("canary", canary)):
        assert (f'\n"{key}": '.encode() in text) == (value is not None)


users = st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8)
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)


def is_for(user_ids: pa.Array, share: float) -> NDArray[np.bool_]:
    return Canary(share, SegmentMap(Path(), PACK, 0, ())).is_for(user_ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(users), shares, shares, st.randoms(use_true_random=False))
def test_a_share_of_users_is_a_formula(
    some: list[int | str], one: float, other: float, random: Random
) -> None:
    """In any order, of integers as of their decimals, and a larger share has those of a smaller."""
    texts = [str(user) for user in some]
    found = is_for(pa.array(texts, pa.string()), one)
    places = [int(hashlib.sha256(f"canary:{t}".encode()).hexdigest()[:16], 16) for t in texts]
    assert found.dtype == np.bool_
    assert found.tolist() == [Fraction(place, 2**64) < Fraction(one) for place in places]
    order = random.sample(range(len(some)), len(some))
    assert is_for(pa.array([texts[i] for i in order], STRING), one).tolist() == [
        found[i] for i in order
    ]
    whole = [user for user in some if isinstance(user, int)]
    of_whole = [each for each, user in zip(found, some, strict=True) if isinstance(user, int)]
    assert is_for(pa.chunked_array([pa.array(whole, pa.int64())]), one).tolist() == of_whole
    smaller, larger = (is_for(pa.array(texts, STRING), s) for s in sorted((one, other)))
    assert (smaller <= larger).all()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("prefix", ["", "user-"])
def test_the_share_is_met(share: float, prefix: str) -> None:
    count = int(is_for(pa.array([f"{prefix}{n}" for n in range(20_000)]), share).sum())
    assert abs(count - 20_000 * share) < 4 * math.sqrt(20_000 * share * (1 - share))


def test_the_users_of_a_canary_stay_the_same() -> None:
    """Written down: who is served must not change with a version of this library."""
    assert np.flatnonzero(is_for(pa.array(range(40)), 0.1)).tolist() == [10, 19, 30, 31]


def test_what_is_no_user_is_refused() -> None:
    with pytest.raises(TypeError, match="user_ids must be strings or integers, got double"):
        is_for(pa.array([5.0]), 0.5)
    with pytest.raises(ValueError, match="user_ids must not be null, got 1 nulls"):
        is_for(pa.array(["a", None]), 0.5)


def test_a_release_can_be_read_by_people(tmp_path: Path) -> None:
    write_release(tmp_path, release(tmp_path, de=Placement(PACK, 0, {})))
    lines = (tmp_path / "00000007.json").read_text().splitlines()
    assert '"reason": "nightly",' in lines and '"num_segments": 1,' in lines
    assert f'"packs": [{{"pack": "{PACK}", "parent": null, "config": {{"rank": 8}}}}]' in lines


def test_a_number_is_written_once(tmp_path: Path) -> None:
    write_release(tmp_path, release(tmp_path, a=Placement(PACK, 0, {})))
    with pytest.raises(FileExistsError):
        write_release(tmp_path, release(tmp_path, b=Placement(PACK, 0, {})))
    assert list(read_release(tmp_path, 7).segments) == ["a"]
    assert sorted(os.listdir(tmp_path)) == ["00000007.json", "maps"]


def test_numbers_order_as_numbers_and_other_files_do_not_count(tmp_path: Path) -> None:
    for name in ("00000009.json", "123456789.json", "00000010.json", "00000011.json.tmp.ab"):
        (tmp_path / name).touch()
    for name in ("7.json", "000000012.json", "0000000x.json", "notes.txt", "٠٠٠٠٠٠٠١.json"):
        (tmp_path / name).touch()
    assert release_numbers(tmp_path) == [9, 10, 123456789]
    assert release_numbers(tmp_path / "missing") == []


def test_too_many_packs_are_refused(tmp_path: Path) -> None:
    segments = {f"{i}": Placement(f"{i:064x}", 0, {}) for i in range(300)}
    found = release(tmp_path, **segments)
    packs = tuple(replace(pack, config={"targets": ["x" * 10_000]}) for pack in found.packs)
    with pytest.raises(StoreError, match="300 packs need 3,0.*publish all segments at once"):
        write_release(tmp_path, replace(found, packs=packs))
    assert os.listdir(tmp_path) == ["maps"]


def pack(content: dict[str, Any], **values: object) -> None:
    content["packs"][0].update(values)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer": (lambda c: c.update(format=2, needs="9.1"), "needs reclora >= 9.1"),
    "format is text": (lambda c: c.update(format="1"), "expected format 1"),
    "format is true": (lambda c: c.update(format=True), "expected format 1"),
    "no format": (lambda c: c.pop("format"), "expected format 1"),
    "other number": (lambda c: c.update(number=8), "calls itself release 8"),
    "no reason": (lambda c: c.pop("reason"), "reason"),
    "reason is a number": (lambda c: c.update(reason=1), "damaged"),
    "author is a list": (lambda c: c.update(author=[]), "damaged"),
    "time": (lambda c: c.update(time="yesterday"), "yesterday"),
    "naive time": (lambda c: c.update(time="2026-07-01T03:30:00"), "no time zone"),
    "parent is text": (lambda c: c.update(parent="6"), "damaged"),
    "parent 0": (lambda c: c.update(parent=0), "damaged"),
    "no segments": (lambda c: c.update(segments=None), "expected a sha256"),
    "segments are a path": (lambda c: c.update(segments="../" + PACK[3:]), "expected a sha256"),
    "number of segments": (lambda c: c.update(num_segments=-1), "a number of segments"),
    "segments are true": (lambda c: c.update(num_segments=True), "a number of segments"),
    "no packs": (lambda c: c.update(packs=None), "damaged"),
    "pack is a list": (lambda c: c.update(packs=[[]]), "damaged"),
    "pack twice": (lambda c: c["packs"].append(c["packs"][0]), "named twice"),
    "path": (lambda c: pack(c, pack="../../" + PACK[6:]), "expected a sha256"),
    "pack is short": (lambda c: pack(c, pack=PACK[1:]), "expected a sha256"),
    "pack ends in a newline": (lambda c: pack(c, pack=PACK + "\n"), "expected a sha256"),
    "pack is a number": (lambda c: pack(c, pack=1), "expected a sha256"),
    "parent is a path": (lambda c: pack(c, parent="../x"), "expected a sha256"),
    "config is text": (lambda c: pack(c, config="rank 8"), "expected the settings"),
    "run is a number": (lambda c: c.update(run=7), "expected text, got 7"),
    "decisions are a path": (lambda c: c.update(decisions="../x"), "expected a sha256"),
    "canary is a share": (lambda c: c.update(canary=0.5), "damaged"),
    "a share of all": (lambda c: c["canary"].update(share=1.0), "above 0 and below 1, got 1.0"),
    "a share of none": (lambda c: c["canary"].update(share=0.0), "above 0 and below 1"),
    "share is true": (lambda c: c["canary"].update(share=True), "above 0 and below 1"),
    "candidates are a path": (lambda c: c["canary"].update(segments="x"), "expected a sha256"),
    "a candidate's pack": (lambda c: pack(c["canary"], pack="x"), "expected a sha256"),
    "packs of candidates": (lambda c: c["canary"].pop("packs"), "packs"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_damaged_release_is_refused(tmp_path: Path, name: str) -> None:
    good = release(tmp_path, de=Placement(PACK, 0, {"ndcg": 0.5}))
    write_release(tmp_path, replace(good, canary=Canary(0.1, good.segments)))
    path = tmp_path / "00000007.json"
    content = json.loads(path.read_text())
    edit, message = EDITS[name]
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=message) as caught:
        read_release(tmp_path, 7)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b'{"format": 1, "format": 1}', b'{"format": NaN}', b"\xff\xfe\xfd"]
)
def test_what_is_no_release_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "00000007.json").write_bytes(text)
    with pytest.raises(StoreError, match=r"00000007\.json is damaged"):
        read_release(tmp_path, 7)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_flipped_bits_end_in_an_error_or_a_release(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    write_release(folder, release(folder, de=Placement(PACK, 0, {"ndcg": 0.5})))
    path = release_path(folder, 7)
    text = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(text) - 1))
    text[bit // 8] ^= 1 << bit % 8
    path.write_bytes(text)
    try:
        found = read_release(folder, 7)
        assert found.number == 7
        assert len(found.segments) == 1 or "de" not in found.segments
    except StoreError:
        pass


def test_a_sparse_terabyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "00000007.json").touch()
    os.truncate(tmp_path / "00000007.json", 2**40)
    with pytest.raises(StoreError, match=f"at most {MAX_BYTES:,}"):
        read_release(tmp_path, 7)


def test_a_link_is_refused(tmp_path: Path) -> None:
    write_release(tmp_path, release(tmp_path))
    (tmp_path / "00000008.json").symlink_to(tmp_path / "00000007.json")
    with pytest.raises(StoreError, match="symbolic link"):
        read_release(tmp_path, 8)
