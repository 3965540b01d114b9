"""The door for settings: TOML becomes frozen dataclasses, or an error with file and line.

The library's configs are plain dataclasses. Strictness is put on them here, so that the library
needs no pydantic: unknown keys, wrong types, NaN and infinity are refused, and nothing is converted
in silence.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

Settings = TypeVar("Settings")
KeyPath = tuple[str | int, ...]

STRICT: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
DEEPEST: Final = 32

EXAMPLES: Final[Mapping[KeyPath, str]] = {("log",): '[log] with files = ["logs/*.parquet"]'}
"""The least that a section without a default may say."""


class SettingsError(ValueError):
    """A settings file or an override that says something else than the settings allow."""


def load(path: Path, into: type[Settings], overrides: Sequence[str] = ()) -> Settings:
    """Read a TOML file into a frozen dataclass whose sections are dataclasses.

    Args:
        path: The file. Paths in it are taken as written.
        into: A standard dataclass; a field that is itself a dataclass is a section of the file.
        overrides: `section.key=value`, each replacing or adding one key. The value is read as TOML,
            and where it is not TOML it is a string: `training.epochs=3`, `data.folder=logs/july`.

    Raises:
        SettingsError: the file cannot be read, is not TOML, or has a key that `into` lacks, a
            missing key, a value of another type, NaN, infinity, an unquoted date, or a value that
            the dataclass itself refuses (a ValueError of its `__post_init__`). One line a fault,
            each with `file:line` (or the override) and the key; a misspelt one gets the nearest,
            and one of another section the sections that have it.
    """
    text = _read(path)
    document = _parse(text, path)
    changes = [_change(override) for override in overrides]
    for change in changes:
        _apply(change, document)
    _make_strict(into, set())
    faults = {key: fault for key, value in _walk(document) if (fault := _refusal(value))}
    try:
        settings = TypeAdapter(into).validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        faults = _faults(error.errors(include_url=False), into, document) | faults
    else:
        if not faults:
            return settings
    said = _all_places(path, text, changes)
    lines = [f"{_place(key, said, path)}: {_spell(key)}{fault}" for key, fault in faults.items()]
    raise SettingsError("\n".join(lines)) from None


def resolved(settings: object) -> dict[str, Any]:
    """Return the settings as nested plain values: sections as dictionaries, paths as strings."""
    plain = TypeAdapter(type(settings)).dump_python(settings, mode="json")
    assert isinstance(plain, dict)
    return plain


def flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by their dotted key; lists and empty mappings stay values."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{name}.{inner}": part for inner, part in flat(value).items()}
        else:
            found[name] = value
    return found


def read(path: Path) -> dict[str, Any]:
    """Return what a settings file says, as TOML has it, whatever settings it is for.

    Raises:
        SettingsError: it cannot be read or is not TOML; as `load`.
    """
    return _parse(_read(path), path)


def places(path: Path, overrides: Sequence[str] = ()) -> dict[KeyPath, str]:
    """Return where each key of a file and its overrides is given: `file:line`, or `--set`.

    Raises:
        SettingsError: as `load`, of what is said before any settings are made of it.
    """
    text = _read(path)
    document = _parse(text, path)
    changes = [_change(override) for override in overrides]
    for change in changes:
        _apply(change, document)
    said = _all_places(path, text, changes)
    of_overrides = {_about(change): "--set" for change in changes}
    found = {key: _place(key, said, path) for key, _ in _walk(document)}
    return {key: of_overrides.get(place, place) for key, place in found.items()}


def json_schema(into: type) -> dict[str, Any]:
    """Return the JSON Schema of a file that `load` reads into a dataclass, as pydantic has it."""
    _make_strict(into, set())
    return TypeAdapter(into).json_schema()


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        hint = ""
        if isinstance(error, IsADirectoryError):
            hint = "; expected a TOML file"
        elif isinstance(error, FileNotFoundError):
            beside = [str(each) for each in path.parent.glob("*.toml")]
            near = difflib.get_close_matches(str(path), beside, n=1)
            meant = f"did you mean {near[0]}?" if near else "`reclora settings` prints one"
            hint = f"; {meant}"
        raise SettingsError(
            f"{path}: the settings cannot be read: {error.strerror}{hint}"
        ) from error
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SettingsError(f"{path}:{line}: settings are UTF-8, and this line is not") from error


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        document = _toml(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}:{_fault_line(text, error)}: {_syntax(error)}") from error
    return document


def _toml(text: str) -> dict[str, Any]:
    document = tomllib.loads(text)
    if any(len(key) > DEEPEST for key, _ in _walk(document)):
        raise RecursionError
    return document


def _walk(value: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Yield every key path of a document with its value, sections before what is in them."""
    inner: Sequence[tuple[str | int, object]] = ()
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    for step, part in inner:
        yield (*path, step), part
        yield from _walk(part, (*path, step))


def _syntax(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"settings nest at most {DEEPEST} deep"
    what = re.sub(r"\(at (line \d+, )?(.*)\)$", r"(\2)", str(error))
    hint = ""
    if what.startswith("Invalid value"):
        hint = "; strings and dates go in quotes, booleans are true and false"
    return f"not TOML: {what}{hint}"


def _fault_line(text: str, error: Exception) -> int:
    if named := re.search(r"\(at line (\d+),", str(error)):
        return int(named[1])
    for number, prefix in _prefixes(text):
        try:
            _toml(prefix)
        except (ValueError, RecursionError) as again:
            if type(again) is type(error) and str(again) == str(error):
                return number
    return text.count("\n") + 1


def _prefixes(text: str) -> Iterator[tuple[int, str]]:
    lines = text.split("\n")
    for number in range(1, len(lines) + 1):
        yield number, "\n".join(lines[:number])


def _lines(text: str) -> dict[KeyPath, int]:
    """Return the line on which each key path of a valid document begins.

    tomllib gives no positions, but a statement is complete only on its last line: the longest
    prefix of the file that parses without a key ends just above the statement that brings it.
    """
    lines: dict[KeyPath, int] = {}
    above = 0
    for number, prefix in _prefixes(text):
        try:
            document = tomllib.loads(prefix)
        except tomllib.TOMLDecodeError:
            continue
        for key, _ in _walk(document):
            lines.setdefault(key, above + 1)
        above = number
    return lines


@dataclass(frozen=True)
class _Change:
    text: str
    path: tuple[str, ...]
    value: object


def _change(override: str) -> _Change:
    name, equals, value = override.partition("=")
    try:
        nested = _toml(f"{name} = 0") if equals and "\n" not in name else {}
    except (ValueError, RecursionError):
        nested = {}
    if not nested:
        raise SettingsError(f"an override is section.key=value, got {override!r}")
    *_, (key, _) = _walk(nested)
    return _Change(override, tuple(map(str, key)), _value(value))


def _about(change: _Change) -> str:
    return f"override {change.text!r}"


def _value(text: str) -> object:
    try:
        document = _toml(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return document["value"] if len(document) == 1 else text


def _apply(change: _Change, document: dict[str, Any]) -> None:
    section = document
    for step in change.path[:-1]:
        section = section.setdefault(step, {})
        if not isinstance(section, dict):
            raise SettingsError(f"override {change.text!r}: {step} is a key, not a section")
    section[change.path[-1]] = change.value


def _make_strict(hint: Any, done: set[type]) -> None:
    for found in _dataclasses(hint):
        if found not in done:
            done.add(found)
            # Where pydantic looks for a standard dataclass's config; Python itself ignores it.
            found.__pydantic_config__ = STRICT  # type: ignore[attr-defined]
            for inner in get_type_hints(found).values():
                _make_strict(inner, done)


def _dataclasses(hint: Any) -> Iterator[type]:
    """Yield the dataclasses that a type names: itself, or those of a union, tuple, list or dict."""
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for inner in get_args(hint):
        yield from _dataclasses(inner)


def _refusal(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"expected a finite number, got {value}"
    if isinstance(value, date | datetime | time):
        return f'dates and times go in quotes, as in "{value.isoformat()}"'
    return ""


def _faults(
    errors: Sequence[ErrorDetails], into: type, document: dict[str, Any]
) -> dict[KeyPath, str]:
    known = dict(_walk(document))
    faults: dict[KeyPath, str] = {}
    expected: dict[KeyPath, list[str]] = {}
    for error in errors:
        key: KeyPath = error["loc"]
        if error["type"] == "unexpected_keyword_argument":
            faults[key] = _unknown(key, into)
        elif error["type"] == "missing":
            example = f"; give, for example, {EXAMPLES[key]}" if key in EXAMPLES else ""
            faults[key] = f"missing, and it has no default{example}"
        elif error["type"] == "value_error":
            faults[_blamed(error, known)] = str(error["ctx"]["error"])
        else:
            # The branch of a union stands at the end of the path, and in no file.
            while key and key not in known:
                key = key[:-1]
            what = error["msg"].removeprefix("Input should be ").replace("an object", "a table")
            expected.setdefault(key, []).append(what)
    for key, offered in expected.items():
        got = json.dumps(known.get(key, document), ensure_ascii=False, default=str)
        got = got if len(got) <= 60 else got[:57] + "..."
        faults[key] = f"expected {' or '.join(offered)}, got {got}"
    return faults


def _unknown(key: KeyPath, into: type) -> str:
    name, allowed = str(key[-1]), _allowed(key[:-1], into)
    near = difflib.get_close_matches(name, allowed, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    sections = sorted(set(_sections_with(name, into)), key=lambda section: (len(section), section))
    spelt = [f"[{'.'.join(section)}]" if section else "the file itself" for section in sections]
    lives = f"{name} is a key of {', '.join(spelt)}; " if spelt else ""
    return f"unknown key; {meant}{lives}allowed here: {', '.join(allowed)}"


def _sections_with(name: str, kind: type, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the sections that have a key of just that name; () is the file itself."""
    hints = get_type_hints(kind)
    for key in (field.name for field in fields(kind)):
        if key == name:
            yield path
        # The sections of a dictionary are called as their writer likes.
        below = (*path, key, "NAME") if get_origin(hints[key]) is dict else (*path, key)
        for inner in _dataclasses(hints[key]):
            yield from _sections_with(name, inner, below)


def _allowed(section: KeyPath, into: type) -> list[str]:
    classes = [into]
    for step in section:
        hints = [get_type_hints(each).get(str(step)) for each in classes]
        # A step that is no field is a position in a list or the name of a union's branch.
        classes = [found for hint in hints for found in _dataclasses(hint)] or classes
    return sorted({field.name for each in classes for field in fields(each)})


def _blamed(error: ErrorDetails, known: Mapping[KeyPath, object]) -> KeyPath:
    """Return the key that a section's own check names first, or the section."""
    words = re.findall(r"\w+", str(error["ctx"]["error"]))
    return next((key for word in words if (key := (*error["loc"], word)) in known), error["loc"])


def _all_places(path: Path, text: str, changes: Sequence[_Change]) -> dict[KeyPath, str]:
    places = {key: f"{path}:{line}" for key, line in _lines(text).items()}
    for change in changes:
        below = len(change.path)
        places = {key: place for key, place in places.items() if key[:below] != change.path}
        for length in range(1, below + 1):
            places.setdefault(change.path[:length], _about(change))
    return places


def _place(key: KeyPath, places: Mapping[KeyPath, str], path: Path) -> str:
    ends = range(len(key), 0, -1)
    return next((places[key[:end]] for end in ends if key[:end] in places), f"{path}:1")


def _spell(key: KeyPath) -> str:
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in key)
    return f"{steps.removeprefix('.')}: " if key else ""
