"""How far a long run is: a line for every part that is done, and on a terminal one that counts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Callable

_REDRAW = "\r\x1b[K"


class Progress:
    """Of parts that differ in effort: what is left is estimated by the effort of what is done."""

    def __init__(
        self,
        parts: int,
        effort: float,
        write: Callable[[str], object],
        *,
        live: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`parts` and `effort` are those of the whole run; `live` if a line can be written anew."""
        self._parts = parts
        self._effort = effort
        self._write = write
        self._live = live
        self._clock = clock
        self._started = clock()
        self._done = 0
        self._effort_done = 0.0
        self._part = ""
        self._part_started = self._started

    def begin(self, part: str) -> None:
        self._part = part
        self._part_started = self._clock()
        self._write("\n")

    def wait(self) -> None:
        """To be called now and then while a part runs."""
        if self._live:
            seconds = self._clock() - self._part_started
            self._write(
                f"{_REDRAW}[{self._done + 1}/{self._parts}] {self._part} ... {seconds:.0f} s"
            )

    def end(self, verdict: str, effort: float) -> None:
        self._done += 1
        self._effort_done += effort
        now = self._clock()
        elapsed = now - self._started
        left = elapsed / self._effort_done * (self._effort - self._effort_done)
        self._write(
            f"{_REDRAW if self._live else ''}[{self._done}/{self._parts}] {self._part}: {verdict}"
            f" ({now - self._part_started:.0f} s; {_minutes(elapsed)} gone,"
            f" about {_minutes(left)} left)\n"
        )


def _minutes(seconds: float) -> str:
    return "{}:{:02}".format(*divmod(round(seconds), 60))
