"""Which sglang a command looks at, and what a server of it would run with."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_commfix import SELECT
from sglang_commfix.errors import SglangNotFoundError
from sglang_commfix.files import Sglang, find_sglang
from sglang_commfix.run.host import read_settings
from sglang_commfix.run.plan import make_plan


if TYPE_CHECKING:
    from sglang_commfix.run.plan import Plan


def which_sglang(folder: str | Path | None = None) -> Sglang:
    """Find sglang: in ``folder``, which contains the package, or where Python would import it.

    Raises:
        SglangNotFoundError: there is none, or what is there is not sglang's runtime.

    """
    if folder is not None:
        return _in_folder(Path(folder).resolve())
    sglang = find_sglang()
    if sglang is None:
        raise SglangNotFoundError(
            f"no sglang is installed for {sys.executable}; --sglang-path names another folder"
        )
    return sglang


def _in_folder(path: Path) -> Sglang:
    for candidate in (path / "sglang", path / "python" / "sglang", path):
        if candidate.name == "sglang" and (candidate / "srt").is_dir():
            return Sglang(candidate)
    raise SglangNotFoundError(f"{path} contains no sglang package (sglang/srt)")


def shadowed_by() -> Path | None:
    """Return a folder ``./sglang`` that ``python -m sglang…`` would run from here, if it is one.

    ``python -m`` searches the current folder first; a console script does not.
    """
    folder = Path.cwd()
    spec = PathFinder.find_spec("sglang", [str(folder)])
    if spec is None or spec.origin is None:
        return None
    return folder / "sglang"


def current_plan(sglang_path: str | Path | None = None, select: str | None = None) -> Plan:
    """Make the plan that importing sglang would follow, without importing it.

    Args:
        sglang_path: a folder that contains the ``sglang`` package, instead of the installed one.
        select: another value than the environment's ``SGLANG_COMMFIX``. With neither, ``1``.

    Raises:
        SettingsError: a setting cannot be used.
        LockError: the user's own lock cannot be used.
        SglangNotFoundError: there is no sglang.

    """
    if select is None and not os.environ.get(SELECT, "").strip():
        select = "1"
    settings = read_settings(select=select)
    return make_plan(which_sglang(sglang_path), settings)
