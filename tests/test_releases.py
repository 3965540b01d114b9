"""Releases: what is written is read back; what is damaged is refused; one writer wins a number."""

import json
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.store.reading import StoreError
from reclora.store.releases import (
    MAX_BYTES,
    Placement,
    Release,
    read_release,
    release_numbers,
    release_path,
    write_release,
)

PACK = "0123456789abcdef" * 4


def release(number: int = 7, **segments: Placement) -> Release:
    time = datetime(2026, 7, 1, 3, 30, tzinfo=UTC)
    return Release(number, time, "ann", "nightly", number - 1, "ba5e", segments)


numbers = st.floats(allow_infinity=False, allow_nan=False)
placements = st.builds(
    Placement, st.just(PACK), st.integers(0, 2**60), st.dictionaries(st.text(), numbers, max_size=3)
)


@settings(max_examples=50, deadline=None)
@given(
    st.text(),
    st.none() | st.text(),
    st.text(),
    st.none() | st.integers(1),
    st.dictionaries(st.text(), placements, max_size=4),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    reason: str,
    author: str | None,
    base: str,
    parent: int | None,
    segments: dict[str, Placement],
) -> None:
    folder = tmp_path_factory.mktemp("releases")
    time = datetime(2026, 7, 1, 3, 30, tzinfo=UTC)
    wanted = Release(1, time, author, reason, parent, base, segments)
    write_release(folder, wanted)
    assert read_release(folder, 1) == wanted
    assert release_path(folder, 1).read_bytes().isascii()


def test_an_unknown_metric_is_null_on_disk_and_nan_here(tmp_path: Path) -> None:
    write_release(tmp_path, release(de=Placement(PACK, 0, {"ndcg": math.nan, "recall": 0.25})))
    stored = json.loads((tmp_path / "00000007.json").read_text())
    assert stored["segments"]["de"]["metrics"] == {"ndcg": None, "recall": 0.25}
    metrics = read_release(tmp_path, 7).segments["de"].metrics
    assert math.isnan(metrics["ndcg"]) and metrics["recall"] == 0.25


def test_a_number_is_written_once(tmp_path: Path) -> None:
    write_release(tmp_path, release(a=Placement(PACK, 0, {})))
    with pytest.raises(FileExistsError):
        write_release(tmp_path, release(b=Placement(PACK, 0, {})))
    assert list(read_release(tmp_path, 7).segments) == ["a"]
    assert os.listdir(tmp_path) == ["00000007.json"]


def test_numbers_order_as_numbers_and_other_files_do_not_count(tmp_path: Path) -> None:
    for name in ("00000009.json", "123456789.json", "00000010.json", "00000011.json.tmp.ab"):
        (tmp_path / name).touch()
    for name in ("7.json", "000000012.json", "0000000x.json", "notes.txt", "٠٠٠٠٠٠٠١.json"):
        (tmp_path / name).touch()
    assert release_numbers(tmp_path) == [9, 10, 123456789]
    assert release_numbers(tmp_path / "missing") == []


def place(content: dict[str, Any], **values: object) -> None:
    content["segments"]["de"].update(values)


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
    "no segments": (lambda c: c.update(segments=None), "damaged"),
    "segments are a list": (lambda c: c.update(segments=[]), "damaged"),
    "segment is a list": (lambda c: c["segments"].update(fr=[]), "damaged"),
    "path": (lambda c: place(c, pack="../../" + PACK[6:]), "'de': no place"),
    "pack is short": (lambda c: place(c, pack=PACK[1:]), "'de': no place"),
    "pack ends in a newline": (lambda c: place(c, pack=PACK + "\n"), "'de': no place"),
    "pack is a number": (lambda c: place(c, pack=1), "damaged"),
    "index": (lambda c: place(c, index=-1), "'de': no place"),
    "index is a float": (lambda c: place(c, index=1.0), "'de': no place"),
    "metric is text": (lambda c: place(c, metrics={"x": "1"}), "finite number"),
    "metric is true": (lambda c: place(c, metrics={"x": True}), "finite number"),
    "metric is huge": (lambda c: place(c, metrics={"x": 10**400}), "damaged"),
    "metrics are a list": (lambda c: place(c, metrics=[]), "damaged"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_damaged_release_is_refused(tmp_path: Path, name: str) -> None:
    write_release(tmp_path, release(de=Placement(PACK, 0, {"ndcg": 0.5})))
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
    write_release(folder, release(de=Placement(PACK, 0, {"ndcg": 0.5})))
    path = release_path(folder, 7)
    text = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(text) - 1))
    text[bit // 8] ^= 1 << bit % 8
    path.write_bytes(text)
    try:
        assert read_release(folder, 7).number == 7
    except StoreError:
        pass


def test_a_sparse_terabyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "00000007.json").touch()
    os.truncate(tmp_path / "00000007.json", 2**40)
    with pytest.raises(StoreError, match=f"at most {MAX_BYTES:,}"):
        read_release(tmp_path, 7)


def test_a_link_is_refused(tmp_path: Path) -> None:
    write_release(tmp_path, release())
    (tmp_path / "00000008.json").symlink_to(tmp_path / "00000007.json")
    with pytest.raises(StoreError, match="symbolic link"):
        read_release(tmp_path, 8)
