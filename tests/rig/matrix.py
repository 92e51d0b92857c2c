"""Releases, models and layouts against what a server of each is expected to do: as data.

The reference of every cell is the same release and model on one rank, without patches.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rig.failure import has_served, reason
from rig.ledger import read_ledger
from rig.observation import ATTENTION_DP_2_EP_2, Failure, Setup
from rig.workload import compare


if TYPE_CHECKING:
    from collections.abc import Iterator

    from rig.ledger import LedgerLine
    from rig.observation import Observer, Waiting


_APPLYING = re.compile(r": applying ([^;]+)")

RELEASES = ("0.5.9", "0.5.10.post1", "0.5.11", "0.5.12.post1")
QWEN3, DEEPSEEK = MODELS = ("qwen3-moe", "deepseek-v3")
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

    @property
    def ranks(self) -> int:
        return int(self.flags[self.flags.index("--tp") + 1])


def _sizes(attention_cp: int, moe_dp: int) -> tuple[str, ...]:
    return "--attn-cp-size", str(attention_cp), "--moe-dp-size", str(moe_dp)


TP2_DP2_EP2 = Layout("tp2 dp2 ep2", ATTENTION_DP_2_EP_2)
TP4_DP4_EP4 = Layout(
    "tp4 dp4 ep4", ("--tp", "4", "--dp", "4", "--enable-dp-attention", "--ep", "4")
)
TP4_DP2 = Layout("tp4 dp2", ("--tp", "4", "--dp", "2", "--enable-dp-attention"))
TP4_DP2_EP2 = Layout("tp4 dp2 ep2", (*TP4_DP2.flags, "--ep", "2"))
TP4_DP2_EP4 = Layout("tp4 dp2 ep4", (*TP4_DP2.flags, "--ep", "4"))

# Generic attention context parallelism begins with 0.5.10; 0.5.9 stands for all before.
_CP = "--enable-prefill-context-parallel"
TP4_CP2 = Layout("tp4 attn_cp2 moe_dp1", ("--tp", "4", *_sizes(2, 1), _CP))
TP4_CP4_MOE_DP2 = Layout(
    "tp4 attn_cp4 moe_dp2", ("--tp", "4", *_sizes(4, 2), _CP), (QWEN3,), RELEASES[1:]
)
TP4_DP2_CP2 = Layout(
    "tp4 dp2 attn_cp2 moe_dp1", (*TP4_DP2.flags, *_sizes(2, 1), _CP), (QWEN3,), ("0.5.10.post1",)
)

# Sizes that do not fit are noticed before there is a model.
TP4_CP3 = Layout("tp4 attn_cp3 moe_dp1", ("--tp", "4", *_sizes(3, 1)), (QWEN3,))
TP4_DP4_CP2 = Layout(
    "tp4 dp4 attn_cp2 moe_dp1",
    ("--tp", "4", "--dp", "4", "--enable-dp-attention", *_sizes(2, 1)),
    (QWEN3,),
)

LAYOUTS = (
    TP2_DP2_EP2,
    TP4_DP4_EP4,
    TP4_DP2,
    TP4_DP2_EP2,
    TP4_DP2_EP4,
    TP4_CP2,
    TP4_CP3,
    TP4_DP4_CP2,
    TP4_CP4_MOE_DP2,
    TP4_DP2_CP2,
)

_RIGHT = Expected(Outcome.RIGHT)
_WRONG = Expected(Outcome.WRONG)


def _rejected(message: str, *, by_model: bool = False) -> Expected:
    return Expected(Outcome.REJECTED, message, is_early=not by_model)


_NO_SUCH_FLAG = _rejected(f"unrecognized arguments: {_CP}")
_NOT_DIVISIBLE = _rejected("tp_size must be divisible by attn_cp_size")
_NOT_DIVISIBLE_BY_BOTH = _rejected("tp_size must be divisible by dp_size * attn_cp_size")
_MODEL_WANTS_EQUAL_SIZES = _rejected(
    "Attention context parallel size must be equal to MoE context parallel size", by_model=True
)
_NOT_UNDER_DP_ATTENTION = _rejected(
    "--attn-cp-size above --moe-dp-size does not go with --enable-dp-attention", by_model=True
)
_MOE_DP_NEITHER_EQUAL_NOR_ONE = _rejected(
    "attn_cp_size != moe_dp_size is only supported when moe_dp_size == 1"
)
# From 0.5.17 on not any more: https://github.com/sgl-project/sglang/pull/32663
_REDUCE_SCATTERV = Expected(Outcome.DIES, "assert len(sizes) == world_size")

_EXPERT_PARALLEL = (TP2_DP2_EP2, TP4_DP4_EP4, TP4_DP2_EP2, TP4_DP2_EP4)


@dataclass(frozen=True)
class Exceptions:
    """Servers that are not to answer as one rank does."""

    expected: Expected
    layouts: tuple[Layout, ...]
    releases: tuple[str, ...] = RELEASES
    models: tuple[str, ...] = MODELS
    patches: tuple[str | None, ...] = PATCHES


# The first that a server is among tells what it is to do.
EXCEPTIONS = (
    Exceptions(_NOT_DIVISIBLE, (TP4_CP3,)),
    Exceptions(_NOT_DIVISIBLE_BY_BOTH, (TP4_DP4_CP2,)),
    Exceptions(_NO_SUCH_FLAG, (TP4_CP2,), ("0.5.9",)),
    # 22003 lifts this, and has the sizes compared at start, as from 0.5.11 on.
    Exceptions(
        _MODEL_WANTS_EQUAL_SIZES,
        (TP4_CP2, TP4_CP4_MOE_DP2, TP4_DP2_CP2),
        ("0.5.10.post1",),
        (QWEN3,),
        (UNPATCHED,),
    ),
    Exceptions(_MOE_DP_NEITHER_EQUAL_NOR_ONE, (TP4_CP4_MOE_DP2,)),
    Exceptions(_NOT_UNDER_DP_ATTENTION, (TP4_DP2_CP2,), ("0.5.10.post1",), (QWEN3,), (ALL,)),
    Exceptions(_REDUCE_SCATTERV, (TP4_DP2_EP2,), ("0.5.11", "0.5.12.post1")),
    # qwen3-moe-ep-double-reduce
    Exceptions(_WRONG, _EXPERT_PARALLEL, ("0.5.10.post1",), (QWEN3,), (UNPATCHED,)),
    # 24785-sum-len-contract
    Exceptions(_WRONG, (TP2_DP2_EP2, TP4_DP4_EP4), ("0.5.11",), (DEEPSEEK,), (UNPATCHED,)),
)


def expected(release: str, model: str, layout: Layout, patches: str | None) -> Expected:
    """What this server is to do."""
    for these in EXCEPTIONS:
        if (
            layout in these.layouts
            and release in these.releases
            and model in these.models
            and patches in these.patches
        ):
            return these.expected
    return _RIGHT


@dataclass(frozen=True)
class Cell:
    """One server of the matrix."""

    release: str
    model: str
    layout: Layout
    patches: str | None
    expected: Expected

    def __str__(self) -> str:
        patches = "unpatched" if self.patches is None else self.patches
        return f"{self.release} {self.model} {self.layout.name} {patches}"

    @property
    def place(self) -> tuple[str, str, Layout]:
        """What it is without its patches."""
        return self.release, self.model, self.layout

    @property
    def setup(self) -> Setup:
        return Setup(
            self.release,
            self.layout.flags,
            patches=self.patches,
            model=self.model,
            probes=("steps",) if self.has_steps else (),
        )

    @property
    def has_steps(self) -> bool:
        """The kinds of steps are recorded; not without patches, where other tests ask, too."""
        return self.patches is not None and "--enable-dp-attention" in self.layout.flags

    @property
    def reference(self) -> Setup:
        return Setup(self.release, model=self.model)

    @property
    def effort(self) -> int:
        """Roughly proportional to the time it takes: the processes that import sglang."""
        return 1 if self.expected.is_early else 3 + self.layout.ranks


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


def _cells() -> Iterator[Cell]:
    """Every layout with all patches; unpatched where that is to go otherwise, or is to fail too."""
    for release in RELEASES:
        for model in MODELS:
            for layout in LAYOUTS:
                if model not in layout.models or release not in layout.releases:
                    continue
                for patches in PATCHES:
                    outcome = expected(release, model, layout, patches)
                    if patches is not None or outcome != _RIGHT:
                        yield Cell(release, model, layout, patches, outcome)


CELLS = tuple(_cells())


def run(cell: Cell, observe: Observer, waiting: Waiting | None = None) -> Result:
    """Serve the cell, and its reference if there is something to compare."""
    seen = observe.outcome(cell.setup, waiting)
    log = seen.error.log if isinstance(seen, Failure) else seen.log
    applied, complaints = _said_by_ledger(read_ledger(log), patched=cell.patches is not None)
    if isinstance(seen, Failure):
        return Result(
            Outcome.DIES if has_served(log) else Outcome.REJECTED,
            seen.seconds,
            applied,
            complaints,
            message=reason(log),
        )
    reference = observe.outcome(cell.reference, waiting)
    if isinstance(reference, Failure):
        raise reference.error
    difference = compare(seen.answers, reference.answers)
    return Result(
        Outcome.RIGHT if difference.is_noise else Outcome.WRONG,
        seen.seconds,
        applied,
        complaints,
        prompts=difference.prompts,
        same_tokens=difference.same_tokens,
        mean=difference.mean,
        max=difference.max,
        generated_max=difference.generated_max,
    )


def _said_by_ledger(
    lines: list[LedgerLine], *, patched: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ids of the patches applied, and complaints: among them that nothing was said at all."""
    lists = [found[1] for line in lines if (found := _APPLYING.search(line.message))]
    applied = {patch for found in lists for patch in found.split(", ")} - {"nothing"}
    complaints = {line.message for line in lines if line.level != "INFO"}
    if patched != bool(lists):
        complaints.add(f"{len(lists)} processes name the patches they apply")
    return tuple(sorted(applied)), tuple(sorted(complaints))
