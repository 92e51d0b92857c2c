"""``sglang-commfix lock``: make the lock of a tree that no release has, or check one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_commfix.engine.make_lock import make_lock
from sglang_commfix.engine.register import load
from sglang_commfix.engine.shipped import pretty
from sglang_commfix.engine.tree import Tree
from sglang_commfix.errors import SettingsError
from sglang_commfix.run.host import LOCK
from sglang_commfix.run.own_lock import read_json
from sglang_commfix.run.plan import OWN_NAME


if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sglang_commfix.files import Sglang
    from sglang_commfix.lock import Lock


def place_of(sglang: Sglang) -> Path:
    """Return where a server looks for the lock of ``sglang``."""
    set_to = os.environ.get(LOCK, "").strip()
    return Path(set_to) if set_to else sglang.path.parent / OWN_NAME


def make(sglang: Sglang, allow: Collection[str]) -> Lock:
    """Make the lock of ``sglang``; ``allow`` is what its owner lets through."""
    return make_lock(load(), Tree(sglang), allow)


def write(lock: Lock, file: Path) -> None:
    """Write ``lock``, whole or not at all.

    Raises:
        SettingsError: the file cannot be written.

    """
    scratch = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        scratch.write_text(pretty(lock) + "\n", encoding="utf-8")
        scratch.chmod(scratch.stat().st_mode & ~0o022)  # whatever the umask: it is code
        scratch.replace(file)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink()
        raise SettingsError(
            f"{file} cannot be written: {error.strerror}. Name a file elsewhere with -o, and set "
            f"{LOCK} to it where the server runs"
        ) from error


def differences(file: Path, sglang: Sglang) -> Iterator[str]:
    """Make the lock in ``file`` again; yield in what it differs from what is there.

    Raises:
        LockError: the file cannot be read.

    """
    there = read_json(file, sglang)
    now = make(sglang, there["allowed"])
    old = {decision["id"]: decision for decision in there["decisions"]}
    for decision in now["decisions"]:
        was = old.pop(decision["id"], None)
        if was is None:
            yield f"{decision['id']} is not in it; now {decision['decision']}: {decision['reason']}"
        elif was != decision:
            changed = ", ".join(key for key, value in decision.items() if was.get(key) != value)
            yield f"{decision['id']}: {changed} changed"
            if was["decision"] != decision["decision"]:
                yield f"{decision['id']} is now {decision['decision']}: {decision['reason']}"
    yield from (f"{name} is in it, and this sglang-commfix does not know it" for name in old)
    if there["conflicts"] != now["conflicts"]:
        yield "conflicts differ"
