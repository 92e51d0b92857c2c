"""A register of forty entries: the real ones, and others made up for one release.

The made-up entries have the real ones' kinds and prose. Each puts eight lines in front of a
statement in two functions that nothing else edits, in one of the files that the real ones read, and
each applies: more than a real register of that size would do to one release.
"""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections import Counter
from itertools import cycle
from typing import TYPE_CHECKING

from fingerprints import fingerprints_of, render

from sglang_commfix.engine import shipped
from sglang_commfix.engine.make_lock import make_lock
from sglang_commfix.engine.register import load_folder
from sglang_commfix.engine.tree import Tree
from sglang_commfix.files import KEY, Sglang


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENTRIES = 40
_EDITS = 2
_COPIED = (
    "kind",
    "collective",
    "title",
    "symptom",
    "cause",
    "hits",
    "change",
    "seen",
    "flags",
    "shown",
)


def make_up(real: Path, folder: Path, tree: Path, release: str) -> None:
    """Write the register into ``folder``, with locks and fingerprints of ``release`` alone."""
    locks = shutil.ignore_patterns("locks.json*", "fingerprints.json", "keys.json")
    shutil.copytree(real, folder, ignore=locks)
    (folder / "releases.json").write_text(json.dumps([release]), encoding="utf-8")
    fixed = f"fixed_in = {json.dumps(release)}"  # no other is known here, and one there must be
    for file in folder.glob("*/patch.toml"):
        lines = file.read_text("utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith("fixed_in = ")]
        file.write_text("".join([f"{fixed}\n", *kept]), encoding="utf-8")
    register = load_folder(folder, complete=False)
    modules = sorted({module for patch in register.patches for module in patch.modules})
    files = Sglang(tree / "sglang")
    taken = {(t.module, t.scope) for patch in register.patches for t in patch.targets}
    places = {name: _places(name, (files.raw(name) or b"").decode(), taken) for name in modules}
    models = [tomllib.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*/*.toml"))]
    turns = cycle(modules)
    for number, model in zip(range(len(models), ENTRIES), cycle(models), strict=False):
        edits: list[str] = []
        while len(edits) < _EDITS:
            edits = [edit for _, edit in zip(range(_EDITS), places[next(turns)], strict=False)]
        own = folder / f"made-up-{number}"
        own.mkdir()
        lines = [f"{name} = {json.dumps(model[name])}" for name in _COPIED]
        lines += [f"id = {json.dumps(own.name)}", 'affected = ">=0"', fixed]
        lines += ["links = []", "meets = [{}]", *edits]
        (own / "patch.toml").write_text("\n".join(lines), encoding="utf-8")
    patches = load_folder(folder, complete=False).patches
    for patch in patches:
        found = {release: fingerprints_of(Tree(files), [patch])}
        text = render([release], patch, found)
        (folder / patch.id / "fingerprints.json").write_text(text, encoding="utf-8")
    register = load_folder(folder)
    decisions = make_lock(register, Tree(files))["decisions"]
    for patch, decision in zip(register.patches, decisions, strict=True):
        file = folder / patch.id / "locks.json"
        file.write_text(shipped.write(patch, {release: decision}), encoding="utf-8")
    keys = {release: (files.digest(KEY) or "")[:16]}
    (folder / "keys.json").write_text(json.dumps(keys), encoding="utf-8")


def _places(module: str, text: str, taken: set[tuple[str, str]]) -> Iterator[str]:
    """Yield an edit for each function of a module that none of ``taken`` is about."""
    scopes = list(_functions(ast.parse(text).body))
    names = Counter(name for name, _ in scopes)
    for name, function in scopes:
        apart = all(where != module or name.split(".")[0] != own for where, own in taken)
        if names[name] > 1 or (module, name) in taken or not apart:
            continue
        dumps = Counter(ast.dump(node) for node in ast.walk(function) if isinstance(node, ast.stmt))
        for statement in function.body[1:]:
            segment = ast.get_source_segment(text, statement) or ""
            if "\n" in segment or not segment.isascii() or dumps[ast.dump(statement)] > 1:
                continue
            added = "\n".join(f"commfix_made_up_{line} = {line}" for line in range(8))
            yield (
                f"[[edit]]\nmodule = {json.dumps(module)}\nscope = {json.dumps(name)}\n"
                f"find = {json.dumps(segment)}\nbefore = {json.dumps(added)}\n"
            )
            break


def _functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield f"{prefix}{node.name}", node


def install(register: Path, package: Path) -> None:
    """Put ``register`` in the place of the one in an installed ``package``, as a build does."""
    shutil.rmtree(package / "patches")
    shutil.copytree(register, package / "patches", ignore=shutil.ignore_patterns("locks.json"))
    if (package / "locks").is_dir():
        shutil.rmtree(package / "locks")
        for name, data in shipped.put_together(load_folder(register), register).items():
            file = package / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)
