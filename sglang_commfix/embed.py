"""For programs that embed sglang (``sglang.Engine`` in a script or a notebook)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import sglang_commfix
from sglang_commfix.errors import AlreadyImportedError
from sglang_commfix.installed import locate, shadowed_by
from sglang_commfix.launcher import add_shim
from sglang_commfix.plan import Plan, make_plan
from sglang_commfix.register import load
from sglang_commfix.report import Report, make_report
from sglang_commfix.settings import ALLOW_UNKNOWN, OFF, SELECT, STRICT, Settings


if TYPE_CHECKING:
    from collections.abc import Iterable

NOT_HOOKED = (
    "the start-up hook did not run in this Python (installed outside its site-packages folders, "
    "or started with -S): start sglang with `sglang-commfix run -- COMMAND`"
)


def current_plan(sglang_path: str | Path | None = None, select: str | None = None) -> Plan:
    """Make the plan that importing sglang would follow, without importing it.

    Args:
        sglang_path: a folder that contains the ``sglang`` package, instead of the installed one.
        select: another value than the environment's ``SGLANG_COMMFIX``. With neither, ``1``.

    Raises:
        SettingsError: a setting cannot be used.
        SglangNotFoundError: there is no sglang.

    """
    register = load()
    if select is None and not os.environ.get(SELECT, "").strip():
        select = "1"
    settings = Settings.from_environment(register, select)
    sglang = locate(None if sglang_path is None else Path(sglang_path))
    return make_plan(register, sglang, settings)


def status(sglang_path: str | Path | None = None, select: str | None = None) -> Report:
    """Return what ``sglang-commfix status`` prints; see :func:`current_plan` for the arguments."""
    plan = current_plan(sglang_path, select)
    in_environment = bool(os.environ.get(SELECT, "").strip())
    select_from = "--select" if select is not None else "environment"
    if select is None and not in_environment:
        select_from = "default"
    warnings = []
    hook = sglang_commfix.hooked() if sglang_path is None else None
    if hook is False:
        warnings.append(NOT_HOOKED)
    shadow = shadowed_by() if sglang_path is None else None
    if shadow is not None and shadow.resolve() != plan.sglang.path.resolve():
        warnings.append(
            f"`python -m sglang…` started in this folder would import {shadow}, not the sglang "
            "reported here"
        )
    return make_report(plan, select_from=select_from, hook=hook, warnings=warnings)


def activate(
    select: str | None = None, *, strict: bool = False, allow_unknown: Iterable[str] = ()
) -> None:
    """Patch sglang in this process, once it is imported, and in every process it starts.

    Call it before sglang is imported. Calling it again is harmless.

    Args:
        select: as ``SGLANG_COMMFIX``; by default the variable's value, or ``1``.
        strict: as ``SGLANG_COMMFIX_STRICT=1``.
        allow_unknown: as ``SGLANG_COMMFIX_ALLOW_UNKNOWN``.

    Raises:
        AlreadyImportedError: modules of sglang that patches edit run already.
        SettingsError: a setting cannot be used; nothing has been changed.

    """
    from sglang_commfix import session  # brings wrapt, which `status` does without

    value = select or os.environ.get(SELECT, "")
    wanted = {SELECT: "1" if value.strip().lower() in OFF and select is None else value}
    if strict:
        wanted[STRICT] = "1"
    if ids := ",".join(allow_unknown):
        wanted[ALLOW_UNKNOWN] = ids
    register = load()
    settings = Settings.from_environment(register, environ={**os.environ, **wanted})
    running = session.current()
    if running is not None and running.plan is not None:
        if running.plan.settings == settings:
            return
        raise AlreadyImportedError(
            f"sglang is imported, and patched as {SELECT}={running.plan.settings.select} asks: "
            "call activate() with other settings in a new process, before importing sglang"
        )
    modules = {target.module for patch in register.patches for target in patch.targets}
    if late := sorted(modules & sys.modules.keys()):
        raise AlreadyImportedError(
            f"{', '.join(late)} runs already, unpatched: call sglang_commfix.activate() before "
            f"sglang is imported, or set {SELECT} before Python starts"
        )
    os.environ.update(wanted)
    if not sglang_commfix.hooked():
        add_shim(os.environ)
    sglang_commfix.init()
    sglang_commfix.reopen_gate()
