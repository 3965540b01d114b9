"""The public names: each loads when asked for, none before."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import reclora


@pytest.mark.parametrize("name", reclora.__all__)
def test_each_public_name_is_what_it_says(name: str) -> None:
    value = getattr(reclora, name)
    assert name.isupper() or value.__name__ == name


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(reclora.__file__).read_text(encoding="utf-8"))
    imports = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("reclora.")
    ]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert seen == {name: f"reclora.{module}" for name, module in reclora._MODULE_OF.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Adaptor'"):
        _ = reclora.Adaptor


def test_importing_reclora_loads_nothing_heavy() -> None:
    code = "import sys, reclora; print({'torch', 'pandas', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
