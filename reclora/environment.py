"""The pinned triple torch, torchrec and fbgemm, checked once at start-up and never imported here.

The three are compiled against each other: fbgemm 1.7 and 1.9 do not load with torch 2.13, and the
CUDA build `fbgemm-gpu` and the CPU build `fbgemm-gpu-cpu` write the same folder, so only one may be
there.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Final

PINNED: Final = {"torch": "2.13", "torchrec": "1.8", "fbgemm-gpu": "1.8", "fbgemm-gpu-cpu": "1.8"}
"""Each package of the triple and its release line (major.minor); one of the two fbgemm builds."""


class WrongEnvironmentError(RuntimeError):
    """The installed torch, torchrec and fbgemm do not fit each other."""


@dataclass(frozen=True)
class Package:
    """One package of the triple, as installed."""

    name: str
    version: str | None
    """None: not installed."""
    fits: bool
    """False stops every run. torchrec and fbgemm may be missing: one process needs only torch."""
    advice: str
    """The command to run and what it is for; empty where nothing is to be done."""


def check_environment() -> None:
    """Raise unless the installed triple fits; takes milliseconds and imports nothing of it.

    Raises:
        WrongEnvironmentError: torch is missing or not 2.13, torchrec or fbgemm is of another line
            than 1.8, or the fbgemm build does not go with the rest. One message: what is installed,
            what fits, and the command to run.
    """
    packages = installed()
    wrong = [package for package in packages if not package.fits]
    if not wrong:
        return
    found = ", ".join(f"{package.name} {package.version or '(missing)'}" for package in packages)
    todo = "\n".join(dict.fromkeys(f"  {package.advice}" for package in wrong))
    raise WrongEnvironmentError(
        "torch, torchrec and fbgemm do not fit each other.\n"
        f"installed: {found}\n"
        f"what fits: torch {PINNED['torch']}, torchrec {PINNED['torchrec']}, "
        f"and fbgemm-gpu-cpu or fbgemm-gpu {PINNED['fbgemm-gpu']}, not both\n"
        f"what to do:\n{todo}"
    )


def installed() -> list[Package]:
    """Return the verdict on each package of the triple in this interpreter; see `judge`."""
    return judge({name: _version(name) for name in PINNED})


def judge(versions: Mapping[str, str | None]) -> list[Package]:
    """Return the verdict on a triple: torch, torchrec, then each fbgemm build that is there.

    `versions` maps the names of `PINNED` to what is installed, None (or no key) where nothing is.
    With no fbgemm build at all, the CPU build stands in the list as missing.
    """
    torch, torchrec = versions.get("torch"), versions.get("torchrec")
    builds = [name for name in ("fbgemm-gpu", "fbgemm-gpu-cpu") if versions.get(name)]
    return [
        Package("torch", torch, _in_line("torch", torch), _torch_advice(torch)),
        Package("torchrec", torchrec, *_optional("torchrec", torchrec)),
        *_fbgemm(builds or ["fbgemm-gpu-cpu"], versions),
    ]


def _fbgemm(builds: list[str], versions: Mapping[str, str | None]) -> Iterator[Package]:
    for name in builds:
        version = versions.get(name)
        if len(builds) == 2:
            why = "both fbgemm builds are installed, and each overwrites the other's folder"
            yield Package(name, version, False, f"{_replace_fbgemm()}  # {why}")
        elif name == "fbgemm-gpu" and (versions.get("torch") or "").endswith("+cpu"):
            why = "fbgemm-gpu is a CUDA build and does not import beside a CPU build of torch"
            yield Package(name, version, False, f"{_replace_fbgemm()}  # {why}")
        else:
            yield Package(name, version, *_optional(name, version))


def _optional(name: str, version: str | None) -> tuple[bool, str]:
    """Say whether torchrec or fbgemm fits, and what to do; missing fits, with advice."""
    if version is None:
        return True, f"{_install(name)}  # only TorchRec modules and several ranks need {name}"
    if _in_line(name, version):
        return True, ""
    return False, f"{_install(name)}  # {name} {version} does not go with torch {PINNED['torch']}"


def _torch_advice(version: str | None) -> str:
    if _in_line("torch", version):
        return ""
    why = "torch is missing" if version is None else f"torch {version} is of another line"
    return f"{_pip()} install torch=={PINNED['torch']}.0  # {why}"


def _in_line(name: str, version: str | None) -> bool:
    return version is not None and version.split("+")[0].split(".")[:2] == PINNED[name].split(".")


def _install(name: str) -> str:
    # Without --no-deps torchrec brings fbgemm-gpu, which overwrites the CPU build's folder.
    return f"{_pip()} install --no-deps {name}=={PINNED[name]}.0"


def _replace_fbgemm() -> str:
    remove = f"{_pip()} uninstall --yes fbgemm-gpu fbgemm-gpu-cpu"
    return f"{remove} && {_install('fbgemm-gpu-cpu')}"


def _pip() -> str:
    return f"{shlex.quote(sys.executable)} -m pip"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
