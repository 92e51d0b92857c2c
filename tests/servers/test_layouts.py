"""Every layout of the matrix in real servers, against one rank of the same release and model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rig import matrix
from rig.expected import ALL, QWEN3, TP4_CP2, TP4_CP3, UNPATCHED, Outcome
from rig.failure import has_served, reason
from rig.matrix import CELLS, Cell
from rig.observer import Failure


if TYPE_CHECKING:
    from collections.abc import Iterator

    from rig.observer import Observer
    from rig.progress import Progress
    from rig.results import Results


# What of the matrix every run covers; the whole takes the better part of an hour.
IN_EVERY_RUN = {
    ("0.5.10.post1", QWEN3, TP4_CP2, ALL),
    ("0.5.10.post1", QWEN3, TP4_CP3, ALL),
}


def marked(cell: Cell) -> Any:
    key = (cell.release, cell.model, cell.layout, cell.patches)
    mark = pytest.mark.servers if key in IN_EVERY_RUN else pytest.mark.servers_full
    return pytest.param(cell, id=str(cell).replace(" ", "-"), marks=mark)


@pytest.mark.parametrize("cell", [marked(cell) for cell in CELLS])
def test_a_server_does_what_the_matrix_says(
    cell: Cell, observe: Observer, progress: Progress, results: Results
) -> None:
    progress.begin(str(cell))
    try:
        result = matrix.run(cell, observe, progress.wait)
    except Exception as error:
        progress.end(f"NO RESULT, {type(error).__name__}", cell.effort)
        raise
    as_expected = cell.expected.is_met_by(result)
    progress.end(
        result.outcome.value if as_expected else f"{result.outcome.value}, UNEXPECTED", cell.effort
    )
    results[cell] = result

    assert as_expected, (cell.expected, result)


ANSWERING_UNDER_DP_ATTENTION = [
    cell for cell in CELLS if cell.has_steps and cell.expected.outcome is Outcome.RIGHT
]


@pytest.mark.parametrize("answering", [marked(cell) for cell in ANSWERING_UNDER_DP_ATTENTION])
def test_its_prompts_reach_every_kind_of_step_under_dp_attention(
    answering: Cell, observe: Observer
) -> None:
    steps = observe(answering.setup).reports["steps"][0]
    kinds = {(step["extend"], step["padding"], spread(step["tokens"])) for step in steps}

    prefill, decode = True, False
    assert {(prefill, "SUM_LEN", "unequal"), (prefill, "SUM_LEN", "idle")} <= kinds
    assert {(decode, "MAX_LEN", "equal"), (decode, "MAX_LEN", "unequal")} <= kinds
    # Of two DP ranks one is enough for MAX_LEN padding from 0.5.10 on.
    several = len(steps[0]["tokens"]) > 2
    assert (decode, "SUM_LEN", "idle") in kinds or (
        not several and (decode, "MAX_LEN", "idle") in kinds
    )


def spread(tokens: list[int]) -> str:
    if 0 in tokens:
        return "idle"
    return "equal" if len(set(tokens)) == 1 else "unequal"


def refused_alike() -> Iterator[Any]:
    """Pairs of cells, unpatched and patched, that are to fail with the same words."""
    for patched in CELLS:
        for unpatched in CELLS:
            if (
                (patched.patches, unpatched.patches) == (ALL, UNPATCHED)
                and patched.expected == unpatched.expected
                and patched.place == unpatched.place
            ):
                yield pytest.param(unpatched, patched, id=str(patched).replace(" ", "-"))


@pytest.mark.servers_full
@pytest.mark.parametrize(("unpatched", "patched"), list(refused_alike()))
def test_what_fails_with_and_without_patches_says_the_same(
    unpatched: Cell, patched: Cell, observe: Observer
) -> None:
    without, with_patches = observe.outcome(unpatched.setup), observe.outcome(patched.setup)

    assert isinstance(without, Failure)
    assert isinstance(with_patches, Failure)
    assert reason(with_patches.error.log) == reason(without.error.log)
    assert has_served(with_patches.error.log) == has_served(without.error.log)
