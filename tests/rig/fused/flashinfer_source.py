"""FlashInfer's own source, to run the parts of it that need no GPU.

FlashInfer cannot be imported without CUDA. Its wheels are pure Python, so that they can be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rig.environment import ensure_part_of_wheel


if TYPE_CHECKING:
    from pathlib import Path

    from rig.environment import Environment


# What 0.5.10.post1 pins, and the first that takes the ranks from a process group.
PINNED = "0.6.7.post3"
WITH_GROUP = "0.6.11.post1"


def ensure_source(environment: Environment, version: str) -> Path:
    """Return the folder that holds `flashinfer/comm` of this version."""
    folder = environment.root / "flashinfer" / version
    ensure_part_of_wheel(environment, f"flashinfer-python=={version}", "flashinfer/comm", folder)
    return folder
