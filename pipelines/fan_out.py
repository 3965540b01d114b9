"""Independent runs, each a process of its own: on this machine, or on those of a Ray cluster.

    fan_out([["retrain", f"{region}.toml"] for region in regions], ray="auto")    a store a region
    fan_out([["tune", "run.toml", "--trials", "200"]] * 8, ray="auto")            8 at one study

The runs have nothing to do with each other; what one must find of another lies on a disk that they
share. The machines of the cluster have reclora installed, and see the files by the same paths.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAST = 2000
"""Characters of what a run said that are kept."""


@dataclass(frozen=True)
class Ended:
    """A run that has ended."""

    words: tuple[str, ...]
    """Its command, without `reclora`."""
    code: int
    """See `reclora.pipelines.cli`; -1 where the machine was lost under it."""
    said: str
    """The end of what it wrote to stderr; where the machine was lost, what Ray says of it."""


def fan_out(
    commands: Sequence[Sequence[str]], *, at_once: int = 1, ray: str | None = None
) -> list[Ended]:
    """Run `reclora` with each of these words; one that fails stops no other.

    Args:
        at_once: how many on this machine.
        ray: the address of a cluster that is there, "auto" for the one that this machine belongs
            to; then Ray decides how many at once, one CPU each. Needs the extra `ray`.

    Returns:
        How each ended, in the order of the commands.

    Raises:
        ValueError: at_once is below 1.
        RuntimeError: Ray is not installed.
        ConnectionError: there is no cluster at the address.
    """
    if at_once < 1:
        raise ValueError(f"at_once must be at least 1, got {at_once}")
    here = os.getcwd()
    if ray is None:
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda words: _run(words, here), commands))
    return _on_cluster(commands, here, ray)


def _run(words: Sequence[str], folder: str) -> Ended:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("reclora")), *words],
        cwd=folder,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    return Ended(tuple(words), done.returncode, done.stderr[-LAST:])


def _on_cluster(commands: Sequence[Sequence[str]], folder: str, address: str) -> list[Ended]:
    try:
        import ray
    except ImportError:
        raise RuntimeError("Ray is not installed: pip install ray") from None
    was_there = ray.is_initialized()
    if not was_there:
        ray.init(address=address, log_to_driver=False)
    # A run that has failed would fail again; one that was interrupted goes on with the same words.
    run = ray.remote(num_cpus=1, max_retries=0)(_run)
    try:
        waiting = [run.remote(words, folder) for words in commands]
        return [_ended(words, each) for words, each in zip(commands, waiting, strict=True)]
    finally:
        if not was_there:
            ray.shutdown()


def _ended(words: Sequence[str], waiting: Any) -> Ended:
    import ray

    try:
        ended = ray.get(waiting)
    except ray.exceptions.RayError as error:
        return Ended(tuple(words), -1, str(error)[-LAST:])
    assert isinstance(ended, Ended)
    return ended
