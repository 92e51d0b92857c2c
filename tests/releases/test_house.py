"""Which room of the house imports which, and what a server really executes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import rig as rig_package
from rig.sources.published import built_locks, released

import sglang_commfix


PACKAGE = Path(sglang_commfix.__file__).parent
# Python's own modules that a server may not need for this package: they parse and decide.
FORBIDDEN = {"ast", "tokenize", "tomllib", "tomli", "packaging", "dis", "symtable"}


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """Yield each imported module, and the function that the import stands in (empty: none)."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            inside = child.name if isinstance(child, ast.FunctionDef) else function
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from ((f"{child.module}.{alias.name}", inside) for alias in child.names)
            elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
                yield from walk(child, inside)

    return walk(ast.parse(file.read_text()), "")


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in PACKAGE.glob(f"{folder}*.py"))


def room(name: str) -> str:
    """The folder of a module of this package; empty for the modules that every room shares."""
    top, *parts = name.split(".")
    inside = top == "sglang_commfix" and parts and (PACKAGE / parts[0]).is_dir()
    return parts[0] if inside else ""


@pytest.mark.parametrize("file", files("run/", ""), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_what_runs_in_a_server_parses_nothing_and_imports_wrapt_alone(file: Path) -> None:
    for name, _ in imports(file):
        top = name.split(".")[0]
        assert top not in FORBIDDEN
        assert top in sys.stdlib_module_names | {"sglang_commfix", "wrapt"}


def test_run_imports_the_engine_in_one_guarded_place() -> None:
    there = [
        (file.name, name, function)
        for file in files("run/")
        for name, function in imports(file)
        if room(name) not in {"", "run"}
    ]
    assert there == [("plan.py", "sglang_commfix.engine.shipped", "engine")]


def test_the_engine_knows_neither_what_runs_nor_the_command() -> None:
    for file in files("engine/"):
        assert {room(name) for name, _ in imports(file)} <= {"", "engine"}, file


def test_the_modules_that_all_rooms_share_import_none_of_them_but_at_the_gate() -> None:
    there = [
        (file.name, name, function)
        for file in files("")
        for name, function in imports(file)
        if room(name) and file.name != "__main__.py"
    ]
    assert there == [("__init__.py", "sglang_commfix.run.session", "find_spec")]


def test_no_two_modules_have_the_same_name() -> None:
    rig = Path(rig_package.__file__).parent
    files = [*PACKAGE.rglob("*.py"), *rig.rglob("*.py")]
    here = [file.stem for file in files if PACKAGE / "patches" not in file.parents]
    # What Python looks for by this name; and each room's errors.
    shared = {"__init__", "sitecustomize", "errors"}
    assert {name for name in here if here.count(name) > 1} <= shared


SERVER = """
import json, os, sys
import sglang_commfix, sglang_commfix.run.plan as plan
from pathlib import Path
plan.SHIPPED = Path(sys.argv[2])
sys.path.insert(0, sys.argv[1])
import importlib.util
from sglang_commfix.run import session
assert sglang_commfix.FINDER in sys.meta_path
importlib.util.find_spec("sglang")                     # the gate: the session starts
assert session.current.plan.origin == "shipped"
session.current.watch()                               # the first import of the runtime
for name, module in session.current.modules.items():
    spec = session.current.find_spec(name, [str(module.path.parent)])
    spec.loader.get_code(name), spec.loader.get_source(name)
session.verify()                                       # sglang's plug-in entry point
shim = Path(plan.__file__).with_name("shim") / "sitecustomize.py"  # where no .pth file is read
own = {name: m.__file__ for name, m in sys.modules.items() if name.startswith("sglang_commfix")}
print(json.dumps({**own, "shim": str(shim)}))
"""


def code_lines(file: Path) -> int:
    """Count the lines of a file that hold code: neither blank, nor comment, nor docstring."""
    text = file.read_text()
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            told.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(1 for at, line in lines if line and line[0] != "#" and at not in told)


@pytest.mark.releases
@pytest.mark.parametrize("release", ["0.5.1", "0.5.10.post1", "0.5.11", "0.5.12.post1", "0.5.23"])
def test_a_healthy_server_of_a_published_release_executes_at_most_700_lines_of_code(
    release: str, tmp_path: Path
) -> None:
    program = tmp_path / "server.py"
    program.write_text(SERVER)
    result = subprocess.run(
        [sys.executable, str(program), str(released(release)), str(built_locks())],
        env={"SGLANG_COMMFIX": "all", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout)
    assert not [name for name in loaded if room(name) not in {"", "run"}]
    assert sum(code_lines(Path(file)) for file in loaded.values()) <= 700
