"""The published releases that tests read, and what is planned for them."""

from __future__ import annotations
import __future__

import ast
import atexit
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import CodeType

from fingerprints import Edited, wanted_files
from wheels import fetch

from sglang_commfix.engine.fingerprint import find_scope
from sglang_commfix.engine.guard import Finding, decide
from sglang_commfix.engine.make_lock import make_lock
from sglang_commfix.engine.register import load, patches_folder
from sglang_commfix.engine.shipped import put_together
from sglang_commfix.engine.source import Source
from sglang_commfix.engine.tree import Tree
from sglang_commfix.files import Sglang
from sglang_commfix.lock import Lock
from sglang_commfix.run import plan
from sglang_commfix.run.host import Settings
from sglang_commfix.run.plan import Module, Plan, select


RELEASES: list[str] = json.loads(
    (Path(__file__).parents[3] / "patches" / "releases.json").read_text()
)


@cache
def built_locks() -> Path:
    """The folder `locks/` of the wheel that is installed; of a checkout, what a wheel would have."""
    if plan.SHIPPED.is_dir():
        return plan.SHIPPED
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    for name, data in put_together(load(), patches_folder()).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder / "locks"


@cache
def released(release: str) -> Path:
    """The folder with the files that the register looks at, downloaded once."""
    return fetch(release, wanted_files(load().patches))


def copied(release: str, folder: Path) -> Path:
    """Copy the files that the register looks at into a folder, for a test to change."""
    for name in wanted_files(load().patches):
        if (file := released(release) / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
    return folder


@cache
def tree(release: str) -> Tree:
    """The release, as the engine sees it."""
    return Tree(Sglang(released(release) / "sglang"))


def with_files(pristine: Tree, files: Mapping[str, bytes]) -> Tree:
    """The same tree with other files for some modules; nothing else is worked out anew."""
    made = Tree(Edited(pristine.sglang, files))
    for known in ("_sources", "_trees", "_names", "_bindings", "_effects", "_anew", "_stands"):
        for key, value in getattr(pristine, known).items():
            # A key is a module, a target or a clause's.
            if re.split("[: ]", str(key))[0] not in files:
                getattr(made, known)[key] = value
    return made


@cache
def lock_of(release: str) -> Lock:
    """The lock of the release, made by the engine."""
    return make_lock(load(), tree(release))


@cache
def findings(release: str) -> dict[str, Finding]:
    """What the guard finds in the release, by the ids of the patches."""
    return {finding.patch.id: finding for finding in decide(load(), tree(release))}


def plan_for(release: str, words: str = "all") -> Plan:
    """What importing the release amounts to, by the engine."""
    return select(tree(release).sglang, Settings(words), lock_of(release), "engine")


def code_of(release: str, words: str, module: str, scope: str) -> CodeType:
    """One function of a release, its text as it runs: executed, it defines that function."""
    planned = plan_for(release, words).modules.get(module)
    source = after(planned) if planned else tree(release).source(module)
    assert source is not None
    found = find_scope(ast.parse(source.text), scope)
    assert isinstance(found, ast.FunctionDef)
    flags = __future__.annotations.compiler_flag
    code: CodeType = compile(ast.Module([found], []), module, "exec", flags, dont_inherit=True)
    return code


def after(module: Module) -> Source:
    """The edited text of a module of a plan."""
    return Source.from_bytes(module.path, module.after)


def before(module: Module) -> Source:
    """The genuine text of a module of a plan."""
    return Source.from_bytes(module.path, module.before)
