"""What `tests/servers/test_layers.py` shows of this entry."""

from __future__ import annotations

from rig.layers.case import Case, Layout
from rig.layers.proof import Proof, glm4_moe, qwen3_moe


TP_4_EP_2 = Layout(tp=4, ep=2)

PROOFS = (
    Proof(Case(TP_4_EP_2, (6,), fusion=True)),
    # A dense MLP is split over all ranks, whatever the experts do.
    Proof(Case(TP_4_EP_2, (3,), layers="DDD", forward="decode", fusion=True)),
    Proof(qwen3_moe(TP_4_EP_2, (5,), forward="decode", fusion=True)),
    Proof(glm4_moe(TP_4_EP_2, (6,), fusion=True)),
)
