"""What `tests/servers/test_layers.py` shows of this entry."""

from __future__ import annotations

from rig.layers.proof import DP_2, DP_4_EP_4, NO_GLM4_MOE, Proof, glm4_moe


PROOFS = (
    Proof(glm4_moe(DP_2, (4, 1), forward="decode"), releases=f"!={NO_GLM4_MOE}"),
    Proof(glm4_moe(DP_4_EP_4, (4, 0, 5, 3), forward="decode"), releases=f"!={NO_GLM4_MOE}"),
)
