"""The pinned triple: what fits, what does not, and what is said about it."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from reclora.environment import PINNED, WrongEnvironmentError, check_environment, installed, judge

ROOT = Path(__file__).resolve().parents[1]
FITTING = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}


def distribution(folder: Path, name: str, version: str) -> None:
    """Write what pip leaves for a package, so that importlib.metadata finds that version."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def verdicts(versions: dict[str, str]) -> dict[str, bool]:
    return {package.name: package.fits for package in judge(versions)}


def test_the_environment_of_the_tests_fits() -> None:
    check_environment()
    assert all(package.fits and not package.advice for package in installed())


def test_the_check_imports_nothing_of_the_triple() -> None:
    script = (
        "import sys; from reclora.environment import check_environment; check_environment();"
        "sys.exit(bool({'torch', 'torchrec', 'fbgemm_gpu'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_without_any_package_the_message_says_how_to_install_torch() -> None:
    script = f"import runpy; runpy.run_path({str(ROOT / 'reclora/environment.py')!r})"
    command = [sys.executable, "-I", "-S", "-c", f"{script}['check_environment']()"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "WrongEnvironmentError" in done.stderr
    assert "torch (missing), torchrec (missing)" in done.stderr
    assert f"{sys.executable} -m pip install torch==2.13.0  # torch is missing" in done.stderr
    assert "pip install --no-deps" not in done.stderr, "torchrec may be missing"


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("torch", "2.12.1", "pip install torch==2.13.0  # torch 2.12.1 is of another line"),
        ("torchrec", "1.7.0", "pip install --no-deps torchrec==1.8.0  # torchrec 1.7.0 does not"),
        ("fbgemm-gpu-cpu", "1.9.0", "pip install --no-deps fbgemm-gpu-cpu==1.8.0"),
        ("fbgemm-gpu", "1.8.0", "pip uninstall --yes fbgemm-gpu fbgemm-gpu-cpu && "),
    ],
)
def test_a_wrong_package_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, said: str
) -> None:
    distribution(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WrongEnvironmentError) as raised:
        check_environment()
    message = str(raised.value)
    assert f"{name} {version}" in message
    assert message.count(said) == 1
    assert "what fits: torch 2.13, torchrec 1.8, and fbgemm-gpu-cpu or fbgemm-gpu 1.8" in message


def test_torchrec_and_fbgemm_may_be_missing_and_it_is_said() -> None:
    packages = {package.name: package for package in judge({"torch": "2.13.0"})}
    assert all(package.fits for package in packages.values())
    assert packages["torch"].advice == ""
    for name in ("torchrec", "fbgemm-gpu-cpu"):
        assert packages[name].version is None
        assert f"pip install --no-deps {name}==1.8.0" in packages[name].advice


def test_the_two_builds_of_fbgemm_exclude_each_other() -> None:
    both = verdicts({**FITTING, "fbgemm-gpu": "1.8.0"})
    assert both == {"torch": True, "torchrec": True, "fbgemm-gpu": False, "fbgemm-gpu-cpu": False}


@pytest.mark.parametrize(("torch", "fits"), [("2.13.0+cu130", True), ("2.13.0+cpu", False)])
def test_the_cuda_build_of_fbgemm_needs_a_cuda_build_of_torch(torch: str, fits: bool) -> None:
    versions = {"torch": torch, "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0"}
    assert verdicts(versions) == {"torch": True, "torchrec": True, "fbgemm-gpu": fits}


VERSIONS = st.builds(
    "{}.{}.{}{}{}".format,
    st.integers(0, 3),
    st.integers(0, 130) | st.sampled_from([8, 13]),
    st.integers(0, 20),
    st.sampled_from(["", "a0", "rc1", ".dev20260101", ".post1"]),
    st.sampled_from(["", "+cpu", "+cu130", "+git1a2b3c"]),
)


@given(name=st.sampled_from(["torch", "torchrec", "fbgemm-gpu-cpu"]), version=VERSIONS)
def test_a_version_fits_when_its_first_two_numbers_do(name: str, version: str) -> None:
    wanted = tuple(map(int, PINNED[name].split(".")))
    found = next(each for each in judge({**FITTING, name: version}) if each.name == name)
    assert found.fits == (Version(version).release[:2] == wanted)
    assert found.fits == (found.advice == "")
