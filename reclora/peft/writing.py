"""This file is how an adapter goes to PEFT."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from reclora.adapters import Adapter
from reclora.arithmetic.parts import Delta, check_finite, deltas_of
from reclora.configs import AdapterConfig, AdapterError, DeltaConfig
from reclora.files import fsync, make_folder, temporary_path, write_bytes, write_text
from reclora.modules.frozen import fingerprint_of
from reclora.peft.counterparts import counterparts
from reclora.peft.products import CONFIG, PREFIX, TENSORS, Product, to_peft
from reclora.peft.settings import settings_json


@torch.no_grad()
def write_peft(adapter: Adapter, model: nn.Module, folder: Path) -> None:
    """Write the adapter of one segment as one that PEFT loads, with equal scores.

        write_peft(adapted.adapter("de"), model, Path("de"))
        peft.PeftModel.from_pretrained(model, "de").eval()      # there, on the same plain model

    `low_rank` of Linear, Conv1d and Conv2d and `rows` of Embedding can be written, each module with
    its own rank, alpha and scaling. A parent becomes part of it:

        s_1 L_1 M_1 + s_2 L_2 M_2 = [s_1 L_1, s_2 L_2] [M_1; M_2]

    A table's factor has a column for each of its N rows, R * N numbers, since PEFT knows no other;
    those of rows that stay as they are hold zeros. `lora_dropout`, which changes no score, is that
    of the layers, or 0 where they differ.

    Args:
        adapter: of `adapt(model, ...)`, and so its parents.
        model: the model that was adapted, no segment merged into it; it stays as it is.
        folder: new or empty; it is there with both files, or not at all.

    Raises:
        AdapterError: the folder holds something; the adapter is of another model or of a base model
            with two tables and a tower, or holds NaN or infinity; PEFT has no counterpart of a
            module or kind, which is named: merge the segment into the model instead.
        OSError: a write failed; nothing is left.

    Source: Hu et al., "LoRA", ICLR 2022, section 4.1; for sqrt(r): Kalajdzievski, "A rank
    stabilization scaling factor", 2023, section 3. The files are those of PEFT's `LoraConfig`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AdapterError(f"{folder} exists and is no empty folder: name a new one")
    _check_origin(adapter, fingerprint_of(model))
    deltas = [(delta, one) for one in _chain(adapter) for delta in deltas_of(one).values()]
    modules = counterparts(
        model,
        [(delta.target, _kind(delta)) for delta, _ in deltas],
        f"the adapter of segment {adapter.segment!r}",
        f"merge({adapter.segment!r}) it into the model and save that instead",
    )
    parts: dict[str, list[Product]] = {}
    for delta, one in deltas:
        product = _product(delta, one, modules[delta.target])
        parts.setdefault(delta.target, []).append(product)
    products = {path: Product.sum(own) for path, own in parts.items()}
    dropouts = {_settings(delta).dropout for delta, _ in deltas if delta.kind == "low_rank"}
    tensors = {
        f"{PREFIX}{path}.{name}": tensor
        for path, product in products.items()
        for name, tensor in to_peft(modules[path], product).items()
    }
    dropout = dropouts.pop() if len(dropouts) == 1 else 0.0
    _write(folder, tensors, settings_json(products, dropout))


def _chain(adapter: Adapter) -> Iterator[Adapter]:
    """An adapter after all that it stands on."""
    if adapter.parent is not None:
        yield from _chain(adapter.parent)
    yield adapter


def _check_origin(adapter: Adapter, own: str) -> None:
    for one in _chain(adapter):
        where = f"the adapter of segment {one.segment!r}"
        if isinstance(one.config, AdapterConfig):
            raise AdapterError(
                f"{where} is of a base model with two tables and a tower, which PEFT cannot load: "
                f"only adapters of adapt(model, ...) can be written"
            )
        if one.base_fingerprint != own:
            raise AdapterError(
                f"{where} was trained on model {one.base_fingerprint}, this model is {own}: write "
                f"it with its own model, no segment merged into it"
            )
        check_finite(one.segment, one.tensors)


def _settings(delta: Delta) -> DeltaConfig:
    return cast(DeltaConfig, delta.settings)


def _kind(delta: Delta) -> str:
    return f"{delta.kind} with magnitude" if _settings(delta).magnitude else delta.kind


def _product(delta: Delta, adapter: Adapter, module: nn.Module) -> Product:
    left_PR = delta.left_PR
    if isinstance(module, nn.Embedding):
        left_PR = torch.zeros(module.num_embeddings, left_PR.shape[1])
        left_PR[adapter.tensors[cast(str, delta.rows)]] = delta.left_PR
        # PEFT would change the padding, which is never changed here.
        if module.padding_idx is not None:
            left_PR[module.padding_idx] = 0
    settings = _settings(delta)
    return Product(left_PR, delta.right_RQ, settings.alpha, settings.rank_stabilised)


def _write(folder: Path, tensors: dict[str, Tensor], settings: str) -> None:
    make_folder(folder.parent)
    temporary = temporary_path(folder)
    temporary.mkdir()
    try:
        write_bytes(temporary / TENSORS, save(tensors, metadata={"format": "pt"}))
        write_text(temporary / CONFIG, settings)
        temporary.rename(folder)
        fsync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
