"""Make the base model: train it on the log's first window, or import tables made elsewhere.

Pretraining is full fine-tuning from a random start: the one loop with one segment and the kind
`full`. The number of epochs is chosen by NDCG@10 on the last tenth of the window; then the
base is trained anew on the whole of it for so many.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import FULL
from reclora.evaluation import EvaluationConfig, HeldOut, RankingJudge, hold_out
from reclora.files import sha256_of
from reclora.interactions import IdMap, Interactions
from reclora.interchange import import_base
from reclora.splits import WINDOWS, SplitBy, Windows, cut
from reclora.training import train

from .prepare import windows_of
from .progress import step
from .run import BaseSettings, RunSettings, contents, digest, window_file
from .settings import SettingsError, resolved


def pretrain(settings: RunSettings, inputs: Mapping[str, str]) -> BaseModel:
    """The run's base model: the one that the settings name, else from `settings.base_folder`.

    There it is made and saved if it is not yet.

    Args:
        inputs: file -> sha256 of the log, from `prepare`. Of given windows the first one's alone
            decide: the base stays when the others move on.

    Raises:
        SettingsError: the folder holds a base that other settings, tables or another log made; or
            a file to import is not there.
        ValueError: nobody has anything new in the last tenth of the window.
        BaseError: tables to import that are no base model.
    """
    torch.set_num_threads(settings.threads)
    if settings.base.saved is not None:
        return BaseModel.load(settings.base.saved)
    inputs = _of_first_window(settings, inputs)
    made_from = _made_from(settings, inputs)
    folder = settings.base_folder
    if folder.exists():
        base = BaseModel.load(folder)
        if _provenance(folder).get("made_from") != made_from:
            raise SettingsError(
                f"{folder} holds a base model that {_makers(settings.base)} made, and adapters in "
                f"the store belong to it. To adapt that base to this log, set base.saved = "
                f"'{folder}'; for a new base, name another `folder`, or remove {folder} and "
                f"{settings.store_folder}"
            )
        return base
    if settings.base.import_users is not None and settings.base.import_items is not None:
        base = import_base(
            settings.base.import_users, settings.base.import_items, settings.base.import_tables
        )
        base.save(folder, {"made_from": made_from, "by": "import"})
    else:
        window = windows_of(settings).pretrain
        base, epochs = train_base(window, settings.base, settings.split.by)
        about = {"made_from": made_from, "by": "pretrain", "epochs": epochs, "inputs": inputs}
        about["last_moment"] = int(window.timestamps.max())
        base.save(folder, about | {"settings": resolved(settings.base)})
    return BaseModel.load(folder)


def check_earlier(settings: RunSettings, whole: Windows) -> None:
    """Refuse a saved base model that was trained on what this run trains, chooses or tests on.

    Raises:
        SettingsError: reclora pretrained it on rows from the train window's first moment on, or
            the cuts are each user's own, so that no moment tells.
    """
    if settings.base.saved is None:
        return
    last = _provenance(settings.base.saved).get("last_moment")
    first = int(whole.train.timestamps.min())
    if last is None:
        return
    if settings.split.by != "global_time":
        raise SettingsError(
            f"{settings.base.saved} was pretrained by reclora, and with split.by = "
            f"{settings.split.by!r} its rows cannot be told from this run's: use 'global_time', or "
            "pretrain anew"
        )
    if last >= first:
        until, begin = (np.datetime64(moment, "us") for moment in (last, first))
        raise SettingsError(
            f"{settings.base.saved} was trained on rows up to {until}, but the train window begins "
            f"at {begin}: give a larger split.pretrain, or pretrain anew"
        )


def _provenance(folder: Path) -> dict[str, Any]:
    """What `pretrain` wrote of a base where it comes from."""
    return dict(json.loads((folder / "base.json").read_text())["provenance"])


def _of_first_window(settings: RunSettings, inputs: Mapping[str, str]) -> dict[str, str]:
    """The inputs that the base is trained on; where one log is cut, all of it decides the cut."""
    first = "" if settings.log.windows is None else window_file(WINDOWS[0], "")
    return {name: sha256 for name, sha256 in inputs.items() if name.startswith(first)}


def _made_from(settings: RunSettings, inputs: Mapping[str, str]) -> str:
    """A digest of what decides the base: an imported one comes from its tables, not from the log.

    Raises:
        SettingsError: a file to import is not there.
    """
    base = settings.base
    imported = [path for path in (base.import_users, base.import_items, base.import_tables) if path]
    if not imported:
        contract = resolved(settings.log.contract)
        split_of = resolved(settings.split)
        return digest(resolved(base), split_of, contract, contents(settings.log, inputs))
    missing = [str(path) for path in imported if not path.is_file()]
    if missing:
        raise SettingsError(f"no file to import the base model from: {', '.join(missing)}")
    return digest("import", [sha256_of(path) for path in imported])


def _makers(base: BaseSettings) -> str:
    if base.import_users is not None:
        return "other tables"
    return "another log or other [base], [split] or [log.contract] settings"


def hold_out_some(
    what: str,
    heldout: Interactions,
    seen: Interactions,
    config: EvaluationConfig,
    candidates: Mapping[str, Tensor] | None = None,
) -> HeldOut:
    """`hold_out`, where somebody has something new to find.

    Raises:
        ValueError: nobody has; it says in what.
    """
    held_out = hold_out(heldout, seen, config, candidates)
    if held_out.num_users == 0:
        raise ValueError(
            f"nobody has an item in {what} that is new to them, of {len(heldout)} interactions "
            f"there: give a longer log, or other shares in [split]"
        )
    return held_out


def train_base(window: Interactions, settings: BaseSettings, by: SplitBy) -> tuple[BaseModel, int]:
    """A base model trained on a window of the log, and the number of epochs that was chosen."""
    known = window.pooled().onto(
        IdMap.of(window.users.ids_of(np.unique(window.user_rows))),
        IdMap.of(window.items.ids_of(np.unique(window.item_rows))),
    )[0]
    earlier, later = cut(known, (0.9, 0.1), by)
    start = BaseModel.random(
        known.users, known.items, settings.embedding_dim, settings.hidden, settings.seed
    )
    config = EvaluationConfig(metrics=("ndcg",), ks=(10,))
    held_out = hold_out_some("the last tenth of the pretrain window", later, earlier, config)
    with step("pretraining: choosing the epochs") as progress:
        chosen = train(
            AdapterBank.for_log(start, earlier, FULL, settings.seed),
            earlier,
            settings.training,
            judge=RankingJudge(held_out),
            seed=settings.seed,
            progress=progress,
        ).best_epoch["pooled"]
    if chosen == 0:
        print("pretraining: no epoch ranked better than a random base", file=sys.stderr)
    epochs = max(1, chosen)
    bank = AdapterBank.for_log(start, known, FULL, settings.seed)
    with step(f"pretraining: {epochs} epochs") as progress:
        train(
            bank,
            known,
            replace(settings.training, epochs=epochs),
            judge=None,
            seed=settings.seed,
            progress=progress,
        )
    return bank.merged("pooled"), epochs
