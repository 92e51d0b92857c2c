"""What the host tells this package, its environment variables, and what it hears: a log."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from sglang_commfix import OFF, SELECT
from sglang_commfix.errors import SettingsError


STRICT, LOCK, LOG = f"{SELECT}_STRICT", f"{SELECT}_LOCK", f"{SELECT}_LOG"
ALLOW, MIXED = f"{SELECT}_ALLOW_UNKNOWN", f"{SELECT}_ALLOW_MIXED"
ON = frozenset({"1", "on", "true", "yes"})
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_FORMAT = "[%(asctime)s pid=%(process)d] %(levelname)s sglang-commfix: %(message)s"


@dataclass(frozen=True)
class Settings:
    """What the user asked for, checked whole."""

    select: str  # the value of SGLANG_COMMFIX
    strict: bool = False  # end the process where a selected patch is refused
    lock: str = ""  # the user's own lock; empty: the one beside sglang, if there is one
    level: str = ""  # of the log; empty: as the host has set it, INFO if it has not
    mixed: bool = False  # go on where ranks of one model are proven to run different patches


def read_settings(environ: Mapping[str, str] = os.environ, select: str | None = None) -> Settings:
    """Read the variables; ``select`` stands in for ``SGLANG_COMMFIX``."""
    value = environ.get(SELECT, "") if select is None else select
    level = environ.get(LOG, "").strip().upper()
    if level and level not in _LEVELS:
        raise SettingsError(f"{LOG}={environ[LOG]!r} is none of {', '.join(_LEVELS)}")
    if allowed := environ.get(ALLOW, "").strip():
        remedy = f"Unset it, and read what `sglang-commfix lock --allow {allowed}` makes"
        raise SettingsError(f"{ALLOW}={allowed!r} is not read any more. {remedy}")
    own, mixed = environ.get(LOCK, "").strip(), read_switch(environ, MIXED)
    return Settings(value.strip(), read_switch(environ), own, level, mixed)


def read_switch(environ: Mapping[str, str] = os.environ, name: str = STRICT) -> bool:
    """Read one that is on or off; strict counts where another value is unusable."""
    value = environ.get(name, "").strip().lower()
    if value not in OFF | ON:
        raise SettingsError(f"{name}={environ[name]!r} is neither 0 or off nor 1 or on")
    return value in ON


def log() -> logging.Logger:
    """Return the logger ``sglang_commfix``, with a handler of its own if nobody gave it one."""
    own = logging.getLogger("sglang_commfix")
    if not own.handlers:
        handler = logging.StreamHandler()
        handler.handleError = lambda record: None  # type: ignore[method-assign] # noqa: ARG005
        handler.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S"))
        own.addHandler(handler)
        own.propagate = False
    own.setLevel(own.level or logging.INFO)
    return own
