"""Records every kind of forward step under DP attention: mode, padding, and tokens of each DP rank.

Only looks on: the server can be asked as usual. The counts are those before padding.
"""

from __future__ import annotations

import functools
from typing import Any

import wrapt

from rig.probes import probe


def install() -> None:
    wrapt.register_post_import_hook(_instrument, "sglang.srt.model_executor.forward_batch_info")


def _instrument(module: Any) -> None:
    forward_batch = module.ForwardBatch
    prepare = forward_batch.prepare_mlp_sync_batch
    seen: dict[tuple[object, ...], dict[str, object]] = {}

    @functools.wraps(prepare)
    def prepare_mlp_sync_batch(self: Any, model_runner: Any) -> None:
        tokens = list(self.global_num_tokens_cpu)
        prepare(self, model_runner)
        extend, padding = bool(self.is_extend_in_batch), self.dp_padding_mode.name
        key = (extend, padding, *tokens)
        if key not in seen:
            seen[key] = {"extend": extend, "padding": padding, "tokens": tokens}
            probe.report("steps", model_runner.tp_rank, list(seen.values()))

    forward_batch.prepare_mlp_sync_batch = prepare_mlp_sync_batch
