"""Log -> pretrain, train, validation and test windows.

The base model is pretrained on the first window; adapters train on the second, are chosen on the
third and reported on the fourth. Nothing of a later window may come before what an earlier one
holds: `check_leakage` names the rows that do.
"""

from reclora.splits.cutting import SplitConfig, cut, k_core, split
from reclora.splits.given import together
from reclora.splits.leakage import LeakageError, check_leakage, refuse_leaks
from reclora.splits.windows import WINDOWS, SplitBy, Windows, warm

__all__ = [
    "WINDOWS",
    "LeakageError",
    "SplitBy",
    "SplitConfig",
    "Windows",
    "check_leakage",
    "cut",
    "k_core",
    "refuse_leaks",
    "split",
    "together",
    "warm",
]
