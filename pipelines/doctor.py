"""The check-up of this machine: what is installed, whether it fits, and what to do if not."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from json import dumps, loads
from pathlib import Path
from typing import Final, Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reclora.environment import PINNED, installed

Verdict = Literal["fits", "missing", "wrong"]
STYLES: Final = {"fits": "green", "missing": "yellow", "wrong": "bold red"}
PROBE_SECONDS: Final = 60
TEST_TOOLS: Final = {"chromium": "chromium", "chromedriver": "chromium-driver", "strace": "strace"}
"""Commands that some tests need, and the Debian package that brings each."""


@dataclass(frozen=True)
class Finding:
    """One line of the check-up."""

    part: str
    name: str
    found: str
    verdict: Verdict
    """`wrong` makes the check-up fail; `missing` is something that only some verbs need."""
    advice: str = ""


@dataclass(frozen=True)
class Machine:
    """The machine as a figure needs it beside it; nothing that tells whose it is."""

    cpu: str
    cores: int
    """Cores that this process may use."""
    memory_gib: float
    """Physical memory, or the control group's limit where that is smaller."""
    system: str
    python: str


def run(json: bool) -> int:
    """Print the check-up as tables, or as JSON on standard output; takes about five seconds.

    The JSON is `{"fits": bool, "findings": [{"part", "name", "found", "verdict", "advice"}, ...]}`.

    Returns:
        The exit code: 0 where everything that a run needs fits, 1 where something is wrong.
    """
    findings = examine()
    fits = all(finding.verdict != "wrong" for finding in findings)
    if json:
        print(
            dumps({"fits": fits, "findings": [asdict(finding) for finding in findings]}, indent=2)
        )
    else:
        _show(findings, fits)
    return 0 if fits else 1


def examine() -> list[Finding]:
    """Return every finding, part by part, without importing torch into this process."""
    return [*_machine(), *_triple(), *_dependencies(), *_kernels(), *_tools()]


def machine() -> Machine:
    """Return what this process runs on."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        memory_gib=round(_memory_bytes() / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def probe() -> None:
    """Use the compiled parts for real and print, a line of JSON each, what came of it.

    It runs in a process of its own (`_kernels`), because a build that does not fit may crash it.
    """
    import torch

    names = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    print(dumps({"torch": torch.__version__, "gpus": ", ".join(names)}), flush=True)
    from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

    table = EmbeddingConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["id"])
    collection = EmbeddingCollection(tables=[table], device=torch.device("cpu"))
    ids, lengths = torch.tensor([8, 0, 3]), torch.tensor([2, 1])
    rows = collection(KeyedJaggedTensor(keys=["id"], values=ids, lengths=lengths))["id"].values()
    print(dumps({"lookup": torch.equal(rows, collection.embeddings["t"].weight[ids])}), flush=True)


def _machine() -> Iterator[Finding]:
    here = machine()
    old = sys.version_info < (3, 11)
    advice = "make the environment with Python 3.11 or newer" if old else ""
    yield Finding("machine", "Python", here.python, "wrong" if old else "fits", advice)
    yield Finding("machine", "system", here.system, "fits")
    yield Finding("machine", "processor", f"{here.cpu}, {here.cores} cores", "fits")
    yield Finding("machine", "memory", f"{here.memory_gib} GiB", "fits")


def _triple() -> Iterator[Finding]:
    for package in installed():
        verdict: Verdict = "missing" if package.version is None else "fits"
        if not package.fits:
            verdict = "wrong"
        found = package.version or "not installed"
        yield Finding("triple", package.name, found, verdict, package.advice)


def _dependencies() -> Iterator[Finding]:
    try:
        lines = metadata.requires("reclora") or []
    except metadata.PackageNotFoundError:
        advice = f"{shlex.quote(sys.executable)} -m pip install --no-deps --editable ."
        yield Finding("dependencies", "reclora", "not installed", "wrong", advice)
        return
    for requirement in map(Requirement, lines):
        if requirement.name not in PINNED:
            yield _dependency(requirement)


def _dependency(requirement: Requirement) -> Finding:
    # `name>=1; extra == "tune"`: only extras carry a marker in pyproject.toml.
    extra = str(requirement.marker).split('"')[1] if requirement.marker else ""
    part = f"extra {extra}" if extra else "dependencies"
    wanted = f"{requirement.name}{requirement.specifier}"
    # The package alone, not `reclora[extra]`: that would bring fbgemm-gpu over the CPU build.
    advice = f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(wanted)}"
    advice += f"  # the extra `{extra}`" if extra else ""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        version = ""
    if version and requirement.specifier.contains(version, prereleases=True):
        return Finding(part, requirement.name, version, "fits")
    found = f"{version}, not {requirement.specifier}" if version else "not installed"
    return Finding(part, requirement.name, found, "missing" if extra else "wrong", advice)


def _kernels() -> Iterator[Finding]:
    """Import torch and torchrec in a process of their own and look rows up."""
    there = {package.name for package in installed() if package.version}
    if "torch" not in there:
        return
    answers, fault = _run_probe()
    if "gpus" not in answers:
        yield Finding("kernels", "import torch", fault, "wrong", "install torch anew")
        return
    yield _cuda(str(answers["torch"]), str(answers["gpus"]))
    if "torchrec" in there and there & {"fbgemm-gpu", "fbgemm-gpu-cpu"}:
        yield _lookup(answers.get("lookup") is True, fault)


def _cuda(torch: str, gpus: str) -> Finding:
    if gpus or not shutil.which("nvidia-smi"):
        return Finding("kernels", "CUDA", gpus or "no GPU; runs use the CPU", "fits")
    advice = "pip install .  # in an environment of its own: it brings the CUDA builds"
    found = f"nvidia-smi is here, but torch {torch} sees no GPU"
    return Finding("kernels", "CUDA", found, "missing", advice)


def _lookup(right: bool, fault: str) -> Finding:
    if right:
        return Finding("kernels", "TorchRec lookup", "right", "fits")
    advice = "make the versions above fit; TorchRec also needs what requirements.txt names"
    found = fault or "gave other rows than the table holds"
    return Finding("kernels", "TorchRec lookup", found, "wrong", advice)


def _run_probe() -> tuple[dict[str, object], str]:
    """Return what the probe printed, and how it failed (empty where it did not)."""
    script = f"from {__name__} import probe; probe()"
    command = [sys.executable, "-W", "ignore", "-c", script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout.decode() if isinstance(expired.stdout, bytes) else ""
        return _answers(output), f"no answer in {PROBE_SECONDS} s"
    fault = ""
    if done.returncode < 0:
        fault = f"crashed with {signal.Signals(-done.returncode).name}"
    elif done.returncode > 0:
        fault = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
    return _answers(done.stdout), fault


def _answers(output: str) -> dict[str, object]:
    answers: dict[str, object] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            answers |= loads(line)
    return answers


def _tools() -> Iterator[Finding]:
    for command, package in TEST_TOOLS.items():
        place = shutil.which(command)
        verdict: Verdict = "fits" if place else "missing"
        advice = "" if place else f"apt-get install {package}  # only some tests need it"
        yield Finding("tests", command, place or "not installed", verdict, advice)


def _cpu() -> str:
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        return min(physical, int(text))
    return physical


def _show(findings: list[Finding], fits: bool) -> None:
    console = Console()
    table = Table("part", "name", "found", "verdict", box=None)
    last = ""
    for finding in findings:
        part = "" if finding.part == last else finding.part
        last = finding.part
        styled = Text(finding.verdict, STYLES[finding.verdict])
        table.add_row(part, finding.name, Text(finding.found), styled)
    console.print(table)
    for verdict, title in (("wrong", "What to do:"), ("missing", "Only where you need it:")):
        advice = dict.fromkeys(each.advice for each in findings if each.verdict == verdict)
        if advice:
            console.print(f"\n{title}", style=STYLES[verdict])
            # Commands are for copying: no line break, no markup.
            console.print("\n".join(f"  {line}" for line in advice), markup=False, soft_wrap=True)
    console.print("\neverything that a run needs fits" if fits else "\nthis does not fit together")
