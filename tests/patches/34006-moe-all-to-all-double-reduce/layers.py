"""What `tests/servers/test_layers.py` shows of this entry."""

from __future__ import annotations

from rig.layers.case import Layout
from rig.layers.proof import DP_2_EP_2, DP_4_EP_4, Proof, qwen3_moe


EP_2 = Layout(tp=2, ep=2)

# By release, those that its Qwen3-MoE block does not know.
UNKNOWN = {
    "mooncake": ">=0.5.4,<0.5.18",
    "mori": ">=0.5.9,<0.5.18",
    "flashinfer": ">=0.5.9,<0.5.15",
    "nixl": ">=0.5.10",
}

PROOFS = tuple(
    Proof(case, releases=releases)
    for name, releases in UNKNOWN.items()
    for case in (
        qwen3_moe(DP_2_EP_2, (3, 3), all_to_all=name),
        qwen3_moe(DP_2_EP_2, (4, 1), forward="decode", all_to_all=name),
        qwen3_moe(DP_4_EP_4, (4, 0, 5, 3), forward="decode", all_to_all=name),
        qwen3_moe(EP_2, (4,), all_to_all=name),
    )
)
