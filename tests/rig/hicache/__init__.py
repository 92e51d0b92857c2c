"""HiCache's caches on real ranks, without a server: see `ranks`."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rig.environment import Environment


def run_ranks(
    release: str,
    scenarios: Sequence[dict[str, Any]],
    *,
    environment: Environment,
    folder: Path,
    patches: str | None = None,
) -> list[list[dict[str, Any]]]:
    """Return what every rank of each scenario has found, with one release and one selection.

    A rank that was still at it when the time was over says where it `stands`: the functions of its
    main thread, the innermost first.
    """
    variables = environment.variables(release, folder)
    if patches is not None:
        variables["SGLANG_COMMFIX"] = patches
    asked, answers = folder / "asked.json", folder / "answers.json"
    asked.write_text(json.dumps(scenarios))
    done = subprocess.run(
        [str(environment.python), "-m", "rig.hicache.ranks", str(asked), str(answers)],
        env=variables, capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise AssertionError(done.stderr[-4000:])
    found: list[list[dict[str, Any]]] = json.loads(answers.read_text())
    return found
