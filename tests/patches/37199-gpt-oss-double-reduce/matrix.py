"""What of the rig's matrix this entry changes."""

from __future__ import annotations

from rig.expected import GPT_OSS, TP2_DP2_EP2_GPT_OSS, UNPATCHED, WRONG, Exceptions


EXCEPTIONS = (
    Exceptions(WRONG, (TP2_DP2_EP2_GPT_OSS,), ("0.5.12.post1",), (GPT_OSS,), (UNPATCHED,)),
)
