"""What of the rig's matrix this entry changes."""

from __future__ import annotations

from rig.expected import MODELS, TP4_DP2_EP2, UNPATCHED, Exceptions, Expected, Outcome


_REDUCE_SCATTERV = Expected(Outcome.DIES, "assert len(sizes) == world_size")

EXCEPTIONS = (
    Exceptions(_REDUCE_SCATTERV, (TP4_DP2_EP2,), ("0.5.11", "0.5.12.post1"), MODELS, (UNPATCHED,)),
)
