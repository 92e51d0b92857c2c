"""What `tests/servers/test_layers.py` shows of this entry."""

from __future__ import annotations

from rig.layers.case import Case
from rig.layers.proof import DP_2_EP_2, DP_4_EP_4, Proof, glm4_moe


PROOFS = (
    Proof(Case(DP_2_EP_2, (4, 1))),
    Proof(Case(DP_2_EP_2, (3, 3), layers="DDD")),
    Proof(Case(DP_2_EP_2, (2, 5), layers="SDS")),
    Proof(Case(DP_4_EP_4, (3, 0, 5, 2))),
    Proof(glm4_moe(DP_2_EP_2, (4, 1))),
)
