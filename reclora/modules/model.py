"""AdaptedModel: any torch model with segment-aware deltas on its modules; `adapt` makes one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from reclora.adapters import Adapter
from reclora.configs import AdapterConfig, AdapterError, DeltaConfig
from reclora.counted import segment_seed
from reclora.deltas import Owners, TouchedRows
from reclora.modules.attention import AttentionSite
from reclora.modules.bags import BagSite
from reclora.modules.embeddings import EmbeddingSite, TableDeltas
from reclora.modules.frozen import (
    Fingerprint,
    check_unshared,
    digest_of,
    fingerprint_of,
    same_parent,
)
from reclora.modules.layers import LayerSite
from reclora.modules.mixed import Tiles
from reclora.modules.numbers import filled, is_rows, stacked
from reclora.modules.rows import touched_rows
from reclora.modules.sharded import Ranks, check_same, unwrapped
from reclora.modules.sites import Change, Site
from reclora.modules.targets import Target, candidates, nearest, targets_of
from reclora.modules.torchrec import CollectionSite, ShardedBagSite
from reclora.stacks import AdapterStack

ADAPTED_BY = "adapted_by"
"""The attribute under which a model knows what adapts it."""


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

    A delta acts on what comes out of its module. Where a model reads a weight past its module as
    well (`h @ self.items.weight.T`), that reads the frozen weight; `merge` is for such a model.

    A model in TorchRec's DistributedModelParallel is adapted as the one that is in it, under the
    same names, by every rank alike. Each rank gives its own samples, and calls `backward` as often
    as the others: it leaves the mean of all ranks' gradients, as DistributedDataParallel's does.
    `adapt`, `load`, and what asks for the model's fingerprint (`adapter`, `stack`) are collective.

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
            for all its rows in every segment; `rows` of something else, or outside their table;
            a parent of another model; a model that is adapted already, or sharded in a way that
            deltas do not know; ranks that adapt differently.
    """
    return AdaptedModel(model, configs, segments, rows, seed, parent)


class AdaptedModel(nn.Module):
    """A frozen model with a delta for each segment on some of its modules; made by `adapt`.

        scores = adapted(x, ..., segments=codes_B)

    takes what the model takes, and the segment of each sample; -1 is a segment that nobody knows.
    The first dimension of what an adapted module is given must be the samples, or 1 for what all
    of them share. `train()` turns the deltas' dropout on, the model stays in evaluation mode.

    Only the deltas are parameters, and the state_dict holds only them. Their gradients are sparse:
    `RowwiseAdagrad`, and torch's SGD (without weight_decay), SparseAdam and Adagrad take them.

    Calling the model itself instead of the adapted one is refused while the deltas are on it: it
    would be unadapted without a word.
    """

    def __init__(
        self,
        model: nn.Module,
        configs: DeltaConfig | Sequence[DeltaConfig],
        segments: Sequence[str],
        rows: Mapping[str, Sequence[Tensor]] | None = None,
        seed: int | None = 0,
        parent: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.configs = (configs,) if isinstance(configs, DeltaConfig) else tuple(configs)
        self.segment_names, self.parent_adapter = _distinct(segments), parent
        self._codes = {name: code for code, name in enumerate(self.segment_names)}
        if ADAPTED_BY in model.__dict__:
            raise AdapterError(
                f"this {type(model).__name__} is adapted already: model.{ADAPTED_BY}.remove() "
                f"takes those deltas off; to stand on other deltas, pass their adapter as parent"
            )
        if not self.configs and parent is None:
            raise AdapterError("adapt needs at least one DeltaConfig, got none")
        whole = unwrapped(model)
        self._ranks = Ranks.of(whole)
        names = candidates(whole)
        targets = targets_of(self.configs, names)
        touched = touched_rows(targets, names, self.segment_names, rows or {})
        owners = (
            Owners.blank(len(self.segment_names))
            if seed is None
            else Owners.all([_generator(seed, segment) for segment in self.segment_names])
        )
        self.sites: list[Site] = [
            _site(target, owners, touched.get(target.candidate.path)) for target in targets
        ]
        self.deltas = nn.ModuleDict(
            {
                # A module's name has no dot, but it may have a slash.
                f"{site.path}.{name}".replace("/", "//").replace(".", "/"): cast(nn.Module, delta)
                for site in self.sites
                for name, delta in site.deltas.items()
            }
        )
        self._calls = _Calls()
        self._merged: str | None = None
        self._kept: list[Change] = []
        self._fingerprint = Fingerprint(model)
        if self._ranks is not None:
            check_same(fingerprint_of(self), "segments, configs, rows and seed")
        parent_model = None
        if parent is not None:
            parent_model = AdaptedModel.of(model, [parent]).requires_grad_(False)
        # In a tuple, so that neither their parameters nor their names become this module's.
        self._frozen = (model, parent_model, whole)
        for parameter in whole.parameters():
            if parameter.is_leaf:  # A shard is none, and `Ranks` freezes it.
                parameter.requires_grad_(False)
        model.eval()
        model.__dict__[ADAPTED_BY] = self
        self._encoders = _nesting(model, self.sites)
        for encoder in self._encoders:
            encoder.use_nested_tensor = False
        self._attached = [] if self._ranks is None else self._ranks.attach([*self.parameters()])
        self._attached += [site.attach(partial(self._current, site)) for site in self.sites]

    @classmethod
    def of(
        cls, model: nn.Module, adapters: Sequence[Adapter] | Sequence[AdapterStack]
    ) -> AdaptedModel:
        """An adapted model of stored adapters, with the rows that they touch; their dropout is off
        until `train()`.

        Args:
            adapters: of one config and one parent, or served by that parent; stacks of such
                (`AdapterStore.load_stacks`) are the fastest.

        Raises:
            AdapterError: as `load`; an adapter of a base model of reclora's own.
        """
        own, served, parent = _own_and_served(adapters)
        if own is None:
            return cls(model, (), served, parent=parent).eval()
        if isinstance(own.config, AdapterConfig):
            raise AdapterError(
                f"the adapter of segment {own.segments[0]!r} is of a base model with two tables "
                f"and a tower: take AdapterBank.of"
            )
        _check_model(own, fingerprint_of(model))
        nothing = [torch.empty(0, dtype=torch.int64)] * len(served)
        rows = {
            name.removesuffix("rows").removesuffix("."): [
                *own.tensors[name].split(bounds.diff().tolist()),
                *nothing,
            ]
            for name, bounds in own.offsets.items()
            if is_rows(name)
        }
        # Where all numbers are put in, none is drawn.
        seed, names = 0 if served else None, (*own.segments, *served)
        adapted = cls(model, own.config, names, rows, seed, own.parent)
        try:
            adapted.load(own)
        except AdapterError:
            adapted.remove()
            raise
        return adapted.eval()

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
        _, parent, model = self._frozen
        if self._merged is not None:
            if segments is not None:
                raise AdapterError(
                    f"segment {self._merged!r} is merged into the weights, so every sample is of "
                    f"it: leave `segments` out, or unmerge()"
                )
            return model(*args, **kwargs)
        if self.model.__dict__.get(ADAPTED_BY) is None:
            raise AdapterError("the deltas were taken off this model by remove(): adapt it anew")
        if model.training:
            model.eval()  # Something around it has called train().
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
        if not isinstance(segments, Tensor):
            raise AdapterError(
                f"segments must be an int64 tensor (B,), got {type(segments).__name__}; codes() "
                f"makes one of names"
            )
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

    def remove(self) -> None:
        """Take the deltas off the model, which is then as it was, but for being frozen: all but the
        tables that TorchRec shards, which take a step in every backward again.
        """
        self.unmerge()
        for detach in self._attached:
            detach()
        self._attached = []
        for encoder in self._encoders:
            encoder.use_nested_tensor = True
        if self._frozen[1] is not None:
            self._frozen[1].remove()
        self.model.__dict__.pop(ADAPTED_BY, None)

    # One segment in the model's own weights.

    @torch.no_grad()
    def merge(self, segment: str) -> None:
        """Write a segment's changes into the model's weights, in place.

        Until `unmerge`, forwards take no `segments`, and the model itself can be called. What is
        overwritten is kept.

        Raises:
            AdapterError: no such segment, another is merged, a weight that another module reads,
                too, and would find changed, or a sharded model.
        """
        code = self.code(segment)
        if self._ranks is not None:
            raise AdapterError(
                "the model's tables are sharded, and nothing is merged into those: serve with "
                "segments=, or put stack() on the model of one process and merge there"
            )
        if self._merged is not None:
            raise AdapterError(f"segment {self._merged!r} is merged already: unmerge() first")
        check_unshared(self.model, self.sites)
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
        """sha256 over the names, types, shapes and bytes of the frozen model's state_dict.

        Raises:
            AdapterError: an adapter is merged into the model's weights.
        """
        if self._merged is not None:
            raise AdapterError(
                f"segment {self._merged!r} is merged into the model's weights: unmerge() first"
            )
        return self._fingerprint()

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

    def stack(self) -> AdapterStack:
        """A copy of the numbers of all segments: a sequence of their adapters."""
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
                fingerprints are shown), config, parent, or of other rows, or others on another
                rank; nothing is changed then.
        """
        stack = adapters if isinstance(adapters, AdapterStack) else AdapterStack.of(adapters)
        first = f"the adapter of segment {stack.segments[0]!r}"
        _check_model(stack, self.base_fingerprint)
        if stack.config != self.configs:
            raise AdapterError(f"{first} has {stack.config}, this model has {self.configs}")
        if not same_parent(stack.parent, self.parent_adapter):
            raise AdapterError(
                f"{first} stands on parent {stack.parent!r}, this model has "
                f"{self.parent_adapter!r}: adapt with the adapter's own parent"
            )
        codes = torch.tensor([self.code(segment) for segment in stack.segments])
        if self._ranks is not None:
            check_same(digest_of(stack.tensors), "the adapters to load")
        for tensor, places, values in filled(self.sites, stack, codes):
            tensor.index_copy_(0, places, values)

    def get_extra_state(self) -> Tensor:
        """What `load_state_dict` compares: whose numbers the state_dict holds, as a sha256."""
        rows = {name: tensor for name, (tensor, _) in stacked(self.sites).items() if is_rows(name)}
        digest = hashlib.sha256(repr((self.segment_names, self.configs)).encode())
        for name in sorted(rows):
            digest.update(rows[name].numpy().data)
        return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse the numbers of other segments, configs or rows, before one of them is copied.

        Raises:
            AdapterError: they are others, or an adapter is merged into the model's weights.
        """
        if self._merged is not None:
            raise AdapterError(f"segment {self._merged!r} is merged: unmerge() first")
        if not torch.equal(state, self.get_extra_state()):
            raise AdapterError(
                "this state_dict is of other segments (or in another order), configs or rows: "
                "adapt as it was adapted, or keep stack() instead, which says whose numbers it has"
            )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise AdapterError(
            "an adapted model cannot be copied or pickled, as its deltas are hooks on the model: "
            "keep stack() (an AdapterStore publishes it), and AdaptedModel.of(model, stack)"
        )

    def __repr__(self) -> str:
        numbers = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"AdaptedModel({type(self.model).__name__}, {len(self.segment_names):,} segments, "
            f"{len(self.sites)} adapted modules, {numbers:,} numbers)"
        )


def _distinct(segments: Sequence[str]) -> tuple[str, ...]:
    if isinstance(segments, str) or not all(isinstance(name, str) for name in segments):
        raise AdapterError(f"segments must be a sequence of texts, got {segments!r}")
    distinct = len(set(segments))
    if not distinct or distinct < len(segments):
        raise AdapterError(
            f"adapt needs at least one segment and distinct names, got {len(segments)} names, "
            f"{distinct} of them distinct"
        )
    return tuple(segments)


def _generator(seed: int, segment: str) -> torch.Generator:
    return torch.Generator().manual_seed(segment_seed(seed, segment))


def _check_model(stack: AdapterStack, fingerprint: str) -> None:
    if stack.base_fingerprint != fingerprint:
        raise AdapterError(
            f"the adapter of segment {stack.segments[0]!r} was trained on model "
            f"{stack.base_fingerprint}, this model is {fingerprint}: load its own model, or train "
            f"it anew on this one"
        )


def _own_and_served(
    adapters: Sequence[Adapter] | Sequence[AdapterStack],
) -> tuple[AdapterStack | None, list[str], Adapter | None]:
    """Those that have numbers of their own, the segments that have none, and the parent."""
    parts: list[Adapter | AdapterStack] = (
        [adapters] if isinstance(adapters, AdapterStack) else list(adapters)
    )
    own: list[Adapter | AdapterStack] = []
    served: list[str] = []
    for one in parts:
        if one.config != () or one.parent is None:
            own.append(one)
        else:
            served += one.segments if isinstance(one, AdapterStack) else [one.segment]
    parents = [one.parent for one in parts]
    if any(parent is not parents[0] for parent in parents):
        raise AdapterError(
            f"the adapters stand on different parents, {parents[0]!r} and others: adapt a model "
            f"for those of each parent"
        )
    if served and not own:
        return None, served, parents[0]
    if len(own) == 1 and isinstance(own[0], AdapterStack):
        return own[0], served, parents[0]
    flat = [each for one in own for each in (one if isinstance(one, AdapterStack) else [one])]
    return AdapterStack.of(flat), served, parents[0]


def _site(target: Target, owners: Owners, touched: TouchedRows | None) -> Site:
    path, module, configs = target.candidate.path, target.candidate.module, target.configs
    match module:
        case nn.Linear() | nn.Conv1d() | nn.Conv2d():
            return LayerSite(path, module, configs, owners)
        case nn.MultiheadAttention():
            return AttentionSite(path, module, configs[0], owners)
    assert isinstance(module, nn.Embedding | nn.EmbeddingBag)
    deltas = TableDeltas(module, configs, owners, touched)
    collection = target.candidate.collection
    if isinstance(module, nn.EmbeddingBag):
        bags = BagSite(path, module, deltas)
        return bags if collection is None else ShardedBagSite(path, collection, bags)
    if collection is not None:
        return CollectionSite(path, collection, module, deltas)
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


def _write(change: Change) -> None:
    if change.rows is None:
        change.weight.copy_(change.values)
    else:
        change.weight.index_copy_(0, change.rows, change.values)
