"""The locks that ship: written beside their entries, put together when the package is built.

``patches/<id>/locks.json`` holds what is decided about one entry in every published release, each
text once. A wheel has that packed, for the engine, and once more by releases, for servers: one
small file for those that share :data:`KEY`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

from sglang_commfix import __version__
from sglang_commfix.engine.errors import RegisterError
from sglang_commfix.engine.make_lock import conflicts, entry_of, make_lock
from sglang_commfix.engine.register import load, patches_folder
from sglang_commfix.engine.tree import Tree
from sglang_commfix.files import KEY, short_digest
from sglang_commfix.lock import SCHEMA


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sglang_commfix.engine.register import Patch, Register
    from sglang_commfix.files import Sglang
    from sglang_commfix.lock import Decision, Lock


_WIDTH = 300  # a splice fits


def lock_now(sglang: Sglang) -> Lock:
    """Make the lock of a tree that no shipped lock covers whole.

    What is decided about an entry in a published release holds wherever the files that this stands
    on are the same. The guard decides about the rest.
    """
    register, folder = load(), patches_folder()
    known = {}
    for patch in register.patches:
        for _, decision in read(folder, patch):
            if not sglang.differing(decision["modules"]):
                known[patch.id] = decision
                break
    return make_lock(register, Tree(sglang), known=known)


def index() -> dict[str, Any]:
    """Return what the register holds in short: its modules, and its entries as undecided."""
    return _index(load())


def _index(register: Register) -> dict[str, Any]:
    modules = {module for patch in register.patches for module in patch.modules}
    entries = [entry_of(patch) for patch in register.patches]
    return {"modules": sorted({*modules, KEY}), "entries": entries}


def write(patch: Patch, decisions: Mapping[str, Decision]) -> str:
    """Write what is decided about ``patch``, release by release, as ``locks.json`` holds it."""
    texts: dict[str, list[str]] = {}
    states: list[tuple[dict[str, Any], list[str]]] = []
    for release, decision in decisions.items():
        splices = []
        for one in decision["splices"]:
            name = short_digest("".join(one["text"]).encode())
            texts[name] = one["text"]
            splices.append({**one, "text": name})
        state = {
            "modules": decision["modules"],
            "decision": decision["decision"],
            "reason": decision["reason"],
            "needed": decision["needed"],
            "found": decision["found"],
            "splices": splices,
        }
        for other, releases in states:
            if other == state:
                releases.append(release)
                break
        else:
            states.append((state, [release]))
    listed = [{"releases": releases, **state} for state, releases in states]
    return pretty({"entry": patch.digest, "texts": texts, "states": listed}) + "\n"


def pretty(data: object, indent: str = "") -> str:
    """Write JSON for people who review it: short things on one line, source text line by line."""
    line = json.dumps(data)
    source = isinstance(data, list) and str(data[0] if data else "").endswith("\n")
    nested = "[{" in line or "{" in line[1:]
    if not (source or nested or len(line) > _WIDTH) or not isinstance(data, list | dict):
        return line
    if isinstance(data, dict):
        items = [f"{json.dumps(key)}: {pretty(value, indent + ' ')}" for key, value in data.items()]
    else:
        items = [pretty(value, indent + " ") for value in data]
    opening, closing = "{}" if isinstance(data, dict) else "[]"
    inside = ",\n".join(f"{indent} {item}" for item in items)
    return f"{opening}\n{inside}\n{indent}{closing}"


def read(folder: Path, patch: Patch) -> Iterator[tuple[list[str], Decision]]:
    """Yield what is decided about ``patch``, and in which releases.

    Nothing is, if the file was made from the entry as it was before.
    """
    file, packed = folder / patch.id / "locks.json", folder / patch.id / "locks.json.gz"
    try:
        if packed.is_file():
            data = json.loads(gzip.decompress(packed.read_bytes()))
        elif file.is_file():
            data = json.loads(file.read_bytes())
        else:
            return
    except (OSError, EOFError, ValueError, zlib.error) as error:
        damaged = packed if packed.is_file() else file
        raise RegisterError(f"{damaged} is damaged ({error}): reinstall sglang-commfix") from error
    for state in data["states"] if data["entry"] == patch.digest else ():
        releases = state.pop("releases")
        for one in state["splices"]:
            one["text"] = data["texts"][one["text"]]
        yield releases, {**entry_of(patch), **state}


def put_together(register: Register, folder: Path) -> dict[str, bytes]:
    """Return the files that a wheel has instead of every ``locks.json``, by their paths in it.

    Args:
        register: the entries, in their order.
        folder: ``patches/``, with ``keys.json``: the digest of :data:`KEY` in each release.

    Raises:
        RegisterError: what is written beside an entry is not of the entry as it is.

    """
    keys = json.loads((folder / "keys.json").read_text(encoding="utf-8"))
    states = {patch.id: list(read(folder, patch)) for patch in register.patches}
    if stale := [name for name, own in states.items() if not own]:
        raise RegisterError(f"locks.json of {', '.join(stale)} is not current: run tools/locks.py")
    files = {"locks/index.json": json.dumps(_index(register)).encode()}
    for patch in register.patches:
        data = (folder / patch.id / "locks.json").read_bytes()
        files[f"patches/{patch.id}/locks.json.gz"] = _packed(data)
    for key in dict.fromkeys(keys.values()):
        releases = [release for release, own in keys.items() if own == key]
        decisions = [
            decision
            for patch in register.patches
            for covered, decision in states[patch.id]
            if set(covered) & set(releases)
        ]
        lock: Lock = {
            "schema": SCHEMA,
            "made_by": __version__,
            "sglang": " or ".join(releases),
            "allowed": [],
            "conflicts": _conflicts(states, releases),
            "decisions": decisions,
        }
        files[f"locks/{key}.json.gz"] = _packed(json.dumps(lock).encode())
    return files


def _packed(data: bytes) -> bytes:
    """Compress; the byte that names a system is another from one version of Python to the next."""
    packed = gzip.compress(data, 9, mtime=0)
    return packed[:9] + b"\xff" + packed[10:]


def _conflicts(
    states: Mapping[str, Sequence[tuple[list[str], Decision]]], releases: Sequence[str]
) -> list[list[str]]:
    pairs = []
    for release in releases:
        own = [decision for each in states.values() for names, decision in each if release in names]
        pairs += [pair for pair in conflicts(own) if pair not in pairs]
    return pairs
