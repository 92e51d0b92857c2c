"""Runs a command and lets nothing of it outlive the program that wanted it, however that ends.

The guard is a process between the two. When its standard input ends, because the program closed
it or is dead, the guard kills the command's whole session and removes the folder it ran in.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 5.0
_PROC = Path("/proc")


def start(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `command` under a guard, in `folder`; closing the guard's standard input ends both."""
    # Isolated and without site, so that what `env` has for the command's Python is not for it;
    # in a session of its own, so that a terminal's interrupt does not reach it.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(folder), *command],
        env=env,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def stop(guard: subprocess.Popen[bytes]) -> None:
    """Return when everything that was started is gone, and the folder with it."""
    assert guard.stdin is not None
    guard.stdin.close()
    guard.wait()


def session_of(folder: Path) -> int | None:
    """The session in which the command runs, once it does."""
    return _read_number(folder / "session")


def status_of(folder: Path) -> int | None:
    """The command's exit status, once it has one."""
    return _read_number(folder / "status")


def _end_session(leader: int) -> None:
    """Kill every process of the session that `leader` began, and wait until they are gone.

    multiprocessing's resource trackers are given a moment: they unlink the shared memory of those
    who could not, and then end by themselves. What is left after that is unlinked here.
    """
    shared = {path for pid in members(leader) for path in _shared_memory(pid)}
    deadline = time.monotonic() + _PATIENCE
    while remaining := [pid for pid in members(leader) if not _was_waited_for(pid)]:
        late = time.monotonic() - deadline
        if late > _PATIENCE:
            break
        _kill(pid for pid in remaining if late > 0 or not _is_resource_tracker(pid))
        time.sleep(0.02)
    for path in shared:
        path.unlink(missing_ok=True)


def members(session: int) -> list[int]:
    """The processes of a session, those included that only wait to be waited for."""
    found = []
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # "pid (name) state ppid pgrp session ...", and a name may hold anything.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                found.append(int(entry.name))
    return found


def title(pid: int) -> str:
    """The command line of a process, which it may have rewritten; empty if it has ended."""
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _shared_memory(pid: int) -> Iterator[Path]:
    """The named shared memory, semaphores included, that a process has mapped."""
    with contextlib.suppress(OSError):
        for line in (_PROC / str(pid) / "maps").read_text().splitlines():
            name = line.partition("/")[2]
            if name.startswith("dev/shm/") and not name.endswith("(deleted)"):
                yield Path("/", name)


def _was_waited_for(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return False


def _is_resource_tracker(pid: int) -> bool:
    return "multiprocessing.resource_tracker" in title(pid)


def _adopt_orphans() -> None:
    """Make this process the one that waits for descendants whose parent is gone.

    Else that is process 1, and in many a container process 1 does not: zombies would pile up.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _write_number(path: Path, number: int) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(str(number))
    partial.replace(path)


def _read_number(path: Path) -> int | None:
    return int(path.read_text()) if path.exists() else None


def _main(folder: Path, command: Sequence[str]) -> None:
    _adopt_orphans()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _write_number(folder / "session", process.pid)
        status = None
        while not select.select([sys.stdin], [], [], 0.1)[0]:
            if status is None and (status := process.poll()) is not None:
                _write_number(folder / "status", status)
    finally:
        _end_session(process.pid)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
