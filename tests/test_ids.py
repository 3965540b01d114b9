"""Tests of reclora.interactions.ids: ids and rows translate both ways and never slip."""

import struct
import subprocess
import sys
import unicodedata
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.interactions.ids import BLOCK, FEW, IdMap

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
UNIQUE_IDS = st.one_of(
    st.lists(TEXT, min_size=1, unique=True), st.lists(INT64, min_size=1, unique=True)
)
ORDERS = {
    "ascending": lambda ids, key: sorted(ids, key=key),
    "as they come": lambda ids, key: ids,
    "grown": lambda ids, key: sorted(ids[::3], key=key) + sorted([*ids[1::3], *ids[2::3]], key=key),
}
NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
AWKWARD = [
    "",
    "\0",
    "a\0",
    "a",
    "A",
    NFC,
    NFD,
    "🙂",
    "👩‍👩‍👧",
    "\u202eabc",
    " a",
    "x" * 100_000,
    "-1",
    "1",
]


@given(UNIQUE_IDS)
def test_rows_and_ids_are_each_others_inverse(ids: list[Any]) -> None:
    mapped = IdMap(ids)
    assert mapped.ids.to_pylist() == ids
    assert mapped.rows_of(ids).tolist() == list(range(len(ids)))
    assert mapped.ids_of(range(len(ids))).to_pylist() == ids


@settings(max_examples=25)
@given(UNIQUE_IDS)
def test_a_written_map_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, ids: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("ids") / "ids.parquet"
    mapped = IdMap(ids)
    mapped.write(path)
    assert IdMap.read(path) == mapped
    assert IdMap.read(path).digest() == mapped.digest()


def test_awkward_strings_stay_apart(tmp_path: Path) -> None:
    mapped = IdMap(AWKWARD)
    mapped.write(tmp_path / "ids.parquet")
    assert IdMap.read(tmp_path / "ids.parquet").rows_of(AWKWARD).tolist() == [*range(len(AWKWARD))]


@given(st.lists(TEXT, min_size=1))
def test_of_is_distinct_and_sorted_by_bytes(ids: list[str]) -> None:
    assert IdMap.of(ids).ids.to_pylist() == sorted(set(ids), key=str.encode)


@given(st.lists(INT64, min_size=1))
def test_of_integers_is_distinct_and_sorted(ids: list[int]) -> None:
    assert IdMap.of(ids).ids.to_pylist() == sorted(set(ids))


@given(st.lists(INT64, unique=True, min_size=1), st.lists(INT64))
def test_extended_keeps_old_rows_and_sorts_new_ones(old: list[int], new: list[int]) -> None:
    extended = IdMap(old).extended(new)
    assert extended.ids.to_pylist() == old + sorted(set(new) - set(old))


def a_list_of_ids(data: st.DataObject, **bounds: Any) -> tuple[list[Any], st.SearchStrategy[Any]]:
    """Ids of one kind in one of the orders that maps have, and what draws more of the kind."""
    each, key = data.draw(st.sampled_from([(TEXT, str.encode), (INT64, int)]))
    ids = data.draw(st.lists(each, min_size=1, **bounds))
    return data.draw(st.sampled_from(list(ORDERS.values())))(ids, key), each


@given(st.data(), st.integers(1, 4), st.sampled_from([1, FEW]))
def test_rows_are_those_of_a_dict(data: st.DataObject, block: int, few: int) -> None:
    ids, each = a_list_of_ids(data, unique=True)
    asked = data.draw(st.lists(st.one_of(st.sampled_from(ids), each, st.none()), max_size=12))
    row_of = {id: row for row, id in enumerate(ids)}
    kind = pa.string() if isinstance(ids[0], str) else pa.int64()
    array = pa.array(asked, kind)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("reclora.interactions.ids.BLOCK", block)
        patched.setattr("reclora.interactions.ids.FEW", few)
        mapped = IdMap(ids)
        for form in (
            array,
            array.dictionary_encode(),
            pa.chunked_array([array[:2], array[2:]]),
            array[:1],
        ):
            expected = [row_of.get(id, -1) for id in form.to_pylist()]
            rows = mapped.rows_of(form)
            assert rows.tolist() == expected
            assert rows.dtype == np.int64


@given(st.data(), st.integers(1, 4))
def test_a_twin_is_found_and_counted(data: st.DataObject, block: int) -> None:
    ids, _ = a_list_of_ids(data)
    ids += data.draw(st.lists(st.sampled_from(ids), max_size=2))
    twins = {id: times for id, times in Counter(ids).items() if times > 1}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("reclora.interactions.ids.BLOCK", block)
        if not twins:
            assert IdMap(ids).ids.to_pylist() == ids
            return
        with pytest.raises(ValueError, match="ids must be unique") as caught:
            IdMap(ids)
    said = str(caught.value)
    assert any(f"got {id!r} {times} times; use" in said for id, times in twins.items())


@given(st.data())
def test_a_grown_map_is_one_that_was_never_grown(data: st.DataObject) -> None:
    ids, each = a_list_of_ids(data, unique=True)
    grown = IdMap(ids).extended(data.draw(st.lists(each, min_size=1)))
    grown = grown.extended(data.draw(st.lists(each, min_size=1)))
    everyone = grown.ids.to_pylist()
    assert IdMap(everyone) == grown
    assert grown.rows_of(everyone).tolist() == list(range(len(everyone)))


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_a_map_of_several_blocks(kind: pa.DataType) -> None:
    number = 2 * BLOCK + 3
    ascending = pa.array(np.arange(number) + 10**7).cast(kind)
    asked = [0, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, number - 1]
    assert len(asked) < number // FEW
    for order in (np.arange(number), np.random.default_rng(0).permutation(number)):
        mapped = IdMap(ascending.take(pa.array(order)))
        assert mapped.rows_of(mapped.ids_of(asked)).tolist() == asked
        assert mapped.rows_of(mapped.ids).tolist() == list(range(number))
    # The twins are the last of a block and the first of the next.
    twins = pa.concat_arrays([ascending[:BLOCK], ascending[BLOCK - 1 :]])
    with pytest.raises(ValueError, match=f"{10**7 + BLOCK - 1}'? 2 times"):
        IdMap(twins)


MEMORY = """
import sys
from pathlib import Path
from reclora.interactions.ids import IdMap

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))

for folder in map(Path, sys.argv[1:]):
    IdMap.read(folder / "few.parquet").rows_of(["0"] if "strings" in folder.name else [0])
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    mapped = IdMap.read(folder / "many.parquet")
    mapped.rows_of(mapped.ids[-10:])
    print((memory("VmHWM") - before) / len(mapped))
"""


def test_opening_a_map_and_asking_for_few_takes_little_beside_the_ids(tmp_path: Path) -> None:
    number = 2_000_000
    ascending = pa.array(np.arange(number) + 10**7)
    shuffled = ascending.cast(pa.string())
    shuffled = shuffled.take(pa.array(np.random.default_rng(0).permutation(number)))
    folders = [tmp_path / "integers", tmp_path / "strings"]
    for folder, ids in zip(folders, (ascending, shuffled), strict=True):
        folder.mkdir()
        IdMap(ids).write(folder / "many.parquet")
        IdMap(ids[:1000]).write(folder / "few.parquet")
    command = [sys.executable, "-c", MEMORY, *map(str, folders)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    integers, strings = map(float, said.split())
    # An integer is 8 bytes, a string here 16; a hash table of them took 160 to 250.
    assert integers < 40
    assert strings < 80


@pytest.mark.parametrize(
    "ids",
    [
        pa.array(["b", "a"], pa.string()),
        pa.array(["b", "a"], pa.large_string()),
        pa.array(["b", "a"], pa.string_view()),
        pa.array(["b", "a"]).dictionary_encode(),
        pa.chunked_array([["b"], [], ["a"]]),
        pa.chunked_array([pa.array(["b", "a"]).dictionary_encode()]),
        pa.array(["x", "b", "a", "y"])[1:3],
        pa.array(["x", "b", None, "a"]).drop_null()[1:],
        np.array(["b", "a"]),
        ("b", "a"),
    ],
)
def test_every_form_of_strings_is_the_same_map(ids: Any) -> None:
    expected = IdMap(["b", "a"])
    assert IdMap(ids) == expected
    assert IdMap(ids).digest() == expected.digest()
    assert expected.rows_of(ids).tolist() == [0, 1]


@pytest.mark.parametrize(
    "kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)
def test_every_width_of_integers_is_the_same_map(kind: str) -> None:
    expected = IdMap([7, 3])
    for ids in (pa.array([7, 3], kind), np.array([7, 3], kind), pa.array([0, 7, 3], kind)[1:]):
        assert IdMap(ids) == expected
        assert IdMap(ids).digest() == expected.digest()
        assert expected.rows_of(ids).tolist() == [0, 1]


def test_digest_tells_content_order_and_type_apart() -> None:
    maps = [
        ["a", "b"],
        ["b", "a"],
        ["ab"],
        ["", "ab"],
        ["ab", ""],
        ["a"],
        [1, 2],
        [2, 1],
        ["1", "2"],
    ]
    empty = [pa.array([], pa.string()), pa.array([], pa.int64())]
    assert len({IdMap(ids).digest() for ids in [*maps, *empty]}) == len(maps) + 2


def test_digest_is_the_sha256_of_what_it_says() -> None:
    # Stored fingerprints are made of it: it may not change by accident.
    strings = b"large_string 2\n" + struct.pack("<2q", 1, 2) + "aé".encode()
    assert IdMap(["a", "é"]).digest() == sha256(strings).hexdigest()
    integers = b"int64 2\n" + struct.pack("<2q", 1, -2)
    assert IdMap([1, -2]).digest() == sha256(integers).hexdigest()


def test_an_empty_map_knows_nobody() -> None:
    mapped = IdMap(pa.array([], pa.int32()))
    assert len(mapped) == 0
    assert mapped.rows_of([1]).tolist() == [-1]
    assert mapped.extended([3, 1]).ids.to_pylist() == [1, 3]
    assert mapped.ids_of([]).to_pylist() == []
    with pytest.raises(IndexError):
        mapped.ids_of([0])


def test_unknown_and_null_ids_have_no_row() -> None:
    rows = IdMap(["a", "b"]).rows_of(["b", "c", None, "a"])  # type: ignore[list-item]
    assert rows.tolist() == [1, -1, -1, 0]
    assert rows.dtype == np.int64
    for ids in ([-1, 0, 1], [0, 1, -1]):
        asked = pa.array([None, 0, 7, -7, None, 1])
        assert IdMap(ids).rows_of(asked).tolist() == [-1, ids.index(0), -1, -1, -1, ids.index(1)]
    assert IdMap(["a"]).rows_of([]).tolist() == []


def test_a_row_out_of_range_is_named_and_never_wraps() -> None:
    mapped = IdMap(["a", "b"])
    for rows, message in [([0, 2], "got 2 at position 1"), ([-1], "got -1 at position 0")]:
        with pytest.raises(IndexError, match=message):
            mapped.ids_of(rows)
    with pytest.raises(TypeError, match="float64"):
        mapped.ids_of([0.0])


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (["a", "b", "a"], ValueError, "'a' 2 times"),
        ([1, 1], ValueError, "1 2 times"),
        (["a", None], ValueError, "null at position 1"),
        ([1, "a"], ValueError, "all strings or all 64-bit integers"),
        ([2**64], ValueError, "64-bit"),
        (pa.array([2**63], pa.uint64()), ValueError, "64-bit"),
        (["\ud800"], ValueError, "surrogates"),
        ([1.0], TypeError, "double"),
        ([True], TypeError, "bool"),
        ([b"a"], TypeError, "binary"),
        ([], TypeError, "typed array"),
        ("abc", TypeError, "the one str 'abc'"),
    ],
)
def test_what_is_no_id_map_is_refused(ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        IdMap(ids)


def test_strings_asked_of_integers_are_an_error_not_unknown() -> None:
    with pytest.raises(TypeError, match="holds int64 ids, got large_string"):
        IdMap([1, 2]).rows_of(["1"])
    with pytest.raises(TypeError, match="holds large_string ids, got int64"):
        IdMap(["1"]).extended([1])


def test_read_names_a_file_that_holds_something_else(tmp_path: Path) -> None:
    path = tmp_path / "ids.parquet"
    for table, message in [
        (pa.table({"user": ["a"]}), "expected one column 'id'"),
        (pa.table({"id": ["a", "a"]}), "'a' 2 times"),
        (pa.table({"id": [1.5]}), "double"),
    ]:
        pq.write_table(table, path)
        with pytest.raises(ValueError, match=message) as caught:
            IdMap.read(path)
        assert "ids.parquet" in str(caught.value)


def test_a_flipped_bit_changes_no_id(tmp_path: Path) -> None:
    path = tmp_path / "ids.parquet"
    mapped = IdMap(range(70))
    mapped.write(path)
    data = path.read_bytes()
    caught = 0
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 8]) + data[position + 1 :])
        try:
            # A bit that nobody reads may flip, but no id may change or go.
            assert IdMap.read(path) == mapped
        except (OSError, ValueError, pa.ArrowException):
            caught += 1
    assert caught > len(data) / 2


def test_repr_says_how_many_of_what() -> None:
    assert repr(IdMap(["a", "b"])) == "IdMap(2 strings: 'a', 'b')"
    assert repr(IdMap(range(1682))) == "IdMap(1,682 integers: 0, 1, 2, ...)"
