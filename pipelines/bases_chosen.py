"""The models of a study of bases: each chosen on validation, then trained anew once a seed.

What was tried and what was trained stays in the study's folder, each under a digest of all that
decides it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from reclora.base import BaseModel
from reclora.evaluation import HeldOut, evaluate
from reclora.factorisation import FactorisationConfig, factorise
from reclora.files import make_folder, write_text
from reclora.interactions import Interactions

from .bases_settings import SEARCHED, ModelSettings, StudySettings
from .progress import step
from .run import digest, versions


@dataclass(frozen=True)
class Tried:
    """A setting, and what it was worth on validation.

    Attributes:
        curve: (epochs, value) of every judgement.
    """

    config: FactorisationConfig
    curve: list[tuple[int, float]]

    @property
    def best(self) -> tuple[int, float]:
        """Epochs and value of the best judgement; of equal ones the first."""
        return max(self.curve, key=lambda judged: judged[1])


@dataclass(frozen=True)
class Trained:
    """A model as validation chose it, trained on all training rows.

    Attributes:
        bases: the folder of each seed's base.
    """

    tried: list[Tried]
    chosen: Tried
    bases: list[Path]


@dataclass(frozen=True)
class Bench:
    """Where models are chosen and trained.

    Attributes:
        train: all training rows.
        sha256: of the file that they come from.
        earlier: the training rows without those of validation.
        held_out: the rows of validation, and the one metric that chooses.
        commit: of the code; None outside its repository.
    """

    settings: StudySettings
    train: Interactions
    sha256: str
    earlier: Interactions
    held_out: HeldOut
    commit: str | None

    def trained(self, name: str, model: ModelSettings) -> Trained:
        """Choose a model's setting and epochs, and train it once a seed.

        Raises:
            FactorisationError: the numbers are not finite.
        """
        grid = model.grid()
        tried = [
            self._try(f"{name}, setting {at} of {len(grid)}", config)
            for at, config in enumerate(grid, 1)
        ]
        chosen = max(tried, key=lambda each: each.best[1])
        bases = [self._base(name, chosen, seed) for seed in self.settings.seeds]
        return Trained(tried, chosen, bases)

    def _try(self, title: str, config: FactorisationConfig) -> Tried:
        """What a setting is worth, epoch by epoch; one that was tried before is not tried again."""
        seed, measured = self.settings.seeds[0], self.held_out.config.headline
        decides = asdict(config), seed, self.settings.validation, measured, self.settings.threads
        name = self._digest(decides)
        path = self.settings.folder / "tried" / f"{name}.json"
        if not path.exists():
            with step(f"choosing: {title}") as progress:
                found = factorise(
                    self.earlier, config, seed=seed, judge=self._judge, progress=progress
                )
            judged = found.curve[found.curve["score"].notna()]
            rows = judged[["epoch", "score"]].itertuples(index=False, name=None)
            about = {"config": asdict(config), "measured": measured, "seconds": found.seconds}
            make_folder(path.parent)
            write_text(path, json.dumps({"curve": list(rows), **about}) + "\n")
        about = json.loads(path.read_text(encoding="utf-8"))
        return Tried(config, [(int(epochs), float(value)) for epochs, value in about["curve"]])

    def _judge(self, base: BaseModel) -> float:
        return float(evaluated(base, self.held_out, "", "", 0)["value"].mean())

    def _base(self, name: str, chosen: Tried, seed: int) -> Path:
        """The folder of a model's base; one that is there is not trained again."""
        epochs, value = chosen.best
        decides = asdict(chosen.config), epochs, seed, self.settings.threads
        path = self.settings.folder / "bases" / self._digest(decides)
        if not path.exists():
            with step(f"training: {name}, seed {seed}, {epochs} epochs") as progress:
                made = factorise(
                    self.train, chosen.config, seed=seed, epochs=epochs, progress=progress
                )
            about = {
                "by": "a study of bases",
                "inputs": {"train": self.sha256},
                "factorisation": asdict(chosen.config),
                "epochs": epochs,
                "seed": seed,
                "validation": value,
                "seconds": made.seconds,
                "versions": versions(),
                "commit": self.commit,
            }
            made.base.save(path, about)
        return path

    def _digest(self, decides: object) -> str:
        """Of settings, and of the rows and the code that they are for."""
        return digest(decides, self.sha256, versions(), self.commit)


def evaluated(base: BaseModel, held_out: HeldOut, model: str, run: str, seed: int) -> pd.DataFrame:
    """The results of a base, as `evaluate` gives them."""
    scorer = base.scorer()
    return evaluate(held_out, lambda segment: scorer, model=model, run=run, seed=seed)


def judgements(trained: Mapping[str, Trained]) -> pd.DataFrame:
    """What validation said: model, the values of a setting, epochs, value, chosen."""
    rows = [
        {"model": name}
        | {key: getattr(tried.config, key) for key in SEARCHED}
        | {"epochs": epochs, "value": value}
        | {"chosen": tried is each.chosen and (epochs, value) == each.chosen.best}
        for name, each in trained.items()
        for tried in each.tried
        for epochs, value in tried.curve
    ]
    return pd.DataFrame(rows)
