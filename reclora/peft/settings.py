"""This file is PEFT's settings of an adapter: `adapter_config.json`, written and understood."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from reclora.configs import AdapterError, check_low_rank
from reclora.peft.products import CONFIG, TENSORS, Product

NUMBER = (int, float)
SETTINGS: dict[str, tuple[Any, tuple[type, ...]]] = {
    "peft_type": ("", (str,)),
    "r": (8, (int,)),
    "lora_alpha": (8, NUMBER),
    "lora_dropout": (0.0, NUMBER),
    "use_rslora": (False, (bool,)),
    "rank_pattern": ({}, (dict,)),
    "alpha_pattern": ({}, (dict,)),
    "target_modules": ([], (str, list)),
    "exclude_modules": ([], (str, list)),
    "bias": ("none", (str,)),
    "init_lora_weights": (True, (bool, str)),
}
"""What is read: its value where it is not there, as in PEFT, and its types."""
SILENT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
    *("corda_config", "eva_config", "lora_ga_config", "loftq_config", "runtime_config"),
    *("megatron_core", "qalora_group_size", "task_type"),
}
"""What changes no score, or only beside a setting that is refused. All else must not be set."""
HARMLESS_INITS = (True, False, "eva", "gaussian", "mica", "orthogonal")
"""Those that leave the base's weights alone; with any other PEFT rewrites them at each loading."""


def settings_json(products: Mapping[str, Product], dropout: float) -> str:
    """The settings of an adapter that changes the modules at these paths and no others.

    A pattern of PEFT matches the end of a path; with `^` before it only the whole. One use_rslora
    goes for all, so where they differ the others' scaling is in their alpha.
    """
    stabilised = all(product.rank_stabilised for product in products.values())
    ranks = {path: product.rank for path, product in products.items()}
    alphas = {
        path: product.alpha
        if product.rank_stabilised == stabilised
        else product.scaling * product.rank
        for path, product in products.items()
    }
    rank, alpha = (Counter(own.values()).most_common(1)[0][0] for own in (ranks, alphas))
    settings = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "target_modules": "|".join(re.escape(path) for path in products),
        "r": rank,
        "rank_pattern": {f"^{re.escape(p)}": own for p, own in ranks.items() if own != rank},
        "lora_alpha": alpha,
        "alpha_pattern": {f"^{re.escape(p)}": own for p, own in alphas.items() if own != alpha},
        "use_rslora": stabilised,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


@dataclass(frozen=True)
class PeftSettings:
    """What `adapter_config.json` says of a plain LoRA adapter."""

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> PeftSettings:
        """Raises:
        AdapterError: the file is damaged, a setting is of another type, or one makes the adapter
            more than plain LoRA or rewrites the base's weights; it is named.
        """
        path = folder / CONFIG
        try:
            given = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise AdapterError(f"{path} cannot be read as JSON; save it again: {error}") from error
        if not isinstance(given, dict):
            raise AdapterError(f"{path}: expected an object, got {type(given).__name__}")
        values = {}
        for name, (default, types) in SETTINGS.items():
            value = default if given.get(name) is None else given[name]
            if type(value) not in types:
                wanted = " or ".join(one.__name__ for one in types)
                raise AdapterError(f"{path}: {name} must be {wanted}, got {value!r}")
            values[name] = value
        _check_plain(path, given, values)
        if not 0 <= values["lora_dropout"] < 1:
            raise AdapterError(
                f"{path}: lora_dropout must be at least 0 and below 1, got {values['lora_dropout']}"
            )
        return cls(path, values)

    @property
    def rank_stabilised(self) -> bool:
        return cast(bool, self.values["use_rslora"])

    @property
    def dropout(self) -> float:
        return float(self.values["lora_dropout"])

    def rank(self, path: str) -> int:
        """R of a module."""
        rank = self._of_module(path, "r", "rank_pattern")
        check_low_rank(f"{self.path}, module {path!r}", rank, 1.0, "normal")
        return cast(int, rank)

    def alpha(self, path: str) -> float:
        """Alpha of a module."""
        alpha = self._of_module(path, "lora_alpha", "alpha_pattern")
        check_low_rank(f"{self.path}, module {path!r}", 1, alpha, "normal")
        return float(alpha)

    def _of_module(self, path: str, name: str, patterns: str) -> Any:
        """By the first pattern that matches the path or the end of it from a dot on."""
        own: Mapping[str, Any] = self.values[patterns]
        matching = [key for key in own if self._matches(patterns, rf"(.*\.)?({key})", path)]
        value = own.get(matching[0] if matching else path, self.values[name])
        if type(value) not in SETTINGS[name][1]:
            raise AdapterError(f"{self.path}: {patterns} has {value!r} for module {path!r}")
        return value

    def check_targets(self, model: nn.Module, adapted: Collection[str]) -> None:
        """Refuse an adapter in which PEFT would find too little or leave something out.

        Raises:
            AdapterError: the modules that are targeted are not the adapted ones; one is named.
        """
        targeted = {
            path
            for path, _ in model.named_modules()
            if path
            and self._names("target_modules", path)
            and not self._names("exclude_modules", path)
        }
        for path in sorted(targeted ^ {*adapted}):
            if path in targeted:
                fault = f"names module {path!r}, of which {TENSORS} has no factors"
            else:
                fault = f"does not name module {path!r}, whose factors in {TENSORS} PEFT leaves out"
            raise AdapterError(f"{self.path}: target_modules {fault}: save it again")

    def _names(self, name: str, path: str) -> bool:
        """Whether a text matches the whole path, or a list holds it or an end of it."""
        value = self.values[name]
        if isinstance(value, str):
            return self._matches(name, value, path)
        return any(f".{path}".endswith(f".{end}") for end in value)

    def _matches(self, name: str, pattern: str, path: str) -> bool:
        try:
            return re.fullmatch(pattern, path) is not None
        except re.error as error:
            raise AdapterError(
                f"{self.path}: {name} has {pattern!r}, which is no regular expression: {error}"
            ) from error


def _check_plain(path: Path, given: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    if values["peft_type"] != "LORA":
        raise AdapterError(f"{path}: peft_type must be LORA, got {values['peft_type']!r}")
    odd = [name for name in given.keys() - SETTINGS.keys() - SILENT if given[name]]
    if values["bias"] != "none":
        odd.append("bias")
    if odd:
        raise AdapterError(
            f"{path}: {min(odd)} is set, and only plain LoRA has a counterpart here: merge it in "
            f"PEFT (merge_and_unload) and adapt that model instead"
        )
    init = values["init_lora_weights"]
    if (init.lower() if isinstance(init, str) else init) not in HARMLESS_INITS:
        raise AdapterError(
            f"{path}: init_lora_weights is {init!r}, by which PEFT rewrites the base's own "
            f"weights: save it as plain LoRA, save_pretrained(..., "
            f"path_initial_model_for_weight_conversion=...)"
        )
