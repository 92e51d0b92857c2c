"""``26923-himamba-writing-check`` on real ranks over gloo, with the real function: see ``rig.hicache``."""

from __future__ import annotations

from pathlib import Path

import pytest
from rig.environment import Environment
from rig.hicache import run_ranks


pytestmark = [pytest.mark.servers, pytest.mark.servers_full]

PATCH, CACHE = "26923-himamba-writing-check", "HiMambaRadixCache"
RELEASES = ("0.5.10.post1", "0.5.13")

# Rank 0 has a write under way, which then arrives; the others have none.
ALONE = [[[["write", 1]], *[[]] * 3], [[["done", 1]], *[[]] * 3], [[]] * 4]
# Seconds in which no rank begins a step: where a hang is expected, and where none is.
HANGS, GOES_ON = 5, 90
SOAK = {"seed": 1, "steps": 2000, "fails": 0.2, "rest": 12}


@pytest.mark.servers_full
@pytest.mark.parametrize("release", RELEASES)
def test_one_rank_waits_in_the_all_reduce_and_patched_all_go_on(
    release: str, environment: Environment, tmp_path: Path
) -> None:
    common = {"kind": "queues", "cache": CACHE}
    alone = [{**common, "world": world, "script": ALONE} for world in (2, 4)]
    hanging = [{**one, "stall": HANGS} for one in alone]
    soaks = [{**common, "world": world, "drawn": SOAK, "tell_all": False} for world in (2, 4)]

    for first, *others in run_ranks(release, hanging, environment=environment, folder=tmp_path):
        assert first["stands"][0] == "all_reduce"
        assert "writing_check" in first["stands"]
        assert all(other["stands"][0] == "broadcast" for other in others)
        assert all("recv_requests" in other["stands"] for other in others)

    going_on = [{**one, "stall": GOES_ON} for one in alone + soaks]
    found = run_ranks(release, going_on, environment=environment, folder=tmp_path, patches=PATCH)
    for first, *others in found[:2]:
        assert first["acked"] == [[], [1], []]
        assert all(other["acked"] == [[], [], []] for other in others)
    for soaked in found[2:]:
        assert [rank["ongoing"] for rank in soaked] == [[]] * len(soaked)
        assert [rank["waited"] for rank in soaked] == [0] * len(soaked)
        assert {rank["entered"] for rank in soaked} == {2012}
        assert len({rank["written"] for rank in soaked}) > 1
