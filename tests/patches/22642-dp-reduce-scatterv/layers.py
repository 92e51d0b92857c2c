"""What `tests/servers/test_layers.py` shows of this entry."""

from __future__ import annotations

from rig.layers.case import Case
from rig.layers.proof import DP_2_EP_2, DP_4_EP_4, Proof, glm4_moe, qwen3_moe


PROOFS = (
    Proof(Case(DP_2_EP_2, (4, 1), padding="SUM_LEN"), is_repair=False),
    Proof(Case(DP_4_EP_4, (3, 0, 5, 2), padding="SUM_LEN"), is_repair=False),
    Proof(qwen3_moe(DP_4_EP_4, (3, 1, 5, 2), padding="SUM_LEN"), is_repair=False),
    Proof(
        glm4_moe(DP_2_EP_2, (4, 1), padding="SUM_LEN"),
        # Before, its layers add up themselves.
        releases=">=0.5.5",
        is_repair=False,
    ),
)
