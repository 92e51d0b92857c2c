"""What `tests/servers/test_layers.py` shows of this entry."""

from __future__ import annotations

from rig.layers.case import Case, Layout
from rig.layers.proof import DENSE_WHOLE, Proof


PROOFS = (
    Proof(Case(DENSE_WHOLE, (6,), fusion=True)),
    Proof(Case(DENSE_WHOLE, (5,), forward="decode", fusion=True)),
    Proof(Case(Layout(tp=4, moe_dense_tp=1), (8,), "deepseek-v3", "DDS", fusion=True)),
    Proof(
        Case(
            Layout(tp=4, dp=2, moe_dense_tp=1), (6, 3), layers="DDS", forward="decode", fusion=True
        ),
        releases="<0.5.4.post1",
    ),
)
