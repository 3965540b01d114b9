"""A night as one of its ranks takes it: a process of its own, writes its peak of memory as JSON.

    python -m torch.distributed.run --nproc-per-node N -m tests.benchmarks.night_on_ranks OUT WORDS
    python -m tests.benchmarks.night_on_ranks OUT WORDS

WORDS are those of the command `reclora`. The peak is the kernel's high-water mark of the resident
set over what the process held once all was imported.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torchrec  # noqa: F401  # before the mark, wherever it would be loaded

import reclora.pipelines.orders
import reclora.pipelines.retrain  # noqa: F401
from reclora.pipelines.cli import main

from .training_memory import _status


def be_rank(out: Path, words: list[str]) -> None:
    """Run the command, and write down what it took beyond its imports."""
    before = _status("VmRSS")
    sys.argv = ["reclora", *words]
    try:
        main()
    finally:
        peak = {"peak": _status("VmHWM") - before}
        (out / f"rank-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(peak))


if __name__ == "__main__":
    be_rank(Path(sys.argv[1]), sys.argv[2:])
