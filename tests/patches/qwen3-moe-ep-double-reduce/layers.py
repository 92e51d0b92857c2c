"""What `tests/servers/test_layers.py` shows of this entry."""

from __future__ import annotations

from rig.layers.case import Layout
from rig.layers.proof import DP_2_EP_2, DP_4_EP_4, Proof, qwen3_moe


PROOFS = (
    Proof(qwen3_moe(DP_2_EP_2, (4, 1), forward="decode")),
    Proof(qwen3_moe(DP_4_EP_4, (4, 0, 5, 3), forward="decode")),
    Proof(qwen3_moe(Layout(tp=4, dp=4, ep=2), (4, 1, 0, 3), forward="decode")),
)
