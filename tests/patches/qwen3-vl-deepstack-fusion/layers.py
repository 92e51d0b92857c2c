"""What `tests/servers/test_layers.py` shows of this entry: features of the first layers."""

from __future__ import annotations

from rig.layers.proof import TP_2, Proof, qwen3_moe


PROOFS = (
    Proof(
        qwen3_moe(TP_2, (5,), layers="SSSS", fusion=True, deepstack=True),
        releases=">=0.5.5",
    ),
)
