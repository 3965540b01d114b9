"""Compiled loops do what Python does, also where there is nowhere to keep their code."""

import numpy as np

from reclora.compiled import compiled

SOURCE = """
def total(values):
    result = 0.0
    for value in values:
        result += value
    return result
"""


@compiled
def ratio(one: float, other: float) -> float:
    return one / other


def test_division_by_zero_is_numpys() -> None:
    assert ratio(1.0, 0.0) == np.inf and np.isnan(ratio(0.0, 0.0))
    assert ratio(1.0, 4.0) == 0.25


def test_a_function_whose_code_cannot_be_kept_is_compiled_all_the_same() -> None:
    scope: dict[str, object] = {}
    # No file has it, so there is no place beside it.
    exec(compile(SOURCE, "<nowhere>", "exec"), scope)
    loop = compiled(scope["total"])  # type: ignore[arg-type]
    assert hasattr(loop, "py_func")
    assert loop(np.arange(5.0)) == 10.0
