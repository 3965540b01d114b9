"""Arithmetic of adapters: their mean, exactly, and the best adapter of a smaller rank."""

from reclora.arithmetic.averaging import average
from reclora.arithmetic.compression import recompress, singular_values

__all__ = ["average", "recompress", "singular_values"]
