"""What an entry of the register lets the layers show, and the cases that many of them need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rig.layers.case import Case, Layout


TP_2 = Layout(tp=2)
DENSE_WHOLE = Layout(tp=2, moe_dense_tp=1)
DP_2 = Layout(tp=2, dp=2)
DP_2_EP_2 = Layout(tp=2, dp=2, ep=2)
DP_4_EP_4 = Layout(tp=4, dp=4, ep=4)
TP_4_CP_2 = Layout(tp=4, attn_cp=2)
TP_2_PP_2 = Layout(tp=2, pp=2)

# Its GLM-4 MoE blocks lack an attribute that the class they inherit from reads.
NO_GLM4_MOE = "0.5.3.post2"


def qwen3_moe(layout: Layout, tokens: tuple[int, ...], layers: str = "SSS", **more: Any) -> Case:
    return Case(layout, tokens, model="qwen3-moe", layers=layers, **more)


def glm4_moe(layout: Layout, tokens: tuple[int, ...], **more: Any) -> Case:
    return Case(layout, tokens, model="glm4-moe", **more)


def gpt_oss(layout: Layout, tokens: tuple[int, ...], layers: str = "SSS", **more: Any) -> Case:
    return Case(layout, tokens, model="gpt-oss", layers=layers, **more)


@dataclass(frozen=True)
class Proof:
    """A case that comes out otherwise without this entry than with it."""

    case: Case
    releases: str = ""
    """Only these of the affected releases."""

    is_repair: bool = True
    """Without the patch the output is wrong, or there is none; with it, it is right.

    Else right without the patch and with it, by other collectives.
    """
