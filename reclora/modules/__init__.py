"""Segment-aware deltas on the modules of any torch model."""

from reclora.modules.model import AdaptedModel, adapt

__all__ = ["AdaptedModel", "adapt"]
