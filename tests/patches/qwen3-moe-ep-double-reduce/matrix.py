"""What of the rig's matrix this entry changes."""

from __future__ import annotations

from rig.expected import EXPERT_PARALLEL, QWEN3, UNPATCHED, WRONG, Exceptions


EXCEPTIONS = (Exceptions(WRONG, EXPERT_PARALLEL, ("0.5.10.post1",), (QWEN3,), (UNPATCHED,)),)
