"""What of the rig's matrix this entry changes."""

from __future__ import annotations

from rig.expected import (
    ALL,
    QWEN3,
    TP4_CP2,
    TP4_CP4_MOE_DP2,
    TP4_DP2_CP2,
    UNPATCHED,
    Exceptions,
    rejected,
)


_MODEL_WANTS_EQUAL_SIZES = rejected(
    "Attention context parallel size must be equal to MoE context parallel size", by_model=True
)
_NOT_UNDER_DP_ATTENTION = rejected(
    "--attn-cp-size above --moe-dp-size does not go with --enable-dp-attention", by_model=True
)

EXCEPTIONS = (
    # It lifts this, and has the sizes compared at start, as from 0.5.11 on.
    Exceptions(
        _MODEL_WANTS_EQUAL_SIZES,
        (TP4_CP2, TP4_CP4_MOE_DP2, TP4_DP2_CP2),
        ("0.5.10.post1",),
        (QWEN3,),
        (UNPATCHED,),
    ),
    Exceptions(_NOT_UNDER_DP_ATTENTION, (TP4_DP2_CP2,), ("0.5.10.post1",), (QWEN3,), (ALL,)),
)
