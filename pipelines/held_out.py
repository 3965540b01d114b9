"""What is held out of a window, where somebody has something new to find."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from reclora.evaluation import EvaluationConfig, HeldOut, hold_out
from reclora.interactions import Interactions


def hold_out_some(
    what: str,
    heldout: Interactions,
    seen: Interactions,
    config: EvaluationConfig,
    candidates: Mapping[str, Tensor] | None = None,
    advice: str = "give a longer log, or other shares in [split]",
) -> HeldOut:
    """`hold_out`, where somebody has something new to find.

    Raises:
        ValueError: nobody has; it says in what, and the advice.
    """
    held_out = hold_out(heldout, seen, config, candidates)
    if held_out.num_users == 0:
        raise ValueError(
            f"nobody has an item in {what} that is new to them, of {len(heldout)} interactions "
            f"there: {advice}"
        )
    return held_out
