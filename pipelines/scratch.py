"""What adapting is held against by those who can wait: a base retrained from scratch.

It is trained on all rows before validation, with the settings that were chosen for the run's own
base and as many epochs as the last tenth of those rows likes best.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from reclora.base import BaseModel, read_provenance
from reclora.splits import WINDOWS

from .base_settings import BaseSettings
from .inputs import Inputs
from .prepare import declined_of
from .run import RunSettings
from .train_base import train_base

SCRATCH = "retrained from scratch"


@dataclass(frozen=True)
class Retrained:
    """A base on the run's id maps, and the CPU seconds of its last training."""

    base: BaseModel
    seconds: float


def from_scratch(settings: RunSettings, inputs: Inputs, seed: int) -> Retrained:
    """Train it, or take what an interrupted run has left.

    Raises:
        ValueError: nobody has anything new in the last tenth of what it trains on.
        FactorisationError: the numbers are not finite.
        OSError: it cannot be kept.
    """
    kept = inputs.folder.training / f"scratch-{seed}"
    if not kept.exists():
        window = inputs.windows.before_validation
        own = replace(_chosen(settings), seed=seed)
        declined = declined_of(settings, window.users, window.items, WINDOWS[:2])
        made = train_base(window, own, settings.split.by, own_ids=False, declined=declined)
        made.base.save(kept, {"seconds": made.seconds})
    return Retrained(BaseModel.load(kept), read_provenance(kept)["seconds"])


def _chosen(settings: RunSettings) -> BaseSettings:
    """What the search for the run's own base chose; without one, all that is to be tried."""
    folder = settings.base.saved or settings.base_folder
    tried = read_provenance(folder).get("tried", [])
    chosen = [{n: row[n] for n in settings.base.searched} for row in tried if row["chosen"]]
    return next((s for s in settings.base.grid() if s.searched in chosen), settings.base)
