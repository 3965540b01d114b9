"""This file is which modules PEFT and reclora adapt to equal scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import nn

from reclora.configs import AdapterError
from reclora.modules.targets import Candidate, candidates, nearest


def counterparts(
    model: nn.Module, wanted: Iterable[tuple[str, str]], where: str, advice: str
) -> dict[str, nn.Module]:
    """The modules by path.

    Args:
        wanted: path and kind of each change.
        where: what an error is about.
        advice: what to do instead.

    Raises:
        AdapterError: PEFT and reclora would not do the same with a module and kind; both are named.
    """
    names = candidates(model)
    holders = Counter(id(part) for module in model.modules() for part in module._modules.values())
    found = {}
    for path, kind in wanted:
        obstacle = _ATTENTION if _is_attention(names, path) else None
        if obstacle is None and path not in names:
            raise AdapterError(f"{where}: no module {path!r} in the model{nearest(path, [*names])}")
        obstacle = obstacle or _obstacle(model, names[path], kind)
        if obstacle is None and holders[id(names[path].module)] > 1:
            obstacle = "has several names, and PEFT changes what is called by one of them only"
        if obstacle is not None:
            raise AdapterError(f"{where}: module {path!r} {obstacle}; {advice}")
        found[path] = names[path].module
    return found


_ATTENTION = (
    "is attention or a part of it, where PEFT adds the change of the output twice, and none at all "
    "at inference in an nn.TransformerEncoderLayer"
)


def _is_attention(names: Mapping[str, Candidate], path: str) -> bool:
    """Whether a path is that of an attention, or of a projection as reclora or PEFT names it."""
    owners = (path, path.rpartition(".")[0], path.partition(".base_layer.")[0])
    return any(
        owner in names and isinstance(names[owner].module, nn.MultiheadAttention)
        for owner in owners
    )


def _obstacle(model: nn.Module, candidate: Candidate, kind: str) -> str | None:
    path, module = candidate.path, candidate.module
    if not path:
        return "is the model itself, which PEFT leaves as it is"
    if kind not in ("low_rank", "rows"):
        return f"has the kind `{kind}`, which PEFT lacks"
    if kind not in candidate.kinds:
        return f"is of type {candidate.type_name}, which has no `{kind}` here"
    if isinstance(module, nn.EmbeddingBag) or candidate.collection is not None:
        return "is an EmbeddingBag or a table of TorchRec, which PEFT lacks"
    if isinstance(module, nn.Conv1d | nn.Conv2d) and {*module.dilation} != {1}:
        return f"has dilation {module.dilation}, which PEFT forgets in lora_A"
    if isinstance(model.get_submodule(path.rpartition(".")[0]), nn.TransformerEncoderLayer):
        return "is in an nn.TransformerEncoderLayer, which at inference reads its weight past PEFT"
    return None
