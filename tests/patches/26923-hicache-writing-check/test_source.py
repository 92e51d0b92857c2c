"""``26923-hicache-writing-check``: what every affected release does on simulated ranks."""

from __future__ import annotations

import pytest
from rig.hicache.writing_check import FACTS, Function, soak

from sglang_commfix.engine.register import load


pytestmark = pytest.mark.releases

PATCH = "26923-hicache-writing-check"
MODULE = "sglang.srt.mem_cache.hiradix_cache"
SHOWN = Function(PATCH, MODULE, "HiRadixCache.writing_check", "0.5.14")


@pytest.mark.parametrize("release", load()[PATCH].affected_releases)
@pytest.mark.parametrize("fact", FACTS)
def test_in_every_affected_release(fact: str, release: str) -> None:
    FACTS[fact](SHOWN, release)


def test_the_fixed_release_leaves_writes_that_a_peer_has_not_made_locked() -> None:
    """Which is why a rank without writes does not count as one that has finished none."""
    all_ranks = SHOWN.group(SHOWN.fixed, None)
    list(soak(all_ranks, seed=1, steps=500, fails=0.2))

    left = [len(rank.cache.ongoing_write_through) for rank in all_ranks]
    assert left == [11, 0]
    assert [len(rank.copies) for rank in all_ranks] == [448, 437]
