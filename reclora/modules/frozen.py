"""This file is what must not change under the deltas: the frozen model and the parent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reclora.adapters import Adapter
from reclora.configs import AdapterError
from reclora.modules.sites import Site


class Fingerprint:
    """`fingerprint_of` a model, worked out when it is asked for, and anew only where a tensor was
    written since (torch counts that; writing through `.data` it does not count).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._digest, self._writes = "", [-1]

    def __call__(self) -> str:
        writes = [tensor._version for tensor in _tensors(self._model).values()]
        if writes != self._writes:
            self._digest, self._writes = fingerprint_of(self._model), writes
        return self._digest


def fingerprint_of(model: nn.Module) -> str:
    """sha256 over the names, types, shapes and bytes of a model's state_dict."""
    digest = hashlib.sha256()
    for name, tensor in _tensors(model).items():
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}


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
