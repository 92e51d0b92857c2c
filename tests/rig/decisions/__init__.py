"""What the real modules of a release decide, patched or not, over whole products of modes.

    answers = decide("0.5.10.post1", "fusion", environment=ensure(["0.5.10.post1"]), patches="1")

`worker.py` does the asking, in the rig's Python.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rig.environment import RigError
from rig.models import ensure_model


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
    with tempfile.TemporaryDirectory(prefix="rig-decisions-") as folder:
        result = Path(folder, "result")
        variables = environment.variables(release, Path(folder))
        # Nothing is computed, and interpreted kernels are not what some releases expect to find.
        del variables["TRITON_INTERPRET"]
        with Path(folder, "log").open("wb") as log:
            done = subprocess.run(
                [
                    str(environment.python),
                    "-m",
                    "rig.decisions.worker",
                    str(model),
                    str(largest),
                    str(result),
                    *suites,
                ],
                cwd=folder,
                env={**variables, "SGLANG_COMMFIX": patches, "SGLANG_COMMFIX_STRICT": "1"},
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if done.returncode != 0:
            tail = "\n".join(Path(folder, "log").read_text(errors="replace").splitlines()[-20:])
            raise RigError(f"asking sglang {release} ended with {done.returncode}:\n{tail}")
        pairs: dict[str, list[Any]] = json.loads(result.read_text())
    return {
        suite: {json.dumps(case, sort_keys=True): answer for case, answer in answers}
        for suite, answers in pairs.items()
    }
