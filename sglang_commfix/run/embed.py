"""For who embeds sglang: decide now, and hear of it by an exception. A server does not load it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sglang_commfix import FINDER, SELECT, init
from sglang_commfix.errors import AlreadyImportedError, RefusedError
from sglang_commfix.files import find_sglang
from sglang_commfix.run import session
from sglang_commfix.run.host import LOCK, STRICT, read_settings
from sglang_commfix.run.plan import Plan, make_plan


def add_shim() -> None:
    """Put the folder with the start-up shim in front of ``PYTHONPATH``, for other processes."""
    shim = str(Path(__file__).with_name("shim"))
    paths = [shim, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(paths)))


def activate(
    select: str | None = None, *, strict: bool = False, lock: str | Path | None = None
) -> Plan:
    """Decide now, and patch sglang when it is imported, here and in every process started here.

    Call it before sglang is imported; twice does no harm. It returns what is decided. The arguments
    stand in for ``SGLANG_COMMFIX``, ``_STRICT`` and ``_LOCK``. Without ``select``, the variable
    counts, and ``1`` where it is not set: who has set it to ``0`` has switched this off. Nothing
    that goes wrong later ends this process; those that it starts are servers, and end as strict
    says.

    Raises:
        RefusedError: strict, and a selected patch is refused.
        CommfixError: modules to be patched run already, or there is nothing to decide by.

    """
    from multiprocessing.process import current_process

    # A child that multiprocessing spawns runs its parent's program again, this call with it.
    spawned = SELECT in os.environ and getattr(current_process(), "_inheriting", False)
    session.embeds = not spawned
    wanted = {SELECT: os.environ.get(SELECT, "").strip() or "1" if select is None else select}
    wanted |= ({STRICT: "1"} if strict else {}) | ({LOCK: str(lock)} if lock else {})
    settings = read_settings({**os.environ, **wanted})
    with session.guard:
        current = session.current
        there = current.plan if current else None
        if there and there.settings != settings:
            asks = f"{SELECT}={there.settings.select} asks: other settings, other process"
            raise AlreadyImportedError(f"sglang is imported, and patched as {asks}")
        plan = there or make_plan(find_sglang(), settings)
        concerned = {module for patch in plan.having("apply") for module in patch["modules"]}
        if not there and (late := sorted(concerned & sys.modules.keys())):
            remedy = "call sglang_commfix.activate() before sglang is imported"
            raise AlreadyImportedError(f"{', '.join(late)} runs already, unpatched: {remedy}")
        if settings.strict and not spawned and (refused := plan.having("refused")):
            FINDER.closed = True  # the host is told; what it imports from here on is as installed
            raise RefusedError("; ".join(f"{p['id']} is refused: {p['reason']}" for p in refused))
        if not there:
            os.environ.update(wanted)
            if FINDER not in sys.meta_path:  # this Python read no .pth file, nor will its children
                add_shim()
                init()
            session.install(session.Session(plan, ends=settings.strict))
    return plan
