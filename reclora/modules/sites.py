"""This file is what is common to the places of a model that are adapted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from reclora.deltas import Delta, TouchedRows
from reclora.modules.mixed import Tiles

Current = Callable[[], Tiles | None]
"""The batch of the forward under way; None while an adapter is merged into the weights."""


@dataclass(frozen=True)
class Change:
    """What a weight is with an adapter merged into it.

    Attributes:
        weight: the model's own memory, or a view of it.
        rows: the rows of it that are meant; None for all.
        values: what they become.
    """

    weight: Tensor
    rows: Tensor | None
    values: Tensor


class Site(Protocol):
    """A place of a model that is adapted.

    Attributes:
        path: its name.
        owner: the module whose weights are meant.
        deltas: its deltas by what follows its path in the names of their tensors: the kind.
        touched: the rows that each segment may change, of a table.
    """

    @property
    def path(self) -> str: ...

    @property
    def owner(self) -> nn.Module: ...

    @property
    def deltas(self) -> Mapping[str, Delta]: ...

    @property
    def touched(self) -> TouchedRows | None: ...

    def attach(self, current: Current) -> Callable[[], None]:
        """Take part in the model's forward from now on; returns what ends it."""
        ...

    def merged(self, code: int) -> Iterator[Change]:
        """What the segment makes of the weights; each is made when it is asked for."""
        ...


def hook_outputs(
    module: nn.Module, current: Current, adapted: Callable[[Tiles, tuple[Any, ...], Any], Any]
) -> Callable[[], None]:
    """Let `adapted` (tiles, arguments, output) make the output of a module; returns what ends it.

    The arguments by name follow those by place, as they stand in the module's signature.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        tiles = current()
        return output if tiles is None else adapted(tiles, _in_order(args, kwargs), output)

    return module.register_forward_hook(hook, with_kwargs=True).remove


def hook_inputs(
    module: nn.Module, current: Current, check: Callable[[Tiles, tuple[Any, ...]], None]
) -> Callable[[], None]:
    """Let `check` (tiles, arguments) refuse what a module is given; returns what ends it."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tiles = current()
        if tiles is not None:
            check(tiles, _in_order(args, kwargs))

    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


ARGUMENTS = ("input", "offsets", "per_sample_weights")
"""Of the modules with a weight, as torch names them; TorchRec's collections have one: `features`.
"""


def _in_order(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    if not kwargs:
        return args
    if "features" in kwargs:
        return (kwargs["features"],)
    return (*args, *(kwargs.get(name) for name in ARGUMENTS[len(args) :]))
