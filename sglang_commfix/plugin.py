"""The entry point ``sglang.srt.plugins`` (sglang 0.5.11 and later): verify and report, no more.

sglang calls it after the modules to be patched are imported, so that it is too late to patch; in
time, though, to say that the start-up hook never ran.
"""

from __future__ import annotations

import os
import sys

from sglang_commfix import log, session
from sglang_commfix.embed import NOT_HOOKED
from sglang_commfix.errors import SettingsError
from sglang_commfix.settings import OFF, SELECT, read_strict


def verify() -> None:
    """Check that this process runs what ``SGLANG_COMMFIX`` asks for; say so loudly if not.

    Under ``SGLANG_COMMFIX_STRICT=1`` the process ends with status 78 instead.
    """
    if os.environ.get(SELECT, "").strip().lower() in OFF:
        return
    running = session.current()
    if running is None:
        log.logger().error(
            "%s=%s is set, but NOTHING IS PATCHED: %s", SELECT, os.environ[SELECT], NOT_HOOKED
        )
        try:
            strict = read_strict()
        except SettingsError:
            strict = True
        if strict:
            session.end_process()
    elif running.plan is not None:
        for name in running.plan.modules:
            if name in sys.modules:
                running.verify(sys.modules[name])
