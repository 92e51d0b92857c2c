"""Forked ranks that may hang: what each has found, its error, or where it stands.

Imported with the rig's Python by a program that has imported sglang, so that a fork need not.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import re
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rig.answering import end_with_parent


START = 120.0  # seconds for what comes before the first step
SIZE = 4  # bytes of a rank's counter


class Steps:
    """How many steps each rank has begun; the parent sees it."""

    def __init__(self, world: int) -> None:
        self._shared = mmap.mmap(-1, world * SIZE)
        self._world = world

    def begin(self, rank: int) -> None:
        """Say that `rank` begins a step."""
        at = slice(rank * SIZE, (rank + 1) * SIZE)
        number = int.from_bytes(self._shared[at], "little") + 1
        self._shared[at] = number.to_bytes(SIZE, "little")

    def seen(self) -> bytes:
        return self._shared[:]

    def all_have_begun(self) -> bool:
        seen = self.seen()
        return all(any(seen[at * SIZE : (at + 1) * SIZE]) for at in range(self._world))


Body = Callable[[int, Path, Callable[[], None]], Any]


def run(world: int, body: Body, stall: float) -> list[Any]:
    """Call `body(rank, folder, begin_step)` in every rank, and return what came of it.

    A group in which for `stall` seconds no rank begins a step, and none ends, hangs. Its ranks say
    where they stand: the functions of the main thread, the innermost first.
    """
    steps = Steps(world)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        children = [_fork(rank, folder, body, steps) for rank in range(world)]
        _wait(folder, world, steps, stall)
        for rank, child in enumerate(children):
            if not _has_ended(folder, rank):
                os.kill(child, signal.SIGUSR1)
        time.sleep(0.3)
        # Before any of them is gone: the others would find the connection closed.
        found = [_outcome(folder, rank) for rank in range(world)]
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return found


def _fork(rank: int, folder: Path, body: Body, steps: Steps) -> int:
    child = os.fork()
    if child != 0:
        return child
    end_with_parent()
    with (folder / f"{rank}.stack").open("w") as stack:
        faulthandler.register(signal.SIGUSR1, stack, all_threads=False)
        try:
            found = body(rank, folder, lambda: steps.begin(rank))
            (folder / f"{rank}.partial").write_text(json.dumps(found))
            (folder / f"{rank}.partial").rename(folder / f"{rank}.json")
        except BaseException:
            (folder / f"{rank}.error").write_text(traceback.format_exc())
        # Whoever left first would take the others' connections away.
        while True:
            signal.pause()


def _wait(folder: Path, world: int, steps: Steps, stall: float) -> None:
    last, since = None, time.monotonic()
    while True:
        ended = [_has_ended(folder, rank) for rank in range(world)]
        if all(ended):
            return
        now = (steps.seen(), ended)
        if now != last:
            last, since = now, time.monotonic()
        patience = stall if steps.all_have_begun() or any(ended) else START
        if time.monotonic() - since > patience:
            return
        time.sleep(0.02)


def _has_ended(folder: Path, rank: int) -> bool:
    return (folder / f"{rank}.json").exists() or (folder / f"{rank}.error").exists()


def _outcome(folder: Path, rank: int) -> Any:
    answer, error = folder / f"{rank}.json", folder / f"{rank}.error"
    if answer.exists():
        return json.loads(answer.read_text())
    if error.exists():
        return {"error": error.read_text()}
    return {"stands": re.findall(r" in (\S+)$", (folder / f"{rank}.stack").read_text(), re.M)}
