"""Imports sglang once and forks the ranks of every case; asked by `LayerProcess`."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import tempfile
import time
import traceback
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

from rig.answering import answer, end_with_parent
from rig.layers.case import Case, RankReport
from rig.shims import placeholders


if TYPE_CHECKING:
    from multiprocessing.connection import Connection


_PATIENCE = 60.0


def main() -> None:
    placeholders.register()
    _import_sglang()
    answer(lambda asked: run(Case.from_json(asked["case"]), asked["checkpoint"]))


def _import_sglang() -> None:
    for name in (
        "sglang.srt.model_executor.forward_batch_info",
        "sglang.srt.models.deepseek_v2",
        "sglang.srt.models.glm4_moe",
        "sglang.srt.models.qwen3_moe",
    ):
        importlib.import_module(name)


def run(case: Case, checkpoint: str) -> list[dict[str, Any]]:
    """Return what every rank of the case reports."""
    context = multiprocessing.get_context("fork")
    # Here once, for the ranks of all cases; what is wrong with it, they will say.
    with contextlib.suppress(Exception):
        models: Any = importlib.import_module("rig.layers.models")
        models.import_model(case.model, with_features=case.deepstack)
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        processes, pipes = [], []
        for rank in range(case.layout.ranks):
            ours, theirs = context.Pipe()
            pipes.append(ours)
            process = context.Process(
                target=_rank, args=(case, rank, rendezvous, checkpoint, theirs, pipes)
            )
            process.start()
            theirs.close()
            processes.append(process)
        try:
            return [report.to_json() for report in _collect(pipes)]
        finally:
            for pipe in pipes:
                pipe.close()
            for process in processes:
                process.join(5)
                process.kill()
                process.join()


def _collect(ranks: list[Connection]) -> list[RankReport]:
    reports = [RankReport(error=f"no answer in {_PATIENCE:.0f} s")] * len(ranks)
    waiting = list(ranks)
    deadline = time.monotonic() + _PATIENCE
    while waiting and (left := deadline - time.monotonic()) > 0:
        for ready in connection.wait(waiting, left):
            assert isinstance(ready, multiprocessing.connection.Connection)
            try:
                report = RankReport.from_json(ready.recv())
            except EOFError:
                report = RankReport(error="ended without an answer")
            reports[ranks.index(ready)] = report
            waiting.remove(ready)
            if report.error is not None:
                # The others wait for it in some collective, for as long as gloo has patience.
                deadline = min(deadline, time.monotonic() + 2)
    return reports


def _rank(
    case: Case,
    rank: int,
    rendezvous: str,
    checkpoint: str,
    parent: Connection,
    inherited: list[Connection],
) -> None:
    end_with_parent()
    for pipe in inherited:
        # The parent's ends: as long as one is open here, nobody sees the parent close it.
        pipe.close()
    run = importlib.import_module("rig.layers.rank").run
    try:
        report = run(case, rank, rendezvous, checkpoint)
    except Exception:
        report = RankReport(error=traceback.format_exc())
    parent.send(report.to_json())
    if report.error is None:
        # Not before the others are done: their last collective may still need this end of it.
        with contextlib.suppress(EOFError):
            parent.recv()
    os._exit(0)


if __name__ == "__main__":
    main()
