"""This file is how an adapter comes from PEFT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from reclora.adapters import Adapter
from reclora.configs import AdapterError, DeltaConfig
from reclora.modules.frozen import fingerprint_of
from reclora.modules.targets import candidates, targets_of
from reclora.peft.counterparts import counterparts
from reclora.peft.products import CONFIG, PREFIX, TENSORS, Product, from_peft, shapes
from reclora.peft.settings import PeftSettings

PICKLED = "adapter_model.bin"
FACTOR = re.compile(re.escape(PREFIX) + r"(.+)\.(lora_[AB]\.weight|lora_embedding_[AB])", re.DOTALL)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.no_grad()
def read_peft(folder: Path, model: nn.Module, segment: str) -> Adapter:
    """Read an adapter that PEFT saved as the adapter of a segment, with equal scores.

        adapter = read_peft(Path("de"), model, "de")
        adapted = AdaptedModel.of(model, [adapter]).eval()     # or else with PEFT's lora_dropout

    Linear, Conv1d and Conv2d get `low_rank`, Embedding gets `rows`, of the rows that the stored
    factor changes. Modules of the same settings share a `DeltaConfig`. A rank above the smaller
    side of what it changes, which PEFT allows, becomes that side: nothing is lost. Floats of 16 or
    64 bits become float32, as in PEFT. `lora_dropout` is of layers: PEFT drops nothing of a table.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        model: the plain one that PEFT was given, no segment merged into it; it stays as it is.
        segment: what the adapter is called from now on, any string.

    Raises:
        AdapterError: a file is missing, damaged or may hold pickles; a setting makes it more than
            plain LoRA (`use_dora`, `bias`, `modules_to_save`, ...) or rewrites the base (`pissa`,
            `olora`, ...); the model lacks a module (the nearest name is offered), or PEFT and
            reclora adapt it otherwise; a tensor is missing, too many, of another shape, NaN or
            infinite; a padding row is changed. It names the file, setting, module or tensor.

    Source: as of `write_peft`.
    """
    _check_files(folder)
    settings = PeftSettings.read(folder)
    factors = _factors(folder / TENSORS, model)
    kinds = {path: _kind(own) for path, own in factors.items()}
    advice = "merge it in PEFT (merge_and_unload) and adapt that model instead"
    modules = counterparts(model, kinds.items(), str(folder), advice)
    targets_of([DeltaConfig((path,), kinds[path], rank=1) for path in kinds], candidates(model))
    settings.check_targets(model, factors)
    tensors: dict[str, Tensor] = {}
    alike: dict[DeltaConfig, list[str]] = {}
    for path in (path for path, _ in model.named_modules() if path in factors):
        module, kind = modules[path], kinds[path]
        rank, alpha = settings.rank(path), settings.alpha(path)
        own = _checked(f"{folder / TENSORS}, module {path!r}", factors[path], module, rank)
        left_PR, right_RQ = from_peft(module, own)
        product = Product(left_PR, right_RQ, alpha, settings.rank_stabilised).within_sides()
        config = DeltaConfig(
            ("*",),
            kind,
            rank=product.rank,
            alpha=product.alpha,
            rank_stabilised=product.rank_stabilised,
            dropout=settings.dropout if kind == "low_rank" else 0.0,
        )
        alike.setdefault(config, []).append(path)
        tensors |= _tensors(f"{path}.{kind}", product, left_PR)
    configs = tuple(replace(config, targets=tuple(paths)) for config, paths in alike.items())
    return Adapter(segment, configs, fingerprint_of(model), tensors)


def _check_files(folder: Path) -> None:
    missing = [name for name in (CONFIG, TENSORS) if not (folder / name).is_file()]
    if not missing:
        return
    if TENSORS in missing and (folder / PICKLED).exists():
        raise AdapterError(
            f"{folder / PICKLED} may hold pickled code and is not opened: load it in PEFT where "
            f"you trust it, and save_pretrained(..., safe_serialization=True)"
        )
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    raise AdapterError(
        f"{folder}: expected {CONFIG} and {TENSORS}, found {', '.join(found[:5]) or 'nothing'} "
        f"(PEFT saves an adapter that is not called 'default' in a folder of its own in there)"
    )


def _factors(path: Path, model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The factors of each module by the rest of their names."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"{path} cannot be read as safetensors; save it again: {error}"
        ) from error
    found: dict[str, dict[str, Tensor]] = {}
    weights = model.state_dict()
    for name, tensor in tensors.items():
        if match := FACTOR.fullmatch(name):
            found.setdefault(match[1], {})[match[2]] = tensor
        else:
            _check_copy(path, name, tensor, weights)
    if not found:
        raise AdapterError(f"{path} holds no factors of LoRA")
    return found


def _check_copy(path: Path, name: str, tensor: Tensor, weights: Mapping[str, Tensor]) -> None:
    """PEFT adds copies of the base's own weights when it adapts a language model's embeddings."""
    weight = weights.get(name.removeprefix(PREFIX).replace(".base_layer.", "."))
    if weight is None:
        raise AdapterError(f"{path}: {name!r} is neither a factor nor a weight of the model")
    if not torch.equal(weight, tensor.to(weight.dtype)):
        raise AdapterError(
            f"{path}: {name!r} is a weight of another base than this model: take the one that the "
            f"adapter was trained on, its tables resized as they were there"
        )


def _kind(factors: Mapping[str, Tensor]) -> str:
    return "rows" if any(name.startswith("lora_embedding") for name in factors) else "low_rank"


def _checked(
    where: str, factors: Mapping[str, Tensor], module: nn.Module, rank: int
) -> dict[str, Tensor]:
    """The factors in float32, in memory of their own."""
    wanted = shapes(module, rank)
    if factors.keys() != wanted.keys():
        raise AdapterError(f"{where}: expected {sorted(wanted)}, got {sorted(factors)}")
    checked = {}
    for name, shape in wanted.items():
        tensor = factors[name]
        if tensor.shape != shape or tensor.dtype not in FLOATS:
            raise AdapterError(
                f"{where}: {name} of rank {rank} must be floats of shape {shape}, got "
                f"{tensor.dtype} {tuple(tensor.shape)}"
            )
        checked[name] = tensor.to(torch.float32, copy=True)
        if not bool(checked[name].isfinite().all()):
            raise AdapterError(f"{where}: {name} holds NaN or infinity: train it anew")
    padding = module.padding_idx if isinstance(module, nn.Embedding) else None
    if padding is not None and bool(checked["lora_embedding_A"][:, padding].any()):
        raise AdapterError(
            f"{where}: lora_embedding_A changes row {padding}, the padding, which is never changed "
            f"here: set that column to zero"
        )
    return checked


def _tensors(name: str, product: Product, stored_PR: Tensor) -> dict[str, Tensor]:
    """As an adapter names them; of a table the rows whose stored factor is not zero."""
    left_PR, right_RQ = product.left_PR, product.right_RQ.contiguous()
    if name.endswith(".low_rank"):
        return {f"{name}.b": left_PR.contiguous(), f"{name}.a": right_RQ}
    rows = stored_PR.any(1).nonzero().flatten()
    return {name: rows, f"{name}.a": left_PR[rows], f"{name}.b": right_RQ}
