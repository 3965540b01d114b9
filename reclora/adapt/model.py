"""AdaptedModel: any torch model with segment-aware deltas on its modules; `adapt` makes one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from reclora.adapt.attention import AttentionSite
from reclora.adapt.bags import BagSite
from reclora.adapt.embeddings import EmbeddingSite, TableDeltas
from reclora.adapt.layers import LayerSite
from reclora.adapt.mixed import Tiles
from reclora.adapt.numbers import filled, is_rows, stacked
from reclora.adapt.sites import Change, Site
from reclora.adapt.targets import Target, candidates, nearest, targets_of
from reclora.adapt.torchrec import CollectionSite
from reclora.adapters import Adapter
from reclora.configs import AdapterConfig, AdapterError, DeltaConfig
from reclora.counted import segment_seed
from reclora.deltas import Owners, TouchedRows
from reclora.stacks import AdapterStack

MOST_SLOTS = 20_000_000
"""Rows of a table times segments that may own numbers without being told which they touch."""


@dataclass
class _Call:
    """A forward under way: its batch, and the sites that it has reached."""

    tiles: Tiles
    reached: set[str] = field(default_factory=set)


class _Calls(threading.local):
    """The forward under way in each thread."""

    now: _Call | None = None


def adapt(
    model: nn.Module,
    configs: DeltaConfig | Sequence[DeltaConfig],
    segments: Sequence[str],
    rows: Mapping[str, Sequence[Tensor]] | None = None,
    seed: int = 0,
    parent: Adapter | None = None,
) -> AdaptedModel:
    """Put a delta for each segment on the modules of a model that the configs name.

    The model is frozen (`requires_grad` is off) and stays in evaluation mode: no byte of it
    changes, its buffers included. Its structure, the names in its state_dict and its types stay as
    they are; `AdaptedModel.remove` takes the deltas off again. (An nn.TransformerEncoder with
    deltas in it makes no nested tensors: what stands in padding is then not zero.)

    Args:
        model: on the CPU, float32 where it is adapted.
        configs: which kinds on which modules; several kinds on one module follow one another,
            multiplicative ones first.
        segments: any distinct strings; a segment's code is its place.
        rows: for each table with `rows` or `basis` the rows that each segment may change, one
            tensor a segment; without it each may change all rows of a small table.
        seed: with a segment's name it fixes that segment's random factors.
        parent: an adapter of the same model, frozen here, that every segment changes further; code
            -1, a segment that nobody knows, is served by it (without a parent by the model).

    Raises:
        AdapterError: no segment, one twice, a target that matches nothing (the nearest name is
            offered) or a module that cannot have what the config asks for; a table too large
            for all its rows in every segment; `rows` of something else; a parent of another model.
        IndexError: a row of `rows` is outside its table.
    """
    return AdaptedModel(model, configs, segments, rows, seed, parent)


class AdaptedModel(nn.Module):
    """A frozen model with a delta for each segment on some of its modules; made by `adapt`.

        scores = adapted(x, ..., segments=codes_B)

    takes what the model takes, and the segment of each sample; -1 is a segment that nobody knows.
    The first dimension of what an adapted module is given must be the samples, or 1 for what all
    of them share. Only the deltas are parameters, and the state_dict holds only them; their
    gradients are sparse. `train()` turns their dropout on, the model stays in evaluation mode.

    Calling the model itself instead of the adapted one is refused while the deltas are on it: it
    would be unadapted without a word.
    """

    def __init__(
        self,
        model: nn.Module,
        configs: DeltaConfig | Sequence[DeltaConfig],
        segments: Sequence[str],
        rows: Mapping[str, Sequence[Tensor]] | None = None,
        seed: int = 0,
        parent: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.configs = (configs,) if isinstance(configs, DeltaConfig) else tuple(configs)
        self.segment_names, self.parent_adapter = tuple(segments), parent
        self._codes = {name: code for code, name in enumerate(self.segment_names)}
        if not segments or len(self._codes) < len(self.segment_names):
            raise AdapterError(
                f"adapt needs at least one segment and distinct names, got {len(segments)} names, "
                f"{len(self._codes)} of them distinct"
            )
        targets = targets_of(model, self.configs)
        touched = _touched(model, targets, self.segment_names, rows or {})
        model.requires_grad_(False).eval()
        parent_model = None if parent is None else AdaptedModel.of(model, [parent])
        # In a tuple, so that neither their parameters nor their names become this module's.
        self._frozen = (model, parent_model)
        generators = [torch.Generator().manual_seed(segment_seed(seed, s)) for s in segments]
        owners = Owners.all(generators)
        self.sites: list[Site] = [
            _site(target, owners, touched.get(target.candidate.path)) for target in targets
        ]
        self.deltas = nn.ModuleDict(
            {
                f"{site.path}.{name}".replace(".", "/"): cast(nn.Module, delta)
                for site in self.sites
                for name, delta in site.deltas.items()
            }
        )
        self._calls = _Calls()
        self._merged: str | None = None
        self._kept: list[Change] = []
        self._fingerprint: str | None = None
        self._encoders = _nesting(model, self.sites)
        for encoder in self._encoders:
            encoder.use_nested_tensor = False
        self._attached = [site.attach(partial(self._current, site)) for site in self.sites]

    @classmethod
    def of(cls, model: nn.Module, adapters: Sequence[Adapter]) -> AdaptedModel:
        """An adapted model of stored adapters, with the rows that they touch.

        Raises:
            AdapterError: as `load`; an adapter of a base model of reclora's own.
        """
        stack = adapters if isinstance(adapters, AdapterStack) else AdapterStack.of(adapters)
        if isinstance(stack.config, AdapterConfig):
            raise AdapterError(
                f"the adapter of segment {stack.segments[0]!r} is of a base model with two tables "
                f"and a tower: take AdapterBank.of"
            )
        rows = {
            name.removesuffix("rows").removesuffix("."): stack.tensors[name].split(
                bounds.diff().tolist()
            )
            for name, bounds in stack.offsets.items()
            if is_rows(name)
        }
        adapted = cls(model, stack.config, stack.segments, rows, parent=stack.parent)
        try:
            adapted.load(stack)
        except AdapterError:
            adapted.remove()
            raise
        return adapted

    @property
    def model(self) -> nn.Module:
        """The frozen model."""
        return self._frozen[0]

    def forward(self, *args: Any, segments: Tensor | None = None, **kwargs: Any) -> Any:
        """What the model gives, each sample as its segment has it.

        Args:
            segments: int64 (B,): a code (`codes`) for each sample, -1 for none. Left out while an
                adapter is merged: then every sample is of its segment.

        Raises:
            AdapterError: codes that are none, or where they must not be; an adapted module that
                the model did not call, or called with another number of samples.
        """
        model, parent = self._frozen
        if self._merged is not None:
            if segments is not None:
                raise AdapterError(
                    f"segment {self._merged!r} is merged into the weights, so every sample is of "
                    f"it: leave `segments` out, or unmerge()"
                )
            return model(*args, **kwargs)
        call = _Call(Tiles(self._checked(segments)))
        outer, self._calls.now = self._calls.now, call
        try:
            if parent is None:
                output = model(*args, **kwargs)
            else:
                output = parent(*args, segments=torch.zeros_like(call.tiles.segments_B), **kwargs)
        finally:
            self._calls.now = outer
        missed = [site.path for site in self.sites if site.path not in call.reached]
        if missed:
            raise AdapterError(
                f"the model never called module {missed[0]!r} ({len(missed)} such in all), so its "
                f"delta did nothing: it may be read through its weight alone, or not in this "
                f"forward; do not adapt it"
            )
        return output

    def _checked(self, segments: Tensor | None) -> Tensor:
        if segments is None:
            raise AdapterError("an adapted model needs segments=: an int64 code for each sample")
        if segments.dtype != torch.int64 or segments.dim() != 1:
            raise AdapterError(
                f"segments must be int64 of shape (B,), got {segments.dtype} "
                f"{tuple(segments.shape)}; codes() makes them of names"
            )
        count = len(self.segment_names)
        if len(segments) and not -1 <= int(segments.min()) <= int(segments.max()) < count:
            raise AdapterError(
                f"segments must be codes from -1 to {count - 1}, got {int(segments.min())} to "
                f"{int(segments.max())}"
            )
        return segments

    def _current(self, site: Site) -> Tiles | None:
        if self._merged is not None:
            return None
        call = self._calls.now
        if call is None:
            raise AdapterError(
                f"module {site.path!r} is adapted, but was called outside of its adapted model "
                f"(or by a later pass, as activation checkpointing makes): call that with "
                f"segments=, or remove() its deltas"
            )
        call.reached.add(site.path)
        return call.tiles

    def codes(self, names: Sequence[str]) -> Tensor:
        """The codes of segments, int64; -1 for a name that is not known."""
        return torch.tensor([self._codes.get(name, -1) for name in names], dtype=torch.int64)

    def code(self, segment: str) -> int:
        """The code of one segment.

        Raises:
            AdapterError: there is none of that name; the nearest is offered.
        """
        if segment not in self._codes:
            raise AdapterError(
                f"no segment {segment!r} among {len(self._codes)}"
                f"{nearest(segment, self.segment_names)}"
            )
        return self._codes[segment]

    def train(self, mode: bool = True) -> AdaptedModel:
        """Turn the deltas' dropout on or off; the model stays in evaluation mode."""
        super().train(mode)
        return self

    def remove(self) -> None:
        """Take the deltas off the model, which is then as it was, but for being frozen."""
        self.unmerge()
        for detach in self._attached:
            detach()
        self._attached = []
        for encoder in self._encoders:
            encoder.use_nested_tensor = True
        if self._frozen[1] is not None:
            self._frozen[1].remove()

    # One segment in the model's own weights.

    @torch.no_grad()
    def merge(self, segment: str) -> None:
        """Write a segment's changes into the model's weights, in place.

        Until `unmerge`, forwards take no `segments`, and the model itself can be called. What is
        overwritten is kept.

        Raises:
            AdapterError: no such segment, another is merged, or a weight that another module
                reads, too, and would find changed.
        """
        code = self.code(segment)
        if self._merged is not None:
            raise AdapterError(f"segment {self._merged!r} is merged already: unmerge() first")
        _check_unshared(self.model, self.sites)
        if self._frozen[1] is not None:
            self._frozen[1].merge(cast(Adapter, self.parent_adapter).segment)
        self._merged = segment
        try:
            for site in self.sites:
                for change in site.merged(code):
                    self._overwrite(change)
        except BaseException:
            self.unmerge()
            raise

    def _overwrite(self, change: Change) -> None:
        weight, rows = change.weight, change.rows
        old = weight.clone() if rows is None else weight.index_select(0, rows)
        self._kept.append(Change(weight, rows, old))
        _write(change)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the model its own bytes back; without a merged segment nothing happens."""
        for kept in reversed(self._kept):
            _write(kept)
        self._kept, self._merged = [], None
        if self._frozen[1] is not None:
            self._frozen[1].unmerge()

    # Stored adapters.

    @property
    def base_fingerprint(self) -> str:
        """sha256 over the names, types, shapes and bytes of the frozen model's state_dict."""
        if self._frozen[1] is not None:
            return self._frozen[1].base_fingerprint
        if self._fingerprint is None:
            merged = self._merged
            self.unmerge()
            self._fingerprint = _fingerprint(self.model)
            if merged is not None:
                self.merge(merged)
        return self._fingerprint

    def adapter(self, segment: str) -> Adapter:
        """A copy of the segment's numbers.

        Its tensors are named path, kind, factor: `encoder.query.low_rank.a`; and for a table
        `users.rows`, the rows that it touches.

        Raises:
            AdapterError: there is no such segment.
        """
        code = self.code(segment)
        tensors = {}
        for name, (tensor, offsets) in stacked(self.sites).items():
            tensors[name] = tensor[int(offsets[code]) : int(offsets[code + 1])].clone()
        return Adapter(segment, self.configs, self.base_fingerprint, tensors, self.parent_adapter)

    def adapters(self) -> list[Adapter]:
        """Every segment's adapter: views of one copy."""
        return list(self.stack())

    def stack(self) -> AdapterStack:
        """A copy of the numbers of all segments."""
        parts = stacked(self.sites)
        return AdapterStack(
            self.segment_names,
            self.configs,
            self.base_fingerprint,
            {name: tensor.clone() for name, (tensor, _) in parts.items()},
            {name: offsets for name, (_, offsets) in parts.items()},
            self.parent_adapter,
        )

    @torch.no_grad()
    def load(self, adapters: Sequence[Adapter]) -> None:
        """Put the numbers of stored adapters in the place of their segments' own.

        Raises:
            AdapterError: no adapter, a segment that is not here, adapters of another model (both
                fingerprints are shown), config, parent, or of other rows; nothing is changed then.
        """
        stack = adapters if isinstance(adapters, AdapterStack) else AdapterStack.of(adapters)
        first = f"the adapter of segment {stack.segments[0]!r}"
        if stack.base_fingerprint != self.base_fingerprint:
            raise AdapterError(
                f"{first} was trained on model {stack.base_fingerprint}, this model is "
                f"{self.base_fingerprint}: load its own model, or train it anew on this one"
            )
        if stack.config != self.configs:
            raise AdapterError(f"{first} has {stack.config}, this model has {self.configs}")
        if not _same(stack.parent, self.parent_adapter):
            raise AdapterError(
                f"{first} stands on parent {stack.parent!r}, this model has "
                f"{self.parent_adapter!r}: adapt with the adapter's own parent"
            )
        codes = torch.tensor([self.code(segment) for segment in stack.segments])
        for tensor, places, values in filled(self.sites, stack, codes):
            tensor.index_copy_(0, places, values)

    def __repr__(self) -> str:
        numbers = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"AdaptedModel({type(self.model).__name__}, {len(self.segment_names):,} segments, "
            f"{len(self.sites)} adapted modules, {numbers:,} numbers)"
        )


def _site(target: Target, owners: Owners, touched: TouchedRows | None) -> Site:
    path, module, configs = target.candidate.path, target.candidate.module, target.configs
    match module:
        case nn.Linear() | nn.Conv1d() | nn.Conv2d():
            return LayerSite(path, module, configs, owners)
        case nn.MultiheadAttention():
            return AttentionSite(path, module, configs[0], owners)
    assert isinstance(module, nn.Embedding | nn.EmbeddingBag)
    deltas = TableDeltas(module, configs, owners, touched)
    if isinstance(module, nn.EmbeddingBag):
        return BagSite(path, module, deltas)
    if target.candidate.collection is not None:
        return CollectionSite(path, target.candidate.collection, module, deltas)
    return EmbeddingSite(path, module, deltas)


def _nesting(model: nn.Module, sites: Sequence[Site]) -> list[nn.TransformerEncoder]:
    """The encoders that would hand their layers nested tensors, in which nobody finds a sample."""
    owners = {id(site.owner) for site in sites}
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoder)
        and module.use_nested_tensor
        and any(id(part) in owners for part in module.modules())
    ]


def _touched(
    model: nn.Module,
    targets: Sequence[Target],
    segments: Sequence[str],
    rows: Mapping[str, Sequence[Tensor]],
) -> dict[str, TouchedRows]:
    """The rows that each segment may change of each table with a factor a row, by its path."""
    tables = {
        target.candidate.path: target.candidate.module.get_parameter("weight").shape[0]
        for target in targets
        if {"rows", "basis"} & {config.kind for config in target.configs}
    }
    names = candidates(model)
    given: dict[str, Sequence[Tensor]] = {}
    for name, lists in rows.items():
        path = names[name].path if name in names else None
        if path not in tables:
            raise AdapterError(
                f"rows are given for {name!r}, which has no delta of the kind `rows` or `basis`"
                f"{nearest(name, list(tables))}"
            )
        if len(lists) != len(segments):
            raise AdapterError(
                f"the rows of {name!r} must be one tensor for each of {len(segments)} segments, "
                f"got {len(lists)}"
            )
        given[path] = lists
    return {
        path: TouchedRows.of(given[path], count) if path in given else _all(path, count, segments)
        for path, count in tables.items()
    }


def _all(path: str, num_rows: int, segments: Sequence[str]) -> TouchedRows:
    if num_rows * len(segments) > MOST_SLOTS:
        raise AdapterError(
            f"table {path!r} has {num_rows:,} rows: numbers for all of them in each of "
            f"{len(segments):,} segments are more than {MOST_SLOTS:,} rows; pass "
            f"rows={{{path!r}: [the rows that each segment touches]}}"
        )
    offsets = torch.arange(len(segments) + 1) * num_rows
    return TouchedRows(num_rows, offsets, torch.arange(num_rows).repeat(len(segments)))


def _write(change: Change) -> None:
    if change.rows is None:
        change.weight.copy_(change.values)
    else:
        change.weight.index_copy_(0, change.rows, change.values)


def _check_unshared(model: nn.Module, sites: Sequence[Site]) -> None:
    """Refuse weights that stand in a second module, which would find them changed."""
    users: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append((path, module))
    for site in sites:
        for parameter in site.owner.parameters(recurse=False):
            others = [path for path, module in users[id(parameter)] if module is not site.owner]
            if others:
                raise AdapterError(
                    f"the weight of {site.path!r} is also that of {others[0]!r}, which is not "
                    f"adapted by it: merged, it would change, too; untie them first"
                )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            yield name, value.detach().contiguous()


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in _tensors(model):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _same(one: Adapter | None, other: Adapter | None) -> bool:
    """Whether two parents are of one content."""
    if one is other:
        return True
    if one is None or other is None:
        return False
    return (
        (one.config, one.base_fingerprint) == (other.config, other.base_fingerprint)
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    )
