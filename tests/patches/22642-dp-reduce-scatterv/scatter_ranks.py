"""One rank of a process group that runs `_scatter_hidden_states` of an installed sglang, over gloo.

Runs in the rig's Python, and is asked by test_servers.py; it forks the ranks of each job.
"""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rig import forked
from rig.answering import answer


PATIENCE = 240.0  # seconds
COMMUNICATOR = "sglang.srt.layers.communicator"


def run(job: dict[str, Any]) -> list[Any]:
    """Return the report of each rank, or its error."""
    return forked.run(job["ranks"], functools.partial(body, job), stall=PATIENCE)


def body(job: dict[str, Any], rank: int, folder: Path, begin_step: Any) -> dict[str, Any]:
    communicator = importlib.import_module(COMMUNICATOR)
    join(job["ranks"], rank, job["hidden_size"], f"file://{folder / 'store'}")
    ways = record_ways(communicator)
    results = []
    for number, case in enumerate(job["cases"]):
        begin_step()
        ways.clear()
        with_variables(case.get("variables", {}))
        result = scatter(communicator, rank, job["hidden_size"], number, case)
        results.append({**result, "ways": list(ways)})
    padded = [check_padding(communicator, sizes) for sizes in job["padded"]] if rank == 0 else []
    return {"cases": results, "padded": padded}


def join(ranks: int, rank: int, hidden_size: int, method: str) -> None:
    """Set sglang up as its ModelRunner does: groups, then DP attention with one rank each."""
    distributed = importlib.import_module("sglang.srt.distributed")
    dp_attention = importlib.import_module("sglang.srt.layers.dp_attention")
    arguments = importlib.import_module("sglang.srt.server_args")
    arguments.set_global_server_args_for_scheduler(
        SimpleNamespace(
            enable_symm_mem=False,
            enable_nsa_prefill_context_parallel=False,
            attn_cp_size=1,
            enable_dp_attention=True,
        )
    )
    distributed.init_distributed_environment(
        world_size=ranks,
        rank=rank,
        local_rank=rank,
        distributed_init_method=method,
        backend="gloo",
    )
    distributed.initialize_model_parallel(
        tensor_model_parallel_size=ranks,
        expert_model_parallel_size=ranks,
        attention_data_parallel_size=ranks,
        backend="gloo",
    )
    dp_attention.initialize_dp_attention(
        SimpleNamespace(
            enable_dp_attention=True,
            dp_size=ranks,
            moe_dense_tp_size=None,
            attn_cp_size=1,
            device="cpu",
        ),
        SimpleNamespace(hidden_size=hidden_size, dtype=torch.float32),
    )


def record_ways(communicator: Any) -> list[str]:
    ways: list[str] = []
    choose = communicator.commfix_reduce_scatter_way

    @functools.wraps(choose)
    def recorded(*args: Any) -> Any:
        ways.append(choose(*args))
        return ways[-1]

    communicator.commfix_reduce_scatter_way = recorded
    return ways


def with_variables(variables: dict[str, str]) -> None:
    for name in ("SGLANG_ENABLE_DETERMINISTIC_INFERENCE",):
        os.environ[name] = variables.get(name, "0")


def scatter(
    communicator: Any, rank: int, hidden_size: int, number: int, case: dict[str, Any]
) -> dict[str, Any]:
    """Run producer and consumer on one step; compare with sums in float64."""
    dp_attention = importlib.import_module("sglang.srt.layers.dp_attention")
    modes = dp_attention.DpPaddingMode
    sizes: list[int] = case["sizes"]
    mode = modes.MAX_LEN if case.get("max_len") else modes.SUM_LEN
    told = None if case.get("untold") else list(sizes)
    dp_attention.set_dp_buffer_len(sum(sizes), sizes[rank], mode.is_max_len(), told)
    batch = SimpleNamespace(
        dp_padding_mode=mode,
        dp_local_start_pos=None,
        dp_local_num_tokens=None,
        global_num_tokens_gpu=torch.tensor(sizes),
        nsa_cp_metadata=None,
    )
    pair = communicator.CommunicateSummableTensorPairFn
    context = communicator.CommunicateContext.init_new()
    allowed = case.get("allow", True)
    layer = SimpleNamespace(
        allow_reduce_scatter=allowed,
        is_last_layer=False,
        _context=context,
        _communicate_summable_tensor_pair_fn=pair._scatter_hidden_states,
    )
    promised = communicator.LayerCommunicator.should_use_reduce_scatter(layer, batch)

    partials = [
        torch.randn(
            sum(sizes), hidden_size, generator=torch.Generator().manual_seed(100 * number + one)
        )
        for one in range(len(sizes))
    ]
    total = sum(partial.double() for partial in partials)
    start = sum(sizes[:rank])
    expected = total[start : start + sizes[rank]]
    # What a block hands over: its own partial sum if the communicator adds up, else the sum.
    output = partials[rank].clone() if promised else total.float()
    residual = torch.zeros(sizes[rank], hidden_size)
    got, same_residual = pair._scatter_hidden_states(
        output, residual, batch, context, allow_reduce_scatter=allowed
    )
    error = (got.double() - expected).abs().max().item() if got.numel() else 0.0
    return {
        "promised": promised,
        "shape": list(got.shape),
        "dtype": str(got.dtype),
        "contiguous": got.is_contiguous(),
        "residual_kept": same_residual is residual,
        "error": error,
    }


def check_padding(communicator: Any, sizes: list[int]) -> bool:
    """Whether every chunk stands at the start of its own slot, and slots are of one size."""
    rows = torch.arange(float(sum(sizes))).unsqueeze(1).repeat(1, 3)
    padded = communicator.commfix_padded(rows, sizes)
    slots = padded.chunk(len(sizes)) if len(padded) else []
    own = rows.split(sizes)
    return padded.shape == (len(sizes) * max(sizes), 3) and all(
        torch.equal(slot[: len(chunk)], chunk) for slot, chunk in zip(slots, own, strict=True)
    )


if __name__ == "__main__":
    importlib.import_module(COMMUNICATOR)
    answer(run)
