"""This file is what the deltas of an adapter are to be: their kinds, ranks and scalings."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args

from reclora.deltas import LowRank
from reclora.deltas.blocks import Init

BiasKind = Literal["bias", "none"]
TowerKind = Literal["low_rank", "full", "none"]
LADDER = ("scale", "map", "basis", "rows")
"""The kinds of a table that combine, in the order in which they follow one another."""
MODULE_KINDS = ("low_rank", "scale", "bias", "map", "basis", "rows")
"""The kinds of a delta on a module of any model; which of them a module takes depends on it."""


class AdapterError(ValueError):
    """An adapter that does not fit its base, its bank or its settings; the message says how."""


@dataclass(frozen=True)
class AdapterConfig:
    """Which deltas an adapter has, and how large.

    Raises:
        AdapterError: a kind or init that is not known (the nearest name is offered), kinds that do
            not combine, a rank below 1, an alpha that is not positive, or a magnitude without
            `rows`.
    """

    user_table: str = "rows"
    """`scale`, `map`, `basis` or `rows`, or several: `scale + rows` (see `reclora.deltas`). `full`:
    every touched row free (fine-tuning). `none`: stays frozen.
    """
    item_table: str = "rows"
    """As `user_table`."""
    item_bias: BiasKind = "bias"
    """`bias`: one number per touched item. `none`: stays frozen."""
    tower: TowerKind = "low_rank"
    """`low_rank`: each weight by B A. `full`: weights and biases free, but for the last bias, which
    changes no order. `none`: stays frozen.
    """
    rank: int = 8
    """R, at least 1, at most the tables' embedding_dim; a tower's weight takes min(R, its sides).
    """
    alpha: float = 8.0
    """The change is scaled by alpha / R; positive."""
    rank_stabilised: bool = False
    """Scaled by alpha / sqrt(R) instead, so that steps do not shrink as R grows (Kalajdzievski,
    "A rank stabilization scaling factor", 2023, section 3)."""
    init: Init = "normal"
    """How the factor starts that does not start at zero: `normal`, or `orthogonal` rows."""
    magnitude: bool = False
    """`rows` learns the length of each touched row apart from its direction (DoRA)."""

    def __post_init__(self) -> None:
        for name in ("user_table", "item_table"):
            table_kinds(name, getattr(self, name))
        check_name("item_bias", self.item_bias, get_args(BiasKind))
        check_name("tower", self.tower, get_args(TowerKind))
        check_low_rank("the adapter", self.rank, self.alpha, self.init)
        if self.magnitude and not {"rows"} & {*self.user_kinds, *self.item_kinds}:
            raise AdapterError(
                f"magnitude is learned for the kind `rows`, but user_table is "
                f"{self.user_table!r} and item_table {self.item_table!r}: take `rows`, or leave "
                "magnitude out"
            )

    @property
    def user_kinds(self) -> tuple[str, ...]:
        """The kinds of the user table, in the order of the ladder."""
        return table_kinds("user_table", self.user_table)

    @property
    def item_kinds(self) -> tuple[str, ...]:
        """The kinds of the item table, in the order of the ladder."""
        return table_kinds("item_table", self.item_table)

    @property
    def scaling(self) -> float:
        """alpha / R, or alpha / sqrt(R)."""
        return scaling_of(self.alpha, self.rank, self.rank_stabilised)

    @property
    def low_rank(self) -> LowRank:
        """The size of its products."""
        return LowRank(self.rank, self.scaling, self.init)


@dataclass(frozen=True)
class DeltaConfig:
    """A delta on each of the modules of a model that match; see `reclora.modules`.

    Raises:
        AdapterError: no target, a kind or init that is not known, a rank below 1, an alpha that is
            not positive, or a dropout outside 0 <= p < 1 or on a kind that has no input to drop.
    """

    targets: tuple[str, ...]
    """Exact paths of modules (`encoder.layer.0.attention.self.query`) or patterns with `*`, `?`,
    `[...]`; each must match something that can have the delta."""
    kind: str
    """One of `low_rank`, `scale`, `bias` (layers), `rows`, `basis`, `map`, `scale` (tables)."""
    rank: int = 8
    """R, at least 1, at most the smaller side of what it changes."""
    alpha: float = 8.0
    """The change is scaled by alpha / R; positive."""
    rank_stabilised: bool = False
    """Scaled by alpha / sqrt(R) instead."""
    init: Init = "normal"
    """How the factor starts that does not start at zero: `normal`, or `orthogonal` rows."""
    dropout: float = 0.0
    """Share of what enters the factors that is dropped in training: of the input of `low_rank`, of
    the row factor of `rows` and `basis`; 0 <= p < 1."""
    magnitude: bool = False
    """`rows` learns the length of each touched row apart from its direction (DoRA)."""

    def __post_init__(self) -> None:
        if isinstance(self.targets, str) or not self.targets:
            raise AdapterError(
                f"targets must be a tuple of paths or patterns of modules, got {self.targets!r}"
            )
        object.__setattr__(self, "targets", tuple(self.targets))
        where = f"the delta on {', '.join(self.targets)}"
        check_name(f"{where}: kind", self.kind, MODULE_KINDS)
        check_low_rank(where, self.rank, self.alpha, self.init)
        if not 0 <= self.dropout < 1:
            raise AdapterError(
                f"{where}: dropout must be at least 0 and below 1, got {self.dropout}"
            )
        if self.dropout and self.kind not in ("low_rank", "rows", "basis"):
            raise AdapterError(
                f"{where}: dropout is of the input of `low_rank` or the row factor of `rows` and "
                f"`basis`; the kind `{self.kind}` has neither: leave it out"
            )
        if self.magnitude and self.kind != "rows":
            raise AdapterError(
                f"{where}: magnitude is learned for the kind `rows` only: of a weight it would "
                f"cost a pass over the whole of it in every step; got `{self.kind}`"
            )

    @property
    def low_rank(self) -> LowRank:
        """The size of its product."""
        scaling = scaling_of(self.alpha, self.rank, self.rank_stabilised)
        return LowRank(self.rank, scaling, self.init)


Config = AdapterConfig | tuple[DeltaConfig, ...]
"""The settings of an adapter: of a base model's, or of any model's."""


def config_to_json(config: Config) -> dict[str, Any]:
    """What `config_from_json` makes the same config of."""
    if isinstance(config, AdapterConfig):
        return asdict(config)
    return {"deltas": [{**asdict(delta), "targets": list(delta.targets)} for delta in config]}


def config_from_json(values: Mapping[str, Any]) -> Config:
    """The config that was written.

    Raises:
        TypeError, ValueError: it is none; the message says why.
    """
    if not isinstance(values, Mapping) or values.keys() != {"deltas"}:
        return AdapterConfig(**_checked(AdapterConfig, values))
    if not isinstance(values["deltas"], list):
        raise TypeError(f"expected a list of deltas, got {values['deltas']!r}")
    return tuple(DeltaConfig(**_checked(DeltaConfig, delta)) for delta in values["deltas"])


def _checked(kind: type, values: Any) -> dict[str, Any]:
    types: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "tuple[str, ...]": (list,),
    }
    if not isinstance(values, dict):
        raise TypeError(f"expected settings of a {kind.__name__}, got {values!r}")
    for field in fields(kind):
        if field.name not in values:
            continue
        value, allowed = values[field.name], types.get(str(field.type), (str,))
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise TypeError(f"{field.name} must be {field.type}, got {value!r}")
        if isinstance(value, list) and not all(isinstance(one, str) for one in value):
            raise TypeError(f"{field.name} must be a list of texts, got {value!r}")
    return values


def table_kinds(name: str, text: str) -> tuple[str, ...]:
    """The kinds that `text` names, in the order of the ladder; none for `none`.

    Raises:
        AdapterError: a kind that is not known or does not belong to a table, one twice, or two
            that do not combine.
    """
    kinds = [kind.strip() for kind in text.split("+")]
    for kind in kinds:
        if kind in ("bias", "low_rank"):
            where = "item_bias" if kind == "bias" else "tower"
            raise AdapterError(
                f"{name} got the kind `{kind}`, which is one of {where}; a table takes "
                f"{', '.join(LADDER)}, full or none"
            )
        check_name(name, kind, (*LADDER, "full", "none"))
    if len(kinds) > 1 and {"full", "none"} & {*kinds}:
        raise AdapterError(f"{name} = {text!r}: `full` and `none` stand alone")
    if len({*kinds}) < len(kinds):
        raise AdapterError(f"{name} = {text!r} names a kind twice")
    if {"basis", "rows"} <= {*kinds}:
        raise AdapterError(f"{name} = {text!r}: `rows` can do all that `basis` can; take one")
    if kinds == ["none"]:
        return ()
    return tuple(kind for kind in (*LADDER, "full") if kind in kinds)


def check_name(what: str, got: str, known: Sequence[str]) -> None:
    """Refuse a name that is not known, with the nearest that is.

    Raises:
        AdapterError: `got` is not among `known`.
    """
    if got not in known:
        near = get_close_matches(str(got), known, n=1, cutoff=0.5)
        raise AdapterError(
            f"{what} must be one of {', '.join(known)}, got {got!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )


def check_low_rank(where: str, rank: int, alpha: float, init: str) -> None:
    """Refuse numbers that make no product of factors.

    Raises:
        AdapterError: rank is below 1, alpha not positive, or init not known.
    """
    if not 1 <= rank < 1 << 31:
        raise AdapterError(f"{where}: rank must be at least 1 (and below 2^31), got {rank}")
    if not 0 < alpha <= sys.float_info.max:
        raise AdapterError(f"{where}: alpha must be a positive number, got {alpha}")
    check_name(f"{where}: init", init, get_args(Init))


def scaling_of(alpha: float, rank: int, rank_stabilised: bool) -> float:
    """alpha / R, or alpha / sqrt(R)."""
    return alpha / (rank**0.5 if rank_stabilised else rank)


FULL = AdapterConfig(user_table="full", item_table="full", item_bias="bias", tower="full")
"""Everything free: full fine-tuning of what a segment touches."""

NOTHING = AdapterConfig(user_table="none", item_table="none", item_bias="none", tower="none")
"""Everything frozen: the segment is served by its parent."""
