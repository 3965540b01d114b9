"""Loops that arrays cannot say fast enough, compiled when they are first called.

The machine code is kept beside the module (or in the user's cache), so that only the first call
ever made on a machine waits for the compiler. What is kept notices a change of its own file alone:
so a compiled loop calls none of another file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function as machine code, for arguments of the types of each call; it lets other threads
    run. Division by zero gives inf or NaN, as in numpy.
    """
    try:
        loop: Callable[P, R] = njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:
        # Nowhere to keep the code: a read-only install without a home folder.
        loop = njit(nogil=True, error_model="numpy")(function)
    return loop
