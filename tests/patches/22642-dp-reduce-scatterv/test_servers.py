"""#22642: one reduce-scatter in place of all-reduce and dp_scatter, over gloo and in real servers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rig.asking import ask
from rig.environment import Environment
from rig.observer import ATTENTION_DP_2_EP_2, Observer, Setup
from rig.workload import compare


PATCH = "22642-dp-reduce-scatterv"
RELEASES = ["0.5.9", "0.5.10.post1"]
MODELS = ["qwen3-moe", "deepseek-v3"]
PROGRAM = Path(__file__).parent / "scatter_ranks.py"
HIDDEN_SIZE = 8

# float32 sums of a few normal numbers, against float64.
ROUNDING = 1e-5

pytestmark = pytest.mark.servers


@dataclass(frozen=True)
class Case:
    """One step: tokens of each rank, and how their partial sums have to be added up."""

    sizes: list[int]
    way: str | None
    """None: the communicator only distributes."""

    max_len: bool = False
    allow: bool = True
    untold: bool = False
    """Nobody has said how many tokens each rank has, as in a CUDA graph."""

    deterministic: bool = False

    def as_json(self) -> dict[str, Any]:
        variables = {"SGLANG_ENABLE_DETERMINISTIC_INFERENCE": "1"} if self.deterministic else {}
        return {
            "sizes": self.sizes,
            "max_len": self.max_len,
            "allow": self.allow,
            "untold": self.untold,
            "variables": variables,
        }


TWO_RANKS = [
    Case([40, 40], "equal"),
    Case([4096, 4096], "equal"),
    Case([1100, 1060], "padded"),
    Case([1500, 1530], "padded"),
    Case([42, 40], "all_reduce"),
    Case([1000, 500], "all_reduce"),
    Case([6000, 2500], "uneven"),
    Case([2500, 6001], "uneven"),
    Case([9000, 0], "all_reduce"),
    Case([0, 24], "all_reduce"),
    Case([0, 0], "all_reduce"),
    Case([1, 0], "all_reduce"),
    Case([40, 20], "unchosen", untold=True),
    Case([40, 40], None, max_len=True),
    Case([40, 40], None, allow=False),
    Case([6000, 2500], None, allow=False),
    Case([40, 40], None, deterministic=True),
]
FOUR_RANKS = [
    Case([12, 12, 12, 12], "equal"),
    Case([600, 598, 612, 605], "padded"),
    Case([20, 20, 20, 0], "all_reduce"),
    Case([5000, 4000, 0, 300], "uneven"),
    Case([0, 0, 0, 9000], "uneven"),
    Case([2100, 2050, 2040, 2045], "uneven"),
    Case([3, 0, 0, 0], "all_reduce"),
    Case([9, 9, 9, 9], None, max_len=True),
]
PADDED = [[3, 3], [4, 3], [0, 5, 5], [5, 0, 4, 5], [1], [1, 0]]


def run_ranks(environment: Environment, release: str, cases: list[Case]) -> list[dict[str, Any]]:
    """Run the cases on as many ranks as they have; return each rank's report."""
    ranks = len(cases[0].sizes)
    job = {
        "ranks": ranks,
        "hidden_size": HIDDEN_SIZE,
        "cases": [case.as_json() for case in cases],
        "padded": PADDED,
    }
    (found,) = ask(release, PROGRAM, job, environment=environment, patches="22642")
    for rank in found:
        assert "error" not in rank, rank["error"]
    reports: list[dict[str, Any]] = found
    return reports


@pytest.fixture(
    scope="module",
    params=[pytest.param("0.5.9", marks=pytest.mark.servers_full), "0.5.10.post1"],
)
def release(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module", params=[TWO_RANKS, FOUR_RANKS], ids=["2 ranks", "4 ranks"])
def cases(request: pytest.FixtureRequest) -> list[Case]:
    chosen: list[Case] = request.param
    return chosen


@pytest.fixture(scope="module")
def reports(
    environment: Environment,
    release: str,
    cases: list[Case],
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, Any]]:
    return run_ranks(environment, release, cases)


class TestOverGloo:
    def test_every_rank_gets_the_sums_of_its_own_rows(
        self, cases: list[Case], reports: list[dict[str, Any]]
    ) -> None:
        for rank, report in enumerate(reports):
            for case, result in zip(cases, report["cases"], strict=True):
                assert result["error"] < ROUNDING, (rank, case)
                assert result["shape"] == [case.sizes[rank], HIDDEN_SIZE]
                assert result["dtype"] == "torch.float32"
                assert result["contiguous"]
                assert result["residual_kept"]

    def test_each_way_of_adding_up_is_taken_where_it_is_meant_to_be(
        self, cases: list[Case], reports: list[dict[str, Any]]
    ) -> None:
        for report in reports:
            for case, result in zip(cases, report["cases"], strict=True):
                expected = [] if case.way in (None, "unchosen") else [case.way]
                assert result["ways"] == expected, case
        assert {"equal", "padded", "uneven", "all_reduce"} <= {case.way for case in cases}

    def test_a_block_is_told_to_leave_its_reduction_out_exactly_if_the_communicator_adds_up(
        self, cases: list[Case], reports: list[dict[str, Any]]
    ) -> None:
        for report in reports:
            for case, result in zip(cases, report["cases"], strict=True):
                assert result["promised"] == (case.way is not None or case.max_len), case

    def test_padded_chunks_stand_at_the_start_of_their_slots(
        self, reports: list[dict[str, Any]]
    ) -> None:
        assert reports[0]["padded"] == [True] * len(PADDED)


@pytest.mark.servers_full
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", ["padded", "uneven", None])
def test_a_patched_server_answers_as_one_rank_does(
    observe: Observer, release: str, model: str, way: str | None
) -> None:
    reference = observe(Setup(release, model=model))
    patched = observe(
        Setup(
            release,
            ATTENTION_DP_2_EP_2,
            "all",
            model=model,
            probes=("reduce_scatter",),
            variables=() if way is None else (("RIG_REDUCE_SCATTER_WAY", way),),
        )
    )

    assert compare(patched.answers, reference.answers).is_noise
    assert {PATCH in line.message for line in patched.ledger()} == {True}
    ways = patched.reports["reduce_scatter"]
    assert sorted(ways) == [0, 1]
    assert ways[0] == ways[1]
    layers = 3
    assert sum(ways[0].values()) >= layers
    assert way is None or set(ways[0]) == {way}
