"""What of the rig's matrix this entry changes."""

from __future__ import annotations

from rig.expected import DEEPSEEK, TP2_DP2_EP2, TP4_DP4_EP4, UNPATCHED, WRONG, Exceptions


EXCEPTIONS = (
    Exceptions(WRONG, (TP2_DP2_EP2, TP4_DP4_EP4), ("0.5.11",), (DEEPSEEK,), (UNPATCHED,)),
)
