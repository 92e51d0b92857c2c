"""What is understood of a server that fails, by its log; no sglang is started here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from rig.environment import Environment
from rig.failure import has_served, reason
from rig.server import Server, ServerError


if TYPE_CHECKING:
    from pathlib import Path

CRASH = (
    "[2026-01-01 00:00:00 TP1] Scheduler hit an exception: Traceback (most recent call last):\n"
    '  File "a.py", line 1, in f\n    assert len(sizes) == world_size\n'
    "           ^^^^^^^^^^^^^^^^^^^^^^^^\nAssertionError\n\n"
)
REPORTED = (
    "[2026-01-01 00:00:00] Cannot initialize a part, error: Traceback (most recent call last):\n"
    '  File "b.py", line 2, in <module>\n    import missing\n'
    "ModuleNotFoundError: No module named 'missing'\n\n"
)
REFUSED = (
    "Traceback (most recent call last):\n"
    '  File "c.py", line 3, in check\n    assert (\n'
    "AssertionError: tp_size must be divisible by attn_cp_size\n"
)
LATER = 'Traceback (most recent call last):\n  File "d.py", line 4, in f\n    recv()\nEOFError\n'


class TestReason:
    def test_a_refused_argument(self) -> None:
        log = "usage: launch_server.py [-h]\nlaunch_server.py: error: unrecognized arguments: --x\n"

        assert reason(log) == "unrecognized arguments: --x"

    def test_an_exception_of_the_main_process(self) -> None:
        assert reason(REFUSED) == "AssertionError: tp_size must be divisible by attn_cp_size"

    def test_an_assertion_without_a_message_is_told_by_its_source(self) -> None:
        assert reason(CRASH) == "AssertionError: assert len(sizes) == world_size"

    def test_of_several_the_first_counts(self) -> None:
        assert reason(REFUSED + CRASH + LATER) == reason(REFUSED)

    def test_what_was_only_reported_does_not_count(self) -> None:
        assert reason(REPORTED) is None
        assert reason(REPORTED + CRASH) == reason(CRASH)

    def test_a_log_without_an_error(self) -> None:
        assert reason("[2026-01-01] INFO: error: none\n") is None


def test_a_server_that_took_requests_has_served() -> None:
    running = "[2026-01-01 00:00:00] INFO:     Uvicorn running on http://127.0.0.1:20000\n"

    assert has_served(running + CRASH)
    assert not has_served(CRASH)


def test_a_server_whose_scheduler_has_crashed_is_not_waited_for(tmp_path: Path) -> None:
    environment = Environment(tmp_path, (3, 11))
    environment.python.parent.mkdir(parents=True)
    environment.python.write_text(f"#!/bin/sh\ncat <<'END'\n{CRASH}END\nexec sleep 600\n")
    environment.python.chmod(0o755)
    server = Server("0.5.11", tmp_path, environment=environment, start_timeout=60.0)

    started = time.monotonic()
    with pytest.raises(ServerError, match="a process of it has crashed") as caught:
        server.__enter__()

    assert time.monotonic() - started < 20
    assert reason(caught.value.log) == reason(CRASH)
