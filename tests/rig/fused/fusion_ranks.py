"""Four ranks: sglang's real groups over gloo, and FlashInfer's own code around a stand-in for memory.

Runs in the rig's Python, and is asked by test_ranks.py of the entries about workspaces: imports
sglang once, then forks the ranks of each scenario, and says what each of them has found. What a GPU would do is replaced: a buffer
of device memory is a memory file that names the rank which has made it, so that the handles which
FlashInfer exchanges tell whose memory a rank has got; the fused kernel is a sum over those ranks.
"""

from __future__ import annotations
import __future__

import array
import ast
import contextlib
import ctypes
import functools
import itertools
import json
import logging
import os
import random
import signal
import socket
import tempfile
import time
import traceback
import typing
from abc import ABC, abstractmethod
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
import torch.distributed as dist
from rig.answering import answer
from sglang.srt import server_args
from sglang.srt.distributed import parallel_state
from sglang.srt.layers import communicator, dp_attention, flashinfer_comm_fusion, layernorm


RANK = -1  # each fork has its own
WORLD = 4
HIDDEN = 64
PATCHED = hasattr(flashinfer_comm_fusion, "commfix_ensure_workspace")


# ---------------------------------------------------------------- FlashInfer

FAULT: dict[str, typing.Any] = {"at": None, "ranks": ()}
COUNT: dict[str, int] = {"allocated": 0, "created": 0, "bytes": 0}


def fault(at: str) -> None:
    if FAULT["at"] == at and RANK in FAULT["ranks"]:
        raise RuntimeError(f"out of memory, on purpose ({at})")


def mem_get_info() -> tuple[int, int]:
    return (0 if FAULT["at"] == "memory" and RANK in FAULT["ranks"] else 2**40, 2**40)


torch.cuda.mem_get_info = mem_get_info


class CpuTorch:
    """torch, with the device being the CPU."""

    cuda = SimpleNamespace(current_device=lambda: 0, device_count=lambda: WORLD)

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)

    def device(self, name: str) -> None:
        return None

    def tensor(self, data: object, dtype: object, device: object) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype)


def take(file: Path, names: set[str], namespace: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """Run the definitions of `names` as they stand in FlashInfer's file, without decorators."""
    nodes: list[ast.stmt] = []
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in names:
            node.decorator_list = []
            nodes.append(node)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in names:
            nodes.append(node)
    found = ast.Module(nodes, [])
    flag = __future__.annotations.compiler_flag
    exec(compile(found, str(file), "exec", flags=flag), namespace)
    assert names <= namespace.keys(), names - namespace.keys()
    return namespace


def flashinfer(folder: Path) -> SimpleNamespace:
    """`flashinfer.comm`, as far as sglang uses it."""
    common = {name: getattr(typing, name) for name in ("Any", "Dict", "List", "Optional", "Tuple")}
    common |= {"ABC": ABC, "abstractmethod": abstractmethod, "os": os, "contextlib": contextlib}
    common |= {"torch": CpuTorch(), "dist": dist, "logging": logging, "logger": logging.getLogger()}
    mnnvl = take(
        folder / "mnnvl.py",
        {
            "CommBackend",
            "TorchDistBackend",
            "IpcSocket",
            "HandleExchanger",
            "PosixFDHandleExchanger",
        },
        common | {"array": array, "socket": socket, "random": random, "cuda": MagicMock()},
    )

    class SymmDeviceMemory:
        """In the order of the original: exchanger, allocation, exchange, mapping."""

        def __init__(
            self,
            size: int,
            group_size: int,
            group_rank: int,
            device: int,
            comm: object,
            **_: object,
        ) -> None:
            exchanger = mnnvl["PosixFDHandleExchanger"](comm, group_rank, group_size)
            self.uc_ptrs = []
            try:
                COUNT["allocated"] += 1
                COUNT["bytes"] += size
                fault(f"allocation {COUNT['allocated']}")
                own = os.memfd_create("device-memory")
                os.write(own, str(RANK).encode())
                for handle in exchanger.allgather(own):
                    self.uc_ptrs.append(int(os.pread(handle, 9, 0)))
                    os.close(handle)
                fault(f"mapping {COUNT['allocated']}")
            finally:
                exchanger.close()

    def allocate_for_group(
        size: int, world_size: int, dtype: object, device: object, group_name: str
    ) -> tuple[list[int], None, None]:
        """Instead of torch's symmetric memory: whose memory the ranks of this group would get."""
        group = dist.distributed_c10d._resolve_process_group(group_name)
        ranks = dist.get_process_group_ranks(group)
        met = [-1] * len(ranks)
        dist.all_gather_object(met, RANK, group=group)
        return [met[peer] for peer in range(world_size)], None, None

    cudart = MagicMock()
    cudart.cudaMalloc.return_value = SimpleNamespace(value=0)
    trtllm = take(
        folder / "trtllm_ar.py",
        {
            "MAX_COMM_SIZE",
            "BarrierFlagCount",
            "trtllm_create_ipc_workspace_for_all_reduce_fusion",
            "check_trtllm_allreduce_fusion_workspace_metadata",
        },
        common
        | {
            "SymmDeviceMemory": SymmDeviceMemory,
            "TorchDistBackend": mnnvl["TorchDistBackend"],
            "_alloc_symm_buffer_bytes": allocate_for_group,
            "_symm_workspace_refs": {},
            "cudart": cudart,
            "c_void_p": ctypes.c_void_p,
            "cast": lambda value, _: value,
            "round_up": lambda x, y: (x + y - 1) // y * y,
            "trtllm_lamport_initialize": lambda *_: None,
        },
    )
    base = take(folder / "workspace_base.py", {"AllReduceFusionWorkspace"}, dict(common))
    unified = take(
        folder / "allreduce.py",
        {"TRTLLMAllReduceFusionWorkspace", "create_allreduce_fusion_workspace"},
        trtllm | base | {"cast": typing.cast, "Literal": typing.Literal},
    )
    create = unified["create_allreduce_fusion_workspace"]

    @functools.wraps(create)
    def create_and_count(**arguments: object) -> object:
        COUNT.update(allocated=0, created=COUNT["created"] + 1)
        workspace = create(**arguments)
        fault("end")
        return workspace

    return SimpleNamespace(
        create_allreduce_fusion_workspace=create_and_count,
        allreduce_fusion=fused_kernel,
        AllReduceFusionPattern=SimpleNamespace(kARResidualRMSNorm=1),
        TorchDistBackend=mnnvl["TorchDistBackend"],
    )


def fused_kernel(
    *, workspace: typing.Any, residual_in: torch.Tensor, residual_out: torch.Tensor,
    norm_out: torch.Tensor, rms_gamma: torch.Tensor, rms_eps: float, **others: typing.Any,
) -> None:  # fmt: skip
    """What the kernel computes, with the input of those ranks whose memory the workspace has."""
    ranks = workspace.ipc_handles[0]
    group = next(group for group in groups() if group.ranks == ranks)
    inputs: list[torch.Tensor] = [torch.empty(0)] * len(ranks)
    dist.all_gather_object(inputs, others["input"], group=group.cpu_group)
    residual_out.copy_(residual_in + sum(inputs))
    norm_out.copy_(torch.nn.functional.rms_norm(residual_out, (HIDDEN,), rms_gamma, rms_eps))


# ---------------------------------------------------------------- sglang

LAYOUTS = {
    "tp4": {"tp": 4},
    "tp2 pp2": {"tp": 2, "pp": 2},
    "tp4 cp2": {"tp": 4, "cp": 2, "moe_dp": 2},
    "tp4 ep4": {"tp": 4, "ep": 4},
    "tp4 ep2": {"tp": 4, "ep": 2},
    "tp4 cp2 ep2": {"tp": 4, "cp": 2, "moe_dp": 2, "ep": 2},
    # Not one that 0.5.10 lets start, but one in which no single group is right.
    "tp4 cp2 moe-dp1": {"tp": 4, "cp": 2},
}


def lay_out(tp: int = 4, pp: int = 1, cp: int = 1, moe_dp: int = 1, ep: int = 1) -> None:
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        attention_context_model_parallel_size=cp,
        moe_data_model_parallel_size=moe_dp,
        expert_model_parallel_size=ep,
        backend="gloo",
    )
    server_args.set_global_server_args_for_scheduler(
        SimpleNamespace(
            tp_size=tp, pp_size=pp, attn_cp_size=cp, moe_dp_size=moe_dp, ep_size=ep,
            enable_flashinfer_allreduce_fusion=True, enable_aiter_allreduce_fusion=False,
            enable_symm_mem=False,
        )
    )  # fmt: skip
    forget()


def groups() -> list[typing.Any]:
    return [
        parallel_state.get_tp_group(),
        parallel_state.get_attn_tp_group(),
        parallel_state.get_moe_ep_group(),
        parallel_state.get_moe_tp_group(),
    ]


def forget() -> None:
    """As if nothing had been created yet."""
    FAULT.update(at=None, ranks=())
    COUNT.update(created=0)
    flashinfer_comm_fusion._flashinfer_allreduce_unavailable = False
    flashinfer_comm_fusion._workspace_manager = flashinfer_comm_fusion.FlashInferWorkspaceManager()
    if PATCHED:
        flashinfer_comm_fusion.commfix_cleanup_workspaces()


def pre_initialize(hidden: int = HIDDEN, dtype: torch.dtype = torch.float32) -> None:
    if PATCHED:
        flashinfer_comm_fusion.commfix_pre_initialize_workspaces(hidden, dtype)
    else:
        flashinfer_comm_fusion.ensure_workspace_initialized(
            max_token_num=2048, hidden_dim=hidden, dtype=dtype
        )


def state() -> dict[str, typing.Any]:
    managers = (
        [*flashinfer_comm_fusion.commfix_workspace_managers.values()]
        if PATCHED
        else [flashinfer_comm_fusion._workspace_manager]
    )
    return {
        "off": flashinfer_comm_fusion._flashinfer_allreduce_unavailable,
        "fuses": communicator.apply_flashinfer_allreduce_fusion(4),
        "peers": sorted(m.workspace.ipc_handles[0] for m in managers if m.workspace is not None),
        "created": COUNT["created"],
    }


def layer(speculative: bool = False, is_last: bool = False, mode: str = "FULL") -> typing.Any:
    made = object.__new__(communicator.LayerCommunicator)
    made._speculative_algo = SimpleNamespace(is_eagle=lambda: True) if speculative else None
    made.is_last_layer = is_last
    made.layer_scatter_modes = SimpleNamespace(mlp_mode=communicator.ScatterMode[mode])
    made._context = SimpleNamespace(tp_size=WORLD)
    return made


def batch(size: int = 4) -> SimpleNamespace:
    return SimpleNamespace(input_ids=torch.zeros(size))


def close_to_sum_over(ranks: list[int], outcome: tuple[torch.Tensor, torch.Tensor]) -> bool:
    wanted = RESIDUAL + sum(INPUTS[rank] for rank in ranks)
    norm = torch.nn.functional.rms_norm(wanted, (HIDDEN,), eps=1e-6)
    close = functools.partial(torch.allclose, atol=1e-5)
    return bool(close(outcome[0], norm) and close(outcome[1], wanted))


def reduces(kind: str, use_attn_tp_group: bool) -> list[list[int]]:
    """Over which ranks a fused call of this norm reduces: all the sets of ranks that would explain it."""
    norm = getattr(layernorm, kind)(HIDDEN)
    with torch.no_grad():
        norm.weight.fill_(0.0 if kind == "GemmaRMSNorm" else 1.0)
        outcome = norm.forward_with_allreduce_fusion(
            INPUTS[RANK].clone(), RESIDUAL.clone(), use_attn_tp_group=use_attn_tp_group
        )
    sets = [[RANK], [0, 1, 2, 3], [0, 1], [2, 3], [0, 2], [1, 3]]
    return [ranks for ranks in sets if close_to_sum_over(ranks, outcome)]


def healthy(version: str, layout: str) -> typing.Any:
    COMM.update(version)
    lay_out(**LAYOUTS[layout])
    pre_initialize()
    found = state() | {
        "an MLP fuses": layer().should_fuse_mlp_allreduce_with_next_layer(batch()),
        "RMSNorm": [reduces("RMSNorm", True), reduces("RMSNorm", False)],
        "GemmaRMSNorm": [reduces("GemmaRMSNorm", True), reduces("GemmaRMSNorm", False)],
    }
    return found | {"created later": COUNT["created"] - found["created"]}


def faulty(version: str, layout: str, at: str, ranks: list[int]) -> typing.Any:
    COMM.update(version)
    lay_out(**LAYOUTS[layout])
    FAULT.update(at=at, ranks=ranks)
    pre_initialize()
    return state() | {"RMSNorm": reduces("RMSNorm", True)}


def first_fused_call(version: str, at: str) -> typing.Any:
    """Without pre-initialisation: every rank fails in it."""
    COMM.update(version)
    lay_out(tp=4)
    FAULT.update(at=at, ranks=list(range(WORLD)))
    return reduces("RMSNorm", True)


def growth(version: str, fail_at_last: bool) -> typing.Any:
    """A target model, then draft models, each with a hidden size of its own."""
    COMM.update(version)
    lay_out(tp=4)
    found = []
    first = None
    for hidden, dtype in (
        (HIDDEN, torch.bfloat16), (HIDDEN // 2, torch.bfloat16), (HIDDEN, torch.float32),
        (2 * HIDDEN, torch.bfloat16), (HIDDEN, torch.bfloat16),
    ):  # fmt: skip
        pre_initialize(hidden, dtype)
        if first is None:
            manager = flashinfer_comm_fusion._workspace_manager
            if PATCHED:
                (manager,) = flashinfer_comm_fusion.commfix_workspace_managers.values()
            first = manager.workspace
        found.append([COUNT["created"], not getattr(first, "_destroyed", False)])
    if fail_at_last:
        FAULT.update(at="allocation 2", ranks=[1])
        pre_initialize(4 * HIDDEN, torch.bfloat16)
        found.append([state()["off"], not getattr(first, "_destroyed", False)])
    return found


def exchange(version: str) -> typing.Any:
    """From the first rank of each half, by FlashInfer's own backend and by ours."""
    COMM.update(version)
    lay_out(tp=2, pp=2)
    group = parallel_state.get_attn_tp_group()
    ours = flashinfer_comm_fusion.commfix_CommBackend(group)
    found = {"ours": ours.bcast(f"from {RANK}", 0), "all": ours.allgather(RANK)}
    try:
        found["FlashInfer's"] = COMM.backend(group.cpu_group).bcast(f"from {RANK}", 0)
    except ValueError as error:
        found["FlashInfer's"] = type(error).__name__
    return found


def exchanged(version: str) -> typing.Any:
    """Whose memory the ranks of two pipeline stages get."""
    COMM.update(version)
    lay_out(tp=2, pp=2)
    pre_initialize()
    return state()["peers"]


def stages(version: str, layout: str) -> typing.Any:
    """On 0.5.11: whose memory the ranks get, behind attention and behind an MLP."""
    COMM.update(version)
    fusion = flashinfer_comm_fusion
    # Defined where FlashInfer can be imported.
    for node in ast.walk(ast.parse(Path(str(fusion.__file__)).read_text())):
        if isinstance(node, ast.ClassDef) and node.name == "_FixedTorchDistBackend":
            names = {"TorchDistBackend": COMM.backend}
            exec(compile(ast.Module([node], []), str(fusion.__file__), "exec"), names)
            fusion._TorchDistBackend = names[node.name]
    # Which allocates on a GPU.
    fusion._preflight_check_workspace_memory = lambda **_: True
    lay_out(**LAYOUTS[layout])
    found = []
    for use_attn_tp_group in (False, True):
        fusion.ensure_workspace_initialized(
            max_token_num=2048,
            hidden_dim=HIDDEN,
            dtype=torch.float32,
            use_attn_tp_group=use_attn_tp_group,
        )
        workspace = fusion._get_workspace_manager(use_attn_tp_group).workspace
        found.append(None if workspace is None else workspace.ipc_handles[0])
    return found


def memory(version: str) -> typing.Any:
    """Whether what FlashInfer allocates is taken to suffice, and 8 MiB less not to."""
    COMM.update(version)
    lay_out(tp=4)
    pre_initialize(4096)
    suffices: list[bool | str] = []
    for free in (COUNT["bytes"], COUNT["bytes"] - 8 * 2**20):
        torch.cuda.mem_get_info = lambda free=free: (free, 2**40)
        try:
            flashinfer_comm_fusion.commfix_require_memory(WORLD, 2048, 4096, torch.float32)
        except RuntimeError as error:
            suffices.append(str(error))
        else:
            suffices.append(True)
    return suffices


def switched_off() -> typing.Any:
    lay_out(tp=4)
    server_args.get_global_server_args().enable_flashinfer_allreduce_fusion = False
    pre_initialize()
    return state()


def decisions() -> typing.Any:
    """What is decided over the product of the modes, in one process that is told how large groups are."""
    found = {}
    communicator._use_aiter = False
    scattered = communicator.get_attn_tp_context()
    for cp, moe_dp, ep, pp in itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 2)):
        if moe_dp not in (1, cp) or ep * moe_dp > WORLD:
            continue
        sizes = {"_TP": WORLD, "_ATTN_TP": WORLD // cp, "_ATTN_CP": cp, "_MOE_EP": ep,
                 "_MOE_TP": WORLD // ep // moe_dp, "_MOE_DP": moe_dp}  # fmt: skip
        for name, size in sizes.items():
            setattr(parallel_state, name, SimpleNamespace(world_size=size, rank_in_group=0))
        for enabled, gone, dp_attention_on, input_scattered, size in itertools.product(
            (True, False), (True, False), (True, False), (True, False), (0, 1, 2048, 2049)
        ):
            server_args.set_global_server_args_for_scheduler(
                SimpleNamespace(
                    tp_size=WORLD, pp_size=pp, attn_cp_size=cp, moe_dp_size=moe_dp,
                    enable_flashinfer_allreduce_fusion=enabled, enable_aiter_allreduce_fusion=False,
                )
            )  # fmt: skip
            flashinfer_comm_fusion._flashinfer_allreduce_unavailable = gone
            dp_attention._ENABLE_DP_ATTENTION_FLAG = dp_attention_on
            scattered.input_scattered_ = input_scattered
            modes = [cp, moe_dp, ep, pp, enabled, gone, dp_attention_on, input_scattered, size]
            applies = communicator.apply_flashinfer_allreduce_fusion(size)
            found[json.dumps(modes)] = [applies] + [
                made.should_fuse_mlp_allreduce_with_next_layer(batch(size))
                for made in (
                    layer(),
                    layer(speculative=True),
                    layer(is_last=True),
                    layer(mode="SCATTERED"),
                )
            ]
    return found


def groups_asked_for() -> typing.Any:
    """What the fused calls behind attention and behind an MLP say about their group."""
    lay_out(tp=4)
    asked: list[bool] = []

    class Norm:
        def forward_with_allreduce_fusion(
            self, x: object, residual: object, use_attn_tp_group: bool
        ) -> tuple[object, object]:
            asked.append(use_attn_tp_group)
            return x, residual

    made = layer()
    made.input_layernorm = Norm()
    made._communicate_simple_fn = lambda hidden_states, **_: hidden_states
    made.qkv_latent_func = None
    hidden = INPUTS[RANK].clone()
    hidden._sglang_needs_allreduce_fusion = True
    made.prepare_attn(hidden, RESIDUAL, batch())
    communicator.CommunicateWithAllReduceAndLayerNormFn._gather_hidden_states_and_residual(
        hidden, RESIDUAL, batch(), Norm(),
        SimpleNamespace(attn_dp_size=1, attn_tp_size=WORLD),
        residual_input_mode=communicator.ScatterMode.TP_ATTN_FULL,
    )  # fmt: skip
    return asked


def traced() -> typing.Any:
    """torch.compile takes the decision into its graph whole."""
    lay_out(tp=4)
    decide = communicator.LayerCommunicator.should_fuse_mlp_allreduce_with_next_layer

    def forward(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if decide(layer_made, batch_made) else x - 1

    layer_made, batch_made = layer(), batch()
    compiled = torch.compile(forward, backend="eager", fullgraph=True)
    return compiled(torch.zeros(())).item()


# ---------------------------------------------------------------- scenarios


class Comm(SimpleNamespace):
    """`flashinfer.comm` of the version that a scenario wants."""

    def update(self, version: str) -> None:
        content = flashinfer(Path(version) / "flashinfer" / "comm")
        flashinfer_comm_fusion._flashinfer_comm = content
        self.backend = content.TorchDistBackend


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        healthy, faulty, first_fused_call, growth, exchange, exchanged, stages, memory, switched_off,
        decisions, groups_asked_for, traced,
    )
}  # fmt: skip


def run_rank(folder: Path, name: str, arguments: list[typing.Any]) -> None:
    if name != "decisions":
        parallel_state.init_distributed_environment(
            world_size=WORLD,
            rank=RANK,
            local_rank=RANK,
            distributed_init_method=f"file://{folder}/rendezvous",
            backend="gloo",
        )
    found = SCENARIOS[name](*arguments)
    (folder / f"{RANK}.partial").write_text(json.dumps(found))
    (folder / f"{RANK}.partial").rename(folder / f"{RANK}.json")


def run(name: str, arguments: list[typing.Any], limit: float) -> list[typing.Any]:
    """What each rank has found; "hangs" for one that was still at it when the time was over."""
    global RANK
    ranks = [0] if name == "decisions" else list(range(WORLD))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        children = []
        for RANK in ranks:
            child = os.fork()
            if child == 0:
                try:
                    run_rank(folder, name, arguments)
                except BaseException:
                    (folder / f"{RANK}.error").write_text(traceback.format_exc())
                # Whoever left first would take the others' connections away.
                signal.pause()
            children.append(child)
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline and "hangs" in [outcome(folder, rank) for rank in ranks]:
            time.sleep(0.02)
        # Before any of them is gone: the others would find the connection closed.
        found = [outcome(folder, rank) for rank in ranks]
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return found


def outcome(folder: Path, rank: int) -> typing.Any:
    answer, error = folder / f"{rank}.json", folder / f"{rank}.error"
    if answer.exists():
        return json.loads(answer.read_text())
    return error.read_text() if error.exists() else "hangs"


COMM = Comm()
flashinfer_comm_fusion.is_flashinfer_available = lambda: True
communicator._is_flashinfer_available = communicator._is_sm90_supported = True
generator = torch.Generator().manual_seed(1)
INPUTS = [torch.randn(4, HIDDEN, generator=generator) for _ in range(WORLD)]
RESIDUAL = torch.randn(4, HIDDEN, generator=generator)

answer(lambda scenario: {"patched": PATCHED, "found": run(*scenario)})
