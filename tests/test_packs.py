"""Packs: law 7 (bit for bit), and what damaged or hostile files do."""

import hashlib
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

from reclora.adapters import Adapter
from reclora.configs import AdapterConfig, Config, DeltaConfig
from reclora.stacks import AdapterStack
from reclora.store import StoreError
from reclora.store.layout import MAX_HEADER, HashedFile, header_of, is_hash, read_layout
from reclora.store.packs import Pack, is_finite, open_pack, pack_file
from reclora.store.reading import open_regular

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
    return open_pack(pack_file(AdapterStack.of(adapters), None).write(folder))


def read_whole(path: Path) -> list[Adapter]:
    return list(open_pack(path).stack(None))


def read_one_by_one(path: Path) -> list[Adapter]:
    pack = open_pack(path)
    return [pack.adapter(segment, index, None) for index, segment in enumerate("ab")]


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
    pack = opened(tmp_path, c, a, b)
    for index, (found, wanted) in enumerate(zip(pack.stack(None), (c, a, b), strict=True)):
        assert_same(found, wanted)
        assert_same(pack.adapter(wanted.segment, index, None), wanted)


def test_an_adapter_without_tensors_or_rows_or_name(tmp_path: Path) -> None:
    nothing = adapter("x", a=torch.empty(0, 0), b=torch.empty(0))
    for wanted in (adapter(""), nothing):
        pack = opened(tmp_path, wanted)
        assert_same(pack.stack(None)[0], wanted)
        assert_same(pack.adapter(wanted.segment, 0, None), wanted)


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(), st.lists(numbers, max_size=4), min_size=1, max_size=6))
def test_any_names_and_numbers_come_back(
    tmp_path_factory: pytest.TempPathFactory, values: Mapping[str, list[float]]
) -> None:
    wanted = [adapter(name, x=torch.tensor(own)) for name, own in values.items()]
    pack = opened(tmp_path_factory.mktemp("packs"), *wanted)
    for index, (found, one) in enumerate(zip(pack.stack(None), wanted, strict=True)):
        assert_same(found, one)
        assert_same(pack.adapter(one.segment, index, None), one)


def test_loaded_adapters_can_be_trained_without_touching_each_other(tmp_path: Path) -> None:
    pack = opened(tmp_path, small("a", 2), small("b", 3))
    a, b = pack.stack(None)
    a.tensors["item_table.a"].fill_(7)
    assert_same(b, small("b", 3))
    assert_same(pack.adapter("a", 0, None), small("a", 2))


def test_a_part_of_a_loaded_stack_can_be_changed_while_another_waits_for_its_gradient(
    tmp_path: Path,
) -> None:
    """All tensors lie in one memory block, but none is a view of another."""
    stack = opened(tmp_path, small("a", 2)).stack(None)
    factor = torch.ones(2, 2, requires_grad=True)
    product = (factor * stack.tensors["item_table.a"]).sum()
    stack.tensors["item_table.b"].zero_()
    product.backward()
    assert factor.grad is not None


def test_safetensors_own_reader_opens_a_pack(tmp_path: Path) -> None:
    a, b = small("ä", 2), small("b", 3)
    pack = opened(tmp_path, b, a)
    tensors = safetensors.torch.load_file(pack.path)
    assert bytes(tensors["segments"].numpy()) == "bä".encode()
    assert tensors["segments.offsets"].tolist() == [0, 1, 3]
    assert tensors["item_table.a.offsets"].tolist() == [0, 3, 5]
    stacked = torch.cat([b.tensors["item_table.a"], a.tensors["item_table.a"]])
    assert torch.equal(tensors["item_table.a"], stacked)


@pytest.mark.parametrize(
    "config",
    [
        AdapterConfig(rank=2, alpha=0.1, tower="none"),
        (DeltaConfig(("encoder.*", "head"), "low_rank"), DeltaConfig(("items",), "rows", rank=2)),
        (),
    ],
)
def test_a_pack_keeps_any_config(tmp_path: Path, config: Config) -> None:
    pack = opened(tmp_path, Adapter("b", config, BASE, {"x": torch.ones(1)}))
    assert pack.config == config and pack.stack(None).config == config


def test_the_same_numbers_have_the_same_name_however_they_lie(tmp_path: Path) -> None:
    plain, other = torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(2, 3)
    turned = other.t().contiguous().t().requires_grad_()
    files = [
        pack_file(
            AdapterStack(("a",), AdapterConfig(), BASE, {"x": x}, {"x": torch.tensor([0, 2])}), None
        )
        for x in (plain, turned)
    ]
    assert files[0].name == files[1].name and is_hash(files[0].name)
    written = files[0].write(tmp_path).read_bytes()
    assert hashlib.sha256(written).hexdigest() == files[0].name
    assert pack_file(AdapterStack.of([adapter("a", x=plain)]), "0" * 64).name != files[0].name


# --- what is not written ---------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite_are_refused(bad: float, dtype: torch.dtype) -> None:
    good, sick = torch.ones(2, dtype=dtype), torch.tensor([1, bad], dtype=dtype)
    stack = AdapterStack.of([adapter("good", **{"x.a": good}), adapter("sick", **{"x.a": sick})])
    with pytest.raises(StoreError, match=r"'sick': x\.a has NaN"):
        pack_file(stack, None)


def test_every_bfloat16_is_known_to_be_finite_or_not() -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    finite = torch.isfinite(every)
    assert is_finite(every[finite]) and 0 < finite.sum() < len(every)
    assert not any(is_finite(one) for one in every[~finite].split(1))


def test_numbers_of_a_type_that_no_pack_has_are_refused() -> None:
    stack = AdapterStack.of([adapter("b", x=torch.ones(1, dtype=torch.complex64))])
    with pytest.raises(StoreError, match=r"'b': x is torch.complex64; a pack holds torch.float64"):
        pack_file(stack, None)


@pytest.mark.parametrize("name", ["segments", "x.offsets"])
def test_names_that_a_pack_uses_itself_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match=name):
        pack_file(AdapterStack.of([adapter("a", **{name: torch.ones(1)})]), None)


def test_too_many_tensors_are_refused() -> None:
    many = adapter("a", **{f"{i:0200}": torch.ones(1) for i in range(3_000)})
    with pytest.raises(StoreError, match="6,002 tensors .* need a header of"):
        pack_file(AdapterStack.of([many]), None)


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


def stored(folder: Path, data: bytes) -> Path:
    """A file of these bytes under the name that they ask for: who forges one knows sha256, too."""
    return HashedFile.of([data]).write(folder)


def assert_refused(path: Path, message: str = "") -> None:
    """An error within 3 CPU-seconds (a collection of garbage may fall into it) and 100 MB."""
    begin = time.process_time()
    with pytest.raises(StoreError, match=message) as caught:
        read_whole(path)
    assert time.process_time() - begin < 3
    assert str(path) in str(caught.value)
    tracemalloc.start()
    try:
        with pytest.raises(StoreError):
            read_whole(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_the_good_file_is_good(tmp_path: Path, good: bytes) -> None:
    path = stored(tmp_path, joined(*parts_of(good)))
    for read in (read_whole, read_one_by_one):
        for found, wanted in zip(read(path), (small("a", 2), small("b", 3)), strict=True):
            assert_same(found, wanted)


def test_tensors_in_any_order_are_read(tmp_path: Path, good: bytes) -> None:
    """Not as this version writes them: numbers that are not aligned."""
    header, payload = parts_of(good)
    metadata = header.pop("__metadata__")
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"], reverse=True)
    pieces = [payload[slice(*values["data_offsets"])] for _, values in entries]
    turned = {name: (values["dtype"], tuple(values["shape"])) for name, values in entries}
    assert entries[0][1]["dtype"] == "U8" and len(pieces[0]) % 4
    path = stored(tmp_path, header_of(metadata, turned) + b"".join(pieces))
    for read in (read_whole, read_one_by_one):
        for found, wanted in zip(read(path), (small("a", 2), small("b", 3)), strict=True):
            assert_same(found, wanted)


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
    header = 8 + int.from_bytes(good[:8], "little")
    flipped = bytearray(good)
    for bit in data.draw(st.lists(st.integers(0, 8 * header - 1), min_size=1, max_size=3)):
        flipped[bit // 8] ^= 1 << bit % 8
    path = stored(tmp_path_factory.mktemp("flip", numbered=True), bytes(flipped))
    for read in (read_whole, read_one_by_one):
        try:
            adapters = read(path)
        except StoreError:
            continue
        # The flip was in a name or in the fingerprint; numbers and shapes hold together.
        assert [len(a.tensors) for a in adapters] == [3, 3]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_flipped_bit_is_found_when_the_whole_is_read(
    tmp_path_factory: pytest.TempPathFactory, good: bytes, data: st.DataObject
) -> None:
    flipped = bytearray(good)
    bit = data.draw(st.integers(0, 8 * len(good) - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    path = tmp_path_factory.mktemp("flip", numbered=True) / f"{HashedFile.of([good]).name}.x"
    path.write_bytes(flipped)
    with pytest.raises(StoreError):
        read_whole(path)


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
    "parent is a path": (lambda h: entry(h, "__metadata__", parent="../x"), "no sha256: '../x'"),
    "no parent": (lambda h: h["__metadata__"].pop("parent"), "expected the metadata"),
    "names are numbers": (lambda h: entry(h, "segments", shape=[1, 2]), "no bytes"),
    "U64 in a pack": (lambda h: entry(h, "items.rows", dtype="U64"), "a pack holds F64"),
    "offsets are floats": (lambda h: entry(h, f"{A}.offsets", dtype="F64"), "no offsets"),
    "offsets are flat": (lambda h: entry(h, f"{A}.offsets", shape=[1, 3]), "no offsets"),
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
    assert_refused(stored(tmp_path, joined(header, payload)), message)


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
    assert_refused(stored(tmp_path, data), message)


def test_as_many_tensors_as_a_header_holds_are_refused(tmp_path: Path, good: bytes) -> None:
    header, payload = parts_of(good)
    for i in range(14_000):
        header[str(i)] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    assert_refused(stored(tmp_path, joined(header, payload)), "lacks")


def test_trailing_bytes_and_archives_are_refused(tmp_path: Path, good: bytes) -> None:
    assert_refused(stored(tmp_path, good + b"\0"), "its tensors end at")
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
    path = stored(tmp_path, joined(header, payload))
    assert_refused(path, "do not rise from 0")
    try:
        found = read_one_by_one(path)
    except StoreError as error:
        assert "expected" in str(error)
    else:
        # Slices within the tensor: other numbers than were written, none that are not there.
        assert sum(len(one.tensors[A]) for one in found) <= 5


def test_offsets_of_several_lengths_are_refused(tmp_path: Path, good: bytes) -> None:
    header, payload = parts_of(good)
    cut = header[f"{A}.offsets"]["data_offsets"][1]
    longer = payload[:cut] + payload[cut - 8 : cut] + payload[cut:]
    for name, values in header.items():
        if name != "__metadata__" and values["data_offsets"][1] >= cut:
            begin, end = values["data_offsets"]
            values["data_offsets"] = [begin + 8 * (begin >= cut), end + 8]
    header[f"{A}.offsets"]["shape"] = [4]
    assert_refused(stored(tmp_path, joined(header, longer)), "number of segments")


def test_numbers_and_names_that_went_bad_are_refused_where_they_are(
    tmp_path: Path, good: bytes
) -> None:
    header, payload = parts_of(good)
    last = header[A]["data_offsets"][1]
    path = stored(tmp_path, joined(header, payload[: last - 4] + b"\0\0\xc0\x7f" + payload[last:]))
    assert_refused(path, f"'b': {A} has NaN")
    assert open_pack(path).adapter("a", 0, None).segment == "a"
    with pytest.raises(StoreError, match=f"'b': {A} has NaN"):
        open_pack(path).adapter("b", 1, None)
    start = header["segments"]["data_offsets"][0]
    for name, message in ((b"\xff", "can't decode"), (b"b", "'b' comes twice")):
        path = stored(tmp_path, joined(header, payload[:start] + name + payload[start + 1 :]))
        assert_refused(path, message)
        with pytest.raises(StoreError, match="expected segment 'a' at index 0"):
            open_pack(path).adapter("a", 0, None)


def test_bytes_that_are_not_those_of_the_name_are_refused(tmp_path: Path, good: bytes) -> None:
    path = HashedFile.of([good]).write(tmp_path)
    path.write_bytes(good[:-1] + b"?")
    assert_refused(path, "its sha256 is not its name")


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
        pack.stack(None)
    assert_same(pack.adapter("a", 0, None), small("a", 2))


@pytest.mark.parametrize(
    ("segment", "index", "message"),
    [
        ("a", 2, "'a': index 2 is outside"),
        ("a", -1, "'a': index -1 is outside"),
        ("a", 1, "expected segment 'a' at index 1, got 'b'"),
        ("b", 0, "expected segment 'b' at index 0, got 'a'"),
    ],
)
def test_an_index_that_is_not_the_segments_is_refused(
    tmp_path: Path, segment: str, index: int, message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        opened(tmp_path, small("a", 2), small("b", 3)).adapter(segment, index, None)


def test_a_pack_of_several_is_no_parents(tmp_path: Path) -> None:
    opened(tmp_path, small("a", 2)).check_single()
    with pytest.raises(StoreError, match="holds 2 adapters, expected that of one parent"):
        opened(tmp_path, small("a", 2), small("b", 3)).check_single()


def test_a_layout_says_where_each_tensor_lies(tmp_path: Path) -> None:
    header = header_of({"own": "x"}, {"wide": ("I64", (2, 3)), "thin": ("U8", (5,))})
    path = HashedFile.of([header, bytes(48), b"abcde"]).write(tmp_path)
    with open_regular(path) as descriptor:
        layout = read_layout(descriptor, path, {"own"})
    assert layout.metadata["own"] == "x" and layout.size == len(header) + 53
    thin = layout.regions["thin"]
    assert path.read_bytes()[thin.start : thin.start + thin.num_bytes] == b"abcde"
    assert layout.regions["wide"].start % 8 == 0 and layout.regions["wide"].row_bytes == 24
