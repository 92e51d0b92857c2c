"""What sglang lacks to run its real model code and real collectives on a CPU, over gloo.

Each shim acts on one module right after that is first imported. None touches what the project's
patches are about: `communicator`, `dp_attention`, `parallel_state`, `ModelRunner._dummy_run`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import wrapt


if TYPE_CHECKING:
    from types import ModuleType


Shim = Callable[[Any], None]


def register() -> None:
    """Arm every shim; nothing is imported before the program itself imports it."""
    for name, shim in _SHIMS.items():
        wrapt.register_post_import_hook(shim, name)


def _ignore_pin_memory(torch: ModuleType) -> None:
    """DP attention asks for page-locked memory, which a torch without an accelerator refuses."""

    def without_pinning(create: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(create)
        def wrapper(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Any:
            return create(*args, **kwargs)

        return wrapper

    for name in ("empty", "full", "ones", "tensor", "zeros"):
        setattr(torch, name, without_pinning(getattr(torch, name)))


def _have_no_streams(torch: Any) -> None:
    """Context parallelism hands the current CUDA stream to its collectives; gloo needs none."""
    torch.cuda.current_stream = lambda device=None: None


def _prepare_torch(torch: ModuleType) -> None:
    _ignore_pin_memory(torch)
    _have_no_streams(torch)


def register_collectives_for_cpu(common: ModuleType) -> None:
    """sglang's custom operators (its collectives) are plain torch but registered for CUDA only."""
    library: Any = common.sglang_lib
    register_implementation = library.impl

    def impl(name: str, function: Any, dispatch_key: str = "", **kwargs: Any) -> None:
        register_implementation(name, function, dispatch_key, **kwargs)
        if dispatch_key == "CUDA":
            register_implementation(name, function, "CPU", **kwargs)

    library.impl = impl


def _complete_torch_native_backend(backend: ModuleType) -> None:
    """What sglang asks of an attention back-end, and torch_native has no answer to.

    A fill value, when a batch is padded under DP attention; and context parallelism.
    """
    torch_native: Any = backend.TorchNativeAttnBackend
    torch_native.get_cuda_graph_seq_len_fill_value = lambda self: 1
    forward_whole = torch_native.forward_extend

    @functools.wraps(forward_whole)
    def forward_extend(
        self: Any, q: Any, k: Any, v: Any, layer: Any, batch: Any, save_kv_cache: bool = True
    ) -> Any:
        if getattr(batch, "attn_cp_metadata", None) is None:
            return forward_whole(self, q, k, v, layer, batch, save_kv_cache)
        return _forward_context_parallel(self, q, k, v, layer, batch)

    torch_native.forward_extend = forward_extend


def _forward_context_parallel(self: Any, q: Any, k: Any, v: Any, layer: Any, batch: Any) -> Any:
    """Attend from this rank's two chunks of the prompt to all tokens up to each of them.

    As sglang's FlashAttention back-end does: by its own functions, but for the kernel.
    """
    cp_utils: Any = importlib.import_module("sglang.srt.layers.utils.cp_utils")
    ranks = len(batch.attn_cp_metadata.per_rank_actual_token)
    cp_utils.cp_allgather_and_save_kv_cache(batch, layer, k, v, ranks)
    pool = batch.token_to_kv_pool

    def attend(chunk: Any, _: Any, tokens_up_to_its_end: Any, length: int) -> Any:
        return self._run_sdpa_forward_extend(
            chunk,
            chunk.new_empty(len(chunk), layer.tp_q_head_num, layer.v_head_dim),
            pool.get_key_buffer(layer.layer_id),
            pool.get_value_buffer(layer.layer_id),
            batch.req_to_token_pool.req_to_token,
            batch.req_pool_indices,
            seq_lens=tokens_up_to_its_end,
            extend_prefix_lens=tokens_up_to_its_end - length,
            extend_seq_lens=tokens_up_to_its_end.new_tensor([length]),
            scaling=layer.scaling,
            enable_gqa=layer.tp_q_head_num != layer.tp_k_head_num,
            causal=True,
        )

    heads = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
    output = cp_utils.cp_attn_forward_extend(batch, heads, self.device, attend)
    return output.reshape(len(q), -1)


def _keep_context_parallelism_on_the_cpu(cp_utils: Any) -> None:
    """It writes "cuda" where it means the model's device; from 0.5.20 on nothing is left of it."""
    if hasattr(cp_utils, "torch"):
        cp_utils.torch = _TorchWithoutCuda(cp_utils.torch)


class _TorchWithoutCuda:
    """The module torch, with tensors on the CPU whatever device they are asked for."""

    def __init__(self, torch: ModuleType) -> None:
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def tensor(self, data: Any, *, device: object = None, **kwargs: Any) -> Any:
        return self._torch.tensor(data, **kwargs)


def _use_absorbed_mla(handlers: ModuleType) -> None:
    """The handler that torch_native falls back to splits prefill off as MHA over an MLA cache.

    torch_native cannot compute that; it can compute absorbed MLA for both phases.
    """
    handlers.AttentionBackendRegistry.register("torch_native", handlers._dispatch_mla_subtype)


def _complete_expert_loop(native: Any) -> None:
    """The CPU's expert loop takes all experts to be local; under EP, id -1 is one elsewhere.

    And up to 0.5.10 it takes them to have no biases, which those of GPT-OSS have.
    """
    all_experts_are_local = native.moe_forward_native
    knows_biases = hasattr(native, "swiglu_gpt_oss_sigmoid_alpha")
    functional: Any = importlib.import_module("torch.nn.functional")

    def moe_forward_native(layer: Any, x: Any, topk_output: Any, moe_runner_config: Any) -> Any:
        weights, ids = topk_output.topk_weights, topk_output.topk_ids
        has_biases = getattr(layer, "w13_weight_bias", None) is not None
        are_local = not bool((ids < 0).any()) and len(layer.w13_weight) == layer.num_experts
        if are_local and (knows_biases or not has_biases):
            return all_experts_are_local(layer, x, topk_output, moe_runner_config)
        assert moe_runner_config.activation == "silu"
        result = x.new_zeros(x.shape)
        for expert, (w13, w2) in enumerate(zip(layer.w13_weight, layer.w2_weight, strict=True)):
            tokens, slots = (ids == expert).nonzero(as_tuple=True)
            if has_biases:
                both = functional.linear(x[tokens], w13, layer.w13_weight_bias[expert])
                active = _swiglu_of_gpt_oss(both, moe_runner_config)
                output = functional.linear(active, w2, layer.w2_weight_bias[expert])
            else:
                gate, up = functional.linear(x[tokens], w13).chunk(2, dim=-1)
                output = functional.linear(functional.silu(gate) * up, w2)
            share = weights[tokens, slots].unsqueeze(-1).to(output.dtype)
            result.index_add_(0, tokens, output * share)
        return result

    native.moe_forward_native = moe_forward_native


def _swiglu_of_gpt_oss(both: Any, moe_runner_config: Any) -> Any:
    """Of gate and up, which take turns."""
    limit = moe_runner_config.gemm1_clamp_limit
    gate, up = both[..., ::2].clamp(max=limit), both[..., 1::2].clamp(-limit, limit)
    return gate * (gate * moe_runner_config.gemm1_alpha).sigmoid() * (up + 1)


def _load_stacked_experts(layer: Any) -> None:
    """Of a checkpoint that stacks all experts sglang gives a rank its own only if it is quantized.

    And on a CPU it looks for a third dimension in their biases.
    """
    fused_moe = layer.FusedMoE
    load = fused_moe.weight_loader_fused

    @functools.wraps(load)
    def weight_loader_fused(
        self: Any, param: Any, loaded_weight: Any, weight_name: str, shard_id: str
    ) -> None:
        if len(loaded_weight) != len(param):
            loaded_weight = loaded_weight.chunk(self.moe_ep_size)[self.moe_ep_rank]
        if shard_id == "w2" and param.dim() == 2:
            param.data.copy_(loaded_weight)
        else:
            load(self, param, loaded_weight, weight_name, shard_id)

    fused_moe.weight_loader_fused = weight_loader_fused


def _keep_sinks_in_float32(gpt_oss: Any) -> None:
    """bfloat16 scalars are beyond Triton's interpreter; each head's sink is one."""
    torch: Any = importlib.import_module("torch")
    attention = gpt_oss.GptOssAttention
    initialise = attention.__init__

    @functools.wraps(initialise)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self.sinks = torch.nn.Parameter(self.sinks.float(), requires_grad=False)

    attention.__init__ = init


def _keep_expert_map_off_cuda(standard: Any) -> None:
    """0.5.4 to 0.5.9 find local experts by a table that they make on `cuda`, whatever the device."""
    torch: Any = getattr(standard, "torch", None)
    if torch is None:
        return

    def on_default_device(create: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(create)
        def wrapper(*args: Any, device: Any = None, **kwargs: Any) -> Any:
            return create(*args, **kwargs)

        return wrapper

    class Torch:
        full = staticmethod(on_default_device(torch.full))
        arange = staticmethod(on_default_device(torch.arange))

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    standard.torch = Torch()


def _replace_pynccl(pynccl: Any) -> None:
    """`reduce_scatterv` and `all_gatherv` insist on a PyNccl communicator."""
    pynccl.PyNcclCommunicator = _GlooCommunicator


class _GlooCommunicator:
    """The part of PyNcclCommunicator's interface that sglang uses without CUDA graphs."""

    def __init__(self, group: Any, device: Any, **_: Any) -> None:
        self._distributed: Any = importlib.import_module("torch.distributed")
        self.group = group
        self.device = device
        self.rank: int = self._distributed.get_rank(group)
        self.world_size: int = self._distributed.get_world_size(group)
        self.available = True
        self.disabled = True

    @contextlib.contextmanager
    def change_state(self, enable: bool = True, stream: Any = None) -> Iterator[None]:
        before, self.disabled = self.disabled, not enable
        try:
            yield
        finally:
            self.disabled = before

    def reduce_scatter(self, output: Any, input_: Any, sizes: Sequence[int] | None = None) -> None:
        total = input_.clone()
        self._distributed.all_reduce(total, group=self.group)
        output.copy_(self._parts(total, sizes)[self.rank])

    def all_gather(self, output: Any, input_: Any, sizes: Sequence[int] | None = None) -> None:
        for rank, part in enumerate(self._parts(output, sizes)):
            if rank == self.rank:
                part.copy_(input_)
            if len(part):
                source = self._distributed.get_global_rank(self.group, rank)
                self._distributed.broadcast(part, src=source, group=self.group)

    def _parts(self, tensor: Any, sizes: Sequence[int] | None) -> Sequence[Any]:
        parts: Sequence[Any] = tensor.split(
            list(sizes) if sizes is not None else len(tensor) // self.world_size
        )
        return parts


_SHIMS: dict[str, Shim] = {
    "torch": _prepare_torch,
    "sglang.srt.utils.common": register_collectives_for_cpu,
    "sglang.srt.layers.attention.torch_native_backend": _complete_torch_native_backend,
    "sglang.srt.layers.utils.cp_utils": _keep_context_parallelism_on_the_cpu,
    "sglang.srt.models.deepseek_common.attention_backend_handler": _use_absorbed_mla,
    "sglang.srt.layers.moe.fused_moe_native": _complete_expert_loop,
    "sglang.srt.models.gpt_oss": _keep_sinks_in_float32,
    "sglang.srt.layers.moe.fused_moe_triton.layer": _load_stacked_experts,
    "sglang.srt.layers.moe.token_dispatcher.standard": _keep_expert_map_off_cuda,
    "sglang.srt.distributed.device_communicators.pynccl": _replace_pynccl,
}
