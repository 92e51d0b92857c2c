"""The same layers in one process, in float64, written down independently of sglang."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


torch: Any = importlib.import_module("torch")

Tensor = Any
Weights = dict[str, Tensor]


def forward(
    hidden_states: Tensor,
    layers: Sequence[Mapping[str, Tensor]],
    config: Mapping[str, Any],
    features: Sequence[Tensor] = (),
) -> list[Tensor]:
    """The hidden states behind each layer, residual included: [tokens, hidden size], float64.

    `features` are added behind the first layers.
    """
    residual = hidden_states
    states = []
    for number, layer in enumerate(layers):
        weights = {name: tensor.double() for name, tensor in layer.items()}
        normed = _norm(residual, weights["input_layernorm"], config)
        residual = residual + normed @ weights["attention"]
        normed = _norm(residual, weights["post_attention_layernorm"], config)
        sparse = "router" in weights
        residual = residual + (
            _moe(normed, weights, config) if sparse else _mlp(normed, weights, config)
        )
        if number < len(features):
            residual = residual + features[number]
        states.append(residual)
    return states


def _norm(x: Tensor, weight: Tensor, config: Mapping[str, Any]) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]) * weight


def _mlp(
    x: Tensor, weights: Mapping[str, Tensor], config: Mapping[str, Any], prefix: str = ""
) -> Tensor:
    gate, up, down = (weights[prefix + name].T for name in ("gate", "up", "down"))
    if "swiglu_limit" not in config:
        return (torch.nn.functional.silu(x @ gate) * (x @ up)) @ down
    limit = config["swiglu_limit"]
    gated = (x @ gate + weights[f"{prefix}gate_bias"]).clamp(max=limit)
    linear = (x @ up + weights[f"{prefix}up_bias"]).clamp(-limit, limit)
    active = gated * (1.702 * gated).sigmoid() * (linear + 1)
    return active @ down + weights[f"{prefix}down_bias"]


def _moe(x: Tensor, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    shares = _route(x @ weights["router"].T + weights.get("router_offset", 0), weights, config)
    result = torch.zeros_like(x)
    experts = {
        name.removeprefix("experts."): tensor
        for name, tensor in weights.items()
        if name.startswith("experts.")
    }
    for expert in range(shares.shape[-1]):
        own = {name: tensor[expert] for name, tensor in experts.items()}
        result += shares[:, expert, None] * _mlp(x, own, config)
    result *= config.get("routed_scaling_factor", 1.0)
    if "shared.gate" in weights:
        result += _mlp(x, weights, config, "shared.")
    return result


def _route(logits: Tensor, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Each expert's share of each token: [tokens, experts], 0 where it was not chosen."""
    if "router_bias" in weights:
        scores = logits.sigmoid()
        preference = _keep_best_groups(scores + weights["router_bias"], config)
    else:
        scores = preference = logits.softmax(-1)
    chosen = preference.topk(config["num_experts_per_tok"], dim=-1).indices
    shares = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
    return shares / shares.sum(-1, keepdim=True)


def _keep_best_groups(preference: Tensor, config: Mapping[str, Any]) -> Tensor:
    """A group of experts is as good as its two best; others than the best groups are out."""
    groups = preference.unflatten(-1, (config["n_group"], -1))
    merit = groups.topk(2, dim=-1).values.sum(-1)
    best = merit.topk(config["topk_group"], dim=-1).indices
    kept = torch.zeros_like(merit, dtype=torch.bool).scatter(1, best, value=True)
    return groups.masked_fill(~kept[..., None], float("-inf")).flatten(1)
