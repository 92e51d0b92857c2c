"""Measures what 22642-dp-reduce-scatterv puts in the place of an all-reduce and dp_scatter.

Run it where an sglang that the patch affects is installed, with as many GPUs as ranks::

    SGLANG_COMMFIX=22642 python benchmarks/reduce_scatter.py --ranks 2

For every number of tokens, hidden size and split over the ranks it times, in turn, within each
round: what is replaced (all-reduce and dp_scatter), one reduce-scatter of chunks copied to one
size, grouped reduces, and the patch's own function, which chooses. Every time goes into
``results/reduce_scatter.json``, with the machine's name; the medians' ratios to what is replaced
are printed. sglang's custom all-reduce is left out unless ``--custom-all-reduce`` asks for it.

``--padding`` needs one GPU and no sglang: it times the copy of chunks to one size, and the zeroing
and copying of a rank's own rows, which dp_scatter does. That goes into ``results/padding.json``.

``--device cpu`` runs the same over gloo, to try the program out: nothing is written then. It needs
what the tests' rig puts in the place of NCCL and of kernels for GPUs.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ADDED = (
    Path(__file__).resolve().parent.parent
    / "patches"
    / "22642-dp-reduce-scatterv"
    / "reduce_scatter.py"
)
RESULTS = Path(__file__).resolve().parent / "results"
TOKENS = [2**power for power in range(4, 16)]
HIDDEN_SIZES = [2048, 7168]
WARM_UP = 5


def splits(tokens: int, ranks: int) -> dict[str, list[int]]:
    """Return the ways in which ``tokens`` are spread over the ranks."""
    base = tokens // ranks
    shares = {
        "equal": [1.0] * ranks,
        "near": [1.0 + 0.04 * (-1) ** rank for rank in range(ranks)],
        "uneven": [1.0 + 2.0 * rank / (ranks - 1) for rank in range(ranks)],
        "one idle": [1.0] * (ranks - 1) + [0.0],
    }
    result = {}
    for name, weights in shares.items():
        sizes = [int(tokens * weight / sum(weights)) for weight in weights]
        sizes[0] += tokens - sum(sizes)
        result[name] = sizes if name != "equal" else [base] * ranks
    return result


def join(arguments: argparse.Namespace, rank: int, store: str) -> None:
    """Set sglang up for DP attention with one rank each, as its ModelRunner does."""
    distributed = importlib.import_module("sglang.srt.distributed")
    server_args = importlib.import_module("sglang.srt.server_args")
    server_args.set_global_server_args_for_scheduler(SimpleNamespace(enable_symm_mem=False))
    backend = "gloo" if arguments.device == "cpu" else "nccl"
    parallel_state = importlib.import_module("sglang.srt.distributed.parallel_state")
    parallel_state.set_custom_all_reduce(arguments.custom_all_reduce)
    distributed.init_distributed_environment(
        world_size=arguments.ranks,
        rank=rank,
        local_rank=rank,
        distributed_init_method=store,
        backend=backend,
    )
    options: dict[str, int] = {}
    if "attention_data_parallel_size" in distributed.initialize_model_parallel.__annotations__:
        options["attention_data_parallel_size"] = arguments.ranks
    distributed.initialize_model_parallel(
        tensor_model_parallel_size=arguments.ranks,
        expert_model_parallel_size=arguments.ranks,
        backend=backend,
        **options,
    )


def describe(arguments: argparse.Namespace, hidden_size: int) -> None:
    """Tell sglang's DP attention the hidden size."""
    torch = importlib.import_module("torch")
    dp_attention = importlib.import_module("sglang.srt.layers.dp_attention")
    dp_attention.initialize_dp_attention(
        SimpleNamespace(
            enable_dp_attention=True,
            dp_size=arguments.ranks,
            moe_dense_tp_size=None,
            attn_cp_size=1,
            device=arguments.device,
        ),
        SimpleNamespace(hidden_size=hidden_size, dtype=torch.bfloat16),
    )


def ways(
    arguments: argparse.Namespace, rank: int, sizes: Sequence[int], hidden_size: int
) -> dict[str, Callable[[], object]]:
    """Return what is timed, for one split: functions without arguments."""
    torch = importlib.import_module("torch")
    communicator = importlib.import_module("sglang.srt.layers.communicator")
    dp_attention = importlib.import_module("sglang.srt.layers.dp_attention")
    group = importlib.import_module("sglang.srt.distributed").get_tp_group()
    longest, own = max(sizes), sizes[rank]
    set_length = dp_attention.set_dp_buffer_len
    padded_mode = (
        {"dp_max_padding": False} if "dp_max_padding" in set_length.__annotations__ else {}
    )
    set_length(sum(sizes), own, global_num_tokens=list(sizes), **padded_mode)
    sums = torch.randn(sum(sizes), hidden_size, dtype=torch.bfloat16, device=arguments.device)
    batch = SimpleNamespace(
        dp_local_start_pos=None,
        dp_local_num_tokens=None,
        global_num_tokens_gpu=torch.tensor(sizes, device=arguments.device),
    )

    def replaced() -> object:
        local = dp_attention.get_local_dp_buffer()
        dp_attention.dp_scatter(local, group.all_reduce(sums), batch)
        return local

    def equal_chunks() -> object:
        if len(set(sizes)) == 1:
            rows, chunk = sums, dp_attention.get_local_dp_buffer()
        else:
            rows = communicator.commfix_padded(sums, sizes)
            chunk = sums.new_empty((longest, hidden_size))
        group.reduce_scatter_tensor(chunk, rows)
        return chunk[:own]

    def grouped_reduces() -> object:
        local = dp_attention.get_local_dp_buffer()
        return group.reduce_scatterv(sums, output=local, sizes=list(sizes))

    def chosen() -> object:
        local = dp_attention.get_local_dp_buffer()
        return communicator.commfix_reduce_and_scatter(local, sums, batch)

    return {
        "replaced": replaced,
        "equal chunks": equal_chunks,
        "grouped reduces": grouped_reduces,
        "chosen": chosen,
    }


def seconds(arguments: argparse.Namespace, function: Callable[[], object]) -> float:
    """Return the time of one of several calls in a row, on this rank's device."""
    calls: int = arguments.calls
    torch = importlib.import_module("torch")
    if arguments.device == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        function()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1e3 / calls


def measure(rank: int, arguments: argparse.Namespace, folder: str) -> None:
    """Time everything on one rank, in step with the others; rank 0 keeps the record."""
    torch = importlib.import_module("torch")
    if arguments.device == "cuda":
        torch.cuda.set_device(rank)
    join(arguments, rank, f"file://{folder}/store")
    communicator = importlib.import_module("sglang.srt.layers.communicator")
    records = []
    for hidden_size in arguments.hidden_sizes:
        describe(arguments, hidden_size)
        for tokens in arguments.tokens:
            for split, sizes in splits(tokens, arguments.ranks).items():
                functions = ways(arguments, rank, sizes, hidden_size)
                for function in functions.values():
                    for _ in range(WARM_UP):
                        function()
                times: dict[str, list[float]] = {name: [] for name in functions}
                for _ in range(arguments.rounds):
                    for name, function in functions.items():
                        torch.distributed.barrier()
                        times[name].append(round(seconds(arguments, function), 9))
                way = communicator.commfix_reduce_scatter_way(sizes, True)
                records.append(
                    {
                        "hidden size": hidden_size,
                        "split": split,
                        "tokens": sizes,
                        "way": way,
                        "seconds": times,
                    }
                )
    if rank == 0:
        Path(folder, "records.json").write_text(json.dumps(records), encoding="utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def padding() -> list[dict[str, Any]]:
    """Time the copy of chunks that differ by a tenth up and down, alone on one GPU."""
    torch = importlib.import_module("torch")
    (function,) = (
        node
        for node in ast.parse(ADDED.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == "commfix_padded"
    )
    names: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([function], []), str(ADDED), "exec"), names)
    records = []
    for hidden_size in HIDDEN_SIZES:
        for tokens in TOKENS:
            for ranks in (2, 8):
                base = tokens // ranks
                sizes = [base + (-1) ** rank * max(1, base // 10) for rank in range(ranks)]
                options = {"dtype": torch.bfloat16, "device": "cuda"}
                rows = torch.randn(sum(sizes), hidden_size, **options)
                local = torch.empty(base, hidden_size, **options)
                times = {
                    "copy": _graphed(partial(names["commfix_padded"], rows, sizes)),
                    "own rows": _graphed(partial(_own_rows, local, rows)),
                }
                records.append(
                    {"hidden size": hidden_size, "tokens": tokens, "ranks": ranks, **times}
                )
    return records


def _own_rows(local: Any, rows: Any) -> None:
    local.fill_(0)
    local.copy_(rows[: len(local)])


def _graphed(function: Callable[[], object], calls: int = 20) -> float:
    """Return the microseconds of one call, replayed from a CUDA graph: the median of 7."""
    torch = importlib.import_module("torch")
    for _ in range(WARM_UP):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    times: list[float] = []
    for _ in range(7):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / calls * 1e3)
    return round(statistics.median(times), 2)


def machine(device: str) -> dict[str, str]:
    """Say what was measured on."""
    torch = importlib.import_module("torch")
    found = {"torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        found["device"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def report(records: Sequence[dict[str, Any]]) -> str:
    """Write the medians' ratios to what is replaced, a line a case."""
    head = ["hidden size", "tokens", "split", "equal chunks", "grouped reduces", "chosen", "way"]
    rows = [head]
    for record in records:
        medians = {name: statistics.median(times) for name, times in record["seconds"].items()}
        ratios = [f"{medians[name] / medians['replaced']:.2f}" for name in head[3:6]]
        size, tokens = str(record["hidden size"]), str(sum(record["tokens"]))
        rows.append([size, tokens, record["split"], *ratios, record["way"]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def main() -> None:
    """Start the ranks, then print the ratios and keep the times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=HIDDEN_SIZES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=10, help="calls in each measurement")
    parser.add_argument("--custom-all-reduce", action="store_true")
    parser.add_argument("--padding", action="store_true", help="the copy alone, on one GPU")
    arguments = parser.parse_args()
    if arguments.padding:
        _keep("padding.json", {"machine": machine("cuda"), "microseconds": padding()})
        return
    # As sglang sets it unless --enable-nccl-nvls is given.
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    with tempfile.TemporaryDirectory() as folder:
        spawn = importlib.import_module("torch.multiprocessing").spawn
        spawn(measure, args=(arguments, folder), nprocs=arguments.ranks)
        records = json.loads(Path(folder, "records.json").read_text(encoding="utf-8"))
    found = machine(arguments.device)
    found["sglang"] = importlib.import_module("sglang").__version__
    print(", ".join(f"{name} {value}" for name, value in found.items()))
    print(report(records))
    if arguments.device == "cuda":
        outcome = {
            "machine": found,
            "custom all-reduce": arguments.custom_all_reduce,
            "calls": arguments.calls,
            "records": records,
        }
        _keep("reduce_scatter.json", outcome)


def _keep(name: str, outcome: dict[str, Any]) -> None:
    (RESULTS / name).write_text(json.dumps(outcome) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
