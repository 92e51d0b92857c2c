"""What `tests/servers/test_layers.py` shows of this entry."""

from __future__ import annotations

from rig.layers.case import Case, Layout
from rig.layers.proof import Proof, glm4_moe


TP_2_PP_2 = Layout(tp=2, pp=2)
# Older models cannot be made without a GPU.
MODELS = ">=0.5.5"

PROOFS = (
    Proof(Case(TP_2_PP_2, (6,), layers="DSSS", fusion=True), releases=MODELS),
    Proof(Case(TP_2_PP_2, (3,), layers="DDDD", forward="decode", fusion=True), releases=MODELS),
    Proof(Case(TP_2_PP_2, (5,), "gpt-oss", "SSSS", fusion=True), releases=">=0.5.11"),
    Proof(glm4_moe(TP_2_PP_2, (5,), layers="DSSS", fusion=True), releases=">=0.5.6"),
    # From 0.5.14 on the model reduces before it sends.
    Proof(Case(TP_2_PP_2, (5,), "qwen3-moe", "SSSS", fusion=True), releases=">=0.5.6,<0.5.14"),
)
