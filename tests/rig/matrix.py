"""Releases, models and layouts against what a server of each is expected to do: as data.

The reference of every cell is the same release and model on one rank, without patches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rig.entries import declared
from rig.expected import (
    FLAGS,
    LAYOUTS,
    PATCHES,
    PREFILL_CP,
    RELEASES,
    RIGHT,
    TP4_CP2,
    TP4_CP3,
    TP4_CP4_MOE_DP2,
    TP4_DP4_CP2,
    Exceptions,
    Expected,
    Layout,
    Outcome,
    Result,
    rejected,
)
from rig.failure import has_served, reason
from rig.ledger import read_ledger
from rig.observer import Failure, Setup
from rig.workload import compare


if TYPE_CHECKING:
    from collections.abc import Iterator

    from rig.ledger import LedgerLine
    from rig.observer import Observer, Waiting


_APPLYING = re.compile(r"; applying ([^;]+)")

_NO_SUCH_FLAG = rejected(f"unrecognized arguments: {PREFILL_CP}")
_NOT_DIVISIBLE = rejected("tp_size must be divisible by attn_cp_size")
_NOT_DIVISIBLE_BY_BOTH = rejected("tp_size must be divisible by dp_size * attn_cp_size")
_MOE_DP_NEITHER_EQUAL_NOR_ONE = rejected(
    "attn_cp_size != moe_dp_size is only supported when moe_dp_size == 1"
)

# The first that a server is among tells what it is to do: what an entry of the register says goes
# before what is so whatever the register holds.
EXCEPTIONS: tuple[Exceptions, ...] = (
    *(exceptions for _, of_entry in declared("matrix.py", "EXCEPTIONS") for exceptions in of_entry),
    Exceptions(_NOT_DIVISIBLE, (TP4_CP3,)),
    Exceptions(_NOT_DIVISIBLE_BY_BOTH, (TP4_DP4_CP2,)),
    Exceptions(_NO_SUCH_FLAG, (TP4_CP2,), ("0.5.9",)),
    Exceptions(_MOE_DP_NEITHER_EQUAL_NOR_ONE, (TP4_CP4_MOE_DP2,)),
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
    return RIGHT


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
        probes = {"steps": self.has_steps, "played_kernel": self.layout.fused}
        return Setup(
            self.release,
            (*self.layout.flags, *FLAGS[self.model]),
            patches=self.patches,
            model=self.model,
            probes=tuple(probe for probe, is_wanted in probes.items() if is_wanted),
        )

    @property
    def has_steps(self) -> bool:
        """The kinds of steps are recorded; not without patches, where other tests ask, too."""
        return self.patches is not None and "--enable-dp-attention" in self.layout.flags

    @property
    def reference(self) -> Setup:
        return Setup(self.release, FLAGS[self.model], model=self.model)

    @property
    def effort(self) -> int:
        """Roughly proportional to the time it takes: the processes that import sglang."""
        return 1 if self.expected.is_early else 3 + self.layout.ranks


def _cells() -> Iterator[Cell]:
    """Every layout with all patches; unpatched where that is to go otherwise, or is to fail too."""
    for release in RELEASES:
        for model in FLAGS:
            for layout in LAYOUTS:
                if model not in layout.models or release not in layout.releases:
                    continue
                for patches in PATCHES:
                    outcome = expected(release, model, layout, patches)
                    if patches is not None or outcome != RIGHT:
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
