"""Ranks that call FlashInfer's fused all-reduce by a release's own functions, and are declined.

Runs in the rig's Python, and is asked for scenes. What sglang does
between a layer and FlashInfer's kernel is taken as text from the release's `layernorm.py` and
`flashinfer_comm_fusion.py`, so that any release can be asked, and nothing of sglang is imported. What
these functions call is replaced: groups (over gloo), configuration, the norm, FlashInfer. The kernel
meets in a group of its own, as a kernel that spins on its peers' memory: a rank that waits in an
all-reduce is not who it waits for.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import types
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from rig.answering import answer


HIDDEN = 64
TOKENS = 5
EPSILON = 1e-6

FUSION = (
    "FlashInferWorkspaceManager",
    "_get_workspace_manager",
    "_sync_allreduce_unavailable_across_tp",
    "ensure_workspace_initialized",
    "flashinfer_allreduce_residual_rmsnorm",
    "is_flashinfer_allreduce_unavailable",
)


def take(file: str, names: tuple[str, ...], namespace: dict[str, Any]) -> None:
    """Run the definitions of `names` as they stand in the file, without decorators."""
    exec(_definitions(file, names), namespace)


@functools.cache
def _definitions(file: str, names: tuple[str, ...]) -> types.CodeType:
    taken: list[ast.stmt] = []
    for node in ast.parse(Path(file).read_text()).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in names:
            node.decorator_list = []
            taken.append(node)
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and f"{node.name}.{inner.name}" in names:
                    inner.decorator_list = []
                    taken.append(inner)
    return compile(ast.Module(taken, []), file, "exec")


class Group:
    """As far as it is used, a `GroupCoordinator`: all of these ranks are known to every rank."""

    def __init__(self, sets: list[list[int]], rank: int) -> None:
        for ranks in sets:
            made = dist.new_group(ranks)
            if rank in ranks:
                self.ranks, self.cpu_group = ranks, made
        self.device_group = self.cpu_group
        self.world_size = len(self.ranks)
        self.rank_in_group = self.ranks.index(rank)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if self.world_size == 1:
            return x
        Rank.say(f"all-reduce over {self.ranks}")
        total = x.clone()
        dist.all_reduce(total, group=self.cpu_group)
        return total


class Rank:
    """What this rank does, where the program that started it can read it."""

    file: Path
    id: int

    @classmethod
    def say(cls, what: str) -> None:
        cls.file.with_suffix(".new").write_text(what)
        cls.file.with_suffix(".new").rename(cls.file)


class FlashInfer:
    """`flashinfer.comm`: its workspace cannot be created on the ranks `failing`."""

    AllReduceFusionPattern = SimpleNamespace(kARResidualRMSNorm=1)

    def __init__(self, kernel: Group, meeting: Group, failing: list[int]) -> None:
        self._kernel = kernel
        self._meeting = meeting
        self._failing = failing
        self.fused = 0
        self.tried = 0

    def create_allreduce_fusion_workspace(self, **_: Any) -> Any:
        self.tried += 1
        Rank.say("creates a workspace")
        dist.barrier(self._meeting.cpu_group)
        if Rank.id in self._failing:
            raise RuntimeError("no memory, on purpose")
        return SimpleNamespace(
            backend="trtllm",
            metadata={"use_fp32_lamport": True},
            is_buffer_size_sufficient=_is_sufficient,
            destroy=lambda: None,
        )

    def trtllm_create_ipc_workspace_for_all_reduce_fusion(self, *_: Any, **__: Any) -> Any:
        return None, self.create_allreduce_fusion_workspace()

    def allreduce_fusion(self, *, input: torch.Tensor, **kwargs: Any) -> None:  # noqa: A002
        Rank.say("in FlashInfer's kernel")
        total = input.clone()
        dist.all_reduce(total, group=self._kernel.cpu_group)
        total += kwargs["residual_in"]
        kwargs["residual_out"].copy_(total)
        norm = torch.nn.functional.rms_norm(total, (HIDDEN,), kwargs["rms_gamma"], EPSILON)
        kwargs["norm_out"].copy_(norm)
        self.fused += 1

    def trtllm_allreduce_fusion(self, *, allreduce_in: torch.Tensor, **kwargs: Any) -> None:
        self.allreduce_fusion(input=allreduce_in, **kwargs)


def _is_sufficient(
    tp_size: int, num_tokens: int, hidden_dim: int, dtype: Any, use_oneshot: Any = None
) -> bool:
    return True


class Norm:
    """RMSNorm; as sglang's kernel, it changes the residual in place."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self.variance_epsilon = EPSILON
        self.plain = 0

    def forward(self, x: torch.Tensor, residual: torch.Tensor, addition: Any = None) -> Any:
        self.plain += 1
        residual += x
        if addition is not None:
            residual += addition
        return torch.nn.functional.rms_norm(residual, (HIDDEN,), self.weight, EPSILON), residual


class Scene(typing.NamedTuple):
    """One call after another, on ranks of one layout.

    layernorm, fusion: the files of the release, or what they are after an entry's edits.
    world: how many ranks.
    expert: the ranks that expert parallelism divides the experts between; MoE tensor parallelism
        divides each expert between the others.
    failing: the ranks on which the workspace cannot be created.
    missing: FlashInfer has no communication module.
    apart: the partial sums are not contiguous.
    behind_attention: what the calls say about the group.
    addition: there is something to be added to the residual.
    calls: how many calls there are.
    states: if any, so many states are drawn, and what they have in common is returned.
    limit: seconds after which a rank that is still at it hangs.
    """

    layernorm: str
    fusion: str
    world: int = 2
    expert: int = 1
    failing: list[int] = []  # noqa: RUF012 - never changed
    missing: bool = False
    apart: bool = False
    behind_attention: bool = True
    addition: bool = False
    calls: int = 1
    states: int = 0
    limit: float = 30.0


class Groups(typing.NamedTuple):
    """Those of one layout, and the two in which a fused call over some of them meets."""

    tp: Group
    ep: Group
    moe_tp: Group
    kernel: Group
    meeting: Group


def lay_out(scene: Scene) -> Groups:
    everyone = [list(range(scene.world))]
    width = scene.world // scene.expert
    by_expert = [list(range(start, scene.world, width)) for start in range(width)]
    by_slice = [list(range(start, start + width)) for start in range(0, scene.world, width)]
    over = everyone if scene.behind_attention else (by_expert if scene.expert > 1 else by_slice)
    return Groups(*(Group(sets, Rank.id) for sets in (everyone, by_expert, by_slice, over, over)))


def soak(scene: Scene) -> Any:
    """Enact as many states as are asked for, drawn by a seed that all ranks share."""
    groups = lay_out(scene)
    chance = random.Random(scene.states)
    worst, fused, plain = 0.0, 0, 0
    for _ in range(scene.states):
        failing = [rank for rank in range(scene.world) if chance.random() < 0.3]
        state = scene._replace(
            failing=failing, apart=chance.random() < 0.2, addition=chance.random() < 0.5,
            missing=chance.random() < 0.1, calls=chance.randint(1, 3),
        )  # fmt: skip
        found = enact(state, groups)
        worst = max(worst, *(max(one["norm"], one["residual"]) for one in found["calls"]))
        fused, plain = fused + found["fused"], plain + found["plain"]
    return {"worst": worst, "fused": fused, "plain": plain}


def enact(scene: Scene, groups: Groups | None = None) -> Any:
    """Return what this rank found, call by call, and what it used for it."""
    tp, ep, moe_tp, kernel, meeting = groups or lay_out(scene)
    fused_over = ep if ep.world_size > 1 else moe_tp
    comm = None if scene.missing else FlashInfer(kernel, meeting, scene.failing)
    fusion = _fusion(scene, comm, tp, ep, moe_tp, fused_over)

    torch.manual_seed(0)
    weight = torch.rand(HIDDEN) + 0.5
    norm = Norm(weight)
    layernorm: dict[str, Any] = {
        "torch": torch, "Optional": typing.Optional, "Union": typing.Union, "Tuple": tuple,
        "_use_aiter": False, "supports_custom_op": lambda: False,
        "get_parallel": fusion["get_parallel"],
        "get_global_server_args": fusion["get_server_args"],
        "get_server_args": fusion["get_server_args"], "get_exec": fusion["get_exec"],
    }  # fmt: skip
    scopes = ("_forward_with_allreduce_fusion", "RMSNorm.forward_with_allreduce_fusion")
    take(scene.layernorm, scopes, layernorm)
    call = layernorm["forward_with_allreduce_fusion"]

    found = []
    for number in range(scene.calls):
        partial = [torch.randn(TOKENS, HIDDEN) for _ in range(scene.world)]
        residual, addition = torch.randn(TOKENS, HIDDEN), torch.randn(TOKENS, HIDDEN)
        given: dict[str, Any] = {}
        if scene.addition:
            given["post_residual_addition"] = addition
        if not scene.behind_attention:
            given["use_attn_tp_group"] = False
        x, kept = partial[Rank.id].clone(), residual.clone()
        if scene.apart:
            x = torch.stack([x, x], dim=-1)[..., 0]
        Rank.say(f"call {number}")
        normed, total = call(norm, x, residual, **given)
        wanted = kept + sum(partial) + (addition if scene.addition else 0)
        reference = torch.nn.functional.rms_norm(wanted, (HIDDEN,), weight, EPSILON)
        found.append(
            {
                "norm": _error(normed, reference),
                "residual": _error(total, wanted),
                "residual is new": torch.equal(residual, kept),
            }
        )
    return {
        "calls": found,
        "fused": comm.fused if comm else 0,
        "plain": norm.plain,
        "tried": comm.tried if comm else 0,
        "off": fusion.get("_flashinfer_allreduce_unavailable"),
    }


def _fusion(
    scene: Scene, comm: FlashInfer | None, tp: Group, ep: Group, moe_tp: Group, fused_over: Group
) -> dict[str, Any]:
    """Everything that the functions of `flashinfer_comm_fusion.py` see, and themselves."""
    parallel = SimpleNamespace(
        tp_size=tp.world_size, tp_group=tp, nnodes=1,
        attn_tp_size=tp.world_size, attn_tp_rank=tp.rank_in_group, attn_tp_group=tp,
        moe_ep_size=ep.world_size, moe_ep_rank=ep.rank_in_group,
        moe_tp_size=moe_tp.world_size, moe_tp_rank=moe_tp.rank_in_group,
    )  # fmt: skip
    arguments = SimpleNamespace(
        enable_aiter_allreduce_fusion=False, flashinfer_allreduce_fusion_backend="trtllm", nnodes=1
    )
    resources = SimpleNamespace(buffers={})
    functions: dict[str, Any] = {
        "get_tp_group": lambda: tp,
        "get_attn_tp_group": lambda: tp,
        "get_moe_ep_group": lambda: ep,
        "get_moe_tp_group": lambda: moe_tp,
        "get_tensor_model_parallel_world_size": lambda: tp.world_size,
        "get_attn_tensor_model_parallel_world_size": lambda: tp.world_size,
        "get_attn_tensor_model_parallel_rank": lambda: tp.rank_in_group,
        "get_moe_expert_parallel_world_size": lambda: ep.world_size,
        "get_moe_expert_parallel_rank": lambda: ep.rank_in_group,
        "get_moe_tensor_parallel_world_size": lambda: moe_tp.world_size,
        "get_moe_tensor_parallel_rank": lambda: moe_tp.rank_in_group,
        "tensor_model_parallel_all_reduce": tp.all_reduce,
        "attention_tensor_model_parallel_all_reduce": tp.all_reduce,
        "moe_expert_parallel_all_reduce": ep.all_reduce,
        "moe_tensor_model_parallel_all_reduce": moe_tp.all_reduce,
        "tensor_model_parallel_fused_allreduce_rmsnorm": None,
        "get_parallel": lambda: parallel,
        "get_server_args": lambda: arguments,
        "get_global_server_args": lambda: arguments,
        "get_exec": lambda: SimpleNamespace(comm=arguments),
        "get_resources": lambda: resources,
    }

    def group(use_attn_tp_group: bool) -> tuple[int, int, Group]:
        one = tp if use_attn_tp_group else fused_over
        return one.world_size, one.rank_in_group, one

    module = types.ModuleType("sglang.srt.layers.flashinfer_comm_fusion")
    namespace = module.__dict__
    namespace |= functions
    namespace |= {
        "torch": torch, "dist": dist, "logger": logging.getLogger(), "inspect": __import__("inspect"),
        "Optional": typing.Optional, "Tuple": tuple, "ProcessGroup": dist.ProcessGroup,
        "_flashinfer_comm": comm, "comm": comm,
        "_create_allreduce_fusion_workspace": comm and comm.create_allreduce_fusion_workspace,
        "_flashinfer_allreduce_unavailable": False,
        "_flashinfer_create_workspace_supports_group": False,
        "_flashinfer_create_workspace_supports_comm_backend": False,
        "_flashinfer_allreduce_supports_trigger_completion": False,
        "_TorchDistBackend": None, "_mnnvl_comm_backend": None,
        "_flashinfer_posix_fd_transport_override_if_needed": contextlib.nullcontext,
        "_preflight_check_workspace_memory": lambda **_: True,
        "in_the_same_node_as": lambda group, source_rank: [True] * dist.get_world_size(group),
        "resolve_flashinfer_allreduce_fusion_backend": lambda *_: "trtllm",
        "is_flashinfer_available": lambda: True,
        "uses_cutedsl_ar_fusion": lambda: False,
        "resolve_fusion_group": lambda *, use_attn_tp_group: group(use_attn_tp_group),
        "resolve_fusion_world_size": lambda *, use_attn_tp_group: group(use_attn_tp_group)[0],
    }  # fmt: skip
    take(scene.fusion, FUSION, namespace)
    manager = namespace["FlashInferWorkspaceManager"]
    for name in ("_workspace_manager", "_attn_tp_workspace_manager", "_moe_tp_workspace_manager"):
        namespace[name] = manager()

    experts = types.ModuleType("sglang.srt.layers.moe.utils")
    experts.__dict__["post_experts_reduction_group"] = lambda: fused_over
    experts.__dict__["deferred_post_experts_all_reduce"] = fused_over.all_reduce
    for name in ("sglang.srt.distributed", "sglang.srt.runtime_context"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(functions)
    for one in (module, experts):
        sys.modules[one.__name__] = one
    for name in ("sglang", "sglang.srt", "sglang.srt.layers", "sglang.srt.layers.moe"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    return namespace


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def run(scene: Scene) -> list[Any]:
    """What each rank has found; what it does, for one that was at it when the time was over."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        children = []
        for rank in range(scene.world):
            child = os.fork()
            if child == 0:
                _be(folder, rank, scene)
            children.append(child)
        deadline = time.monotonic() + scene.limit
        answers = [folder / f"{rank}.json" for rank in range(scene.world)]
        while time.monotonic() < deadline and not all(file.exists() for file in answers):
            time.sleep(0.01)
        # Before any of them is gone: the others would find the connection closed.
        found = [
            json.loads(file.read_text())
            if file.exists()
            else {"hangs": file.with_suffix(".state").read_text()}
            for file in answers
        ]
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return found


def _be(folder: Path, rank: int, scene: Scene) -> None:
    answer = folder / f"{rank}.json"
    Rank.id, Rank.file = rank, answer.with_suffix(".state")
    Rank.say("starts")
    try:
        store = dist.FileStore(str(folder / "rendezvous"), scene.world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=scene.world)
        found = soak(scene) if scene.states else enact(scene)
    except BaseException:
        found = {"error": traceback.format_exc()}
    answer.with_suffix(".partial").write_text(json.dumps(found))
    answer.with_suffix(".partial").rename(answer)
    # Whoever left first would take the others' connections away.
    signal.pause()


if __name__ == "__main__":
    logging.disable()
    torch.set_num_threads(1)
    answer(lambda scene: run(Scene(**scene)))
