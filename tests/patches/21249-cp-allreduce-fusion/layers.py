"""What `tests/servers/test_layers.py` shows of this entry."""

from __future__ import annotations

from rig.layers.case import Layout
from rig.layers.proof import Proof, qwen3_moe


PROOFS = (
    Proof(qwen3_moe(Layout(tp=4, attn_cp=2, moe_dp=2), (5, 3), fusion=True), is_repair=False),
)
