"""Counts how partial sums were added up and distributed, in each scheduler process.

The count is rewritten with each choice, so that a report holds for all that was asked before it is
read. RIG_REDUCE_SCATTER_WAY makes every choice that way, where prompts alone would not lead to it.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections import Counter
from typing import Any

import wrapt

from rig.probes import probe


_FUNCTION = "commfix_reduce_scatter_way"


def install() -> None:
    wrapt.register_post_import_hook(_count, "sglang.srt.layers.communicator")


def _count(communicator: Any) -> None:
    choose = getattr(communicator, _FUNCTION, None)
    if choose is None:
        return
    ways: Counter[str] = Counter()

    @functools.wraps(choose)
    def counted(*args: Any) -> Any:
        way = os.environ.get("RIG_REDUCE_SCATTER_WAY") or choose(*args)
        ways[way] += 1
        distributed = importlib.import_module("sglang.srt.distributed")
        probe.report("reduce_scatter", distributed.get_tensor_model_parallel_rank(), ways)
        return way

    setattr(communicator, _FUNCTION, counted)
