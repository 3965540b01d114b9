"""The settings of a run's base model: pretrained on the log's first window, imported, or there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from reclora.factorisation import FactorisationConfig
from reclora.recency import check_half_life
from reclora.training import TrainingConfig


@dataclass(frozen=True)
class TowerTraining(TrainingConfig):
    """`TrainingConfig` with the defaults of a whole tower: many negatives, large steps."""

    epochs: int = 20
    patience: int = 6
    batch_rows: int = 512
    num_negatives: int = 256


@dataclass(frozen=True)
class BaseSearch:
    """The grid on which a pretrained base's settings are chosen, on the last tenth of its window.

    It takes the place of what [base] and [base.factorisation] say of them; an empty list leaves
    that as it is.
    """

    temperature: tuple[float, ...] = (0.1, 0.3, 1.0)
    """The less a log says of single users, the higher; not asked where similarities are no cosines.
    """
    bias_lr: tuple[float, ...] = ()
    l2: tuple[float, ...] = ()
    half_life: tuple[float, ...] = ()


NOTHING = BaseSearch((), (), (), ())


@dataclass(frozen=True)
class BaseSettings:
    """The base model: pretrained on the log's first window, imported, or one that is there."""

    factorisation: FactorisationConfig = FactorisationConfig()
    """How its user table, item table and item bias are pretrained."""
    half_life: float = 0.0
    """Days after which an interaction counts for half in pretraining, from the window's last
    moment; 0: all count alike."""
    search: BaseSearch = BaseSearch()
    hidden: tuple[int, ...] = ()
    """Widths of the hidden layers of a tower, trained on the finished tables; empty for none."""
    tower: TowerTraining = TowerTraining()
    """How the tower is trained."""
    seed: int = 0
    saved: Path | None = None
    """The folder of a base model to adapt, whatever log it came from: no pretraining."""
    keep: bool = False
    """A base that an earlier log made in the run's `folder` stays when the log has grown: adapters
    in the store belong to it. Other settings than those that made it are still refused."""
    import_users: Path | None = None
    """Parquet with user_id and vector (or, beside import_tables, user_id alone): no pretraining."""
    import_items: Path | None = None
    """Parquet with item_id, vector and optionally bias."""
    import_tables: Path | None = None
    """safetensors with user_table and item_table; the two files above then hold the ids."""

    def __post_init__(self) -> None:
        if (self.import_users is None) != (self.import_items is None):
            raise ValueError("import_users and import_items go together; only one is given")
        if self.import_tables is not None and self.import_users is None:
            raise ValueError("import_tables needs import_users and import_items for the ids")
        if self.saved is not None and self.import_users is not None:
            raise ValueError("saved and import_users both name a base model; give one of them")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden widths must be at least 1, got {self.hidden}")
        check_half_life(self.half_life)
        # A value that is out of range is found now, not after the first ones have trained.
        self.grid()

    def grid(self) -> list[BaseSettings]:
        """Every setting that the search tries.

        Raises:
            ValueError: a value of the search is out of its range.
        """
        if self.search == NOTHING:
            return [self]
        factorisation = self.factorisation
        has_cosines = factorisation.similarity == "cosine" and factorisation.loss != "ials"
        temperatures = self.search.temperature if has_cosines else ()
        return [
            replace(
                self,
                half_life=half_life,
                factorisation=replace(factorisation, temperature=t, bias_lr=bias_lr, l2=l2),
                search=NOTHING,
            )
            for t, bias_lr, l2, half_life in product(
                temperatures or (factorisation.temperature,),
                self.search.bias_lr or (factorisation.bias_lr,),
                self.search.l2 or (factorisation.l2,),
                self.search.half_life or (self.half_life,),
            )
        ]

    @property
    def searched(self) -> dict[str, float]:
        """What it says of all that a search chooses."""
        factorisation = self.factorisation
        return {
            "temperature": factorisation.temperature,
            "bias_lr": factorisation.bias_lr,
            "l2": factorisation.l2,
            "half_life": self.half_life,
        }
