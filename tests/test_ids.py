"""Tests of reclora.interactions.ids: ids and rows translate both ways and never slip."""

import struct
import unicodedata
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.interactions.ids import IdMap

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
UNIQUE_IDS = st.one_of(
    st.lists(TEXT, min_size=1, unique=True), st.lists(INT64, min_size=1, unique=True)
)
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
