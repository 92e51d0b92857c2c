"""What to say where a word or a folder cannot be used; loaded only then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_commfix import OFF, SELECT


if TYPE_CHECKING:
    from sglang_commfix.lock import Decision


def words(patches: Iterable[tuple[str, int | None]]) -> str:
    """Return the words that name patches, which are given as ids and numbers."""
    ids, numbers = zip(*patches, strict=True)
    return ", ".join(dict.fromkeys([*ids, *(str(number) for number in numbers if number)]))


def in_selection(value: str, word: str, patches: Sequence[Decision]) -> str:
    """Say what is wrong with ``word`` in a value of ``SGLANG_COMMFIX``."""
    what = "switches all off, and stands alone" if word in OFF else "is unknown"
    known = words((patch["id"], patch["pr"]) for patch in patches)
    known = f"Known are: 0, off, 1, on, all, {known}; a leading - takes one out"
    return f"{SELECT}={value!r}: {word!r} {what}. {known}"


def with_package(spec: ModuleSpec, folders: Sequence[Path]) -> str:
    """Say what Python imports as sglang, where it has none of sglang's runtime."""
    found = spec.origin or ", ".join(map(str, folders)) or "a built-in module"
    what = "not sglang's runtime (it has no srt/ folder): move away what has taken sglang's name"
    if any(parent.is_file() for folder in folders for parent in folder.parents):
        what = "in an archive, where no file of it can be read: install it unpacked"
    return f"what Python imports as sglang is {found}, which is {what}"
