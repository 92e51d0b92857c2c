"""Ranks of one model that come up, each with an environment of its own.

Runs in the rig's Python, and is asked for scenarios: what comes of each rank. What sglang imports is imported once, sglang itself in every rank, so that each decides
for itself.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch.distributed

from rig.answering import answer, end_with_parent


def rank(number: int, size: int, port: int, given: dict[str, Any]) -> None:
    os.environ.update(given.get("environ", {}))
    if "path" in given:
        sys.path[:] = [given["path"], *sys.path]
    from sglang.srt.distributed import parallel_state

    session = sys.modules.get("sglang_commfix.run.session")
    if session is not None:
        session.fleet.WAIT = given.get("wait", 30)
        if given.get("broken"):
            session.fleet.differs_from_ranks = gone
    parallel_state.init_distributed_environment(
        world_size=size,
        rank=number,
        local_rank=number,
        distributed_init_method=f"tcp://127.0.0.1:{port}",
        backend="gloo",
    )
    if given.get("ends"):
        os._exit(9)
    time.sleep(given.get("late", 0))
    before = time.monotonic()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=size, **given.get("arguments", {})
    )
    one = torch.ones(1)
    torch.distributed.all_reduce(one)
    print("up", int(one), f"{time.monotonic() - before:.2f}", flush=True)
    torch.distributed.barrier()


def gone(*_given: object) -> None:
    raise ConnectionError("gone")


def fork(number: int, size: int, port: int, given: dict[str, Any], log: Path) -> int:
    child = os.fork()
    if child:
        return child
    end_with_parent()
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    status = 1
    try:
        rank(number, size, port, given)
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(ranks: list[dict[str, Any]], port: int, patience: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        logs = [Path(scratch, str(number)) for number in range(len(ranks))]
        children = [
            fork(number, len(ranks), port, given, logs[number])
            for number, given in enumerate(ranks)
        ]
        ended: dict[int, int | None] = dict.fromkeys(children)
        end = time.monotonic() + patience
        while None in ended.values() and time.monotonic() < end:
            for child in [child for child, status in ended.items() if status is None]:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    ended[child] = os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        for child in [child for child, status in ended.items() if status is None]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return [
            {"status": ended[child], "log": log.read_text()}
            for child, log in zip(children, logs, strict=True)
        ]


def import_what_sglang_imports() -> None:
    """Find out in a child which modules these are, and import them, so that no rank has to."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        from sglang.srt.distributed import parallel_state  # noqa: F401

        with os.fdopen(writer, "w") as stream:
            json.dump([name for name in sys.modules if "sglang" not in name], stream)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        names = json.load(stream)
    os.wait()
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


if __name__ == "__main__":
    import_what_sglang_imports()
    answer(lambda scenario: run(**scenario))
