"""Lets the server believe that FlashInfer can fuse all-reduce and RMSNorm, and counts the fused calls.

The kernel is the layer rig's: the same sum in plain torch. Reported is how often each rank called it.
"""

from __future__ import annotations

import functools
from typing import Any

import wrapt

from rig.layers import fusion
from rig.layers.collectives import Recorder
from rig.probes import probe


def install() -> None:
    wrapt.register_post_import_hook(_instrument, "sglang.srt.model_executor.model_runner")


def _instrument(module: Any) -> None:
    initialise = module.ModelRunner.__init__

    @functools.wraps(initialise)
    def start(self: Any, *args: Any, server_args: Any, tp_rank: int, **kwargs: Any) -> None:
        server_args.enable_flashinfer_allreduce_fusion = True
        fusion.enable(_Counter(tp_rank))
        initialise(self, *args, server_args=server_args, tp_rank=tp_rank, **kwargs)

    module.ModelRunner.__init__ = start


class _Counter(Recorder):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank
        self._calls = 0

    def note(self, operation: str, group: str) -> None:
        self._calls += 1
        probe.report("flashinfer", self._rank, self._calls)
