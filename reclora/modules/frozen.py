"""This file is what must not change under the deltas: the frozen model and the parent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reclora.adapters import Adapter
from reclora.configs import AdapterError
from reclora.modules.sharded import anywhere, in_order, shape_and_type, unwrapped, whole_rows
from reclora.modules.sites import Site


class Fingerprint:
    """`fingerprint_of` a model, worked out when it is asked for, and anew only where a tensor was
    written since (torch counts that; writing through `.data` it does not count). Collective where
    the model is sharded.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._digest, self._writes = "", [-1]

    def __call__(self) -> str:
        tensors = _tensors(self._model)
        writes = [part._version for tensor in tensors.values() for part in _own_parts(tensor)]
        changed = writes != self._writes
        if anywhere(changed) if any(map(_is_sharded, tensors.values())) else changed:
            self._digest, self._writes = digest_of(tensors), writes
        return self._digest


def fingerprint_of(model: nn.Module) -> str:
    """sha256 over the names, types, shapes and bytes of a model's state_dict; those of a sharded
    model are the same as in one process. It is collective then: every rank sees every table's rows
    pass by once.
    """
    return digest_of(_tensors(model))


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        sharded = _is_sharded(tensor)
        shape, dtype = shape_and_type(tensor) if sharded else (tuple(tensor.shape), tensor.dtype)
        digest.update(f"{name}\0{dtype}\0{shape}\0".encode())
        for part in whole_rows(tensor) if sharded else (tensor.detach(),):
            digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    whole = unwrapped(model)
    tensors = {k: v for k, v in whole.state_dict().items() if isinstance(v, Tensor)}
    return in_order(whole, tensors) if any(map(_is_sharded, tensors.values())) else tensors


def _is_sharded(tensor: Any) -> bool:
    return hasattr(tensor, "local_shards")


def _own_parts(tensor: Any) -> list[Tensor]:
    """What of a tensor lies in this process."""
    return [s.tensor for s in tensor.local_shards()] if _is_sharded(tensor) else [tensor]


def same_parent(one: Adapter | None, other: Adapter | None) -> bool:
    """Whether two parents, and all that they stand on, are of one content."""
    if one is other:
        return True
    if one is None or other is None:
        return False
    return (
        (one.config, one.base_fingerprint) == (other.config, other.base_fingerprint)
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
        and same_parent(one.parent, other.parent)
    )


def check_unshared(model: nn.Module, sites: Sequence[Site]) -> None:
    """Refuse to write to weights that stand in a second module, which would find them changed.

    Raises:
        AdapterError: naming both modules.
    """
    users: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append((path, module))
    for site in sites:
        parts = set(site.owner.modules())
        for parameter in site.owner.parameters():
            others = [path for path, module in users[id(parameter)] if module not in parts]
            if others:
                raise AdapterError(
                    f"the weight of {site.path!r} is also that of {others[0]!r}, which is not "
                    f"adapted by it: merged, it would change, too; untie them first"
                )
