"""Processes that uvicorn starts, which sglang's plugin framework does not reach."""

from __future__ import annotations

import re
import time

import pytest
from rig.checkpoints import ensure_model
from rig.environment import Environment
from rig.ledger import read_ledger
from rig.server import Server


pytestmark = pytest.mark.servers_full


def test_every_uvicorn_worker_logs_what_it_runs_with(environment: Environment) -> None:
    model = ensure_model("deepseek-v3", environment.models)
    flags = ["--tokenizer-worker-num", "2"]
    # sglang's health check generates a token, and with several workers answers may get lost.
    variables = {"SGLANG_COMMFIX": "1", "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"}
    with Server("0.5.11", model, flags, environment=environment, env=variables) as server:
        deadline = time.monotonic() + 150
        while len(workers := _uvicorn_workers(server.log)) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
        lines = read_ledger(server.log)

    assert len(workers) == 2, server.log[-4000:]
    assert workers <= {line.pid for line in lines}
    assert all("24785-sum-len-contract" in line.message for line in lines)
    assert len({line.pid for line in lines}) == len(lines)


def _uvicorn_workers(log: str) -> set[int]:
    return {int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", log)}
