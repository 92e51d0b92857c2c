"""What the real modules of a release decide, patched or not, over whole products of modes.

    answers = decide("0.5.10.post1", "fusion", environment=ensure(["0.5.10.post1"]), patches="1")

`product.py` does the asking, in the rig's Python.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rig.asking import ask
from rig.checkpoints import ensure_model


if TYPE_CHECKING:
    from rig.environment import Environment

Answers = dict[str, Any]
"""A decision for each case; a case is written as JSON with sorted keys."""


def decide(
    release: str, *suites: str, environment: Environment, patches: str = "0", largest: int = 4
) -> dict[str, Answers]:
    """Return the answers to each of `suites`, for all layouts of up to `largest` ranks.

    `patches` is the value of SGLANG_COMMFIX.
    """
    model = ensure_model("deepseek-v3", environment.models)
    (found,) = ask(
        release,
        "rig.decisions.product",
        {"model": str(model), "largest": largest, "suites": suites},
        environment=environment,
        patches=patches,
        # Nothing is computed, and interpreted kernels are not what some releases expect to find.
        variables={"TRITON_INTERPRET": None, "SGLANG_COMMFIX_STRICT": "1"},
    )
    return {
        suite: {json.dumps(case, sort_keys=True): answer for case, answer in answers}
        for suite, answers in found.items()
    }
