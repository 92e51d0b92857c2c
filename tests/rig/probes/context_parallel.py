"""Records how each layer communicates, and how many tokens every prefill brings to the MLPs.

It watches and changes nothing: the server may be asked afterwards, and the report read again.
"""

from __future__ import annotations

import importlib
from typing import Any

from rig.probes import probe


NAME = "context_parallel"


def install() -> None:
    probe.register(NAME, _examine)


def _examine(model_runner: Any) -> dict[str, Any]:
    report = {
        "groups": _groups(),
        "layers": [_layer(layer.layer_communicator) for layer in model_runner.model.model.layers],
        "prefills": [],
    }
    _record_prefills(model_runner, report)
    return report


def _groups() -> dict[str, list[int]]:
    state: Any = importlib.import_module("sglang.srt.distributed.parallel_state")
    names = ("TP", "ATTN_TP", "ATTN_CP", "MOE_DP", "MOE_EP", "MOE_TP")
    return {name: list(getattr(state, f"_{name}").ranks) for name in names}


def _layer(communicator: Any) -> dict[str, str]:
    before = communicator._communicate_with_all_reduce_and_layer_norm_fn
    behind = communicator._communicate_summable_tensor_pair_fn
    return {
        "mlp_mode": communicator.layer_scatter_modes.mlp_mode.name,
        "before": _name(before),
        "behind": _name(behind),
    }


def _name(function: Any) -> str:
    name: str = getattr(function, "func", function).__name__
    return name.removeprefix("commfix").lstrip("_")


def _record_prefills(model_runner: Any, report: dict[str, Any]) -> None:
    """Record the lengths of the prompt's chunks, and what reaches the first layer's parts."""
    model = model_runner.model.model
    forward, attention = model.forward, model.layers[0].self_attn
    in_attention, in_mlp = attention.forward, model.layers[0].mlp.forward
    seen: dict[str, Any] = {}

    def recording_attention(*args: Any, **kwargs: Any) -> Any:
        seen["attention"] = len(kwargs["hidden_states"])
        return in_attention(*args, **kwargs)

    def recording_mlp(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        seen["mlp"] = len(hidden_states)
        return in_mlp(hidden_states, *args, **kwargs)

    def recording_forward(
        input_ids: Any, positions: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        result = forward(input_ids, positions, batch, *args, **kwargs)
        if batch.forward_mode.is_extend():
            metadata = getattr(batch, "attn_cp_metadata", None)
            chunks = None if metadata is None else list(metadata.per_rank_actual_token)
            record = {"requests": batch.batch_size, "tokens": len(input_ids), "chunks": chunks}
            report["prefills"].append({**record, **seen})
            probe.report(NAME, model_runner.tp_rank, report)
        return result

    attention.forward = recording_attention
    model.layers[0].mlp.forward = recording_mlp
    model.forward = recording_forward
