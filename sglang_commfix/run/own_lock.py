"""A user's own lock: taken whole, or not at all. Loaded only where there is one."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from sglang_commfix.check import misshapen
from sglang_commfix.errors import LockError
from sglang_commfix.files import read as read_file
from sglang_commfix.files import splice
from sglang_commfix.lock import SCHEMA, Decision, Lock


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sglang_commfix.files import Sglang

_GROUP, _OTHERS, _STICKY = 0o020, 0o002, 0o1000


def read(file: Path, sglang: Sglang, shipped: Path, engine: Callable[[], Any]) -> Lock:
    """Read the lock that its owner has made of ``sglang``.

    Entries that this package knows and the lock does not are added as ``not-in-lock``.

    Args:
        file: the lock.
        sglang: the tree that it is to be of.
        shipped: the folder whose ``index.json`` holds the register in short.
        engine: what else to ask for that, in a checkout.

    Raises:
        LockError: the file cannot be used for ``sglang``.

    """
    listed = shipped / "index.json"
    try:
        index = json.loads(listed.read_bytes()) if listed.is_file() else engine().index()
    except ValueError as error:
        raise LockError(f"{listed} is damaged ({error}): reinstall sglang-commfix") from error
    lock = read_json(file, sglang)
    for decision in lock["decisions"]:
        foreign = {*decision["modules"], *(one["module"] for one in decision["splices"])}
        if unknown := sorted(foreign - set(index["modules"])):
            raise LockError(f"{file}: no patch has to do with {', '.join(unknown)}")
        if undated := sorted(foreign - decision["modules"].keys()):
            raise LockError(f"{file}: {decision['id']} edits {undated[0]} without its digest")
        if differing := sglang.differing(decision["modules"]):
            raise LockError(
                f"{file} is not the lock of this sglang: {differing[0]} differs. Read what has "
                "changed, and make the lock again: `sglang-commfix lock`"
            )
        _try(file, sglang, decision)
    ids = [decision["id"] for decision in lock["decisions"]]
    reason = f"{file}, made by sglang-commfix {lock['made_by']}, does not know it"
    newer = [entry | {"reason": reason} for entry in index["entries"] if entry["id"] not in ids]
    return {**lock, "decisions": [*lock["decisions"], *newer]}


def _try(file: Path, sglang: Sglang, decision: Decision) -> None:
    """Make the splices of one decision: whoever has edited them by hand is to hear of it."""
    own = decision["splices"]
    try:
        for name in dict.fromkeys(one["module"] for one in own):
            splice(sglang.raw(name) or b"", [one for one in own if one["module"] == name])
    except (LockError, LookupError, ValueError, TypeError) as error:
        raise LockError(f"{file}: {decision['id']} cannot be made: {error}") from error


def read_json(file: Path, sglang: Sglang) -> Lock:
    """Read a lock, and check that it is one, and that only those who may have written it.

    Raises:
        LockError: the file cannot be read, is not JSON, or not a lock of this version; or it may be
            written by more people than ``sglang`` itself.

    """
    try:
        lock = json.loads(read_file(file))
        for path in (file.resolve(), file.resolve().parent):
            _check_mode(path, sglang)
    except OSError as error:
        remedy = "Make it with `sglang-commfix lock`, or unset SGLANG_COMMFIX_LOCK"
        why = error.strerror or error
        raise LockError(f"{file} cannot be read: {why}. {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise LockError(f"{file} is not JSON: {error}") from error
    if isinstance(lock, dict) and lock.get("schema") != SCHEMA:
        raise LockError(f"{file}: schema is {lock.get('schema')!r}, this version reads {SCHEMA}")
    if wrong := misshapen(lock, Lock) or _contradiction(lock):
        raise LockError(f"{file}: {wrong}")
    result: Lock = lock
    return result


def _check_mode(path: Path, sglang: Sglang) -> None:
    """Refuse what somebody may write who may not write sglang: it is code that a server runs."""
    found, theirs = path.stat(), sglang.path.stat()
    same_group = found.st_gid == theirs.st_gid and theirs.st_mode & _GROUP
    allowed = _GROUP | _OTHERS if theirs.st_mode & _OTHERS else _GROUP if same_group else 0
    if not found.st_mode & (_GROUP | _OTHERS) & ~allowed:
        return
    if path.is_dir() and found.st_mode & _STICKY:
        return  # nobody but its owner can put another file in the place of this one
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return  # as is mounted what Kubernetes makes of a ConfigMap, in folders of mode 777
    raise LockError(
        f"{path} may be written by more people (mode {found.st_mode & 0o777:o}) than sglang, and "
        f"holds what your servers run: chmod go-w {path}"
    )


def _contradiction(lock: Lock) -> str | None:
    """Say what cannot be so, although each value has its type."""
    ids = [decision["id"] for decision in lock["decisions"]]
    for decision in lock["decisions"]:
        name = decision["id"]
        if ids.count(name) > 1:
            return f"{name} is in it more than once"
        if decision["decision"] == "apply" and not decision["splices"]:
            return f"{name} is to be applied, and edits nothing"
    if any(len(pair) != 3 for pair in lock["conflicts"]):
        return "conflicts should hold lists of two entries and the reason"
    return None
