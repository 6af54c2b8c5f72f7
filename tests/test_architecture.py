"""Rules of the code base that a reader relies on."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("ummkd_tf", "experiments", "data_prep")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Imports run downwards: a wing may use those of the rows below it, and none of its own row or above.
WINGS = (
    ("runs",),
    ("output",),
    ("evaluation",),
    ("data",),
    ("released",),
    ("scans",),
    ("tasks",),
    ("model",),
    ("fast", "settings"),
    ("common",),
)

RANK = {name: number for number, row in enumerate(WINGS) for name in row}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Modules and names that a file imports, also inside its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        yield from imported_names(node)


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []


def wing(name: str) -> str | None:
    parts = name.split(".")
    # The entrance itself (ummkd_tf.__version__, ummkd_tf.command) belongs to no wing.
    return parts[1] if parts[0] == "ummkd_tf" and len(parts) > 1 and parts[1] in RANK else None


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_the_library_stands_alone_and_its_wings_import_downwards(path):
    """No program's code and no command-line flag in the library; no import that runs upwards."""
    names = set(imports(path))
    if path.relative_to(ROOT).parts[0] != "ummkd_tf":
        return
    assert not any(name.split(".")[0] in ("experiments", "data_prep") for name in names)
    if path.name == "cli.py":  # how every program starts: it marks required flags in the help, and defines none
        return
    assert "absl.flags" not in names and "FLAGS" not in path.read_text(encoding="utf-8")
    here = wing(module_name(path))
    if here is None:  # the package's entrance
        return
    for there in {wing(name) for name in names} - {None, here}:
        assert RANK[there] > RANK[here], f"{module_name(path)} imports {there}"


def test_no_two_files_import_each_other():
    """No circle, however long."""
    files = {module_name(path): path for path in FILES}
    graph = {
        name: {m for full in imports(path) if (m := full if full in files else full.rpartition(".")[0]) in files}
        - {name}
        for name, path in files.items()
    }
    open_path: list[str] = []
    done: set[str] = set()

    def visit(name: str) -> None:
        assert name not in open_path, " → ".join([*open_path[open_path.index(name) :], name])
        if name in done:
            return
        open_path.append(name)
        for other in sorted(graph[name]):
            visit(other)
        done.add(open_path.pop())

    for name in graph:
        visit(name)


def test_speed_is_put_in_at_one_place():
    """Deleting ummkd_tf/fast leaves a working program: who else imports it does so by a name that may be missing."""
    users = [
        module_name(path)
        for path in FILES
        if wing(module_name(path)) != "fast" and any(n.startswith("ummkd_tf.fast") for n in imports(path))
    ]
    assert users == ["ummkd_tf.model.operations"]


def test_modules_without_a_network_do_not_import_tensorflow():
    modules = (
        "settings",
        "tasks",
        "evaluation.metrics",
        "evaluation.summary",
        "scans.reading",
        "scans.preprocessing",
        "data.dataset",
        "output.text_tables",
        "output.pictures",
    )
    code = f"import sys; {'; '.join(f'import ummkd_tf.{m}' for m in modules)}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("path", [*FILES, *sorted(Path(__file__).parent.rglob("*.py"))], ids=lambda path: path.stem)
def test_text_is_read_and_written_as_utf_8(path):
    """A machine whose locale is ASCII reads the same texts."""
    for call in (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in ("read_text", "write_text"):
            assert "encoding" in {keyword.arg for keyword in call.keywords}, f"{path.name}:{call.lineno}"


def test_the_method_is_read_in_ten_minutes():
    """Five files have the whole method, and nothing that only makes it faster."""
    names = ("settings", "model/architectures", "model/layers", "model/losses", "model/segmenter")
    files = [ROOT / "ummkd_tf" / f"{name}.py" for name in names]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) < 1000
    assert not any("ummkd_tf.fast" in name for path in files for name in imports(path))


SLOW = {"tensorflow", "keras"}
OPTIONAL = {"google", "highdicom", "medpy", "surface_distance", "torch"}
MODULES = {module_name(path): path for path in FILES}


@cache
def packages(name: str) -> frozenset[str]:
    """Packages of others that importing a module, or a name in it, brings in; imports inside functions do not count."""
    path = MODULES.get(name) or MODULES.get(name.rpartition(".")[0])
    if path is None:
        return frozenset({name.split(".")[0]})
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    names = {n for node in ast.walk(tree) if id(node) not in inside for n in imported_names(node)}
    return frozenset().union(*(packages(n) for n in names))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_inside_functions_say_why(path):
    """Only to start without TensorFlow, or without a package that is optional."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    inside = {n.lineno: n for f in functions for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)}
    for number, node in inside.items():
        brings = frozenset().union(*(packages(name) for name in imported_names(node)))
        assert brings & (SLOW | OPTIONAL), f"{path.name}:{number} can be at the top"
        first = number  # of a group of imports, which one comment explains
        while first - 1 in {n.end_lineno for n in inside.values()} or not lines[first - 2].strip():
            first -= 1
        assert "# here, " in (lines[number - 1] + lines[first - 2]).lower(), f"{path.name}:{number} does not say why"
