"""#19918: the warm-up run under `--moe-dense-tp-size 1`, in the real scheduler processes."""

from __future__ import annotations

from typing import Any

import pytest
from rig.observer import TP_2_DENSE_TP_1, Observation, Observer, Setup


ATTENTION_TP_SIZE = 2

# Odd, so that the pool's own size needs aligning, and can only be aligned downwards.
REQUEST_POOL_SIZE = 5

pytestmark = pytest.mark.servers


def in_full(release: str) -> Any:
    """Leave a release out of the default run."""
    return pytest.param(release, marks=pytest.mark.servers_full)


def scattered_mlp(
    observe: Observer, release: str, *, patched: bool, pool: int = REQUEST_POOL_SIZE
) -> Observation:
    """By the same servers as the tests of 19918-scattered-mlp-fusion: they are started once."""
    return observe(
        Setup(
            release,
            TP_2_DENSE_TP_1,
            patches="1" if patched else None,
            probes=("fusion_decisions", "dummy_run"),
            max_running_requests=pool,
        )
    )


def dummy_runs(observation: Observation) -> dict[int, dict[str, Any]]:
    """By the batch size asked for; errors may differ between ranks in their wording."""
    reports = observation.reports["dummy_run"]
    assert sorted(reports) == [0, 1]
    by_rank = [{run["asked_for"]: run for run in reports[rank]["runs"]} for rank in (0, 1)]
    for asked_for, run in by_rank[0].items():
        assert run["forward"] == by_rank[1][asked_for]["forward"]
        assert bool(run["error"]) == bool(by_rank[1][asked_for]["error"])
    return by_rank[0]


class TestDummyRun:
    RELEASES = (in_full("0.5.9"), "0.5.11", in_full("0.5.12.post1"))

    @pytest.mark.servers_full
    def test_0_5_9_does_not_align_and_fails(self, observe: Observer) -> None:
        runs = dummy_runs(scattered_mlp(observe, "0.5.9", patched=False))

        for asked_for in (1, 3, REQUEST_POOL_SIZE):
            assert runs[asked_for]["forward"] == {"requests": asked_for, "tokens": asked_for}
            assert runs[asked_for]["error"]

    @pytest.mark.parametrize("release", ["0.5.11", in_full("0.5.12.post1")])
    def test_0_5_10_and_later_round_one_request_down_to_none_and_fail(
        self, observe: Observer, release: str
    ) -> None:
        runs = dummy_runs(scattered_mlp(observe, release, patched=False))

        assert runs[1]["forward"] in (None, {"requests": 0, "tokens": 0})
        assert runs[1]["error"]

    @pytest.mark.parametrize("release", RELEASES)
    def test_patched_it_runs_with_the_next_aligned_size_that_the_request_pool_holds(
        self, observe: Observer, release: str
    ) -> None:
        runs = dummy_runs(scattered_mlp(observe, release, patched=True))

        assert [run["error"] for run in runs.values()] == [None] * len(runs)
        ran_with = {asked_for: run["forward"] for asked_for, run in runs.items()}
        assert ran_with == {
            1: {"requests": 2, "tokens": 2},
            2: {"requests": 2, "tokens": 2},
            3: {"requests": 4, "tokens": 4},
            REQUEST_POOL_SIZE: {"requests": 4, "tokens": 4},
        }

    @pytest.mark.parametrize("patched", [False, True])
    @pytest.mark.parametrize("release", RELEASES)
    def test_the_request_pool_is_as_large_as_the_server_was_told(
        self, observe: Observer, release: str, patched: bool
    ) -> None:
        reports = scattered_mlp(observe, release, patched=patched).reports["dummy_run"]

        assert {report["request_pool_size"] for report in reports.values()} == {REQUEST_POOL_SIZE}

    def test_patched_it_is_left_out_with_a_warning_where_no_aligned_size_exists(
        self, observe: Observer
    ) -> None:
        observation = scattered_mlp(observe, "0.5.11", patched=True, pool=1)

        runs = dummy_runs(observation).values()
        assert [(run["forward"], run["error"]) for run in runs] == [(None, None)] * len(runs)
        warnings = [line for line in observation.ledger() if line.level == "WARNING"]
        assert len(warnings) == ATTENTION_TP_SIZE * len(runs)
        assert all("left out" in line.message for line in warnings)
