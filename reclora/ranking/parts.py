"""Ranked lists on disk: a folder of Parquet parts that a killed run goes on with.

_request.json         what the lists are; another request in the folder is refused
part-00000.parquet    the lists, some thousands a part, each file whole or not there
_parts.jsonl          the sha256 of each finished part
_manifest.json        written last: its presence says that the lists are complete

Readers of Parquet folders pass over names that begin with `_`: `pandas.read_parquet(folder)` and
`pyarrow.dataset.dataset(folder)` give the lists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reclora.files import fsync, held_alone, make_folder, sha256_of, write_parquet, write_text

REQUEST, PARTS, MANIFEST = "_request.json", "_parts.jsonl", "_manifest.json"


class PartsError(ValueError):
    """A folder cannot take these parts; the message says why and what to do."""


@dataclass(frozen=True)
class Part:
    """A finished part: a fact about a file."""

    number: int
    """0, 1, 2 ..."""
    sha256: str
    """Of the file's bytes, in hex."""
    rows: int
    """Rows of its table."""

    @property
    def name(self) -> str:
        """The name of its file."""
        return part_name(self.number)


WritePart = Callable[[int, pa.Table], Part]


def part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def parquet_bytes(table: pa.Table) -> int:
    """How many bytes `table` takes as a part."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return int(sink.tell())


@dataclass(frozen=True)
class PartsFolder:
    """The parts of one request, in a folder of their own.

        folder = PartsFolder(Path("lists"), {"release": 42, "k": 100}, num_parts=7)
        kept = folder.finished()
        with folder.begun(kept) as write:
            parts = [kept.get(n) or write(n, table_of(n)) for n in range(7)]
            folder.complete(parts, {"lists": 123})

    The same request and tables give the same bytes, however often a run was killed on the way.
    """

    path: Path
    request: Mapping[str, str | int]
    """Everything that decides the parts, by the name that errors call it. Where the first differs
    an error names it alone: much of the rest differs because of it."""
    num_parts: int

    def finished(self) -> dict[int, Part]:
        """The parts that are there and whole, by number; every byte of them is read. Writes
        nothing.

        Raises:
            PartsError: the folder holds the parts of another request, or other files.
        """
        self._check_request()
        facts = _facts(self.path / PARTS)
        return {n: part for n, part in facts.items() if n < self.num_parts and self._holds(part)}

    @contextmanager
    def begun(self, kept: Mapping[int, Part]) -> Iterator[WritePart]:
        """Give the function that writes a part: (number, table) -> the finished part.

        Args:
            kept: what `finished` found. All else is written anew.

        Raises:
            PartsError: another process writes into the folder; or as `finished`.
            OSError: the disk refused; finished parts stay.
        """
        make_folder(self.path)
        with _alone_in(self.path):
            self._check_request()
            for unfinished in self.path.glob("*.tmp.*"):
                unfinished.unlink()
            if len(kept) < self.num_parts:
                (self.path / MANIFEST).unlink(missing_ok=True)
            write_text(self.path / REQUEST, json.dumps(dict(self.request), indent=2) + "\n")
            self._write_facts([kept[number] for number in sorted(kept)])
            yield self._write

    def complete(self, parts: Sequence[Part], about: Mapping[str, Any]) -> None:
        """Write the manifest: what was asked for, what is to be known of it, and all parts."""
        self._write_facts(parts)
        manifest = {
            "format": 1,
            "request": dict(self.request),
            **about,
            "rows": sum(part.rows for part in parts),
            "parts": [{"name": p.name, "sha256": p.sha256, "rows": p.rows} for p in parts],
        }
        write_text(self.path / MANIFEST, json.dumps(manifest, indent=2) + "\n")

    def _check_request(self) -> None:
        there = self.path / REQUEST
        if there.exists():
            self._compare(there)
            return
        others = sorted(self.path.iterdir()) if self.path.exists() else []
        others = [other for other in others if ".tmp." not in other.name]
        if others:
            raise PartsError(
                f"{self.path} holds other files, such as {others[0].name}, and no {REQUEST}; name "
                "a folder that is new or empty"
            )

    def _compare(self, there: Path) -> None:
        try:
            old = dict(json.loads(there.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise PartsError(f"{there} is damaged ({error}); name another folder") from error
        names = [n for n in {**self.request, **old} if old.get(n) != self.request.get(n)]
        if names:
            told = names[:1] if names[0] == next(iter(self.request)) else names
            found, asked = (
                ", ".join(f"{name} {request.get(name, 'not said')}" for name in told)
                for request in (old, self.request)
            )
            raise PartsError(
                f"{self.path} holds the lists of {found}, this would be {asked}: name another "
                "folder, or remove it"
            )

    def _holds(self, part: Part) -> bool:
        path = self.path / part.name
        if not path.is_file() or sha256_of(path) != part.sha256:
            return False
        return int(pq.read_metadata(path).num_rows) == part.rows

    def _write(self, number: int, table: pa.Table) -> Part:
        path = self.path / part_name(number)
        write_parquet(path, table)
        part = Part(number, sha256_of(path), len(table))
        with (self.path / PARTS).open("a", encoding="utf-8") as file:
            file.write(_fact(part))
        fsync(self.path / PARTS)
        return part

    def _write_facts(self, parts: Sequence[Part]) -> None:
        write_text(self.path / PARTS, "".join(map(_fact, parts)))


def _fact(part: Part) -> str:
    fact = {"number": part.number, "sha256": part.sha256, "rows": part.rows}
    return json.dumps(fact) + "\n"


def _facts(path: Path) -> dict[int, Part]:
    """What is said of finished parts; a line that a killed process left torn says nothing."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    parts = (_part_of(line) for line in lines)
    return {part.number: part for part in parts if part is not None}


def _part_of(line: bytes) -> Part | None:
    try:
        fact = json.loads(line)
        return Part(int(fact["number"]), str(fact["sha256"]), int(fact["rows"]))
    except (KeyError, TypeError, ValueError):
        return None


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from writing parts here."""
    with ExitStack() as held:
        try:
            held.enter_context(held_alone(folder))
        except BlockingIOError as error:
            raise PartsError(
                f"another process writes into {folder}; wait for it, or name another folder"
            ) from error
        yield
