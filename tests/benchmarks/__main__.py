"""The command behind `make bench`: measure, print, write `build/benchmarks.json`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .harness import run

parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
parser.add_argument("pattern", nargs="?", default="", help="a part of a name, or a glob")
arguments = parser.parse_args()
here = Path(__file__).resolve().parent
sys.exit(run(here, arguments.pattern, here.parents[1] / "build" / "benchmarks.json"))
