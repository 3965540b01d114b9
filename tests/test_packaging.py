"""The wheel: everything inside `reclora`, nothing that another package owns."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("reclora", "pipelines", "datasets"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, "--wheel-dir", str(out), str(source)], check=True, capture_output=True
    )
    return next(out.glob("reclora-*.whl"))


def test_the_wheel_holds_every_file_and_claims_one_name(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"reclora"}
    for folder, inside in (
        ("reclora", "reclora"),
        ("pipelines", "reclora/pipelines"),
        ("datasets", "reclora/datasets"),
    ):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".toml", ".j2", ".typed"):
                assert f"{inside}/{path.relative_to(ROOT / folder)}" in names


def test_the_installed_wheel_answers(wheel: Path, tmp_path: Path) -> None:
    """Its modules are found inside the package, beside whatever else is called `datasets`."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import reclora, reclora.pipelines.demo as d, reclora.datasets.movielens as m;"
        "import pathlib; root = pathlib.Path(reclora.__file__).parent;"
        "assert pathlib.Path(d.__file__).is_relative_to(root), d.__file__;"
        "assert pathlib.Path(m.__file__).is_relative_to(root) and d.settings_of('xmarket').exists()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
