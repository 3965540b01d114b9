"""The settings of a study of bases: the log, the models and the grid of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path

from reclora.evaluation import EvaluationConfig
from reclora.factorisation import FactorisationConfig

POPULARITY = "popularity"


@dataclass(frozen=True)
class Grid:
    """The values that a model tries; an empty list leaves what [factorisation] says."""

    temperature: tuple[float, ...] = ()
    lr: tuple[float, ...] = ()
    bias_lr: tuple[float, ...] = ()
    l2: tuple[float, ...] = ()
    margin: tuple[float, ...] = ()
    negative_weight: tuple[float, ...] = ()
    unobserved_weight: tuple[float, ...] = ()

    def of(self, config: FactorisationConfig) -> list[FactorisationConfig]:
        """Every config that is tried.

        Raises:
            ValueError: a value is out of its range.
        """
        lists = {name: values for name, values in asdict(self).items() if values}
        return [
            replace(config, **dict(zip(lists, values, strict=True)))
            for values in product(*lists.values())
        ]


SEARCHED = tuple(field.name for field in fields(Grid))


@dataclass(frozen=True)
class ModelSettings:
    """A model of the study: a factorisation, and the grid on which it is chosen."""

    factorisation: FactorisationConfig = FactorisationConfig()
    search: Grid = Grid()

    def __post_init__(self) -> None:
        # A value that is out of range is found now, not after the first ones have trained.
        self.grid()

    def grid(self) -> Sequence[FactorisationConfig]:
        """Every config that is tried, in the order of the lists."""
        return self.search.of(self.factorisation)


@dataclass(frozen=True)
class StudySettings:
    """All of a study of bases; a section of the TOML file is a field."""

    name: str
    """What the log is called: it names the study's folder and its figures."""
    train: Path
    """Parquet file of the training rows. Segments and times are not looked at."""
    test: Path
    """Parquet file of the rows that the study reports on; none of their pairs is in `train`."""
    models: dict[str, ModelSettings]
    """By name, in the order in which they are trained."""
    folder: Path = Path("runs/bases")
    """The logs as they are laid out, what was tried, the bases; a study that was interrupted goes
    on from there."""
    runs: Path = Path("runs")
    """Each study gets a folder of its own in here."""
    validation: float = 0.1
    """The share of each user's training rows that models are chosen on; within 0 to 1."""
    evaluation: EvaluationConfig = EvaluationConfig(ks=(20,))
    """Models are chosen by the first metric at the first k."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every chosen model is trained once a seed; the first seed's trainings choose."""
    threads: int = 1
    """Threads of torch; results may change their last digits with it."""
    repeat: str = "reclora demo"
    """The command that makes this study, written beside its figures."""

    def __post_init__(self) -> None:
        if not self.name or any(c in self.name for c in "/\\\0") or self.name.startswith("."):
            raise ValueError(f"name must be usable as part of a folder's name, got {self.name!r}")
        if not self.models:
            raise ValueError("models must have one at least: [models.NAME.factorisation]")
        if POPULARITY in self.models:
            raise ValueError(f"models has {POPULARITY!r}, which is always there: name it otherwise")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must be a share within 0 to 1, got {self.validation}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different numbers, at least one, got {self.seeds}")
        if self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.evaluation.candidates != "catalogue" or self.evaluation.retrieve:
            raise ValueError(
                "evaluation of bases ranks the whole catalogue: leave out candidates and retrieve"
            )
