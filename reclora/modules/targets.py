"""This file is which modules of a model a config names, and what stands against a delta there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import nn

from reclora.configs import AdapterError, DeltaConfig
from reclora.modules.sharded import is_sharded, stand_in, why_not

LAYER_KINDS = ("scale", "low_rank", "bias")
TABLE_KINDS = ("scale", "map", "basis", "rows")
ATTENTION_KINDS = ("low_rank",)
"""The kinds of each sort of module, in the order in which they follow one another."""

KINDS_OF: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: LAYER_KINDS,
    nn.Conv1d: LAYER_KINDS,
    nn.Conv2d: LAYER_KINDS,
    nn.Embedding: TABLE_KINDS,
    nn.EmbeddingBag: TABLE_KINDS,
    nn.MultiheadAttention: ATTENTION_KINDS,
}
COLLECTIONS = {"EmbeddingCollection": "embeddings", "EmbeddingBagCollection": "embedding_bags"}
"""TorchRec's modules of many tables -> where their tables are."""


@dataclass(frozen=True)
class Candidate:
    """A module that a target may name.

    Attributes:
        path: the first of its names.
        module: what is changed there.
        kinds: of deltas that it can have; none where it cannot have any.
        collection: the TorchRec collection that it is a table of, where that is what is called.
        why_not: what stands against a delta on it, where its type alone would not.
        is_part: it is the last projection of an attention, which reads its weight.
    """

    path: str
    module: nn.Module
    kinds: tuple[str, ...] = ()
    collection: nn.Module | None = None
    why_not: str | None = None
    is_part: bool = False

    @property
    def type_name(self) -> str:
        return type(self.module).__name__


@dataclass(frozen=True)
class Target:
    """A module that gets deltas, and which: at most one of each kind, in their order."""

    candidate: Candidate
    configs: tuple[DeltaConfig, ...]


def targets_of(configs: Sequence[DeltaConfig], names: Mapping[str, Candidate]) -> list[Target]:
    """Every module that the configs name, in the model's order.

    Args:
        names: every name of every module, see `candidates`.

    Raises:
        AdapterError: a target that matches nothing (the nearest name is offered) or nothing that
            can have the kind, a kind twice on a module, `basis` beside `rows`, a rank above the
            smaller side of what it changes, or a module that cannot be adapted; it is named.
    """
    found: dict[str, tuple[Candidate, list[DeltaConfig]]] = {}
    for config in configs:
        matches = [match for target in config.targets for match in _matches(target, config, names)]
        for candidate in {match.path: match for match in matches}.values():
            _check(candidate, config)
            taken = found.setdefault(candidate.path, (candidate, []))[1]
            if config.kind in (other.kind for other in taken):
                raise AdapterError(f"module {candidate.path!r} gets the kind `{config.kind}` twice")
            taken.append(config)
    order = {candidate.path: place for place, candidate in enumerate(names.values())}
    targets = []
    for path in sorted(found, key=order.__getitem__):
        candidate, taken = found[path]
        if {"basis", "rows"} <= {config.kind for config in taken}:
            raise AdapterError(
                f"module {path!r} gets `basis` and `rows`; `rows` can do all that `basis` can: "
                f"take one"
            )
        taken.sort(key=lambda config: candidate.kinds.index(config.kind))
        targets.append(Target(candidate, tuple(taken)))
    return targets


def candidates(model: nn.Module) -> dict[str, Candidate]:
    """Every name of every module -> what stands there; a tied module has several names.

    A table of a TorchRec collection is named `path.table`, and by its place in the collection,
    sharded or not.
    """
    of_module: dict[int, Candidate] = {}
    names: dict[str, Candidate] = {}
    unreachable = _unreachable(model)
    parts = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    for path, module in model.named_modules(remove_duplicate=False):
        if id(module) not in of_module:
            of_module[id(module)] = Candidate(
                path, module, _kinds(module), None, unreachable.get(id(module)), id(module) in parts
            )
        names.setdefault(path, of_module[id(module)])
        for name, table in _tables(module):
            alone = _joined(path, name)
            of_module.setdefault(
                id(table), _table(alone, module, name, table, unreachable.get(id(table)))
            )
            names[alone] = of_module[id(table)]
    return names


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` where a known name is near."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _table(
    path: str, collection: nn.Module, name: str, table: nn.Module, reason: str | None
) -> Candidate:
    if is_sharded(collection):
        bag = stand_in(collection, name)
        return Candidate(path, bag, _kinds(bag), collection, why_not(collection, name))
    holder = collection if isinstance(table, nn.Embedding) else None
    return Candidate(path, table, _kinds(table), holder, reason)


def _tables(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The tables of a TorchRec collection by name; TorchRec is not imported to see one."""
    if is_sharded(module):
        yield from module.get_submodule("embedding_bags").named_children()
    for kind in type(module).__mro__:
        if kind.__module__ == "torchrec.modules.embedding_modules" and kind.__name__ in COLLECTIONS:
            yield from module.get_submodule(COLLECTIONS[kind.__name__]).named_children()


def _kinds(module: nn.Module) -> tuple[str, ...]:
    """Empty where the forward is not the one that a delta is made for."""
    for kind, kinds in KINDS_OF.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return kinds
    return ()


def _unreachable(model: nn.Module) -> dict[int, str]:
    """Modules whose own forward is not called, or is called with time before samples."""
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            found[id(module.out_proj)] = (
                f"is read by the attention {path!r}, which never calls it: target {path!r}"
            )
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            if not module.self_attn.batch_first:
                for linear in (module.linear1, module.linear2):
                    found[id(linear)] = (
                        f"is called by {path!r} with time before samples: build the model with "
                        f"batch_first=True"
                    )
    return found


def _matches(target: str, config: DeltaConfig, names: Mapping[str, Candidate]) -> list[Candidate]:
    """What a target names that can have the kind."""
    kind = config.kind
    if target in names:
        candidate = names[target]
        if kind in candidate.kinds:
            return [candidate]
        raise AdapterError(f"module {target!r} {_cannot(candidate, kind)}")
    matched = {c.path: c for name, c in names.items() if fnmatchcase(name, target)}
    able = [c for c in matched.values() if kind in c.kinds]
    # An attention's projection is adapted as part of it, where a pattern names both.
    reached = [c for c in able if not c.is_part]
    if able:
        return reached or able
    if matched:
        first = next(iter(matched.values()))
        raise AdapterError(
            f"the pattern {target!r} matches {len(matched)} modules, but none that can have the "
            f"kind `{kind}`; {first.path!r} {_cannot(first, kind)}"
        )
    supported = [name for name, c in names.items() if c.kinds]
    raise AdapterError(f"the target {target!r} matches no module{nearest(target, supported)}")


def _cannot(candidate: Candidate, kind: str) -> str:
    if candidate.kinds:
        return (
            f"is of type {candidate.type_name}, which takes the kinds "
            f"{', '.join(candidate.kinds)}, not `{kind}`"
        )
    types = ", ".join(supported.__name__ for supported in KINDS_OF)
    return (
        f"is of type {candidate.type_name}, which has no deltas; types that have are {types} and "
        f"the tables of TorchRec's {' and '.join(COLLECTIONS)}, each with its own forward"
    )


def _check(candidate: Candidate, config: DeltaConfig) -> None:
    """Refuse what cannot be adapted rightly."""
    reason = candidate.why_not or _refusal(candidate.module, config)
    if reason:
        raise AdapterError(f"module {candidate.path!r} ({candidate.type_name}) {reason}")
    sides = min(_sides(candidate.module, config.kind))
    if config.kind in ("low_rank", "map", "basis", "rows") and config.rank > sides:
        raise AdapterError(
            f"rank {config.rank} is above {sides}, the smaller side of what is changed in module "
            f"{candidate.path!r} ({candidate.type_name}): use a smaller rank there"
        )


def _refusal(module: nn.Module, config: DeltaConfig) -> str | None:
    for name, parameter in module.named_parameters(recurse=True):
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            return (
                f"has a {name} of {parameter.dtype} on {parameter.device}: deltas are float32 on "
                f"the CPU; move it there"
            )
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding | nn.EmbeddingBag):
        if "weight" not in module._parameters:
            return "has a parametrised weight: make it plain (remove_parametrizations) first"
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        if config.kind == "bias" and module.bias is None:
            return "has no bias: there is nothing that the kind `bias` could be merged into"
    if isinstance(module, nn.Conv1d | nn.Conv2d) and config.kind == "low_rank":
        if module.groups != 1:
            return f"has groups = {module.groups}: `low_rank` needs 1; take `scale` or `bias`"
        if module.padding_mode != "zeros":
            return f"pads with {module.padding_mode!r}: `low_rank` needs 'zeros'"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        return "has max_norm, which writes to its weight when it is read: build it without"
    if isinstance(module, nn.EmbeddingBag):
        if module.mode == "max":
            return "pools by 'max': a sum of factors has none; only 'sum' and 'mean' do"
        if config.magnitude:
            return "pools its rows, and the length of a row cannot be learned through their sum"
    if isinstance(module, nn.MultiheadAttention):
        if "forward" in module.__dict__ and not hasattr(module.forward, "parts"):
            return "has a forward of its own, in the place of its class's: take it off first"
        if module.bias_k is not None or module.add_zero_attn:
            return "has add_bias_kv or add_zero_attn, which adapted attention lacks"
    return None


def _sides(module: nn.Module, kind: str) -> tuple[int, ...]:
    """The sides of the matrices that a delta changes."""
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim, module.kdim, module.vdim
    weight = module.get_parameter("weight")
    if kind == "map":
        return (weight.shape[1],)
    return weight.shape[0], weight[0].numel() if len(weight) else 0
