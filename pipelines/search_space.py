"""What is tuned, and within which bounds: a TOML file beside the settings, with the same keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Final, get_type_hints

from reclora.configs import AdapterConfig
from reclora.training import TrainingConfig

from .contenders import SEARCHED
from .run import RunSettings
from .settings import SettingsError, flat, load, places, read, resolved

if TYPE_CHECKING:
    from optuna import Trial

DEFAULT: Final = Path(__file__).with_suffix(".toml")
"""The space of a run that has none of its own."""
_SECTIONS: Final[Mapping[str, type]] = {"adapter": AdapterConfig, "training": TrainingConfig}
CHOSEN = ("parent", "kinds", "history", "half_life")
"""What can be tuned outside of [adapter] and [training]: nothing that decides what is judged."""


@dataclass(frozen=True)
class Range:
    """low <= value <= high.

    Raises:
        ValueError: low is not below high, or log is asked for from 0 or below.
    """

    low: float
    high: float
    log: bool = False
    """Drawn evenly on a logarithmic scale."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 where log = true, got {self.low:g}")


Bounds = Range | tuple[Any, ...]
"""A range, or the values themselves."""


@dataclass(frozen=True)
class Space:
    """The bounds of each key that is tuned."""

    bounds: Mapping[str, Bounds]
    """By dotted key, as `--set` has it: `training.rows_lr`."""
    whole: frozenset[str]
    """The keys of whole numbers."""

    @classmethod
    def read(cls, path: Path, settings: RunSettings) -> Space:
        """Read the space of a run.

        Raises:
            SettingsError: it cannot be read; a key is none that can be tuned (the nearest is
                offered); bounds are malformed, or hold a value that `settings` would not take.
        """
        found: Any = load(path, _tunable_of(read(path)))
        bounds = {
            f"{name}.{inner}" if inner else name: value
            for name, inner, value in _leaves(found)
            if value is not None
        }
        whole = frozenset(key for key in bounds if _hint_of(key) is int)
        space = cls(bounds, whole)
        if not bounds:
            raise SettingsError(f"{path}: it names nothing to tune; allowed are {_allowed()}")
        where = {".".join(map(str, key)): place for key, place in places(path).items()}
        for key in bounds:
            if fault := space._fault(key, settings):
                raise SettingsError(f"{where[key]}: {key}: {fault}")
        return space

    def _fault(self, key: str, settings: RunSettings) -> str:
        """Why the bounds of a key are none; empty where they are."""
        bounds = self.bounds[key]
        if isinstance(bounds, Range):
            ends = [bounds.low, bounds.high]
            if key in self.whole and any(not float(end).is_integer() for end in ends):
                return f"whole numbers are needed, got {ends[0]:g} to {ends[1]:g}"
            values = [int(end) if key in self.whole else end for end in ends]
        else:
            values = list(bounds)
            if not values or len(set(values)) < len(values):
                return f"different values are needed, at least one, got {values}"
        for value in values:
            try:
                with_values(settings, {key: value})
            except ValueError as error:
                return str(error)
        return ""

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """The values that a trial is to have."""
        return {key: self._suggested(trial, key) for key in self.bounds}

    def _suggested(self, trial: Trial, key: str) -> Any:
        bounds = self.bounds[key]
        if not isinstance(bounds, Range):
            return trial.suggest_categorical(key, bounds)
        if key in self.whole:
            return trial.suggest_int(key, int(bounds.low), int(bounds.high), log=bounds.log)
        return trial.suggest_float(key, bounds.low, bounds.high, log=bounds.log)

    def inside(self, settings: RunSettings) -> dict[str, Any]:
        """What settings say of the keys, as far as it is within the bounds."""
        said = flat(resolved(settings))
        return {key: said[key] for key, bounds in self.bounds.items() if _holds(bounds, said[key])}

    def is_log(self, key: str) -> bool:
        """Whether a key is drawn on a logarithmic scale."""
        bounds = self.bounds[key]
        return isinstance(bounds, Range) and bounds.log

    @property
    def plain(self) -> dict[str, Any]:
        """The bounds by key, JSON-able."""
        return {key: vars(b) if isinstance(b, Range) else b for key, b in self.bounds.items()}


def with_values(settings: RunSettings, values: Mapping[str, Any]) -> RunSettings:
    """The settings with other values of some keys; [search] no longer chooses what is given.

    Raises:
        ValueError: the settings refuse a value.
    """
    sections: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        sections[section][name] = value
    changes = sections.pop("", {})
    for section, inner in sections.items():
        changes[section] = replace(getattr(settings, section), **inner)
    given = [name for name in SEARCHED if name in sections.get("training", {})]
    search = replace(settings.search, **dict.fromkeys(given, ()))
    return replace(settings, search=search, **changes)


def space_of(settings: Path) -> Path:
    """The file of the space of a settings file: `run.space.toml` beside `run.toml`, where it is."""
    beside = settings.with_suffix(".space.toml")
    return beside if beside.exists() else DEFAULT


def _tunable_of(said: Mapping[str, Any]) -> type:
    """The dataclass that a space of such content is read into."""
    sections = {name: said.get(name) for name in _SECTIONS}
    tables = {name: part if isinstance(part, dict) else {} for name, part in sections.items()}
    inner = {name: _tunable(kind, _names(kind), tables[name]) for name, kind in _SECTIONS.items()}
    return _tunable(RunSettings, CHOSEN, said, **inner)


def _tunable(kind: type, names: Sequence[str], said: Mapping[str, Any], **inner: type) -> type:
    """A dataclass of the bounds of some keys of a dataclass, and of its sections."""
    hints = get_type_hints(kind)
    own = [(name, _bounds_of(hints[name], said.get(name)), None) for name in names]
    sections = [(name, section, section()) for name, section in inner.items()]
    return make_dataclass(f"Tunable{kind.__name__}", [*own, *sections], frozen=True)


def _bounds_of(hint: Any, said: object) -> Any:
    """The type of the bounds of a key: of both that there are the one that was meant, so that no
    fault is told of the other.
    """
    choices = GenericAlias(tuple, (hint, ...))
    if hint not in (int, float) or isinstance(said, list):
        return choices | None
    return Range | None if isinstance(said, dict) else Range | choices | None


def _leaves(found: Any) -> list[tuple[str, str, Any]]:
    """(key or section, key in it or nothing, bounds)."""
    leaves = []
    for field in fields(found):
        value = getattr(found, field.name)
        if is_dataclass(value) and not isinstance(value, Range):
            leaves += [(field.name, f.name, getattr(value, f.name)) for f in fields(value)]
        else:
            leaves.append((field.name, "", value))
    return leaves


def _hint_of(key: str) -> Any:
    section, _, name = key.rpartition(".")
    return get_type_hints(_SECTIONS.get(section, RunSettings))[name]


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _holds(bounds: Bounds, value: Any) -> bool:
    if isinstance(bounds, Range):
        return bool(bounds.low <= value <= bounds.high)
    return value in bounds


def _allowed() -> str:
    return f"{', '.join(CHOSEN)}, and the keys of [adapter] and [training]"
