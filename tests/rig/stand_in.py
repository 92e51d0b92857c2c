"""A small stand-in for sglang and for the register, for corner cases that no release shows."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fingerprints import fingerprints_of, render

from sglang_commfix.command.report import reason_of
from sglang_commfix.engine.make_lock import make_lock
from sglang_commfix.engine.register import Register, load_folder, patches_folder
from sglang_commfix.engine.tree import Tree
from sglang_commfix.files import Sglang
from sglang_commfix.run.host import Settings
from sglang_commfix.run.plan import Plan, select


MODULE = "sglang.srt.layers.communicator"
FILE = "srt/layers/communicator.py"

FAULTY = '''
"""A module."""
import os


class LayerCommunicator:
    """A class."""

    def should_fuse(self, batch):
        """A method."""
        size = batch.size  # tokens
        return size > 0

    def other(self):
        return 1
'''
FIXED = FAULTY.replace(
    "        return size > 0",
    "        if self.scattered is True:\n            return False\n        return size > 0",
)

# Edited where it does not matter to the edit, and where it does: there is another way out.
ELSEWHERE = FAULTY.replace("size > 0", "size > 1")


def in_doubt(text: str) -> str:
    """Edit a faulty module so that the guard refuses it."""
    return text.replace(
        "size = batch", "if not batch:\n            return True\n        size = batch"
    )


TEXTS = dict.fromkeys(("title", "seen", "flags", "symptom", "cause", "hits", "change"), "text")
GUARD = "if self.scattered:\n    return False\n"
# What shows that the fault is not there: upstream's fix, or that nothing of it all is.
MENDED = {
    "module": MODULE,
    "scope": "LayerCommunicator.should_fuse",
    "find": GUARD.replace(":", " is True:"),
    "releases": ">=1.3",
    "why": "it is not fused",
}
GONE = {"module": MODULE, "unmentioned": ["should_fuse"], "why": "nothing is fused"}


def dedented(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n")


def write_sglang(root: Path, files: dict[str, str | bytes], version: str = "1.1") -> Path:
    """Write an sglang package below ``root``; return the folder that contains it."""
    package = root / "sglang"
    (package / "srt").mkdir(parents=True, exist_ok=True)
    for folder in (package, package / "srt"):
        (folder / "__init__.py").touch()
    (package / "version.py").write_text(f'__version__ = "{version}"\n')
    for name, text in files.items():
        file = package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        if isinstance(text, bytes):
            file.write_bytes(text)
        else:
            file.write_text(dedented(text), newline="")
    return root


def edit(**changes: Any) -> dict[str, Any]:
    """An edit that adds :data:`GUARD` to ``LayerCommunicator.should_fuse``."""
    base = {"module": MODULE, "scope": "LayerCommunicator.should_fuse"}
    if not {"append", "replace", "before", "find"} & changes.keys():
        base |= {"find": "size = batch.size", "after": GUARD}
    return base | changes


def patch(name: str = "1-guard", **changes: Any) -> dict[str, Any]:
    """A patch for releases 1.1 and 1.2 of the stand-in."""
    base: dict[str, Any] = {
        "id": name,
        "pr": int(name.split("-", maxsplit=1)[0]),
        "kind": "correctness",
        "collective": True,
        "affected": ">=1.1,<1.3",
        "fixed_in": "1.3",
        "links": [],
        "shown": ["cpu ranks"],
        "meets": [{"flags": ["tp_size > 1"]}],
        "sound": [MENDED, GONE],
        "edit": [edit()],
    }
    return TEXTS | base | changes


@dataclass
class Upstream:
    """The releases that a fake register knows: for each, the files that its fingerprints are of."""

    releases: dict[str, dict[str, str]] = field(
        default_factory=lambda: {
            "1.0": {MODULE: "x = 1\n"},
            "1.1": {MODULE: dedented(FAULTY)},
            "1.2": {MODULE: dedented(FAULTY)},
            "1.3": {MODULE: dedented(FIXED)},
        }
    )

    def tree(self, release: str) -> Tree:
        """A release, as the engine sees it."""
        sglang = Sglang(Path("sglang"))
        texts = self.releases[release] | {"sglang.version": f'__version__ = "{release}"\n'}
        sglang._raw |= {name: text.encode() for name, text in texts.items()}
        return Tree(sglang)

    def register(self, folder: Path, *patches: dict[str, Any], **files: str) -> Register:
        """Write and load a register; ``files`` are put beside each ``patch.toml``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "releases.json").write_text(json.dumps(list(self.releases)))
        shutil.copy(patches_folder() / "launches.toml", folder)
        for data in patches or (patch(),):
            own = folder / data["id"]
            own.mkdir(exist_ok=True)
            for name, text in files.items():
                (own / f"{name}.py").write_text(text)
            (own / "patch.toml").write_text(toml(data))
            (own / "fingerprints.json").unlink(missing_ok=True)
        known = load_folder(folder, complete=False).patches
        table = {name: fingerprints_of(self.tree(name), known) for name in self.releases}
        for one in known:
            (folder / one.id / "fingerprints.json").write_text(render([*table], one, table))
        return load_folder(folder)


def toml(data: dict[str, Any]) -> str:
    """Write the few kinds of value that ``patch.toml`` has."""
    plain = {key: value for key, value in data.items() if not _is_tables(value)}
    lines = [f"{key} = {_inline(value)}" for key, value in plain.items()]
    for key, value in data.items():
        if _is_tables(value):
            for table in value:
                lines.append(f"[[{key}]]")
                lines += [f"{name} = {_inline(item)}" for name, item in table.items()]
    return "\n".join(lines) + "\n"


def _inline(value: object) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    items = ", ".join(f"{key} = {json.dumps(item)}" for key, item in value.items())
    return f"{{ {items} }}"


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def plan(register: Register, root: Path, words: str = "all", allow: Collection[str] = ()) -> Plan:
    """Plan for the sglang below ``root``."""
    sglang = Sglang(root / "sglang")
    return select(sglang, Settings(words), make_lock(register, Tree(sglang), allow), "engine")


def verdicts(made: Plan) -> dict[str, str]:
    return {patch["id"]: patch["decision"] for patch in made.patches}


def reason(made: Plan, name: str = "1-guard") -> str:
    return next(reason_of(made, patch) for patch in made.patches if patch["id"] == name)
