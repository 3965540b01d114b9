"""This file is the checkpoint of a training: what it has reached, on the disk, so that a killed one
goes on from there to the same bytes.

A checkpoint is one safetensors file: the tensors, and in its metadata whose they are, some facts as
JSON and the sha256 of both. It belongs to one training on one machine and is no exchange
format: the store is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reclora.files import atomic_write, make_folder

SECONDS = 20.0
"""How much work a kill costs at the most, but for the step that is under way."""


@dataclass
class Checkpoint:
    """Where one training keeps what it has reached.

    Args:
        path: its file; the folder is made.
        of: whose it is. A file that says something else is not gone on from: it is another
            training's, and is replaced.
        seconds: how long a training may go on without keeping what it has reached.
    """

    path: Path
    of: str
    seconds: float = SECONDS
    _kept: float = field(default_factory=time.monotonic, init=False)

    def is_due(self) -> bool:
        """Whether the last one is older than `seconds`."""
        return time.monotonic() - self._kept >= self.seconds

    def is_there(self) -> bool:
        """Whether a file says that it is this training's; it may be damaged."""
        try:
            with safe_open(self.path, "pt") as file:
                return (file.metadata() or {}).get("of") == self.of
        except (OSError, SafetensorError):
            return False

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write it, whole or not at all.

        Raises:
            OSError: the disk refused; the one before is still there.
        """
        make_folder(self.path.parent)
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(facts, allow_nan=False)
        about = {"of": self.of, "facts": text, "sha256": digest_of(whole, text)}
        with atomic_write(self.path) as temporary:
            try:
                save_file(whole, temporary, metadata=about)
            except SafetensorError as error:
                # A full disk comes as text.
                raise OSError(f"{self.path} cannot be written: {error}") from None
        self._kept = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and facts of the last one; None where there is none of this training, or only
        a damaged one: then training begins anew.
        """
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                if about.get("of") != self.of:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        if about.get("sha256") != digest_of(tensors, facts := about.get("facts", "")):
            return None
        return tensors, dict(json.loads(facts))


def digest_of(tensors: Mapping[str, Tensor], facts: str) -> str:
    """The sha256, in hex, of named tensors and a text."""
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).numpy().data)
    return digest.hexdigest()


Handler = Callable[[int, FrameType | None], Any]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let a SIGINT or SIGTERM that comes inside take effect at the end: a training that is told to
    stop is between two steps, and can keep what it has reached.

    Signals whose default is to kill at once still do.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python runs handlers in the main thread alone.
        yield
        return
    came: list[int] = []
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers: dict[int, Handler] = {n: h for n, h in found.items() if callable(h)}
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came[:1]:
            handlers[number](number, None)
