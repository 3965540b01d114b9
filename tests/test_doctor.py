"""The check-up: what it finds here, and what it says of environments that are broken."""

import json
import sys
import time
from pathlib import Path

import pytest
from test_environment import distribution

from reclora.pipelines import doctor


def findings_by_name(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


def broken_package(folder: Path, name: str, source: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source)


def test_this_environment_fits_and_the_json_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert doctor.run(json=True) == 0
    took = time.monotonic() - began
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] is True
    found = {finding["name"]: finding for finding in report["findings"]}
    assert {"Python", "memory", "torch", "torchrec", "duckdb", "optuna", "strace"} <= set(found)
    assert found["TorchRec lookup"]["verdict"] == "fits"
    assert found["torch"]["found"].startswith("2.13")
    assert found["optuna"]["part"] == "extra tune"
    assert took < 30, "the check-up is to be quick also on a busy machine"


def test_a_wrong_environment_is_told_with_commands_that_can_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distribution(tmp_path, "fbgemm-gpu", "1.8.0")
    distribution(tmp_path, "duckdb", "0.1")
    distribution(tmp_path, "optuna", "3.0")
    broken_package(tmp_path, "torchrec", "import os\nos.abort()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "60")
    assert doctor.run(json=False) == 1
    printed = capsys.readouterr().out
    remedies = printed[printed.index("What to do:") :].split("\n")
    pip = f"{sys.executable} -m pip"
    assert f"  {pip} install 'duckdb>=1.4'" in remedies
    assert any("uninstall --yes fbgemm-gpu fbgemm-gpu-cpu && " in line for line in remedies)
    assert "SIGABRT" in printed
    later = remedies.index("Only where you need it:")
    assert f"  {pip} install 'optuna>=4'  # the extra `tune`" in remedies[later:]
    assert "this does not fit together" in remedies


def test_a_torch_that_does_not_import_or_hangs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken_package(tmp_path, "torch", "raise ImportError('libtorch_cpu.so: no such file')\n")
    (finding,) = doctor._kernels()
    assert finding.verdict == "wrong" and "libtorch_cpu.so: no such file" in finding.found
    (tmp_path / "torch" / "__init__.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 1)
    (finding,) = doctor._kernels()
    assert finding.verdict == "wrong" and finding.found == "no answer in 1 s"


def test_a_gpu_that_torch_does_not_see_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._cuda("2.13.0+cpu", "").verdict == "fits"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    unseen = doctor._cuda("2.13.0+cpu", "")
    assert unseen.verdict == "missing" and "torch 2.13.0+cpu sees no GPU" in unseen.found
    assert doctor._cuda("2.13.0+cu130", "NVIDIA H100").found == "NVIDIA H100"


def test_commands_that_only_tests_need_do_not_fail_the_check_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = findings_by_name(list(doctor._tools()))
    assert {finding.verdict for finding in found.values()} == {"missing"}
    assert found["chromedriver"].advice.startswith("apt-get install chromium-driver")


def test_the_machine_is_described_without_its_name() -> None:
    here = doctor.machine()
    assert here.cores >= 1 and here.memory_gib > 0
    assert here.cpu and here.system.startswith(("Linux", "Darwin"))
    assert here.python == sys.version.split()[0]
