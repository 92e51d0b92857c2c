"""#21249: FlashInfer's all-reduce fusion in real groups of four ranks, see tests/releases/fusion_ranks.py."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rig.asking import ask
from rig.environment import Environment
from rig.fused.flashinfer_source import PINNED, WITH_GROUP, ensure_source


pytestmark = [pytest.mark.servers, pytest.mark.servers_full]

FAULTY, FIXED = "0.5.10.post1", "0.5.11"
FUSION = "21249-cp-allreduce-fusion"

# By layout: the groups over which attention's and an MLP's output are reduced, and whether an MLP
# may leave its reduction to the next layer.
ALL, HALVES = [[0, 1, 2, 3]], [[0, 1], [2, 3]]
LAYOUTS = {
    "tp4": (ALL, ALL, True),
    "tp2 pp2": (HALVES, HALVES, False),
    "tp4 cp2": (HALVES, HALVES, True),
    "tp4 ep4": (ALL, ALL, True),
    "tp4 ep2": (ALL, ALL, True),
    "tp4 cp2 ep2": (HALVES, HALVES, True),
    "tp4 cp2 moe-dp1": (HALVES, ALL, False),
}

SUBGROUPS = ("tp2 pp2", "tp4 cp2")

# Which rank fails, and where: "memory" in front of FlashInfer, "end" behind it, the others inside,
# in front of or behind the exchange of the buffer of this number.
FAULTS = (
    ("tp4", "memory", (1,)),
    ("tp4", "allocation 1", (3,)),
    ("tp4", "allocation 2", (0,)),
    ("tp4", "allocation 3", (1, 2)),
    ("tp4", "mapping 2", (2,)),
    ("tp4", "mapping 3", (1,)),
    ("tp4", "end", (1,)),
    ("tp4", "end", (0, 1, 2, 3)),
    ("tp2 pp2", "allocation 2", (3,)),
    ("tp4 cp2", "memory", (0,)),
    ("tp4 cp2", "allocation 2", (3,)),
    ("tp4 cp2", "end", (1,)),
)
LIMIT = 30.0


def group_of(rank: int, groups: list[list[int]]) -> list[int]:
    return next(group for group in groups if rank in group)


@pytest.fixture(scope="module")
def flashinfer(environment: Environment) -> dict[str, str]:
    return {v: str(ensure_source(environment, v)) for v in (PINNED, WITH_GROUP)}


class Ranks:
    """Runs scenarios with one release, all of a batch in one start of Python."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def __call__(self, release: str, select: str | None, scenarios: list[list[Any]]) -> list[Any]:
        answers = ask(
            release,
            "rig.fused.fusion_ranks",
            *scenarios,
            environment=self.environment,
            patches=select,
            variables={"TORCHDYNAMO_DISABLE": "0"},
        )
        assert all(one["patched"] == (select is not None) for one in answers)
        return [one["found"] for one in answers]


class Found:
    """The answers of one start, by scenario and arguments."""

    def __init__(self, ranks: Ranks, release: str, select: str | None, asked: list[list[Any]]):
        answers = ranks(release, select, asked)
        self._by = {
            json.dumps(one[:-1]): answer for one, answer in zip(asked, answers, strict=True)
        }

    def __call__(self, name: str, *arguments: Any) -> list[Any]:
        return self._by[json.dumps([name, list(arguments)])]


@pytest.fixture(scope="module")
def ranks(environment: Environment) -> Ranks:
    return Ranks(environment)


@pytest.fixture(scope="module")
def patched(ranks: Ranks, flashinfer: dict[str, str]) -> Found:
    pinned = flashinfer[PINNED]
    asked = [
        ["decisions", [], 90.0],
        ["exchange", [pinned], LIMIT],
        ["growth", [pinned, True], LIMIT],
        ["memory", [pinned], LIMIT],
        ["switched_off", [], LIMIT],
        ["groups_asked_for", [], LIMIT],
        ["traced", [], LIMIT],
        *(["healthy", [pinned, layout], LIMIT] for layout in LAYOUTS),
        *(["healthy", [flashinfer[WITH_GROUP], layout], LIMIT] for layout in SUBGROUPS),
        *(["faulty", [pinned, *fault], LIMIT] for fault in FAULTS),
        ["faulty", [flashinfer[WITH_GROUP], "tp4 cp2", "memory", [0]], LIMIT],
    ]
    return Found(ranks, FAULTY, FUSION, asked)


@pytest.fixture(scope="module")
def unpatched(ranks: Ranks, flashinfer: dict[str, str]) -> Found:
    pinned = flashinfer[PINNED]
    asked = [
        ["first_fused_call", [pinned, "end"], LIMIT],
        ["growth", [pinned, False], LIMIT],
        ["exchanged", [flashinfer[WITH_GROUP]], LIMIT],
        # What hangs takes all of its time.
        ["faulty", [pinned, "tp4", "allocation 2", [1]], 6.0],
        ["exchanged", [pinned], 6.0],
    ]
    return Found(ranks, FAULTY, None, asked)


class TestUnpatched:
    def test_if_one_rank_fails_the_others_wait_for_it_inside_flashinfer(
        self, unpatched: Found, flashinfer: dict[str, str]
    ) -> None:
        found = unpatched("faulty", flashinfer[PINNED], "tp4", "allocation 2", [1])

        assert found[1]["off"]
        assert "hangs" in found

    def test_if_all_fail_the_fused_call_has_not_reduced(
        self, unpatched: Found, flashinfer: dict[str, str]
    ) -> None:
        found = unpatched("first_fused_call", flashinfer[PINNED], "end")

        assert found == [[[rank]] for rank in range(4)]

    def test_a_draft_model_of_another_size_frees_what_captured_graphs_use(
        self, unpatched: Found, flashinfer: dict[str, str]
    ) -> None:
        for found in unpatched("growth", flashinfer[PINNED], False):
            assert [alive for _, alive in found] == [True, True, False, False, False]

    def test_a_pipeline_stage_does_not_get_its_own_ranks_memory(
        self, unpatched: Found, flashinfer: dict[str, str]
    ) -> None:
        # Both stages bind the same sockets. Who is refused, and who then waits for whom, varies.
        for rank, peers in enumerate(unpatched("exchanged", flashinfer[PINNED])):
            assert peers != [group_of(rank, HALVES)]
        assert unpatched("exchanged", flashinfer[WITH_GROUP]) == [[[0, 1]]] * 4


class TestWorkspaces:
    @pytest.mark.parametrize(
        ("version", "layout"),
        [*((PINNED, one) for one in LAYOUTS), *((WITH_GROUP, one) for one in SUBGROUPS)],
    )
    def test_each_call_reduces_over_its_group_with_what_was_created_before(
        self, patched: Found, flashinfer: dict[str, str], version: str, layout: str
    ) -> None:
        attention, mlp, fuses = LAYOUTS[layout]
        for rank, found in enumerate(patched("healthy", flashinfer[version], layout)):
            over = [[group_of(rank, attention)], [group_of(rank, mlp)]]
            assert found == {
                "off": False,
                "fuses": True,
                # Groups of the same ranks share a workspace, and only groups that fuse have one.
                "peers": [group_of(rank, attention)],
                "created": 1,
                "an MLP fuses": fuses,
                "RMSNorm": over,
                "GemmaRMSNorm": over,
                "created later": 0 if fuses or attention == mlp else 1,
            }

    def test_handles_come_from_the_rank_in_the_group_where_flashinfer_takes_it_for_a_global_one(
        self, patched: Found, flashinfer: dict[str, str]
    ) -> None:
        found = patched("exchange", flashinfer[PINNED])

        assert [one["ours"] for one in found] == ["from 0", "from 0", "from 2", "from 2"]
        assert [one["all"] for one in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]
        assert [one["FlashInfer's"] for one in found] == ["from 0", "from 0"] + ["ValueError"] * 2

    @pytest.mark.parametrize(("layout", "at", "failing"), FAULTS)
    def test_if_one_rank_fails_all_that_reduce_with_it_go_on_without_fusion(
        self, patched: Found, flashinfer: dict[str, str],
        layout: str, at: str, failing: tuple[int, ...],
    ) -> None:  # fmt: skip
        groups = HALVES if layout == "tp2 pp2" else ALL
        concerned = [rank for group in groups if set(group) & set(failing) for rank in group]
        found = patched("faulty", flashinfer[PINNED], layout, at, failing)
        for rank, one in enumerate(found):
            peers = group_of(rank, LAYOUTS[layout][0])
            assert one["off"] == (rank in concerned)
            assert one["fuses"] == (rank not in concerned)
            assert one["peers"] == ([] if rank in concerned else [peers])
            assert one["RMSNorm"] == [peers]

    def test_who_lacks_memory_says_so_before_flashinfer_meets_in_torch(
        self, patched: Found, flashinfer: dict[str, str]
    ) -> None:
        found = patched("faulty", flashinfer[WITH_GROUP], "tp4 cp2", "memory", [0])

        assert [one["off"] for one in found] == [True] * 4
        assert [one["created"] for one in found] == [0, 0, 1, 1]

    def test_the_memory_asked_for_is_what_flashinfer_allocates(
        self, patched: Found, flashinfer: dict[str, str]
    ) -> None:
        for enough, short in patched("memory", flashinfer[PINNED]):
            assert enough is True
            assert short.startswith("it takes 448 MiB of GPU memory")

    def test_a_draft_model_leaves_the_target_models_workspace_alive(
        self, patched: Found, flashinfer: dict[str, str]
    ) -> None:
        for found in patched("growth", flashinfer[PINNED], True):
            assert [alive for _, alive in found] == [True] * 6
            # The same size, half of it, float32, twice the size, the first again.
            assert [created for created, _ in found[:-1]] == [1, 1, 2, 3, 3]
            # Four times the size, which one rank cannot have.
            assert found[-1][0] is True

    def test_nothing_is_created_where_fusion_is_off(self, patched: Found) -> None:
        off = {"off": False, "fuses": False, "peers": [], "created": 0}
        assert patched("switched_off") == [off] * 4


class TestDecisions:
    def test_behind_attention_its_group_is_asked_for_and_behind_an_mlp_the_experts(
        self, patched: Found
    ) -> None:
        assert patched("groups_asked_for") == [[False, True]] * 4

    def test_a_compiled_graph_takes_the_decision_in(self, patched: Found) -> None:
        assert patched("traced") == [1.0] * 4

    def test_they_are_those_of_0_5_11_but_across_pipeline_stages(
        self, ranks: Ranks, patched: Found
    ) -> None:
        (ours,) = patched("decisions")
        ((theirs,),) = ranks(FIXED, None, [["decisions", [], 90.0]])
        assert len(theirs) == len(ours) > 1000
        differences = 0
        for modes, expected in theirs.items():
            _, _, _, pp, *_ = json.loads(modes)
            applies, *fuses = expected
            if pp > 1:
                differences += any(fuses)
                fuses = [False] * len(fuses)
            assert ours[modes] == [applies, *fuses], modes
        assert differences == 12
