"""Lets the server believe that FlashInfer can fuse all-reduce and RMSNorm, and counts the fused calls.

The kernel is the layer rig's: the same sum in plain torch. Reported is how often each rank called it,
by its number among the ranks of all pipeline stages. From 0.5.14 on a flag has to ask for fusion, too:
`observation.FUSION`.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import wrapt

from rig.layers import fused_kernel
from rig.layers.collectives import Recorder
from rig.probes import probe


def install() -> None:
    wrapt.register_post_import_hook(_instrument, "sglang.srt.model_executor.model_runner")


def _instrument(module: Any) -> None:
    initialise = module.ModelRunner.__init__

    @functools.wraps(initialise)
    def start(self: Any, *args: Any, server_args: Any, **kwargs: Any) -> None:
        if not hasattr(server_args, "flashinfer_allreduce_fusion_backend"):
            server_args.enable_flashinfer_allreduce_fusion = True
        # From 0.5.16 on one object says where the rank stands.
        place = kwargs.get("ps") or SimpleNamespace(**kwargs)
        fused_kernel.enable(_Counter(place.pp_rank * place.tp_size + place.tp_rank))
        initialise(self, *args, server_args=server_args, **kwargs)

    module.ModelRunner.__init__ = start


class _Counter(Recorder):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank
        self._calls = 0

    def note(self, operation: str, group: str) -> None:
        self._calls += 1
        probe.report("played_kernel", self._rank, self._calls)
