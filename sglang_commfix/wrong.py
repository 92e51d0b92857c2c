"""What to say where a word or a folder cannot be used, or other code runs; loaded only then."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_commfix import OFF, SELECT


if TYPE_CHECKING:
    from sglang_commfix.lock import Decision

NOT_HOOKED = "the start-up hook did not run in this Python (installed outside its site-packages "
NOT_HOOKED += "folders, or started with -S): start sglang with `sglang-commfix run -- COMMAND`"


def not_hooked() -> str:
    """Say that the variable is set, and to no effect."""
    return f"{SELECT}={os.environ[SELECT]} is set, but NOTHING IS PATCHED: {NOT_HOOKED}"


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


def unpatched(
    name: str, module: object, patches: Iterable[str], found: tuple[str, object] | None
) -> str:
    """Say what runs in the place of the edited code of a module.

    Args:
        name: the module's name.
        module: what is in ``sys.modules``.
        patches: what it runs without.
        found: the scope that is not as edited, and what stands there; ``None``: the whole module.

    """
    if found is None:
        loader = type(getattr(getattr(module, "__spec__", None), "loader", None)).__name__
        why = f"it was loaded by {loader}, another import hook"
    else:
        why = f"{found[0]} is {_in_place(found[1])}, which neither is nor calls the edited code"
    what = f"{name} runs UNPATCHED: {why}, without {', '.join(patches)}"
    remedy = "take that out, or patch the files by `sglang-commfix export`"
    return f"{what}. Answers may be wrong: {remedy}"


def _in_place(found: Any) -> str:
    """Say what stands under a name, and who has put it there."""
    code = getattr(getattr(found, "__func__", found), "__code__", None)
    where = f" ({code.co_filename}, line {code.co_firstlineno})" if code else ""
    kind = type(found)
    name = getattr(found, "__qualname__", f"an object of {kind.__qualname__}")
    return f"{getattr(found, '__module__', kind.__module__)}.{name}{where}"
