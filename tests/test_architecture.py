"""Rules of the code base that a reader relies on."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", sorted((ROOT / "ummkd_tf").glob("*.py")), ids=lambda p: p.name)
def test_the_library_stands_alone(path):
    """No program's code and no command-line flag in the library."""
    names = set(imports(path))
    assert not any(name.split(".")[0] in ("experiments", "data_prep") for name in names)
    assert "absl.flags" not in names and "FLAGS" not in path.read_text(encoding="utf-8")


def test_nothing_loads_a_pickle():
    for path in (p for folder in ("ummkd_tf", "experiments", "data_prep") for p in (ROOT / folder).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "allow_pickle=True" not in text and "pickle" not in set(imports(path)), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
                assert any(k.arg == "allow_pickle" for k in node.keywords), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("module", ["settings", "tasks", "metrics", "volumes", "preprocessing", "cases", "reporting"])
def test_modules_without_a_network_do_not_import_tensorflow(module):
    code = f"import sys, ummkd_tf.{module}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
