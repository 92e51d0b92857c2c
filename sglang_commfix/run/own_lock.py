"""A user's own lock: taken whole, or not at all. Loaded only where there is one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints, is_typeddict

from sglang_commfix.errors import LockError
from sglang_commfix.lock import SCHEMA, Lock


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sglang_commfix.files import Sglang


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
    index = json.loads(listed.read_bytes()) if listed.is_file() else engine().index()
    lock = read_json(file)
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
    ids = [decision["id"] for decision in lock["decisions"]]
    reason = f"{file}, made by sglang-commfix {lock['made_by']}, does not know it"
    newer = [entry | {"reason": reason} for entry in index["entries"] if entry["id"] not in ids]
    return {**lock, "decisions": [*lock["decisions"], *newer]}


def read_json(file: Path) -> Lock:
    """Read a lock, and check that it is one.

    Raises:
        LockError: the file cannot be read, is not JSON, or not a lock of this version.

    """
    try:
        lock = json.loads(file.read_bytes())
    except OSError as error:
        remedy = "Make it with `sglang-commfix lock`, or unset SGLANG_COMMFIX_LOCK"
        why = error.strerror or error
        raise LockError(f"{file} cannot be read: {why}. {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise LockError(f"{file} is not JSON: {error}") from error
    if isinstance(lock, dict) and lock.get("schema") != SCHEMA:
        raise LockError(f"{file}: schema is {lock.get('schema')!r}, this version reads {SCHEMA}")
    _check(lock, Lock, str(file))
    result: Lock = lock
    return result


def _check(value: Any, wanted: Any, where: str) -> None:
    """Check ``value`` against one of the types that :mod:`sglang_commfix.lock` is made of."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if is_typeddict(wanted):
        hints = get_type_hints(wanted)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise LockError(f"{where}: there should be {', '.join(hints)}, and no more")
        for key, hint in hints.items():
            _check(value[key], hint, f"{where}: {key}")
    elif origin in {list, dict}:
        if not isinstance(value, origin):
            raise LockError(f"{where} is {value!r:.60}, which is no {origin.__name__}")
        items: Any = value.items() if origin is dict else enumerate(value)
        for key, item in items:
            _check(item, arguments[-1], f"{where}[{key!r}]")
    elif (value if origin is Literal else type(value)) not in (arguments or {wanted}):
        raise LockError(f"{where} is {value!r:.60}, which should be {wanted}")
