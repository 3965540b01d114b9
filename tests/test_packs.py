"""Packs: law 7 (bit for bit), and what damaged or hostile files do."""

import json
import os
import pickle
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reclora.adapters import Adapter, AdapterConfig
from reclora.store import BaseMismatch, StoreError
from reclora.store.packs import MAX_HEADER, Pack, open_pack
from reclora.store.stacking import check_one_base, group_by_config, write_pack

BASE = "ba5e" * 16


def adapter(segment: str, **tensors: Tensor) -> Adapter:
    return Adapter(segment, AdapterConfig(), BASE, tensors)


def small(segment: str, rows: int) -> Adapter:
    generator = torch.Generator().manual_seed(rows)
    return adapter(
        segment,
        **{
            "items.rows": torch.arange(rows),
            "item_table.a": torch.randn(rows, 2, generator=generator),
            "item_table.b": torch.randn(2, 3, generator=generator),
        },
    )


def opened(folder: Path, *adapters: Adapter) -> Pack:
    (group,) = group_by_config(adapters)
    return open_pack(folder / f"{write_pack(folder, group)}.safetensors")


def all_of(pack: Pack, *segments: str) -> list[Adapter]:
    return pack.load({segment: index for index, segment in enumerate(sorted(segments))})


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found: Adapter, wanted: Adapter) -> None:
    assert (found.segment, found.config) == (wanted.segment, wanted.config)
    assert found.base_fingerprint == wanted.base_fingerprint
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        got = found.tensors[name]
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape), name
        assert bits(got) == bits(tensor), name


# --- law 7 -----------------------------------------------------------------------------------


def test_every_bit_comes_back(tmp_path: Path) -> None:
    edge = torch.tensor([-0.0, 0.0, 1e-45, -1e-40, 3.4028234e38])
    a = adapter(
        "a",
        f32=edge,
        f64=torch.tensor([-0.0, 5e-324]),
        f16=edge[:4].half(),
        bf16=edge[:4].bfloat16(),
        i64=torch.tensor([-(2**63), 2**63 - 1]),
        u8=torch.tensor([0, 255], dtype=torch.uint8),
        strided=torch.arange(12.0).reshape(3, 4).t(),
        trained=torch.ones(1, 2, requires_grad=True),
        deep=torch.ones(1, 2, 3, 4),
    )
    b = adapter("b", **{name: tensor[:0] for name, tensor in a.tensors.items()})
    c = adapter("c", **{name: tensor[:1] for name, tensor in a.tensors.items()})
    pack = opened(tmp_path, c, b, a)
    for found, wanted in zip(all_of(pack, "a", "b", "c"), (a, b, c), strict=True):
        assert_same(found, wanted)
    for index, wanted in enumerate((a, b, c)):
        assert_same(pack.load({wanted.segment: index})[0], wanted)


def test_an_adapter_without_tensors_or_rows_or_name(tmp_path: Path) -> None:
    assert_same(opened(tmp_path, adapter("")).load({"": 0})[0], adapter(""))
    nothing = adapter("x", a=torch.empty(0, 0), b=torch.empty(0))
    assert_same(opened(tmp_path, nothing).load({"x": 0})[0], nothing)


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(st.text(), st.integers(0, 4), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_any_names_and_sizes_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, rows: Mapping[str, int], random: Any
) -> None:
    folder = tmp_path_factory.mktemp("packs")
    wanted = {segment: small(segment, count) for segment, count in rows.items()}
    shuffled = random.sample(sorted(wanted), len(wanted))
    pack = opened(folder, *(wanted[segment] for segment in shuffled))
    assert opened(folder, *wanted.values()).path == pack.path
    index = {segment: i for i, segment in enumerate(sorted(wanted))}
    asked = random.sample(shuffled, random.randint(1, len(shuffled)))
    for found, segment in zip(pack.load({s: index[s] for s in asked}), asked, strict=True):
        assert_same(found, wanted[segment])


def test_loaded_adapters_can_be_trained_without_touching_each_other(tmp_path: Path) -> None:
    pack = opened(tmp_path, small("a", 2), small("b", 3))
    a, b = all_of(pack, "a", "b")
    a.tensors["item_table.a"].fill_(7)
    assert_same(b, small("b", 3))
    assert_same(pack.load({"a": 0})[0], small("a", 2))


def test_safetensors_own_reader_opens_a_pack(tmp_path: Path) -> None:
    a, b = small("ä", 2), small("b", 3)
    pack = opened(tmp_path, a, b)
    tensors = safetensors.torch.load_file(pack.path)
    assert bytes(tensors["segments"].numpy()) == "bä".encode()
    assert tensors["segments.offsets"].tolist() == [0, 1, 3]
    assert tensors["item_table.a.offsets"].tolist() == [0, 3, 5]
    stacked = torch.cat([b.tensors["item_table.a"], a.tensors["item_table.a"]])
    assert torch.equal(tensors["item_table.a"], stacked)


def test_one_pack_a_config(tmp_path: Path) -> None:
    other = Adapter("b", AdapterConfig(rank=2, alpha=0.1), BASE, {"x": torch.ones(1)})
    groups = group_by_config([small("c", 1), other, small("a", 1)])
    assert [[a.segment for a in group] for group in groups] == [["a", "c"], ["b"]]
    assert opened(tmp_path, other).config == other.config


# --- what is not written ---------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite_are_refused(bad: float, dtype: torch.dtype) -> None:
    good, sick = torch.ones(2, dtype=dtype), torch.tensor([1, bad], dtype=dtype)
    with pytest.raises(StoreError, match=r"'sick': x\.a has NaN"):
        group_by_config([adapter("good", **{"x.a": good}), adapter("sick", **{"x.a": sick})])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": torch.ones(1, 3)}, r"'b': x is torch.float32 \(1, 3\), expected .* \('any', 2\)"),
        ({"x": torch.ones(1, 2).double()}, "'b': x is torch.float64"),
        ({"x": torch.ones(1, 2), "y": torch.ones(1)}, r"'b' and segment 'a' .*\['y'\]"),
        ({"x": torch.tensor(1.0)}, "'b': x is torch.float32 with 0 dimensions"),
        ({"x": torch.ones(1, 2, dtype=torch.complex64)}, "'b': x is torch.complex64"),
    ],
)
def test_adapters_that_do_not_stack_are_refused(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        group_by_config([adapter("a", x=torch.ones(1, 2)), adapter("b", **tensors)])


@pytest.mark.parametrize("name", ["segments", "x.offsets"])
def test_names_that_a_pack_uses_itself_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match=name):
        group_by_config([adapter("a", **{name: torch.ones(1)})])


def test_adapters_of_two_bases_are_refused() -> None:
    foreign = Adapter("b", AdapterConfig(), "f0f0", {})
    with pytest.raises(BaseMismatch, match=f"{BASE}.*f0f0"):
        check_one_base([adapter("a"), foreign])


def test_too_many_tensors_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    many = adapter("a", **{f"{i:0200}": torch.ones(1) for i in range(3_000)})
    with pytest.raises(StoreError, match="'a': 6,002 tensors"):
        write_pack(tmp_path, [many])
    assert list(tmp_path.iterdir()) == []


# --- damaged and hostile files ---------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pack = opened(tmp_path_factory.mktemp("good"), small("a", 2), small("b", 3))
    return pack.path.read_bytes()


def parts_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: object, payload: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


def read_whole(path: Path) -> list[Adapter]:
    return all_of(open_pack(path), "a", "b")


def assert_refused(path: Path, message: str = "") -> None:
    """An error within 1 CPU-second and 100 MB."""
    begin = time.process_time()
    with pytest.raises(StoreError, match=message) as caught:
        read_whole(path)
    assert time.process_time() - begin < 1
    assert str(path) in str(caught.value)
    tracemalloc.start()
    try:
        with pytest.raises(StoreError):
            read_whole(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_the_good_file_is_good(tmp_path: Path, good: bytes) -> None:
    (tmp_path / "x").write_bytes(joined(*parts_of(good)))
    assert len(read_whole(tmp_path / "x")) == 2


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, good: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "x"
    path.write_bytes(good[: data.draw(st.integers(0, len(good) - 1))])
    with pytest.raises(StoreError):
        open_pack(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bits_in_the_header_end_in_an_error_or_an_adapter(
    tmp_path_factory: pytest.TempPathFactory, good: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("flip", numbered=True) / "x"
    header = 8 + int.from_bytes(good[:8], "little")
    flipped = bytearray(good)
    for bit in data.draw(st.lists(st.integers(0, 8 * header - 1), min_size=1, max_size=3)):
        flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    try:
        adapters = read_whole(path)
    except StoreError:
        return
    # The flip was in a name or in the fingerprint; numbers and shapes hold together.
    assert [len(a.tensors) for a in adapters] == [3, 3]


def entry(header: dict[str, Any], name: str, **values: object) -> None:
    header[name] = {**header.get(name, {}), **values}


Edit = Callable[[dict[str, Any]], object]
A = "item_table.a"
EDITS: dict[str, tuple[Edit, str]] = {
    "petabytes": (lambda h: entry(h, A, shape=[2**39, 2**39]), "does not fill"),
    "more rows": (lambda h: entry(h, A, shape=[2**39, 2]), "does not fill"),
    "fewer rows": (lambda h: entry(h, A, shape=[4, 2]), "does not fill"),
    "negative": (lambda h: entry(h, A, shape=[-5, -2]), "no shape"),
    "fraction": (lambda h: entry(h, A, shape=[5.0, 2]), "no shape"),
    "bool": (lambda h: entry(h, A, shape=[5, True]), "no shape"),
    "scalar": (lambda h: entry(h, A, shape=[]), "no shape"),
    "dimensions": (lambda h: entry(h, A, shape=[5, 2] + [1] * 9), "no shape"),
    "shape is text": (lambda h: entry(h, A, shape="52"), "no shape"),
    "shape is a number": (lambda h: entry(h, A, shape=10), "damaged"),
    "overlap": (lambda h: entry(h, A, data_offsets=h["item_table.b"]["data_offsets"]), "starts at"),
    "one offset": (lambda h: entry(h, A, data_offsets=[0]), "damaged"),
    "text offset": (lambda h: entry(h, A, data_offsets=["0", "40"]), "damaged"),
    "huge offset": (lambda h: entry(h, A, data_offsets=[10**4000, 10**4000 + 40]), "starts at"),
    "dtype": (lambda h: entry(h, A, dtype="F8_E4M3"), "F8_E4M3"),
    "dtype is a list": (lambda h: entry(h, A, dtype=[]), "damaged"),
    "other dtype": (lambda h: entry(h, A, dtype="F64"), "does not fill"),
    "missing": (lambda h: h.pop(A), "starts at|end at"),
    "extra": (lambda h: entry(h, "x", dtype="U8", shape=[0], data_offsets=[0, 0]), r"\['x'\]"),
    "renamed": (lambda h: entry(h, "evil", **h.pop(A)), "do not rise|evil"),
    "no entry": (lambda h: h.update({A: None}), "damaged"),
    "no metadata": (lambda h: h.pop("__metadata__"), "no metadata"),
    "metadata is text": (lambda h: h.update(__metadata__="x"), "no metadata"),
    "more metadata": (lambda h: entry(h, "__metadata__", x="y"), "metadata"),
    "base is a number": (lambda h: entry(h, "__metadata__", base_fingerprint=3), "metadata"),
    "newer": (lambda h: entry(h, "__metadata__", format="2", needs="9.1"), "needs reclora >= 9.1"),
    "format 0": (lambda h: entry(h, "__metadata__", format="0"), "expected format 1"),
    "format is huge": (lambda h: entry(h, "__metadata__", format="9" * 9999), "expected format"),
    "config is no object": (lambda h: entry(h, "__metadata__", config="[]"), "expected an object"),
    "config is no JSON": (lambda h: entry(h, "__metadata__", config="{"), "damaged"),
    "config is unknown": (lambda h: entry(h, "__metadata__", config='{"x": 1}'), "config"),
    "config breaks rules": (lambda h: entry(h, "__metadata__", config='{"rank": 0}'), "config"),
    "config has lists": (lambda h: entry(h, "__metadata__", config='{"rank": []}'), "config"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_header_that_lies_is_refused(tmp_path: Path, good: bytes, name: str) -> None:
    header, payload = parts_of(good)
    edit, message = EDITS[name]
    edit(header)
    (tmp_path / "x").write_bytes(joined(header, payload))
    assert_refused(tmp_path / "x", message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut short"),
        (b"\0" * 8, "damaged"),
        (b"\xff" * 64, "claims"),
        ((MAX_HEADER + 1).to_bytes(8, "little"), "claims"),
        (MAX_HEADER.to_bytes(8, "little") + b"{}", "cut short"),
        (joined(b"[" * MAX_HEADER, b""), "damaged"),
        (joined(b'{"a":' * (MAX_HEADER // 5), b""), "damaged"),
        (joined(b"{" + b'"":{},' * (MAX_HEADER // 8) + b'"":{}}', b""), "twice"),
        (joined(b"[" + b"[]," * (MAX_HEADER // 4) + b"[]]", b""), "an object"),
        (joined(b'{"a": ' + b"9" * 100_000 + b"}", b""), "damaged"),
        (joined(b'{"a": NaN}', b""), "NaN"),
        (joined(b'{"\xff": 1}', b""), "damaged"),
        (pickle.dumps({"rows": [1, 2]}), "claims"),
    ],
)
def test_what_is_no_pack_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(data)
    assert_refused(tmp_path / "x", message)


def test_as_many_tensors_as_a_header_holds_are_refused(tmp_path: Path, good: bytes) -> None:
    header, payload = parts_of(good)
    for i in range(14_000):
        header[str(i)] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    (tmp_path / "x").write_bytes(joined(header, payload))
    assert_refused(tmp_path / "x", "lacks")


def test_trailing_bytes_and_archives_are_refused(tmp_path: Path, good: bytes) -> None:
    (tmp_path / "x").write_bytes(good + b"\0")
    assert_refused(tmp_path / "x", "its tensors end at")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("data.pkl", good)
    assert_refused(tmp_path / "zip", "claims")


@pytest.mark.parametrize(
    ("name", "offsets"),
    [
        (A, [0, 4, 3]),
        (A, [1, 3, 5]),
        (A, [0, -1, 5]),
        (A, [0, 2**62, 5]),
        (A, [0, 3, 6]),
        ("segments", [0, 5, 2]),
    ],
)
def test_offsets_that_do_not_divide_their_stack_are_refused(
    tmp_path: Path, good: bytes, name: str, offsets: list[int]
) -> None:
    header, payload = parts_of(good)
    start, stop = header[f"{name}.offsets"]["data_offsets"]
    payload = payload[:start] + bits(torch.tensor(offsets)) + payload[stop:]
    (tmp_path / "x").write_bytes(joined(header, payload))
    assert_refused(tmp_path / "x", "do not rise from 0")


def test_offsets_of_several_lengths_are_refused(tmp_path: Path, good: bytes) -> None:
    header, payload = parts_of(good)
    cut = header[f"{A}.offsets"]["data_offsets"][1]
    longer = payload[:cut] + payload[cut - 8 : cut] + payload[cut:]
    for name, values in header.items():
        if name != "__metadata__" and values["data_offsets"][1] >= cut:
            begin, end = values["data_offsets"]
            values["data_offsets"] = [begin + 8 * (begin >= cut), end + 8]
    header[f"{A}.offsets"]["shape"] = [4]
    (tmp_path / "x").write_bytes(joined(header, longer))
    assert_refused(tmp_path / "x", "number of segments")


def test_numbers_and_names_that_went_bad_are_refused_where_they_are(
    tmp_path: Path, good: bytes
) -> None:
    header, payload = parts_of(good)
    path = tmp_path / "x"
    last = header[A]["data_offsets"][1]
    path.write_bytes(joined(header, payload[: last - 4] + b"\0\0\xc0\x7f" + payload[last:]))
    assert_refused(path, f"{A} at index 1 has NaN")
    assert open_pack(path).load({"a": 0})[0].segment == "a"
    name = header["segments"]["data_offsets"][0]
    path.write_bytes(joined(header, payload[:name] + b"\xff" + payload[name + 1 :]))
    assert_refused(path, "a segment's name")


def test_only_regular_files_are_opened(tmp_path: Path, good: bytes) -> None:
    (tmp_path / "file").write_bytes(good)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    assert_refused(tmp_path / "link", "symbolic link")
    assert_refused(tmp_path / "fifo", "not a regular file")
    assert_refused(tmp_path, "not a regular file")
    assert_refused(Path("/dev/zero"), "not a regular file")


def test_a_pack_cut_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    pack = opened(tmp_path, small("a", 2), small("b", 3))
    os.truncate(pack.path, pack.path.stat().st_size - 1)
    with pytest.raises(StoreError, match="cut short"):
        all_of(pack, "a", "b")


@pytest.mark.parametrize(
    ("indexes", "message"),
    [
        ({"a": 2}, "'a': index 2 is outside"),
        ({"a": -1}, "'a': index -1 is outside"),
        ({"a": 1}, "expected segment 'a' at index 1, got 'b'"),
        ({"a": 0, "b": 0}, "expected segment 'b' at index 0, got 'a'"),
    ],
)
def test_an_index_that_is_not_the_segments_is_refused(
    tmp_path: Path, indexes: dict[str, int], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        opened(tmp_path, small("a", 2), small("b", 3)).load(indexes)
