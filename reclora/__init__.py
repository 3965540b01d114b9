"""LoRA for recommenders: one frozen base, a low-rank adapter per segment, one pass, honest numbers.

    E_s = E + (alpha / R) * A_s B_s        tables: E is N x D and frozen; segment s owns A_s and B_s
    W_s = W + (alpha / R) * B_s A_s        tower:  W is out x in and frozen

A tensor that crosses a line of maths carries the letters of its shape, as in `rows_GBD`:

    B  rows of a batch, of each segment     N  rows of a table
    G  segments in a batch                  T  rows of it that segments touch
    S  segments                             D  embedding_dim
    J  negatives of a step                  R  rank
    U  users that are ranked                K  list length

The names below are imported from here; what is behind one is loaded when it is first asked for, so
that `import reclora` costs nothing and the command line answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reclora.adapters import Adapter
    from reclora.arithmetic import average, recompress
    from reclora.bank import AdapterBank
    from reclora.base import BaseModel
    from reclora.comparison import compare, means
    from reclora.configs import FULL, AdapterConfig, AdapterError, DeltaConfig
    from reclora.evaluation import (
        EvaluationConfig,
        RankingJudge,
        evaluate,
        hold_out,
        measure,
        read_foreign,
        recommend,
        slices_of,
    )
    from reclora.factorisation import FactorisationConfig, factorise
    from reclora.interactions import IdMap, Interactions, LogContract, prepare_log
    from reclora.interchange import import_base
    from reclora.modules import AdaptedModel, adapt
    from reclora.optim import RowwiseAdagrad
    from reclora.peft import read_peft, write_peft
    from reclora.ranking import UserItems, rank
    from reclora.recency import faded
    from reclora.report import Report, read_report, write_report
    from reclora.splits import SplitConfig, split
    from reclora.stacks import AdapterStack
    from reclora.store import AdapterStore
    from reclora.training import HeldOutLoss, TrainingConfig, train
    from reclora.truncation import RankCurve, rank_curve, truncate

_NAMES = {
    "adapters": ("Adapter",),
    "arithmetic": ("average", "recompress"),
    "bank": ("AdapterBank",),
    "base": ("BaseModel",),
    "comparison": ("compare", "means"),
    "configs": ("FULL", "AdapterConfig", "AdapterError", "DeltaConfig"),
    "evaluation": (
        "EvaluationConfig",
        "RankingJudge",
        "evaluate",
        "hold_out",
        "measure",
        "read_foreign",
        "recommend",
        "slices_of",
    ),
    "factorisation": ("FactorisationConfig", "factorise"),
    "interactions": ("IdMap", "Interactions", "LogContract", "prepare_log"),
    "interchange": ("import_base",),
    "modules": ("AdaptedModel", "adapt"),
    "optim": ("RowwiseAdagrad",),
    "peft": ("read_peft", "write_peft"),
    "ranking": ("UserItems", "rank"),
    "recency": ("faded",),
    "report": ("Report", "read_report", "write_report"),
    "splits": ("SplitConfig", "split"),
    "stacks": ("AdapterStack",),
    "store": ("AdapterStore",),
    "training": ("HeldOutLoss", "TrainingConfig", "train"),
    "truncation": ("RankCurve", "rank_curve", "truncate"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'reclora' has no attribute {name!r}")
    return getattr(import_module(f"reclora.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
