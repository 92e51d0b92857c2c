"""Why a server refused to start, or ended: its own words, found in its log."""

from __future__ import annotations

import re


# What ends a process begins a line, or follows these words. Behind any other it is only reported,
# as when a part of the HTTP interface lacks a package.
_TRACEBACK = re.compile(r"^(?:.* hit an exception: )?Traceback \(most recent call last\):$")
_CRASH = " hit an exception: Traceback (most recent call last):\n"
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception)(?:: .*)?)$")
_USAGE = re.compile(r"^\S+\.py: error: (.+)$")


def reason(log: str) -> str | None:
    """The first error that ended a process; with the failed statement if it says nothing else."""
    lines = log.splitlines()
    in_traceback = False
    for number, line in enumerate(lines):
        if usage := _USAGE.match(line):
            return usage[1]
        in_traceback = in_traceback or bool(_TRACEBACK.match(line))
        if in_traceback and (exception := _EXCEPTION.match(line)):
            said = exception[1]
            return said if ":" in said else f"{said}: {_statement(lines[:number])}"
    return None


def has_crashed(log: str) -> bool:
    """A scheduler is gone; sglang 0.5.9 then keeps its HTTP server running, without an answer."""
    return _CRASH in log


def has_served(log: str) -> bool:
    """The model was loaded, and requests were accepted: the first is that of the health check."""
    return "Uvicorn running on" in log


def _statement(traceback: list[str]) -> str:
    """The last line of source in a traceback, which may have markers below it."""
    source = (line.strip() for line in reversed(traceback) if line.strip(" ^~"))
    return next(source, "")
