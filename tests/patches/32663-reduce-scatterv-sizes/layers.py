"""What `tests/servers/test_layers.py` shows of this entry."""

from __future__ import annotations

from rig.layers.case import Case, Layout
from rig.layers.proof import Proof, glm4_moe, qwen3_moe


DP_2_OF_TWO = Layout(tp=4, dp=2, ep=2)

PROOFS = (
    Proof(Case(DP_2_OF_TWO, (3, 6))),
    Proof(Case(DP_2_OF_TWO, (4, 4), layers="DDS", forward="decode")),
    Proof(Case(DP_2_OF_TWO, (5, 0), padding="SUM_LEN")),
    Proof(qwen3_moe(DP_2_OF_TWO, (6, 3), forward="decode")),
    Proof(glm4_moe(DP_2_OF_TWO, (3, 6))),
)
