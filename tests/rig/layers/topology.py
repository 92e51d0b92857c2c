"""Where a rank stands in the attention groups, by whatever names the release has for that."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def attention_tp_size() -> int:
    return _ask("get_attention_tp_size", "attn_tp_size")


def attention_tp_rank() -> int:
    return _ask("get_attention_tp_rank", "attn_tp_rank")


def attention_dp_rank() -> int:
    return _ask("get_attention_dp_rank", "attn_dp_rank")


def attention_cp_rank() -> int:
    """0 in a release that knows no context parallelism."""
    state: Any = importlib.import_module("sglang.srt.distributed.parallel_state")
    if hasattr(state, "get_attn_context_model_parallel_rank"):
        return int(state.get_attn_context_model_parallel_rank())
    return int(getattr(_context(), "attn_cp_rank", 0))


def _ask(function: str, name: str) -> int:
    attention: Any = importlib.import_module("sglang.srt.layers.dp_attention")
    if hasattr(attention, function):
        return int(getattr(attention, function)())
    return int(getattr(_context(), name))


def _context() -> Any:
    """Which says it all from 0.5.14 on."""
    name = "sglang.srt.runtime_context"
    if importlib.util.find_spec(name) is None:
        return None
    module: Any = importlib.import_module(name)
    return module.get_parallel()
