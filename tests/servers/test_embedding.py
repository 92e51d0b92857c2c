"""A training program that holds sglang's engine in one of its own processes, as RL frameworks do."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rig import reaper
from rig import server as rig_server
from rig.checkpoints import ensure_model
from rig.environment import Environment
from rig.ledger import LedgerLine, read_ledger
from rig.observer import ATTENTION_DP_2_EP_2, ONE_RANK, Observation, Observer, Setup
from rig.server import Completion, Server
from rig.workload import PROMPTS, compare


RELEASE = "0.5.11"
PATCH = "24785-sum-len-contract"
PATIENCE = 240.0

# A spawned actor whose methods run on an event loop beside its main thread, as those of Ray's
# asynchronous actors do. There sglang can set no signal handlers; that is why such programs have a
# function of their own in the place of the one that sets up the engine's process.
HOST = """
import asyncio, ctypes, json, multiprocessing, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


async def train(job, told):
    import sglang_commfix

    plan = sglang_commfix.activate(strict=True)
    told["plan"] = {patch["id"]: patch["decision"] for patch in plan.patches}
    told["imported before"] = "sglang" in sys.modules
    told["in the main thread"] = threading.current_thread() is threading.main_thread()
    told["host"] = os.getpid()
    os.environ |= job["later"]

    import sglang
    import sglang.srt.entrypoints.engine
    from safetensors.torch import load_file
    from sglang.srt.managers.io_struct import (
        ReleaseMemoryOccupationReqInput, ResumeMemoryOccupationReqInput,
        UpdateWeightsFromTensorReqInput,
    )
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import MultiprocessingSerializer

    def set_envs_and_config(server_args):
        told["configured by"] = "host"
        multiprocessing.set_start_method("spawn", force=True)

    sglang.srt.entrypoints.engine._set_envs_and_config = set_envs_and_config
    server_args = prepare_server_args(job["flags"])
    try:
        engine = sglang.Engine(server_args=server_args)
    except Exception as error:
        told["engine"] = f"{type(error).__name__}: {error}"
        return
    told["children"] = engine.get_all_child_pids()
    manager = engine.tokenizer_manager

    async def generate():
        return await engine.async_generate(
            input_ids=job["prompts"],
            sampling_params=[
                {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True} for _ in job["prompts"]
            ],
            return_logprob=True,
            logprob_start_len=0,
        )

    async def update(weights):
        ranks = range(server_args.tp_size)
        named = [MultiprocessingSerializer.serialize(list(weights.items())) for _ in ranks]
        request = UpdateWeightsFromTensorReqInput(serialized_named_tensors=named)
        success, message = await manager.update_weights_from_tensor(request, None)
        assert success, message

    told["at first"] = await generate()

    await manager.release_memory_occupation(ReleaseMemoryOccupationReqInput(), None)
    await manager.resume_memory_occupation(ResumeMemoryOccupationReqInput(), None)
    told["resumed"] = await generate()

    (file,) = Path(job["model"]).glob("*.safetensors")
    weights = load_file(file)
    await update(weights | {"lm_head.weight": -weights["lm_head.weight"]})
    told["with other weights"] = await generate()
    await update(weights)
    told["with the first weights again"] = await generate()

    engine.shutdown()


def actor(job):
    told = {}
    try:
        with ThreadPoolExecutor(1) as beside:
            beside.submit(lambda: asyncio.run(train(job, told))).result()
    finally:
        Path(job["told"]).write_text(json.dumps(told))


if __name__ == "__main__":
    # As Ray's own daemon does: wait for what the actor has left behind. sglang's shutdown lasts
    # until somebody has waited for its schedulers, and their parent is gone first.
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    job = json.loads(sys.argv[1])
    process = multiprocessing.get_context("spawn").Process(target=actor, args=(job,))
    process.start()
    ended, status = os.wait()
    while ended != process.pid:
        ended, status = os.wait()
    sys.exit(os.waitstatus_to_exitcode(status))
"""

pytestmark = pytest.mark.servers


@dataclass(frozen=True)
class Ended:
    """What is left of a host."""

    status: int | None
    log: str
    told: dict[str, Any]

    def answers(self, when: str) -> list[Completion]:
        return [
            Completion(
                tokens=tuple(answer["output_ids"]),
                prompt_logprobs=_first(answer["meta_info"]["input_token_logprobs"][1:]),
                token_logprobs=_first(answer["meta_info"]["output_token_logprobs"]),
            )
            for answer in self.told[when]
        ]

    def ledger(self) -> list[LedgerLine]:
        return read_ledger(self.log)


def _first(entries: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(entry[0] for entry in entries)


def run(
    environment: Environment, folder: Path, flags: Sequence[str], later: dict[str, str]
) -> Ended:
    """Run a host to its end. `later` comes into its environment when it has called activate()."""
    model = ensure_model("deepseek-v3", environment.models)
    port = str(rig_server._free_port())
    program, told = folder / "host.py", folder / "told.json"
    program.write_text(HOST)
    job = {
        "model": str(model),
        "flags": ["--model-path", str(model), "--port", port, *rig_server._FLAGS, *flags],
        "prompts": PROMPTS,
        "later": later,
        "told": str(told),
    }
    # A short path, as sglang's sockets need it; the guard removes it.
    scratch = Path(tempfile.mkdtemp(prefix="rig-"))
    (scratch / "tmp").mkdir()
    server = Server(RELEASE, model, flags, environment=environment)
    variables = server._process_environment(scratch)
    assert not [name for name in variables if name.startswith("SGLANG_COMMFIX")]
    command = [str(environment.python), str(program), json.dumps(job)]
    guarded = reaper.start(command, scratch, variables)
    try:
        deadline = time.monotonic() + PATIENCE
        while (status := reaper.status_of(scratch)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        log = (scratch / "log").read_text(errors="replace")
    finally:
        reaper.stop(guarded)
    assert told.exists(), f"status {status}, and nothing told:\n{log[-4000:]}"
    return Ended(status, log, json.loads(told.read_text()))


@pytest.fixture(scope="module")
def reference(observe: Observer) -> Observation:
    return observe(Setup(RELEASE))


@pytest.fixture(scope="module")
def host(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    flags = (*ATTENTION_DP_2_EP_2, "--max-running-requests", "8")
    host = run(environment, tmp_path_factory.mktemp("host"), flags, {})
    assert "with the first weights again" in host.told, host.log[-4000:]
    return host


@pytest.fixture(scope="module")
def bereft(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A host whose engine's processes cannot be patched.

    sglang's files must stay as they are, for the other tests: what those processes cannot use is a
    setting, which comes into their environment after the host's own decision.
    """
    later = {"SGLANG_COMMFIX": "nonsense"}
    return run(environment, tmp_path_factory.mktemp("bereft"), ONE_RANK, later)


def test_what_will_be_applied_is_known_before_sglang_is_imported(host: Ended) -> None:
    assert host.told["plan"][PATCH] == "apply"
    assert set(host.told["plan"].values()) <= {"apply", "not-needed"}
    assert not host.told["imported before"]


def test_the_host_and_every_process_of_its_engine_log_once_that_the_patch_is_applied(
    host: Ended,
) -> None:
    # The controller of the DP ranks, the detokenizer, and a scheduler for each rank.
    assert len(host.told["children"]) == 4
    processes = [host.told["host"], *host.told["children"]]
    assert sorted(line.pid for line in host.ledger()) == sorted(processes)
    for line in host.ledger():
        applied, _, _ = line.message.partition("; not needed: ")
        assert " applying " in applied
        assert PATCH in applied


def test_the_engine_is_set_up_by_the_hosts_own_function_beside_the_main_thread(
    host: Ended,
) -> None:
    assert host.told["configured by"] == "host"
    assert not host.told["in the main thread"]


@pytest.mark.parametrize("when", ["at first", "resumed", "with the first weights again"])
def test_the_engine_answers_as_one_rank_does(
    host: Ended, reference: Observation, when: str
) -> None:
    """On a CPU, sglang frees no memory on release; it flushes its cache, and keeps buffers aside."""
    difference = compare(host.answers(when), reference.first_answers)
    assert difference.is_noise, difference


def test_the_engine_answers_otherwise_with_other_weights(host: Ended) -> None:
    before, after = host.answers("at first"), host.answers("with other weights")
    assert compare(after, before).same_tokens == 0


def test_the_host_ends_well_and_no_process_has_complained(host: Ended) -> None:
    assert host.status == 0
    assert {line.level for line in host.ledger()} == {"INFO"}
    assert "UNPATCHED" not in host.log
    assert "Traceback" not in host.log


def test_an_engine_whose_process_cannot_be_patched_raises_and_names_its_status(
    bereft: Ended,
) -> None:
    assert bereft.told["engine"].startswith("RuntimeError: ")
    assert "exit code: 78" in bereft.told["engine"]


def test_the_process_that_cannot_be_patched_says_why(bereft: Ended) -> None:
    errors = [line for line in bereft.ledger() if line.level == "ERROR"]
    assert errors
    assert bereft.told["host"] not in {line.pid for line in errors}
    assert all("'nonsense' is unknown" in line.message for line in errors)


def test_the_host_of_an_engine_that_has_raised_goes_on_to_its_end(bereft: Ended) -> None:
    assert bereft.status == 0
