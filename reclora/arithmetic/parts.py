"""This file is how an adapter comes apart into its deltas, whatever it adapts.

The kinds `rows`, `map` and `low_rank` are products: they change a P x Q matrix by scaling * L M,
where L (P x R) is zero and M (R x Q) is random at the start.

    rows       L = a (T x R)      M = b (R x D)      the touched rows
    map        L = a^T (D x R)    M = b (R x D)      what each row is multiplied by
    low_rank   L = b (O x R)      M = a (R x I)      a weight; of a convolution, flattened
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import Tensor

from reclora.adapters import Adapter
from reclora.configs import AdapterConfig, AdapterError, Config, DeltaConfig

PRODUCTS = {"rows": ("a", "b"), "map": ("a", "b"), "low_rank": ("b", "a")}
"""Kind -> the names of L and M."""
SIDES = {"user_table": "users", "item_table": "items", "item_bias": "items"}
"""A table of a base model -> whose rows it has."""

Settings = TypeVar("Settings", AdapterConfig, DeltaConfig)


@dataclass(frozen=True)
class Delta:
    """One delta of an adapter."""

    name: str
    """`target.kind`, as the names of its tensors begin."""
    target: str
    kind: str
    settings: AdapterConfig | DeltaConfig
    place: int
    """Of the settings in the config."""
    rows: str | None
    """The name of the touched rows that its factors, but for M, have; None if there are none."""
    factors: Mapping[str, Tensor]

    @property
    def is_product(self) -> bool:
        return self.kind in PRODUCTS

    @property
    def scaling(self) -> float:
        """What its factors are multiplied by."""
        return self.settings.low_rank.scaling if self.is_product or self.kind == "basis" else 1.0

    @property
    def left_PR(self) -> Tensor:
        left = self.factors[PRODUCTS[self.kind][0]]
        return left.T if self.kind == "map" else left

    @property
    def right_RQ(self) -> Tensor:
        return self.factors[PRODUCTS[self.kind][1]]

    def with_product(self, left_PR: Tensor, right_RQ: Tensor) -> Delta:
        """The same with another L and M."""
        left, right = PRODUCTS[self.kind]
        stored = left_PR.T.contiguous() if self.kind == "map" else left_PR
        return replace(self, factors={left: stored, right: right_RQ})

    @property
    def max_rank(self) -> int:
        """The largest rank of a product: D of a table, min(O, I) of a weight."""
        columns = self.right_RQ.shape[1]
        return columns if self.kind == "rows" else min(len(self.left_PR), columns)

    @property
    def takes_less(self) -> bool:
        """Whether it takes its largest rank where its settings ask for more."""
        return isinstance(self.settings, AdapterConfig) and self.kind == "low_rank"

    def tensors(self) -> dict[str, Tensor]:
        """The factors as an adapter names them."""
        return {f"{self.name}.{factor}": tensor for factor, tensor in self.factors.items()}


def deltas_of(adapter: Adapter) -> dict[str, Delta]:
    """Each delta by its name.

    Raises:
        AdapterError: it is not clear which settings one has.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    for path, tensor in adapter.tensors.items():
        if tensor.is_floating_point():
            name, _, factor = path.rpartition(".")
            factors.setdefault(name, {})[factor] = tensor
    settings = settings_of(adapter)
    deltas = {}
    for name, own in factors.items():
        target, _, kind = name.rpartition(".")
        place = _place(adapter, target, kind)
        rows = _rows(adapter.config, target, kind)
        deltas[name] = Delta(name, target, kind, settings[place], place, rows, own)
    return deltas


def settings_of(adapter: Adapter) -> tuple[AdapterConfig | DeltaConfig, ...]:
    """The one or several settings that each have a rank."""
    return (adapter.config,) if isinstance(adapter.config, AdapterConfig) else adapter.config


def resized(config: Config, ranks: list[int]) -> Config:
    """The config with other ranks, one for each of its settings, and the same scalings."""
    if isinstance(config, AdapterConfig):
        return _with_rank(config, ranks[0])
    return tuple(_with_rank(one, rank) for one, rank in zip(config, ranks, strict=True))


def check_finite(segment: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse numbers that are none, in the tensors of an adapter.

    Raises:
        AdapterError: a tensor, which it names, holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise AdapterError(
                f"{name} of the adapter of segment {segment!r} holds NaN or infinity: "
                "train it anew, or give it a smaller weight"
            )


def check_no_magnitude(adapter: Adapter) -> None:
    """Refuse an adapter that is no sum of products.

    Raises:
        AdapterError: the adapter has a learned magnitude.
    """
    if any(settings.magnitude for settings in settings_of(adapter)):
        raise AdapterError(
            f"the adapter of segment {adapter.segment!r} has a learned magnitude, which rescales "
            "what its factors add: train it without one"
        )


def _with_rank(settings: Settings, rank: int) -> Settings:
    growth = rank / settings.rank
    alpha = settings.alpha * (growth**0.5 if settings.rank_stabilised else growth)
    return replace(settings, rank=rank, alpha=alpha)


def _rows(config: Config, target: str, kind: str) -> str | None:
    if isinstance(config, AdapterConfig):
        side = SIDES.get(target)
        return None if side is None or kind in ("scale", "map") else f"{side}.rows"
    # A model that is itself a table has no path.
    return f"{target}.rows".removeprefix(".") if kind in ("rows", "basis") else None


def _place(adapter: Adapter, target: str, kind: str) -> int:
    """Where the settings of a delta stand in the config.

    They are those whose targets match its module, or the attention that its module is a part of;
    or else the only ones of the kind, since a module with two paths may be matched by the other.
    """
    if isinstance(adapter.config, AdapterConfig):
        return 0
    of_kind = {place: one for place, one in enumerate(adapter.config) if one.kind == kind}
    paths = (target, target.rpartition(".")[0])
    named = [
        place
        for place, one in of_kind.items()
        if any(fnmatchcase(path, pattern) for path in paths for pattern in one.targets)
    ]
    meant = named or list(of_kind)
    if len(meant) != 1:
        raise AdapterError(
            f"the adapter of segment {adapter.segment!r} has a `{kind}` of {target!r}, but "
            f"{len(meant)} of its settings may be meant: name that path in one of them alone"
        )
    return meant[0]
