"""What `tests/servers/test_layers.py` shows of this entry."""

from __future__ import annotations

from rig.layers.case import Layout
from rig.layers.proof import TP_4_CP_2, Proof, qwen3_moe


# The model refuses these layouts without the patch; its layers show why.
PROOFS = (
    Proof(qwen3_moe(TP_4_CP_2, (5, 3))),
    Proof(qwen3_moe(Layout(tp=4, ep=2, attn_cp=2), (4, 4))),
)
