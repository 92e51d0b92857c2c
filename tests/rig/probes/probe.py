"""What probes share: where in a server's start they run, and how they report.

A probe runs inside the real scheduler processes. Those that `register` run after the model and its
memory pools are there and the attention back-end is initialised, which is when sglang makes its own
warm-up run.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wrapt


Examine = Callable[[Any], object]


def register(name: str, examine: Examine) -> None:
    """Have `examine` look at each rank's ModelRunner; what it returns is the rank's report."""

    def instrument(module: Any) -> None:
        model_runner = module.ModelRunner
        initialise = model_runner.init_attention_backend

        @functools.wraps(initialise)
        def init_attention_backend(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = initialise(self, *args, **kwargs)
            report(name, self.tp_rank, examine(self))
            return result

        model_runner.init_attention_backend = init_attention_backend

    wrapt.register_post_import_hook(instrument, "sglang.srt.model_executor.model_runner")


def report(name: str, rank: int, content: object) -> None:
    """Write a rank's report, in place of an earlier one."""
    folder = Path(os.environ["RIG_PROBE_REPORTS"])
    fresh = folder / f".{name}.{rank}"
    fresh.write_text(json.dumps(content))
    # At once, since the server may be asked at any time.
    fresh.rename(folder / f"{name}.{rank}.json")
