"""The logger ``sglang_commfix``: lines on standard error, whatever the host does with logging."""

from __future__ import annotations

import logging


_FORMAT = "[%(asctime)s pid=%(process)d] %(levelname)s sglang-commfix: %(message)s"
_configured = False


def logger() -> logging.Logger:
    """Return the package's logger, with a handler of its own if nobody gave it one.

    Decisions are made before sglang sets up logging, so that without a handler the line that
    tells what is applied would be lost. The host's loggers are left alone.
    """
    global _configured  # noqa: PLW0603 - one handler for each process
    own = logging.getLogger("sglang_commfix")
    if not _configured:
        _configured = True
        if not own.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S"))
            own.addHandler(handler)
            own.propagate = False
        if own.level == logging.NOTSET:
            own.setLevel(logging.INFO)
    return own
