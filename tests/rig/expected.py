"""What a server of a release, model and layout can be expected to do, and the layouts.

An entry of the register may say what its absence does to some of them, in
`tests/patches/<id>/matrix.py`.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

from rig.observer import ATTENTION_DP_2_EP_2


RELEASES = ("0.5.9", "0.5.10.post1", "0.5.11", "0.5.12.post1")
QWEN3, DEEPSEEK = MODELS = ("qwen3-moe", "deepseek-v3")

# In layouts that name it. It has attention sinks, which torch_native does not know.
GPT_OSS = "gpt-oss"
FLAGS = {QWEN3: (), DEEPSEEK: (), GPT_OSS: ("--attention-backend", "triton")}

UNPATCHED, ALL = PATCHES = (None, "all")


class Outcome(enum.Enum):
    """What a server does."""

    RIGHT = "right"
    """Answers as one rank does: the same greedy tokens, log-probabilities within noise."""

    WRONG = "wrong"
    """Answers otherwise."""

    REJECTED = "rejected"
    """Does not start."""

    DIES = "dies"
    """Starts, and ends with its first work, which is the health check."""


@dataclass(frozen=True)
class Result:
    """What the server of a cell did; without answers there is nothing to compare."""

    outcome: Outcome
    seconds: float
    applied: tuple[str, ...]
    """The patches that its processes say they run with."""

    complaints: tuple[str, ...] = ()
    """What sglang-commfix reports that is no plain information."""

    message: str | None = None
    prompts: int | None = None
    same_tokens: int | None = None
    mean: float | None = None
    max: float | None = None
    generated_max: float | None = None


@dataclass(frozen=True)
class Expected:
    """What a cell is to show; the message is what a server that fails says, or a part of it."""

    outcome: Outcome
    message: str = ""
    is_early: bool = False
    """Before there are processes that load the model."""

    def is_met_by(self, result: Result) -> bool:
        return (
            self.outcome is result.outcome
            and self.message in (result.message or "")
            and not result.complaints
        )


@dataclass(frozen=True)
class Layout:
    """How the ranks of a server share the work."""

    name: str
    flags: tuple[str, ...]
    models: tuple[str, ...] = MODELS
    releases: tuple[str, ...] = RELEASES
    fused: bool = False
    """With FlashInfer's fused all-reduce, its kernel played."""

    @property
    def ranks(self) -> int:
        sizes = (self.flags.index(name) + 1 for name in ("--tp", "--pp-size") if name in self.flags)
        return math.prod(int(self.flags[size]) for size in sizes)


def _sizes(attention_cp: int, moe_dp: int) -> tuple[str, ...]:
    return "--attn-cp-size", str(attention_cp), "--moe-dp-size", str(moe_dp)


TP2_DP2_EP2 = Layout("tp2 dp2 ep2", ATTENTION_DP_2_EP_2)
TP2_DP2_EP2_GPT_OSS = replace(TP2_DP2_EP2, models=(GPT_OSS,), releases=RELEASES[3:])
TP4_DP4_EP4 = Layout(
    "tp4 dp4 ep4", ("--tp", "4", "--dp", "4", "--enable-dp-attention", "--ep", "4")
)
TP4_DP2 = Layout("tp4 dp2", ("--tp", "4", "--dp", "2", "--enable-dp-attention"))
TP4_DP2_EP2 = Layout("tp4 dp2 ep2", (*TP4_DP2.flags, "--ep", "2"))
TP4_DP2_EP4 = Layout("tp4 dp2 ep4", (*TP4_DP2.flags, "--ep", "4"))

# Generic attention context parallelism begins with 0.5.10; 0.5.9 stands for all before.
PREFILL_CP = "--enable-prefill-context-parallel"
TP4_CP2 = Layout("tp4 attn_cp2 moe_dp1", ("--tp", "4", *_sizes(2, 1), PREFILL_CP))
TP4_CP4_MOE_DP2 = Layout(
    "tp4 attn_cp4 moe_dp2", ("--tp", "4", *_sizes(4, 2), PREFILL_CP), (QWEN3,), RELEASES[1:]
)
TP4_DP2_CP2 = Layout(
    "tp4 dp2 attn_cp2 moe_dp1",
    (*TP4_DP2.flags, *_sizes(2, 1), PREFILL_CP),
    (QWEN3,),
    ("0.5.10.post1",),
)

# Sizes that do not fit are noticed before there is a model.
TP4_CP3 = Layout("tp4 attn_cp3 moe_dp1", ("--tp", "4", *_sizes(3, 1)), (QWEN3,))
TP4_DP4_CP2 = Layout(
    "tp4 dp4 attn_cp2 moe_dp1",
    ("--tp", "4", "--dp", "4", "--enable-dp-attention", *_sizes(2, 1)),
    (QWEN3,),
)

# Where nothing else is wrong with stages that fuse: before, they meet for one workspace.
TP2_PP2 = Layout(
    "tp2 pp2, fused", ("--tp", "2", "--pp-size", "2"), (DEEPSEEK,), RELEASES[3:], fused=True
)
TP4_EP2 = Layout(
    "tp4 ep2, fused", ("--tp", "4", "--ep", "2"), (DEEPSEEK,), RELEASES[3:], fused=True
)

LAYOUTS = (
    TP2_DP2_EP2,
    TP2_DP2_EP2_GPT_OSS,
    TP4_DP4_EP4,
    TP4_DP2,
    TP4_DP2_EP2,
    TP4_DP2_EP4,
    TP4_CP2,
    TP4_CP3,
    TP4_DP4_CP2,
    TP4_CP4_MOE_DP2,
    TP4_DP2_CP2,
    TP2_PP2,
    TP4_EP2,
)

RIGHT = Expected(Outcome.RIGHT)
WRONG = Expected(Outcome.WRONG)


def rejected(message: str, *, by_model: bool = False) -> Expected:
    """With these words; by the model's code, when its processes run, or before there are any."""
    return Expected(Outcome.REJECTED, message, is_early=not by_model)


EXPERT_PARALLEL = (TP2_DP2_EP2, TP4_DP4_EP4, TP4_DP2_EP2, TP4_DP2_EP4)


@dataclass(frozen=True)
class Exceptions:
    """Servers that are not to answer as one rank does."""

    expected: Expected
    layouts: tuple[Layout, ...]
    releases: tuple[str, ...] = RELEASES
    models: tuple[str, ...] = MODELS
    patches: tuple[str | None, ...] = PATCHES
