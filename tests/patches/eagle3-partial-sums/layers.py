"""What `tests/servers/test_layers.py` shows of this entry: the states that a draft is given."""

from __future__ import annotations

from rig.layers.proof import TP_2, Proof, glm4_moe, gpt_oss


PROOFS = (
    Proof(glm4_moe(TP_2, (5,), fusion=True, capture=(0, 1)), releases=">=0.5.5"),
    Proof(
        gpt_oss(TP_2, (3,), forward="decode", fusion=True, capture=(0, 1)),
        releases=">=0.5.11",
    ),
)
