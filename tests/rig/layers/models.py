"""The model classes that are run: real, but for attention.

Attention needs a KV cache and back-ends; what it means to communication is a partial sum over the
attention-TP ranks, of the tokens that their group holds. That is what stands in for it. MLP, experts, norms, LayerCommunicator, the
forward functions of layer and model, and what splits a model into pipeline stages are the release's
own.
"""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rig.checkpoints import CONFIGS
from rig.layers import topology


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


torch: Any = importlib.import_module("torch")

Tensor = Any


@dataclass(frozen=True)
class Model:
    """A model of sglang without its head, and the attention class that its layers make."""

    module: str
    name: str
    attention: str
    config: Mapping[str, Any]

    with_head: str
    """The model with its head, which is told what to capture."""

    with_features: tuple[str, str] = ("", "")
    """Module and name of the model that takes vision features."""


MODELS = {
    "deepseek-v3": Model(
        "sglang.srt.models.deepseek_v2",
        "DeepseekV2Model",
        "DeepseekV2AttentionMLA",
        CONFIGS["deepseek-v3"],
        "DeepseekV2ForCausalLM",
    ),
    "glm4-moe": Model(
        "sglang.srt.models.glm4_moe",
        "Glm4MoeModel",
        "Glm4MoeAttention",
        # Experts and their router are those of DeepSeek V3.
        {**CONFIGS["deepseek-v3"], "partial_rotary_factor": 0.5, "use_qk_norm": False},
        "Glm4MoeForCausalLM",
    ),
    "gpt-oss": Model(
        "sglang.srt.models.gpt_oss",
        "GptOssModel",
        "GptOssAttention",
        {
            **CONFIGS["qwen3-moe"],
            "num_local_experts": 8,
            "intermediate_size": CONFIGS["qwen3-moe"]["moe_intermediate_size"],
            # The real one is 7, which these activations would hardly ever meet.
            "swiglu_limit": 2.0,
            "sliding_window": 128,
        },
        "GptOssForCausalLM",
    ),
    "qwen3-moe": Model(
        "sglang.srt.models.qwen3_moe",
        "Qwen3MoeModel",
        "Qwen3MoeAttention",
        CONFIGS["qwen3-moe"],
        "Qwen3MoeForCausalLM",
        ("sglang.srt.models.qwen3_vl_moe", "Qwen3MoeLLMModel"),
    ),
}

FEATURES = 3
"""Vision features are added behind so many layers."""


def configure(model: str, layers: str) -> dict[str, Any]:
    """The model's configuration, with dense and sparse layers as asked."""
    config = {**MODELS[model].config, "num_hidden_layers": len(layers)}
    if "sliding_window" in config:
        config["layer_types"] = ["full_attention"] * len(layers)
    if "first_k_dense_replace" in config:
        dense = len(layers) - len(layers.lstrip("D"))
        for every in (1, 2):
            config |= {"first_k_dense_replace": dense, "moe_layer_freq": every}
            if layers == "".join(_kind(config, layer) for layer in range(len(layers))):
                return config
    elif set(layers) == {"S"}:
        return config
    raise ValueError(f"{model} cannot be configured to have layers {layers}")


def _kind(config: Mapping[str, Any], layer: int) -> str:
    sparse = layer >= config["first_k_dense_replace"] and layer % config["moe_layer_freq"] == 0
    return "S" if sparse else "D"


def make_weights(config: Mapping[str, Any], kind: str, seed: int) -> dict[str, Tensor]:
    """Of one layer, float32. Every sub-layer adds about as much as it is added to."""
    generator = torch.Generator().manual_seed(seed)
    hidden, experts = config["hidden_size"], _number_of_experts(config)

    def normal(*shape: int, scale: float | None = None) -> Tensor:
        scale = shape[-1] ** -0.5 if scale is None else scale
        return torch.randn(*shape, generator=generator) * scale

    def mlp(size: int, *leading: int) -> dict[str, Tensor]:
        tensors = {
            "gate": normal(*leading, size, hidden),
            "up": normal(*leading, size, hidden),
            "down": normal(*leading, hidden, size, scale=2 * size**-0.5),
        }
        if "swiglu_limit" in config:
            tensors |= {f"{name}_bias": normal(*t.shape[:-1]) for name, t in tensors.items()}
        return tensors

    weights = {
        "input_layernorm": 1 + normal(hidden, scale=0.1),
        "post_attention_layernorm": 1 + normal(hidden, scale=0.1),
        "attention": normal(hidden, hidden),
    }
    if kind == "D":
        return weights | mlp(config["intermediate_size"])
    weights["router"] = normal(experts, hidden, scale=2 * hidden**-0.5)
    if config.get("topk_method") == "noaux_tc":
        weights["router_bias"] = normal(experts, scale=0.1)
    if "swiglu_limit" in config:
        weights["router_offset"] = normal(experts, scale=0.5)
    size = config["moe_intermediate_size"]
    weights |= {f"experts.{name}": tensor for name, tensor in mlp(size, experts).items()}
    if shared := config.get("n_shared_experts"):
        weights |= {f"shared.{name}": tensor for name, tensor in mlp(size * shared).items()}
    return weights


def import_model(model: str, *, with_features: bool) -> None:
    """What a rank will need, where the release has it."""
    description = MODELS[model]
    importlib.import_module(description.module)
    if with_features:
        importlib.import_module(description.with_features[0])


def make_model(
    model: str,
    config: Mapping[str, Any],
    weights: Sequence[Mapping[str, Tensor]],
    *,
    with_features: bool,
    combined: bool = False,
) -> Any:
    """The real model, with this rank's share of the weights in the layers of its stage.

    Unless its experts are `combined`: then each rank has what an all-to-all would bring back to it.
    """
    description = MODELS[model]
    module: Any = importlib.import_module(description.module)
    setattr(module, description.attention, _Attention)
    if combined:
        module.get_moe_impl_class = lambda *_, **__: _CombinedExperts
    name = description.name
    if with_features:
        source, name = description.with_features
        module = importlib.import_module(source)
    instance = getattr(module, name)(config=_as_sglang_reads_it(config))
    instance.norm = _Sum()
    for number, layer in own_layers(instance).items():
        _load(layer, weights[number])
        if combined:
            layer.mlp.experts.weights = weights[number]
        elif hasattr(layer.mlp, "experts"):
            _map_experts_on_cpu(layer.mlp.experts)
    _show(instance)
    return instance


def _show(model: Any) -> None:
    """Let an entry see the model that has been loaded, as the patched model runner does."""
    communicator: Any = importlib.import_module("sglang.srt.layers.communicator")
    if watch := getattr(communicator, "commfix_watch_captured_layers", None):
        watch(model)


def own_layers(model: Any) -> dict[int, Any]:
    """The layers of this rank's pipeline stage, by their number in the whole model."""
    stage = range(getattr(model, "start_layer", 0), getattr(model, "end_layer", len(model.layers)))
    return {number: model.layers[number] for number in stage}


def capture(name: str, model: Any, config: Mapping[str, Any], layers: Sequence[int]) -> None:
    """Let the release capture the hidden states behind these layers.

    It captures what goes into a layer, and by the method, and by the ids given, it counts layers
    from here or from there.
    """
    description = MODELS[name]
    with_head = getattr(importlib.import_module(description.module), description.with_head)
    wanted = [layer + 1 for layer in layers]
    head = SimpleNamespace(model=model, pp_group=model.pp_group, config=_as_sglang_reads_it(config))
    for method, given in (
        ("set_eagle3_layers_to_capture", list(layers)),
        ("set_dflash_layers_to_capture", list(layers)),
        ("set_eagle3_layers_to_capture", wanted),
    ):
        if hasattr(with_head, method):
            getattr(with_head, method)(head, given)
            if not model.pp_group.is_last_rank or list(model.layers_to_capture) == wanted:
                return
    raise NotImplementedError(f"{name} captures nothing behind layers {layers}")


class _Sum(torch.nn.Module):  # type: ignore[misc]
    """In the place of the norm behind the last layer: a norm would hide a factor."""

    def forward(
        self, hidden_states: Tensor, residual: Tensor = None, post_residual_addition: Tensor = None
    ) -> Any:
        if residual is None:
            return hidden_states
        total = hidden_states + residual
        if post_residual_addition is not None:
            total = total + post_residual_addition
        return total, total


class _Attention(torch.nn.Module):  # type: ignore[misc]
    """Leaves each attention-TP rank with a partial sum, as the real output projection does."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.weight: Tensor = None
        # GLM's layer asks how it is quantised.
        self.qkv_proj = SimpleNamespace(quant_method=None)

    def forward(self, *_: Any, hidden_states: Tensor, **__: Any) -> Tensor:
        size = hidden_states.shape[-1] // topology.attention_tp_size()
        rank = topology.attention_tp_rank()
        own = slice(rank * size, (rank + 1) * size)
        return hidden_states[:, own] @ self.weight[own]

    def maybe_use_decode_attn_tp(self, *_: Any) -> contextlib.AbstractContextManager[None]:
        """From 0.5.17 on: attention of its own for decode steps, which no case asks for."""
        return contextlib.nullcontext()

    def prepare_qkv_latent(self, *_: Any) -> None:
        raise NotImplementedError("there is no latent here")


class _CombinedExperts(torch.nn.Module):  # type: ignore[misc]
    """Experts behind an all-to-all: of its own tokens a rank gets back the sum over all experts."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.weights: Mapping[str, Tensor] = {}

    def forward(self, hidden_states: Tensor, topk_output: Any) -> Tensor:
        result = torch.zeros_like(hidden_states)
        for expert in range(len(self.weights["router"])):
            gate, up, down = (self.weights[f"experts.{n}"][expert] for n in ("gate", "up", "down"))
            shares = (topk_output.topk_weights * (topk_output.topk_ids == expert)).sum(-1)
            output = torch.nn.functional.silu(hidden_states @ gate.T) * (hidden_states @ up.T)
            result += shares[:, None] * (output @ down.T)
        return result


def _as_sglang_reads_it(config: Mapping[str, Any]) -> SimpleNamespace:
    rope = {"rope_theta": config["rope_theta"], "rope_type": "default"}
    return SimpleNamespace(
        **{
            "rope_scaling": None,
            **config,
            "rope_parameters": rope,
            "torch_dtype": torch.float32,
            "dtype": torch.float32,
        }
    )


def _number_of_experts(config: Mapping[str, Any]) -> int:
    for name in ("n_routed_experts", "num_local_experts"):
        if name in config:
            return int(config[name])
    return int(config["num_experts"])


def _load(layer: Any, weights: Mapping[str, Tensor]) -> None:
    """Through the parameters' own loaders, which know what of it is this rank's."""
    layer.self_attn.weight = weights["attention"]
    for name, parameter in layer.named_parameters():
        if name.endswith("layernorm.weight"):
            parameter.data.copy_(weights[name.removesuffix(".weight")])
        elif name == "mlp.gate.weight":
            parameter.data.copy_(weights["router"])
        elif name == "mlp.gate.e_score_correction_bias":
            parameter.data.copy_(weights["router_bias"])
        elif name == "mlp.router.weight":
            parameter.data.copy_(weights["router"])
        elif name == "mlp.router.bias":
            parameter.data.copy_(weights["router_offset"])
        elif name.startswith("mlp.experts.") and "experts.gate_bias" in weights:
            _load_fused_experts(name, parameter, layer.mlp.experts, weights)
        elif name.startswith("mlp.experts."):
            _load_experts(name, parameter, layer.mlp.experts, weights)
        else:
            _load_projection(name, parameter, weights)
    for module in layer.modules():
        method = getattr(module, "quant_method", None)
        if method is not None:
            method.process_weights_after_loading(module)


def _load_projection(name: str, parameter: Any, weights: Mapping[str, Tensor]) -> None:
    prefix = "shared." if "shared_experts" in name else ""
    if name.endswith("gate_up_proj.weight"):
        parameter.weight_loader(parameter, weights[f"{prefix}gate"], 0)
        parameter.weight_loader(parameter, weights[f"{prefix}up"], 1)
    elif name.endswith("down_proj.weight"):
        parameter.weight_loader(parameter, weights[f"{prefix}down"])
    else:
        raise NotImplementedError(f"no weights for {name}")


def _load_experts(name: str, parameter: Any, experts: Any, weights: Mapping[str, Tensor]) -> None:
    shards = {"w13_weight": (("w1", "gate"), ("w3", "up")), "w2_weight": (("w2", "down"),)}
    for shard, source in shards[name.rpartition(".")[2]]:
        for expert, tensor in enumerate(weights[f"experts.{source}"]):
            # As the public loader does when the server has placed the experts.
            experts._weight_loader_physical(
                param=parameter,
                loaded_weight=tensor,
                weight_name=name,
                shard_id=shard,
                expert_id=expert,
            )


def _load_fused_experts(
    name: str, parameter: Any, experts: Any, weights: Mapping[str, Tensor]
) -> None:
    """Of GPT-OSS: all experts of the rank at once, gate and up row by row, each with a bias."""
    kind = name.rpartition(".")[2]
    own = slice(experts.moe_ep_rank * len(parameter), (experts.moe_ep_rank + 1) * len(parameter))
    if kind == "w2_weight_bias":
        # Whole, and on one of the ranks that are added up.
        first = experts.moe_tp_rank == 0
        bias = weights["experts.down_bias"][own]
        parameter.data.copy_(bias if first else torch.zeros_like(bias))
        return
    if kind == "w2_weight":
        tensor = weights["experts.down"]
    else:
        suffix = kind.removeprefix("w13_weight")
        pair = [weights[f"experts.{part}{suffix}"] for part in ("gate", "up")]
        tensor = torch.stack(pair, dim=2).flatten(1, 2)
    parameter.weight_loader(parameter, tensor[own], kind, shard_id=kind.partition("_")[0])


def _map_experts_on_cpu(experts: Any) -> None:
    """Up to 0.5.9 the map of global to local experts is made at first use, on a GPU."""
    if getattr(experts, "expert_map_cpu", None) is not None:
        experts.expert_map_gpu = experts.expert_map_cpu
    dispatcher: Any = getattr(experts, "dispatcher", None)
    if experts.moe_ep_size > 1 and hasattr(dispatcher, "local_expert_mapping"):
        local = map(experts._map_global_expert_id_to_local_expert_id, range(experts.num_experts))
        dispatcher.local_expert_mapping = torch.tensor(list(local), dtype=torch.int32)
