"""What of the rig's matrix this entry changes."""

from __future__ import annotations

from rig.expected import DEEPSEEK, TP4_EP2, UNPATCHED, WRONG, Exceptions


EXCEPTIONS = (Exceptions(WRONG, (TP4_EP2,), ("0.5.12.post1",), (DEEPSEEK,), (UNPATCHED,)),)
