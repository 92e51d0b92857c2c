"""FlashInfer's part in all-reduce fusion, over gloo.

sglang decides whether to fuse, and over which group; FlashInfer's kernel then does all-reduce,
residual and RMSNorm in one. Only that kernel and its workspace are replaced, by the same sum in
plain torch, over the ranks that FlashInfer would use: those that it meets through the communication
backend or the group that it is given, else all there are.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from rig.layers.collectives import Recorder


Tensor = Any

_PLENTY = 2**40


def enable(recorder: Recorder) -> None:
    """Tell sglang that this is a Hopper GPU with FlashInfer, and be its FlashInfer."""
    communicator: Any = importlib.import_module("sglang.srt.layers.communicator")
    communicator._is_flashinfer_available = True
    communicator._is_sm90_supported = True
    fusion: Any = importlib.import_module("sglang.srt.layers.flashinfer_comm_fusion")
    fusion.is_flashinfer_available = lambda: True
    # From 0.5.14 on it asks for the GPU here as well, and from 0.5.19 on by another way.
    fusion.is_sm90_supported = lambda *_: True
    if hasattr(fusion, "get_platform"):
        context: Any = importlib.import_module("sglang.srt.runtime_context")
        context.override_platform(is_sm90=True).install()
    flashinfer = _FlashInfer(recorder)
    fusion.comm = fusion._flashinfer_comm = flashinfer
    fusion._create_allreduce_fusion_workspace = flashinfer.create_allreduce_fusion_workspace
    fusion._flashinfer_create_workspace_supports_group = True
    fusion._flashinfer_create_workspace_supports_comm_backend = True
    fusion._flashinfer_allreduce_unavailable = False
    # A workspace takes GPU memory, and whether there is enough is asked first (from 0.5.11 on).
    fusion._preflight_check_workspace_memory = lambda **_: True
    torch: Any = importlib.import_module("torch")
    torch.cuda.mem_get_info = lambda *_: (_PLENTY, _PLENTY)
    # FlashInfer's own, with a correction (from 0.5.11 on).
    fusion._TorchDistBackend = _Backend


class _Backend:
    """Through which the ranks that create a workspace meet."""

    def __init__(self, device_group: Any, cpu_group: Any) -> None:
        self._group = cpu_group
        self._distributed: Any = importlib.import_module("torch.distributed")

    def allgather(self, data: Any) -> list[Any]:
        met = [None] * self._distributed.get_world_size(self._group)
        self._distributed.all_gather_object(met, data, group=self._group)
        return met


class _FlashInfer:
    """The functions of `flashinfer.comm` that sglang calls: old ones (to 0.5.9) and new ones."""

    AllReduceFusionPattern = SimpleNamespace(kARResidualRMSNorm=1)

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._distributed: Any = importlib.import_module("torch.distributed")

    def create_allreduce_fusion_workspace(
        self, *, world_size: int, comm_backend: Any = None, group: Any = None, **_: Any
    ) -> Any:
        if comm_backend is None:
            return self._workspace(world_size, self._distributed.get_process_group_ranks(group))
        return self._workspace(world_size, comm_backend.allgather(self._distributed.get_rank()))

    def trtllm_create_ipc_workspace_for_all_reduce_fusion(
        self, rank: int, world_size: int, *_: Any, group: Any = None, **__: Any
    ) -> tuple[Any, Any]:
        ranks = self._distributed.get_process_group_ranks(group)
        return None, self._workspace(world_size, ranks)

    def _workspace(self, world_size: int, ranks: list[int]) -> Any:
        if len(ranks) != world_size:
            raise ValueError(f"a workspace for {world_size} ranks, and {ranks} have met")
        state: Any = importlib.import_module("sglang.srt.distributed.parallel_state")
        groups = (reference() for reference in state._groups.values())
        device_group = next(
            group.device_group for group in groups if group is not None and group.ranks == ranks
        )
        return SimpleNamespace(
            ranks=ranks,
            group=device_group,
            backend="trtllm",
            metadata={"use_fp32_lamport": True},
            is_buffer_size_sufficient=lambda **_: True,
            destroy=lambda: None,
        )

    def allreduce_fusion(self, *, input: Tensor, workspace: Any, **kwargs: Any) -> None:  # noqa: A002
        self._fused(input, workspace, **kwargs)

    def trtllm_allreduce_fusion(
        self, *, allreduce_in: Tensor, workspace_ptrs: Any, **kwargs: Any
    ) -> None:
        self._fused(allreduce_in, workspace_ptrs, **kwargs)

    def _fused(
        self,
        partial_sum: Tensor,
        workspace: Any,
        *,
        residual_in: Tensor,
        residual_out: Tensor,
        norm_out: Tensor,
        rms_gamma: Tensor,
        rms_eps: float,
        **_: Any,
    ) -> None:
        self._recorder.note("fused_all_reduce", "_".join(map(str, workspace.ranks)))
        total = partial_sum.clone()
        self._distributed.all_reduce(total, group=workspace.group)
        total += residual_in
        residual_out.copy_(total)
        scale = (total.pow(2).mean(-1, keepdim=True) + rms_eps).rsqrt()
        norm_out.copy_(total * scale * rms_gamma)
