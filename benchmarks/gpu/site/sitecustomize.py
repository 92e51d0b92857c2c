"""First on PYTHONPATH in every process of a case: what is watched, and what is forced.

``GPU_SHARED=N``      more ranks than the N GPUs: they take turns. Each process is another host for
                      NCCL, which else refuses two ranks on one GPU, and goes over sockets.
``GPU_FUSED=FOLDER``  counts the calls of FlashInfer's fused all-reduce, and those it declined; and
                      the processes that run sglang.
``GPU_CAPTURE=FOLDER``  has the model capture the outputs of its first three layers, as for an
                      EAGLE-3 draft, and keeps what reaches LogitsProcessor.
``GPU_DEEPSTACK=1``   Qwen3-MoE becomes the text half of Qwen3-VL-MoE, by sglang's own class, and
                      the middle half of each prompt gets random deepstack features.
``GPU_DECLINE=all``   FlashInfer's kernel declines every call, on every rank.
``GPU_DECLINE=1``     rank 1 gets no workspace in the first call, the others get theirs.
``GPU_EXPERTS=1``     GPT-OSS in bfloat16: a rank loads its own experts only, where sglang would
                      have each load all of them and fail.
``GPU_RANK_1=JSON``   rank 1 starts with these of the package's variables and with no other, as if
                      another node had started it; each rank says how long it compares.

NVLink multicast stays off throughout: on a shared host it can put GPUs out of service. Another
``sitecustomize`` further back on the path is run as well.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

SHARED = int(os.environ.get("GPU_SHARED", "0"))
FUSED = os.environ.get("GPU_FUSED", "")
CAPTURE = os.environ.get("GPU_CAPTURE", "")
DEEPSTACK = os.environ.get("GPU_DEEPSTACK", "")
DECLINE = os.environ.get("GPU_DECLINE", "")
EXPERTS = os.environ.get("GPU_EXPERTS", "")
RANK_1 = os.environ.get("GPU_RANK_1", "")
CAPTURED_LAYERS = [0, 1, 2]

os.environ.update(
    NCCL_NVLS_ENABLE="0", TORCH_SYMM_MEM_DISABLE_MULTICAST="1", NVSHMEM_DISABLE_NVLS="1"
)
if SHARED:
    os.environ.update(
        NCCL_HOSTID=f"one-of-many-{os.getpid()}", NCCL_SOCKET_IFNAME="lo", NCCL_IB_DISABLE="1"
    )


def _rank() -> int:
    distributed = importlib.import_module("torch.distributed")
    return int(distributed.get_rank()) if distributed.is_initialized() else 0


def _scheduler(module: Any) -> None:
    start = module.run_scheduler_process

    @wraps(start)
    def run_scheduler_process(
        server_args: Any, port_args: Any, gpu_id: int, *rest: Any, **named: Any
    ) -> Any:
        return start(server_args, port_args, gpu_id % SHARED, *rest, **named)

    module.run_scheduler_process = run_scheduler_process


def _mnnvl(module: ModuleType) -> None:
    """FlashInfer asks for multicast, which it does not use here: a GPU without it is let pass."""
    driver = module.cuda
    ask = driver.cuDeviceGetAttribute
    multicast = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED

    def answer(attribute: Any, device: Any) -> Any:
        if attribute == multicast:
            return driver.CUresult.CUDA_SUCCESS, 1
        return ask(attribute, device)

    driver.cuDeviceGetAttribute = answer


def _preflight(module: ModuleType) -> None:
    """Let a GPU without multicast pass here, too: sizes are rounded to 2 MiB, as elsewhere."""
    name = "_flashinfer_trtllm_workspace_allocation_sizes"
    sizes = getattr(module, name, None)
    if sizes is None:
        return

    def allocation_sizes(*given: Any) -> list[int]:
        _, _, ranks, tokens, hidden, _ = given
        try:
            return list(sizes(*given))
        except RuntimeError as error:
            print(f"GPU: {error}", flush=True)
            parts = (ranks * tokens * hidden * 2, ranks * 1024, ranks * tokens * hidden * 6)
            return [-(-(part + 2048) // 2**21) * 2**21 for part in parts]

    setattr(module, name, allocation_sizes)


def _fail_on(rank: int, owner: Any, name: str) -> None:
    """Have a workspace fail on one rank, once all have exchanged what they exchange."""
    create = getattr(owner, name, None)
    if create is None:
        return

    def create_or_fail(*rest: Any, **named: Any) -> Any:
        workspace = create(*rest, **named)
        if _rank() == rank:
            raise RuntimeError("no memory, by force")
        return workspace

    setattr(owner, name, create_or_fail)


def _decline(module: Any) -> None:
    if DECLINE == "all":
        module.flashinfer_allreduce_residual_rmsnorm = lambda *_, **__: (None, None)
        return
    # Where a call needs a larger workspace than was created at start, it is created in the call.
    module.pre_initialize_workspaces = lambda *_, **__: None
    _fail_on(int(DECLINE), module, "_create_allreduce_fusion_workspace")
    _fail_on(int(DECLINE), module._flashinfer_comm, "create_allreduce_fusion_workspace")  # noqa: SLF001


def _fusion(module: Any) -> None:
    _preflight(module)
    if DECLINE:
        _decline(module)
    fused = module.flashinfer_allreduce_residual_rmsnorm
    counts = {"calls": 0, "declined": 0}

    def flashinfer_allreduce_residual_rmsnorm(*rest: Any, **named: Any) -> Any:
        result = fused(*rest, **named)
        counts["calls"] += 1
        counts["declined"] += result[0] is None
        Path(FUSED, f"fused-{_rank()}.json").write_text(json.dumps(counts), encoding="utf-8")
        return result

    module.flashinfer_allreduce_residual_rmsnorm = flashinfer_allreduce_residual_rmsnorm


def _start_rank_1() -> None:
    processes: Any = importlib.import_module("multiprocessing.process")
    start = processes.BaseProcess.start

    def start_it(self: Any) -> Any:
        name = getattr(self._target, "__name__", "")
        if name != "run_scheduler_process" or self._args[3] != 1:
            return start(self)
        own = {k: v for k, v in os.environ.items() if k.startswith("SGLANG_COMMFIX")}
        given = json.loads(RANK_1)
        for key in own:
            del os.environ[key]
        os.environ.update(given)
        try:
            return start(self)
        finally:
            for key in given:
                del os.environ[key]
            os.environ.update(own)

    processes.BaseProcess.start = start_it


def _ranks(module: Any) -> None:
    compare = module.differs_from_ranks

    def differs_from_ranks(*given: Any) -> Any:
        begin = time.perf_counter()
        try:
            return compare(*given)
        finally:
            taken = 1000 * (time.perf_counter() - begin)
            print(f"GPU: rank {_rank()} has compared in {taken:.1f} ms", flush=True)

    module.differs_from_ranks = differs_from_ranks


def _model_runner(module: ModuleType) -> None:
    load = module.ModelRunner.load_model

    def load_model(self: Any, *rest: Any, **named: Any) -> Any:
        if DEEPSTACK:
            _feed()
        loaded = load(self, *rest, **named)
        if CAPTURE:
            self.model.set_eagle3_layers_to_capture(CAPTURED_LAYERS)
        return loaded

    module.ModelRunner.load_model = load_model


def _feed() -> None:
    torch: Any = importlib.import_module("torch")
    text: Any = importlib.import_module("sglang.srt.models.qwen3_moe")
    vision: Any = importlib.import_module("sglang.srt.models.qwen3_vl_moe")

    class Fed(vision.Qwen3MoeLLMModel):  # type: ignore[misc]
        def __init__(self, config: Any, quant_config: Any = None, **named: Any) -> None:
            super().__init__(config=config, quant_config=quant_config, **named)

        def forward(  # noqa: PLR0917
            self,
            input_ids: Any,
            positions: Any,
            forward_batch: Any,
            input_embeds: Any = None,
            pp_proxy_tensors: Any = None,
            input_deepstack_embeds: Any = None,
        ) -> Any:
            tokens = input_ids.shape[0]
            if forward_batch.forward_mode.is_extend() and tokens > 4:
                generator = torch.Generator().manual_seed(77)
                features = torch.randn(tokens, 3 * self.hidden_size, generator=generator)
                features[: tokens // 4] = 0
                features[tokens - tokens // 4 :] = 0
                input_deepstack_embeds = features.to(input_ids.device, torch.bfloat16)
            return super().forward(
                input_ids,
                positions,
                forward_batch,
                input_embeds,
                pp_proxy_tensors,
                input_deepstack_embeds,
            )

    text.Qwen3MoeModel = Fed


def _logits(module: ModuleType) -> None:
    torch: Any = importlib.import_module("torch")
    forward: Callable[..., Any] = module.LogitsProcessor.forward
    asked = {"prompt": 0, "step": 0}

    def keep(  # noqa: PLR0917
        self: Any,
        input_ids: Any,
        hidden_states: Any,
        lm_head: Any,
        logits_metadata: Any,
        aux_hidden_states: Any = None,
        *rest: Any,
        **named: Any,
    ) -> Any:
        states = getattr(aux_hidden_states, "hidden_states", aux_hidden_states)
        if states is not None and len(states) and input_ids is not None and len(input_ids):
            ids = input_ids.tolist()
            if len(ids) > 1:
                asked.update(prompt=len(ids), step=0)
            else:
                asked["step"] += 1
            name = f"rank{_rank()}-prompt{asked['prompt']}-step{asked['step']}.pt"
            file = Path(CAPTURE, name)
            if not file.exists():
                kept = [state.to("cpu", torch.bfloat16) for state in states]
                torch.save({"ids": ids, "states": kept}, file)
        return forward(
            self,
            input_ids,
            hidden_states,
            lm_head,
            logits_metadata,
            aux_hidden_states,
            *rest,
            **named,
        )

    module.LogitsProcessor.forward = keep


def _experts(module: Any) -> None:
    load = module.FusedMoE.weight_loader_fused

    def weight_loader_fused(
        self: Any, param: Any, loaded_weight: Any, *rest: Any, **named: Any
    ) -> None:
        own = param.shape[0]
        if loaded_weight.shape[0] == own * self.moe_ep_size:
            loaded_weight = loaded_weight[own * self.moe_ep_rank :][:own]
        load(self, param, loaded_weight, *rest, **named)

    module.FusedMoE.weight_loader_fused = weight_loader_fused


HOOKS: dict[str, Callable[[ModuleType], None]] = {}
if SHARED:
    HOOKS["sglang.srt.managers.scheduler"] = _scheduler
    HOOKS["flashinfer.comm.mnnvl"] = _mnnvl
if FUSED:
    HOOKS["sglang.srt.layers.flashinfer_comm_fusion"] = _fusion
if EXPERTS:
    HOOKS["sglang.srt.layers.moe.fused_moe_triton.layer"] = _experts
if RANK_1:
    HOOKS["sglang_commfix.run.fleet"] = _ranks
if CAPTURE or DEEPSTACK:
    HOOKS["sglang.srt.model_executor.model_runner"] = _model_runner
if CAPTURE:
    HOOKS["sglang.srt.layers.logits_processor"] = _logits


class _Finder(importlib.abc.MetaPathFinder):
    busy = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if name == "sglang.srt" and FUSED:
            Path(FUSED, f"sglang-{os.getpid()}").touch()
        if name not in HOOKS or self.busy:
            return None
        self.busy = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.busy = False
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            HOOKS[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _run_next() -> None:
    own = Path(__file__).resolve().parent
    further = [entry for entry in sys.path if Path(entry).resolve() != own]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", further)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


_run_next()
if RANK_1:
    _start_rank_1()
if HOOKS:
    sys.meta_path.insert(0, _Finder())
