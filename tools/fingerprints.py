"""Read the published sglang releases and write the register's fingerprints.

Run by a maintainer when a patch is added or a release appears::

    python tools/fingerprints.py            # every release; says what new ones change
    python tools/fingerprints.py --check    # change nothing, fail if the data is not current
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from generated import bring_up_to_date, each_of, read_register
from packaging.version import Version
from wheels import fetch_all

from sglang_commfix.engine.errors import AnchorError
from sglang_commfix.engine.rewrite import placed, rewrite
from sglang_commfix.engine.tree import Tree
from sglang_commfix.files import KEY, Sglang


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sglang_commfix.engine.register import Patch, Register

PATCHES = Path(__file__).resolve().parent.parent / "patches"
FIRST = Version("0.5.1")
VERSION_FILES = ("sglang/__init__.py", "sglang/version.py", "sglang/_version.py")


def published() -> list[str]:
    """Return every final and post release from 0.5.1 on, oldest first."""
    command = [sys.executable, "-m", "pip", "index", "versions", "sglang"]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    line = next(line for line in answer.splitlines() if line.startswith("Available versions:"))
    versions = [Version(word) for word in line.partition(":")[2].replace(" ", "").split(",")]
    return [str(v) for v in sorted(versions) if v >= FIRST and not v.is_prerelease]


def wanted_files(patches: Sequence[Patch]) -> list[str]:
    """Return the files of a wheel that the register looks at: each a module, or a package's own."""
    modules = {KEY, *(module for patch in patches for module in patch.modules)}
    paths = [module.replace(".", "/") for module in modules]
    files = [f"{path}{end}" for path in paths for end in (".py", "/__init__.py")]
    return sorted({*files, *VERSION_FILES})


def found_in(folder: Path) -> dict[str, str | None]:
    """Return what the release in a folder has."""
    return fingerprints_of(Tree(Sglang(folder / "sglang")), _register().patches)


@cache
def _register() -> Register:
    return read_register(PATCHES, complete=False)


def fingerprints_of(tree: Tree, patches: Sequence[Patch]) -> dict[str, str | None]:
    """Return what one release has: the fingerprint of every target, the form of every clause."""
    found: dict[str, str | None] = {}
    by_id = {patch.id: patch for patch in patches}
    on_disk = cache(lambda name, module: patched(tree, by_id[name], module))
    for patch in patches:
        found |= {str(target): tree.fingerprint(target) for target in patch.targets}
        for clause in patch.clauses:
            there = on_disk(clause.after, clause.target.module) if clause.after in by_id else tree
            found[clause.key] = there.stands(clause).form if there else None
    return found


def patched(tree: Tree, patch: Patch, module: str) -> Tree | None:
    """Return the release with the edits of ``patch`` made in ``module``, if it takes them."""
    edits = [edit for edit in patch.edits_for(tree.says) if edit.target.module == module]
    source, syntax = tree.source(module), tree.tree(module)
    if not edits or source is None or syntax is None:
        return None
    try:
        changes = [placed(syntax, patch.id, edit) for edit in edits]
    except AnchorError:
        return None
    edited = rewrite(source, syntax, changes, compiled=False).raw
    return Tree(Edited(tree.sglang, {module: edited}))


class Edited(Sglang):
    """An sglang with other bytes in some of its modules."""

    def __init__(self, sglang: Sglang, edited: Mapping[str, bytes]) -> None:
        super().__init__(sglang.path)
        self._genuine = sglang
        self._edited = edited

    def raw(self, module: str) -> bytes | None:
        """Return the bytes of a module's file; ``None``: no such module."""
        return self._edited[module] if module in self._edited else self._genuine.raw(module)

    def digest(self, module: str) -> str | None:
        """Return the SHA-256 of a module's file; ``None``: no such module."""
        edited = module in self._edited
        return super().digest(module) if edited else self._genuine.digest(module)


def render(releases: Sequence[str], patch: Patch, table: dict[str, dict[str, str | None]]) -> str:
    """Write a patch's fingerprints as runs of releases with one value, one run a line."""
    blocks = []
    names = [*map(str, patch.targets), *(clause.key for clause in patch.clauses)]
    for name in dict.fromkeys(names):
        runs = []
        for value, group in groupby(releases, key=lambda release: table[release][name]):
            members = list(group)
            runs.append(f"    {json.dumps([members[0], members[-1], value])}")
        blocks.append(f"  {json.dumps(name)}: [\n" + ",\n".join(runs) + "\n  ]")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def changes(release: str, before: str, table: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """Say what ``release`` changes at each target, for the maintainer who reviews it."""
    older = list(table)[: list(table).index(release)]
    lines = []
    for target, value in table[release].items():
        earlier = [one for one in older if table[one][target] == value]
        if value == table[before][target]:
            what = "unchanged"
        elif value is None:
            what = "GONE: where has it moved to?"
        elif earlier:
            what = f"CHANGED, to what {earlier[-1]} had: has a fix been lost?"
        else:
            what = f"CHANGED ({value}): does it still have the fix, or the fault?"
        lines.append(f"{release}  {target}  {what}")
    return lines


def main() -> int:
    """Bring ``patches/releases.json`` and every ``fingerprints.json`` up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if not current")
    parser.add_argument("--offline", action="store_true", help="use the releases known already")
    parser.add_argument(
        "--fetch", nargs="*", metavar="NAME", help="only download what is known, and these files"
    )
    arguments = parser.parse_args()
    register = _register()
    listed = PATCHES / "releases.json"
    known = json.loads(listed.read_text(encoding="utf-8"))
    files = wanted_files(register.patches)
    if arguments.fetch is not None:
        fetch_all(known, [*files, *arguments.fetch])
        return 0
    releases = known if arguments.offline else published()
    table = dict(each_of(fetch_all(releases, files), found_in))
    for before, release in pairwise(releases):
        if known and release not in known:
            print("\n".join(changes(release, before, table)))
    outcome = {listed: json.dumps(releases, indent=2) + "\n"}
    for patch in register.patches:
        outcome[PATCHES / patch.id / "fingerprints.json"] = render(releases, patch, table)
    return bring_up_to_date(outcome, check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
