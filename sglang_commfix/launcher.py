"""``sglang-commfix run -- COMMAND``: for a Python that does not read the ``.pth`` file."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import sglang_commfix
from sglang_commfix.errors import CommfixError, SettingsError
from sglang_commfix.settings import SELECT


if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

SHIM = Path(__file__).resolve().parent / "shim"
_PYTHON = re.compile(r"(python|pypy)[0-9.]*$")
_NO_SITE = frozenset("S")
_NO_PATH = frozenset("IE")


def add_shim(environ: MutableMapping[str, str]) -> None:
    """Put the folder with the start-up shim in front of ``PYTHONPATH``."""
    paths = [p for p in environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(SHIM)]
    environ["PYTHONPATH"] = os.pathsep.join([str(SHIM), *paths])


def run(command: Sequence[str]) -> None:
    """Replace this process by ``command``, with the start-up hook in every Python below it.

    ``SGLANG_COMMFIX`` is set to ``1`` if it is not set at all.

    Raises:
        SettingsError: the command's options keep Python from running any start-up hook.
        CommfixError: the command cannot be started.

    """
    _refuse_deaf_python(command)
    environ = dict(os.environ)
    add_shim(environ)
    if not environ.get(SELECT, "").strip():
        environ[SELECT] = "1"
    try:
        os.execvpe(command[0], list(command), environ)  # noqa: S606 - the user's own command
    except OSError as error:
        raise CommfixError(f"{command[0]} cannot be started: {error.strerror}") from error


def _refuse_deaf_python(command: Sequence[str]) -> None:
    if not _PYTHON.match(Path(command[0]).name):
        return
    for word in command[1:]:
        if not word.startswith("-") or word.startswith("--") or word in {"-m", "-c"}:
            return
        letters = frozenset(word[1:])
        own = shutil.which(command[0]) == sys.executable and sglang_commfix.hooked()
        deaf = letters & _NO_SITE or (letters & _NO_PATH and not own)
        if deaf:
            raise SettingsError(
                f"{command[0]} {word} keeps Python from running any start-up hook: leave it out"
            )
