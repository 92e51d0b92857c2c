"""``27489-unified-writing-check``: what every affected release does on simulated ranks."""

from __future__ import annotations

import pytest
from rig.hicache.writing_check import Function
from rig.sources.published import RELEASES

from sglang_commfix.engine.register import load


pytestmark = pytest.mark.releases

PATCH = "27489-unified-writing-check"
SHOWN = Function(
    PATCH, "sglang.srt.mem_cache.unified_radix_cache", "UnifiedRadixCache.writing_check", "0.5.13"
)
AFFECTED = [r for r in RELEASES if load()[PATCH].affected.contains(r, True)]
each_release = pytest.mark.parametrize("release", AFFECTED)


@each_release
def test_unpatched_a_rank_without_writes_returns_in_front_of_the_all_reduce(release: str) -> None:
    SHOWN.returns_early(release)


@each_release
def test_unpatched_the_first_write_that_fails_on_one_rank_alone_can_hang_the_group(
    release: str,
) -> None:
    SHOWN.hangs(release)


@each_release
def test_patched_a_rank_without_writes_enters_and_holds_nobody_back(release: str) -> None:
    SHOWN.holds_nobody_back(release)


@each_release
@pytest.mark.parametrize("world", [2, 4])
def test_patched_all_go_on_whatever_fails_and_no_write_is_left_or_waited_for(
    release: str, world: int
) -> None:
    SHOWN.comes_to_rest(release, world)


@each_release
def test_patched_where_all_ranks_write_the_same_each_step_is_as_in_the_fixed_release(
    release: str,
) -> None:
    SHOWN.is_as_fixed(release)


@each_release
def test_patched_a_group_of_one_does_what_it_did(release: str) -> None:
    SHOWN.is_unchanged_alone(release)
