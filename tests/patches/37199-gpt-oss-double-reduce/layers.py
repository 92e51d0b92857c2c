"""What `tests/servers/test_layers.py` shows of this entry."""

from __future__ import annotations

from typing import Any

from rig.layers.case import Case, Layout
from rig.layers.proof import DP_2_EP_2, DP_4_EP_4, Proof


def gpt_oss(layout: Layout, tokens: tuple[int, ...], **more: Any) -> Case:
    return Case(layout, tokens, model="gpt-oss", layers="SSS", **more)


PROOFS = (
    Proof(gpt_oss(DP_2_EP_2, (4, 1))),
    Proof(gpt_oss(DP_2_EP_2, (4, 4), forward="decode")),
    Proof(gpt_oss(DP_2_EP_2, (0, 3), forward="decode", padding="SUM_LEN")),
    Proof(gpt_oss(DP_4_EP_4, (3, 0, 5, 2))),
)
