"""Settings as text: each with its value, where that came from and what it means.

What a field means is the text below it in the source, which the interpreter does not keep; it is
read from there.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from .run import LogSettings, RunSettings
from .settings import flat, json_schema, load, places, resolved

DEFAULT: Final = "default"
WIDTH: Final = 100
BEGIN: Final = """\
# The settings of a run: save this as run.toml, and name your log in [log].
# A line that begins with `#` and a key says its default, or one that it may have, `# e.g.`, where
# the key is not set; take the `#` away to change it.
"""


@dataclass(frozen=True)
class Shown:
    """Resolved settings, and of each by its dotted key: where its value came from."""

    settings: RunSettings
    sources: Mapping[str, str]
    """`run.toml:12`, `--set` or `default`."""


def shown(path: Path, overrides: Sequence[str] = ()) -> Shown:
    """Read a run's settings, and where each is said.

    Raises:
        SettingsError: as `load`.
    """
    settings = load(path, RunSettings, overrides)
    said = {".".join(map(str, key)): place for key, place in places(path, overrides).items()}
    return Shown(settings, {key: said.get(key, DEFAULT) for key in flat(resolved(settings))})


def beginning() -> Shown:
    """The settings of a new run, all at their defaults but for the log's files."""
    settings = RunSettings(log=LogSettings(files=(Path("logs/*.parquet"),)))
    return Shown(settings, dict.fromkeys(flat(resolved(settings)), DEFAULT))


def as_toml(found: Shown, explain: bool) -> str:
    """Every setting as TOML that loads to the same settings, with its source as a comment.

    Args:
        found: The settings.
        explain: Say above each what it means.
    """

    def line(key: str, value: object, hint: object) -> str:
        name = key.rpartition(".")[2]
        # TOML has no word for it.
        if value is None:
            return f"# {name} is not set"
        return f"{name} = {toml(value)}  # {_inert(found.sources[key])}"

    return "\n".join(_table(found.settings, resolved(found.settings), line, explain)) + "\n"


def starting_point() -> str:
    """A settings file for a new run: all sections, meanings and defaults, these commented out.

    A key that has no default has an example, in a comment too.
    """
    settings = beginning().settings

    def line(key: str, value: object, hint: object) -> str:
        name = key.rpartition(".")[2]
        if value is None:
            return f"#{name} = {toml(_example(hint))}  # e.g."
        said = f"{name} = {toml(value)}"
        return said if key == "log.files" else f"#{said}"

    return "\n".join([BEGIN, *_table(settings, resolved(settings), line, explain=True)]) + "\n"


def as_json(found: Shown, explain: bool) -> str:
    """`{"settings": {...}, "from": {key: source}}`; explained, with `"meaning": {key: text}`."""
    about: dict[str, Any] = {"settings": resolved(found.settings), "from": found.sources}
    if explain:
        about["meaning"] = dict(_meant(found.settings))
    return json.dumps(about, indent=2, allow_nan=False)


def schema() -> str:
    """The JSON Schema of a run's settings file, for editors: types, defaults and meanings."""
    found = json_schema(RunSettings)
    kinds = {kind.__name__: kind for kind in _kinds(beginning().settings)}
    for name, part in [(RunSettings.__name__, found), *found["$defs"].items()]:
        if name in kinds:
            part["description"] = _first_paragraph(kinds[name])
            for key, meaning in meanings(kinds[name]).items():
                part["properties"][key]["description"] = meaning
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(about | found, indent=2, allow_nan=False)


@cache
def meanings(kind: type) -> dict[str, str]:
    """What each field of a dataclass means, as far as it is said: the text below it, in one line.

    A field that is declared anew without a text means what it meant in the class above.
    """
    found: dict[str, str] = {}
    for each in reversed([each for each in kind.__mro__ if is_dataclass(each)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(tree, ast.ClassDef)
        for above, below in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(above, ast.AnnAssign)
                and isinstance(above.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[above.target.id] = " ".join(str(below.value.value).split())
    return found


def toml(value: object) -> str:
    """A plain value as inline TOML; JSON's strings, numbers and lists are TOML's."""
    if isinstance(value, dict):
        inner = (f"{_key(name)} = {toml(part)}" for name, part in value.items())
        return f"{{{', '.join(inner)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    # What a terminal would obey is escaped; TOML knows no other form for it than this.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)


def _table(
    settings: Any,
    plain: Mapping[str, Any],
    line: Callable[[str, object, object], str],
    explain: bool,
    path: tuple[str, ...] = (),
) -> Iterator[str]:
    """The lines of a section: its keys, and after them the sections that are in it."""
    texts, hints = meanings(settings.__class__), get_type_hints(settings.__class__)
    sections = {name for name in plain if is_dataclass(getattr(settings, name))}
    for name, value in plain.items():
        if name in sections:
            continue
        if explain:
            yield from textwrap.wrap(
                texts.get(name, ""), WIDTH, initial_indent="# ", subsequent_indent="# "
            )
        yield line(".".join((*path, name)), value, hints[name])
    for name in (name for name in plain if name in sections):
        section = getattr(settings, name)
        yield ""
        if explain:
            text = texts.get(name) or _first_paragraph(type(section))
            yield from textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")
        yield f"[{'.'.join((*path, name))}]"
        yield from _table(section, plain[name], line, explain, (*path, name))


def _example(hint: Any) -> object:
    """A plain value of a type; of an optional one, and of a choice, the first."""
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return parts[0]
    if get_origin(hint) is tuple:
        return [_example(parts[0])]
    if parts:
        return _example(parts[0])
    if is_dataclass(hint):
        return {name: _example(part) for name, part in get_type_hints(hint).items()}
    return {Path: "FILE", int: 100, float: 1.0}[hint]


def _meant(settings: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    texts = meanings(settings.__class__)
    for field in fields(settings):
        inner, key = getattr(settings, field.name), (*path, field.name)
        if field.name in texts:
            yield ".".join(key), texts[field.name]
        elif is_dataclass(inner):
            yield ".".join(key), _first_paragraph(type(inner))
        if is_dataclass(inner):
            yield from _meant(inner, key)


def _kinds(settings: Any) -> Iterator[type]:
    """The dataclasses of settings and of their sections."""
    yield type(settings)
    for field in fields(settings):
        if is_dataclass(inner := getattr(settings, field.name)):
            yield from _kinds(inner)


def _first_paragraph(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def _inert(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
