"""The other side of `asking`: what a program in the rig's Python does to be asked."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def answer(respond: Callable[[Any], object]) -> None:
    """Answer one question after another, for as long as anybody asks.

    Call it when all is imported: the first line says where sglang came from, if it is. An error in
    `respond` ends the process, and its traceback is in the log.
    """
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    # For questions and answers alone: all else that is printed here is the log.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sglang = sys.modules.get("sglang")
    found: object = None if sglang is None else str(Path(str(sglang.__file__)).parent)
    while True:
        print(json.dumps(found), file=answers, flush=True)
        line = questions.readline()
        if not line:
            return
        found = respond(json.loads(line))


def end_with_parent() -> None:
    """Call this in a process that was forked: it is not to outlive who asked."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
