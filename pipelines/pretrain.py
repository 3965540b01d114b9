"""Make the base model: train it on the log's first window, or import tables made elsewhere.

Pretraining is full fine-tuning from a random start: the one loop with one segment and the kind
`full`. The number of epochs is chosen by NDCG@10 on the last tenth of the window; then the
base is trained anew on the whole of it for so many.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from reclora.adapters import FULL
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.evaluation import EvaluationConfig, RankingJudge, hold_out
from reclora.interactions import IdMap, Interactions
from reclora.interchange import import_base
from reclora.splits import SplitBy, cut, split
from reclora.training import train

from .progress import step
from .run import BaseSettings, RunSettings, digest
from .settings import SettingsError, resolved


def pretrain(settings: RunSettings, inputs: Mapping[str, str]) -> BaseModel:
    """The run's base model, from `settings.base_folder`; made and saved there if it is not yet.

    Args:
        inputs: file -> sha256 of the log, from `prepare`.

    Raises:
        SettingsError: the folder holds a base that other settings or another log made.
        BaseError: tables to import that are no base model.
    """
    made_from = digest(resolved(settings.base), resolved(settings.split), sorted(inputs.values()))
    folder = settings.base_folder
    if folder.exists():
        base = BaseModel.load(folder)
        provenance = json.loads((folder / "base.json").read_text())["provenance"]
        if provenance.get("made_from") != made_from:
            raise SettingsError(
                f"{folder} holds a base model that another log or other [base] or [split] "
                f"settings made, and adapters in the store belong to it: name another `folder`, "
                f"or remove {folder}"
            )
        return base
    if settings.base.import_users is not None and settings.base.import_items is not None:
        base = import_base(
            settings.base.import_users, settings.base.import_items, settings.base.import_tables
        )
        base.save(folder, {"made_from": made_from, "by": "import"})
    else:
        window = split(Interactions.read(settings.log_folder), settings.split).pretrain
        base, epochs = train_base(window, settings.base, settings.split.by)
        about = {"made_from": made_from, "by": "pretrain", "epochs": epochs, "inputs": dict(inputs)}
        base.save(folder, about | {"settings": resolved(settings.base)})
    return BaseModel.load(folder)


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
    judge = RankingJudge(hold_out(later, earlier, EvaluationConfig(metrics=("ndcg",), ks=(10,))))
    with step("pretraining: choosing the epochs") as progress:
        chosen = train(
            AdapterBank.for_log(start, earlier, FULL, settings.seed),
            earlier,
            settings.training,
            judge=judge,
            seed=settings.seed,
            progress=progress,
        ).best_epoch["pooled"]
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
