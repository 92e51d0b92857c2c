"""What of the rig's matrix this entry changes."""

from __future__ import annotations

from rig.expected import DEEPSEEK, TP2_PP2, UNPATCHED, WRONG, Exceptions


EXCEPTIONS = (Exceptions(WRONG, (TP2_PP2,), ("0.5.12.post1",), (DEEPSEEK,), (UNPATCHED,)),)
