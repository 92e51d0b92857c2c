"""DP ranks that agree on a step: the release's function, batches and groups, over gloo.

Started by test_ranks.py with the rig's Python: imports sglang once, then forks the ranks of each
scenario. A scenario names what every rank holds in each step; a rank answers with what its batch knows
afterwards.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rig import forked
from rig.answering import answer
from rig.layers import rank as layer_rank
from rig.layers.case import Case, Layout
from rig.shims import placeholders


RANK = WORLD = -1
TOLD = (
    "global_num_tokens",
    "global_num_tokens_for_logprob",
    "is_extend_in_batch",
    "can_run_dp_cuda_graph",
    "global_forward_mode",
)


class Nothing:
    """Takes a recorder's place: what is sent is of no interest here."""

    def instrument(self, coordinator: Any) -> None:
        pass


def synchronizer() -> Any:
    """The module that has the function: another one from 0.5.13 on."""
    try:
        return importlib.import_module("sglang.srt.managers.scheduler_dp_attn_mixin")
    except ModuleNotFoundError:
        return importlib.import_module("sglang.srt.managers.scheduler_components.dp_attn")


def requests(number: int) -> list[Any]:
    """Return what a batch has to know of its requests when it is made."""
    known = {
        "return_logprob": False, "stream": False, "grammar": None, "return_hidden_states": False,
        "return_routed_experts": False, "return_indexer_topk": False, "is_prefill_only": False,
    }  # fmt: skip
    return [SimpleNamespace(**known) for _ in range(number)]


def new_batch(number: int) -> Any:
    """A real `ScheduleBatch` of so many requests."""
    schedule = importlib.import_module("sglang.srt.managers.schedule_batch")
    speculative = importlib.import_module("sglang.srt.speculative.spec_info")
    return schedule.ScheduleBatch.init_new(
        requests(number),
        SimpleNamespace(device="cpu"),
        SimpleNamespace(device="cpu"),
        SimpleNamespace(),
        SimpleNamespace(vocab_size=32, is_encoder_decoder=False),
        False,
        speculative.SpeculativeAlgorithm.from_string(None),
    )


def idle_batch() -> Any:
    batch = new_batch(0)
    batch.prepare_for_idle()
    return batch


def batch_of(kind: str, lengths: list[int]) -> Any:
    """What a rank holds: none, an idle batch, one that decodes or one that is a prefill."""
    modes = importlib.import_module("sglang.srt.model_executor.forward_batch_info").ForwardMode
    if kind == "none":
        return None
    if kind == "idle":
        return idle_batch()
    batch = new_batch(len(lengths))
    if kind == "decode":
        batch.forward_mode = modes.DECODE
    elif kind == "prebuilt":
        batch.forward_mode = modes.PREBUILT
    else:
        batch.forward_mode = modes.EXTEND
        batch.return_logprob = kind == "logprob"
        batch.extend_lens = lengths
        batch.extend_num_tokens = sum(lengths)
        batch.extend_logprob_start_lens = [
            0 if batch.return_logprob else length for length in lengths
        ]
    return batch


def agree(batch: Any, groups: Any, attn_tp: int, everyone: bool) -> Any:
    module = synchronizer()
    known = {
        "dp_size": WORLD // attn_tp,
        "attn_tp_size": attn_tp,
        "attn_cp_size": 1,
        "tp_group": groups,
        "get_idle_batch": idle_batch,
        "disable_cuda_graph": False,
        "require_mlp_tp_gather": everyone,
        "disable_overlap_schedule": False,
        "offload_tags": set(),
    }
    code = module.prepare_mlp_sync_batch_raw.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return module.prepare_mlp_sync_batch_raw(
        batch, **{name: known[name] for name in known if name in names}
    )


def told(batch: Any) -> dict[str, Any] | None:
    """Return what a batch has been told, or its inner idle batch if it is prebuilt."""
    if batch is None:
        return None
    inner = getattr(batch, "inner_idle_batch", None)
    found = {name: getattr(inner or batch, name, None) for name in TOLD}
    mode = found["global_forward_mode"]
    found["global_forward_mode"] = getattr(mode, "name", mode)
    return {"mode": batch.forward_mode.name, **found}


def run_rank(folder: Path, scenario: dict[str, Any], begin_step: Callable[[], None]) -> list[Any]:
    attn_tp = scenario.get("attn_tp", 1)
    case = Case(Layout(tp=WORLD, dp=WORLD // attn_tp), tokens=(1,) * (WORLD // attn_tp))
    layer_rank._start_runtime(
        case, RANK, f"file://{folder}/rendezvous", scenario["checkpoint"], Nothing()
    )
    groups = importlib.import_module("sglang.srt.distributed.parallel_state").get_tp_group()
    steps = (
        scenario["steps"] if "steps" in scenario else drawn(WORLD // attn_tp, **scenario["drawn"])
    )
    found = []
    for step in steps:
        begin_step()
        kind, lengths = step[RANK // attn_tp]
        for everyone in (True, False):
            batch = batch_of(kind, lengths)
            answer = told(agree(batch, groups, attn_tp, everyone))
            found.append(answer)
    return found


def drawn(ranks: int, seed: int, steps: int, kinds: list[str]) -> list[list[Any]]:
    """Draw what each rank holds in each step."""
    source = random.Random(seed)
    return [
        [
            [source.choice(kinds), [source.randint(1, 9) for _ in range(source.randint(1, 4))]]
            for _ in range(ranks)
        ]
        for _ in range(steps)
    ]


def run(scenario: dict[str, Any]) -> list[Any]:
    """Return what each rank has found, its error, or where it stands."""

    def body(rank: int, folder: Path, begin_step: Callable[[], None]) -> list[Any]:
        global RANK, WORLD
        RANK, WORLD = rank, scenario["world"]
        return run_rank(folder, scenario, begin_step)

    return forked.run(scenario["world"], body, scenario["stall"])


if __name__ == "__main__":
    placeholders.register()
    synchronizer()
    answer(run)
