"""The lines that sglang-commfix logs on standard error, found among all that a server logs."""

from __future__ import annotations

import re
from dataclasses import dataclass


_LINE = re.compile(r"^\[[^]]* pid=(\d+)\] (\w+) sglang-commfix: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class LedgerLine:
    """One line, taken apart."""

    pid: int
    level: str
    message: str


def read_ledger(log: str) -> list[LedgerLine]:
    """Every line of the logger `sglang_commfix`, in order."""
    return [LedgerLine(int(pid), level, message) for pid, level, message in _LINE.findall(log)]
