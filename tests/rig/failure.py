"""Why a server refused to start, or ended: its own words, found in its log."""

from __future__ import annotations

import re


# What argparse says, and the last line of a traceback.
_USAGE = re.compile(r"^\S+\.py: error: (?P<message>.+)$")
_EXCEPTION = re.compile(r"^(?P<message>[A-Za-z_][\w.]*(?:Error|Exception)(?:: .*)?)$")


def reason(log: str) -> str | None:
    """The first error in the log, on one line; with the failed statement if it says nothing else."""
    lines = log.splitlines()
    for number, line in enumerate(lines):
        found = _USAGE.match(line) or _EXCEPTION.match(line)
        if found is None:
            continue
        message: str = found["message"]
        return message if ":" in message else f"{message}: {_statement(lines[:number])}"
    return None


def _statement(traceback: list[str]) -> str:
    """The last line of source in a traceback, which may have markers below it."""
    source = (line.strip() for line in reversed(traceback) if line.strip(" ^~"))
    return next(source, "")
