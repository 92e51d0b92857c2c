"""``26923-himamba-writing-check``: what every affected release does on simulated ranks."""

from __future__ import annotations

import pytest
from published import RELEASES
from writing_check import NEUTRAL, HangError, Rank, ranks, soak, step

from sglang_commfix.engine.register import load


pytestmark = pytest.mark.releases

PATCH = "26923-himamba-writing-check"
MODULE, SCOPE = "sglang.srt.mem_cache.hi_mamba_radix_cache", "HiMambaRadixCache.writing_check"
AFFECTED = [r for r in RELEASES if load()[PATCH].affected.contains(r, True)]
FIXED = "0.5.14"


def group(release: str, select: str | None, world: int = 2) -> list[Rank]:
    return ranks(release, MODULE, SCOPE, select, world)


@pytest.mark.parametrize("release", AFFECTED)
def test_unpatched_a_rank_without_writes_returns_in_front_of_the_all_reduce(release: str) -> None:
    one, other = group(release, None)
    one.write(1)

    assert (one.brings(), other.brings()) == (0, None)
    for world in (2, 4):
        with pytest.raises(HangError):
            list(soak(group(release, None, world), seed=1, steps=200, fails=0.2))


@pytest.mark.parametrize("release", AFFECTED)
def test_patched_a_rank_without_writes_enters_and_holds_nobody_back(release: str) -> None:
    one, other = group(release, PATCH)
    one.write(1)
    one.copies[1].done = True

    assert (one.brings(), other.brings()) == (1, NEUTRAL)
    assert step([one, other]) == [[1], []]


@pytest.mark.parametrize("release", AFFECTED)
@pytest.mark.parametrize("world", [2, 4])
def test_patched_all_go_on_whatever_fails_and_no_write_is_left_or_waited_for(
    release: str, world: int
) -> None:
    for seed in range(5):
        all_ranks = group(release, PATCH, world)
        list(soak(all_ranks, seed=seed, steps=300, fails=0.2))
        for rank in all_ranks:
            assert rank.acked == list(rank.copies)
            assert not rank.cache.ongoing_write_through
            assert not any(copy.waited for copy in rank.copies.values())


@pytest.mark.parametrize("release", AFFECTED)
def test_patched_where_all_ranks_write_the_same_each_step_is_as_in_the_fixed_release(
    release: str,
) -> None:
    for seed in range(5):
        ours = list(soak(group(release, PATCH, 4), seed=seed, steps=300, fails=0.0))
        assert ours == list(soak(group(FIXED, None, 4), seed=seed, steps=300, fails=0.0))


@pytest.mark.parametrize("release", AFFECTED)
def test_patched_a_group_of_one_returns_at_once(release: str) -> None:
    before, after = group(release, None, 1), group(release, PATCH, 1)

    ours = list(soak(after, seed=1, steps=200, fails=0.5))
    assert ours == list(soak(before, seed=1, steps=200, fails=0.5))
