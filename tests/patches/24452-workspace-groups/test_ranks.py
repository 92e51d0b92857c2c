"""#24452: FlashInfer's own code creates workspaces in four real ranks, see tests/releases/fusion_ranks.py."""

from __future__ import annotations

from typing import Any

import pytest
from rig.asking import ask
from rig.environment import Environment
from rig.fused.flashinfer_source import WITH_GROUP, ensure_source


pytestmark = [pytest.mark.servers, pytest.mark.servers_full]

RELEASE = "0.5.11"
# What 0.5.11 pins.
PINNED = "0.6.8.post1"

ALL, HALVES = [[0, 1, 2, 3]], [[0, 1], [2, 3]]
# By layout: the ranks that reduce what an MLP leaves, and what attention leaves.
LAYOUTS = {
    "tp4": (ALL, ALL),
    "tp2 pp2": (HALVES, HALVES),
    "tp4 cp2": (HALVES, HALVES),
    "tp4 ep2": ([[0, 2], [1, 3]], ALL),
}
# What hangs takes all of its time.
LIMIT, PATIENCE = 30.0, 8.0


def own_groups(layout: str) -> list[list[list[int]]]:
    return [
        [next(group for group in groups if rank in group) for groups in LAYOUTS[layout]]
        for rank in range(4)
    ]


class Ranks:
    """Asks for whose memory each rank has got, behind an MLP and behind attention."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def __call__(self, select: str, version: str, *layouts: str, limit: float = LIMIT) -> Any:
        source = str(ensure_source(self._environment, version))
        asked = [["stages", [source, layout], limit] for layout in layouts]
        answers = ask(
            RELEASE,
            "rig.fused.fusion_ranks",
            *asked,
            environment=self._environment,
            patches=select,
        )
        return {layout: one["found"] for layout, one in zip(layouts, answers, strict=True)}


@pytest.fixture(scope="module")
def ranks(environment: Environment) -> Ranks:
    return Ranks(environment)


def test_unpatched_pipeline_stages_wait_for_each_other_inside_flashinfer(ranks: Ranks) -> None:
    found = ranks("0", PINNED, "tp2 pp2", limit=PATIENCE)["tp2 pp2"]

    assert "hangs" in found
    for rank, own in enumerate(own_groups("tp2 pp2")):
        assert found[rank] != own


@pytest.mark.servers_full
def test_unpatched_a_newer_flashinfer_takes_the_memory_of_other_ranks(ranks: Ranks) -> None:
    found = ranks("0", WITH_GROUP, "tp2 pp2", "tp4 cp2", "tp4 ep2")

    for layout, peers in found.items():
        assert peers != own_groups(layout)


@pytest.mark.parametrize(
    "version", [PINNED, pytest.param(WITH_GROUP, marks=pytest.mark.servers_full)]
)
def test_patched_every_rank_gets_the_memory_of_those_that_it_reduces_with(
    ranks: Ranks, version: str
) -> None:
    for layout, peers in ranks("24452", version, *LAYOUTS).items():
        assert peers == own_groups(layout), layout
