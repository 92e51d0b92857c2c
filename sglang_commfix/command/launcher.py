"""``sglang-commfix run -- COMMAND``: for a Python that does not read the ``.pth`` file."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_commfix import FINDER, SELECT
from sglang_commfix.errors import CommfixError, SettingsError


if TYPE_CHECKING:
    from collections.abc import Sequence

_PYTHON = re.compile(r"(python|pypy)[0-9.]*$")
_NO_PATH = frozenset("IE")
# Flags, and then perhaps an option that takes a value: the code, the module, or an -X or -W.
_OPTION = re.compile(r"-(?!$)([^-cmXW]*)([cmXW].*)?$", re.DOTALL)


def run(command: Sequence[str]) -> None:
    """Replace this process by ``command``, with the start-up hook in every Python below it.

    ``SGLANG_COMMFIX`` is set to ``1`` if it is not set at all. Python's option ``-S`` is left out,
    and that is said: without :mod:`site`, Python starts no hook.

    Raises:
        SettingsError: the command's options keep Python from finding the hook.
        CommfixError: the command cannot be started.

    """
    words = _with_site(command)
    if words != list(command):
        sys.stderr.write(
            "sglang-commfix: -S is left out, since Python starts no hook without site: "
            f"running {shlex.join(words)}\n"
        )
    from sglang_commfix.run.embed import add_shim

    add_shim()
    if not os.environ.get(SELECT, "").strip():
        os.environ[SELECT] = "1"
    try:
        os.execvp(words[0], words)  # noqa: S606 - the user's own command
    except OSError as error:
        raise CommfixError(f"{words[0]} cannot be started: {error.strerror}") from error


def _with_site(command: Sequence[str]) -> list[str]:
    """Return ``command`` without Python's ``-S``; refuse ``-I`` and ``-E`` where they matter."""
    program, *options = command
    if not _PYTHON.match(Path(program).name):
        return list(command)
    own = shutil.which(program) == sys.executable and FINDER in sys.meta_path
    words = [program]
    while options and (option := _OPTION.match(options[0])):
        word = options.pop(0)
        flags, rest = option.groups("")
        if _NO_PATH & set(flags) and not own:
            raise SettingsError(
                f"{program} {word} keeps Python from finding the start-up hook: leave it out"
            )
        kept = f"-{flags.replace('S', '')}{rest}"
        words += [kept] if kept != "-" else []
        if rest in {"X", "W"} and options:
            words.append(options.pop(0))
        elif rest and rest[0] in "cm":
            break
    return [*words, *options]
