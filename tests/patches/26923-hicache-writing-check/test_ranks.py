"""``26923-hicache-writing-check`` on real ranks over gloo, with the real cache: see ``rig.hicache``."""

from __future__ import annotations

from typing import Any

import pytest
from rig.environment import Environment, ensure
from rig.hicache import GOES_ON, HANGS, all_go_on, one_waits, run_ranks
from rig.releases import LAYERS
from rig.sources.published import RELEASES

from sglang_commfix.engine.register import load


pytestmark = pytest.mark.servers

PATCH = "26923-hicache-writing-check"
# Between them they have every form of the function that is edited.
SHOWN = ("0.5.9", "0.5.12.post1", "0.5.13")
AFFECTED = [r for r in RELEASES if load()[PATCH].affected.contains(r, True)]
OTHERS = [release for release in AFFECTED if release in LAYERS and release not in SHOWN]

each_shown = pytest.mark.parametrize(
    "release",
    [*(pytest.param(one, marks=pytest.mark.servers_full) for one in SHOWN[:-1]), SHOWN[-1]],
)

CACHE = "HiRadixCache"
COMMON = {"kind": "queues", "cache": CACHE}

AGREED = {"seed": 1, "steps": 500, "fails": 0.0, "rest": 5}

# In the second stage of two, the second rank of two writes nothing at first.
STAGES = [
    [[["write", 1]], [["write", 1]], [["write", 1]], []],
    [[["done", 1]], [["done", 1]], [["done", 1]], []],
    [[["write", 2]], [["write", 2]], [["write", 2]], [["write", 2]]],
    [[["done", 2]], [["done", 2]], [["done", 2]], [["done", 2]]],
    [[], [], [], []],
]


def tree(world: int, seed: int, stall: float = GOES_ON) -> dict[str, Any]:
    """Rank 0's host pool holds 1.05 times the device pool, the others' three times."""
    return {
        "kind": "trees", "world": world, "seed": seed, "steps": 1500, "stall": stall,
        "size": 160, "ratios": [1.05, 3.0], "prompts": 16, "fails": [0.05, 0.0],
    }  # fmt: skip


class TestUnpatched:
    @each_shown
    def test_a_rank_without_writes_begins_the_next_step_and_the_other_waits_in_the_all_reduce(
        self, release: str, environment: Environment
    ) -> None:
        one_waits(release, CACHE, environment=environment)

    @pytest.mark.servers_full
    @each_shown
    def test_a_whole_cache_whose_host_pool_is_short_on_one_rank_hangs(
        self, release: str, environment: Environment
    ) -> None:
        asked = [tree(2, 1, HANGS)]
        (found,) = run_ranks(release, asked, environment=environment)
        innermost = {rank["stands"][0] for rank in found}
        assert innermost == {"all_reduce", "broadcast"}
        assert any("check_hicache_events" in rank["stands"] for rank in found)


class TestPatched:
    @each_shown
    def test_all_ranks_go_on_and_come_to_rest_without_a_write_under_way(
        self, release: str, environment: Environment
    ) -> None:
        all_go_on(release, CACHE, PATCH, environment=environment)

    @pytest.mark.servers_full
    @each_shown
    def test_a_whole_cache_goes_on_and_comes_to_rest_without_a_lock(
        self, release: str, environment: Environment
    ) -> None:
        asked = [tree(world, seed) for world in (2, 4) for seed in (1, 2)]
        for found in run_ranks(release, asked, environment=environment, patches=PATCH):
            assert {rank["ongoing"] for rank in found} == {0}
            assert len({rank["entered"] for rank in found}) == 1
            assert found[0]["failed"] > 10
            for rank in found:
                # 0.5.13 counts loads in the same way, with a rank that has none holding back the
                # others: what they have loaded may stay locked.
                assert rank["protected"] == 0 or (release == "0.5.13" and rank["loading"])

    @pytest.mark.servers_full
    def test_a_pipeline_stage_that_has_begun_fewer_writes_goes_on(
        self, environment: Environment
    ) -> None:
        asked = [{**COMMON, "world": 4, "stall": GOES_ON, "stages": 2, "script": STAGES}]
        (found,) = run_ranks("0.5.13", asked, environment=environment, patches=PATCH)
        for rank in found[:3]:
            assert rank["acked"] == [[], [1], [], [2], []]
        assert found[3]["acked"] == [[], [], [], [2], []]


@pytest.mark.servers_full
def test_where_all_ranks_write_the_same_each_step_is_as_upstream_has_it(
    environment: Environment,
) -> None:
    asked = [{**COMMON, "world": 4, "stall": GOES_ON, "drawn": AGREED, "tell_all": False}]
    environment = ensure([*SHOWN, "0.5.17"])
    (theirs,) = run_ranks("0.5.17", asked, environment=environment)
    assert len({rank["acked"] for rank in theirs}) == 1
    for release in SHOWN:
        (ours,) = run_ranks(release, asked, environment=environment, patches=PATCH)
        assert ours == theirs


@pytest.mark.servers_full
@pytest.mark.parametrize("release", OTHERS)
def test_every_other_affected_release_goes_on_as_well(release: str) -> None:
    all_go_on(release, CACHE, PATCH, environment=ensure([release]))
