"""#32663: a DP rank of two ranks, in real servers, against the answers of one rank."""

from __future__ import annotations

import pytest
from rig.observer import Failure, Observer, Setup
from rig.workload import compare


PATCH = "32663-reduce-scatterv-sizes"
DP_2_OF_TWO = ("--tp", "4", "--dp", "2", "--enable-dp-attention", "--ep", "2")
RELEASES = ("0.5.11", "0.5.12.post1", "0.5.13", "0.5.16")

# Four ranks each: beyond the default run, in which real layers show it.
pytestmark = [pytest.mark.servers, pytest.mark.servers_full]


@pytest.mark.parametrize("release", RELEASES)
def test_unpatched_the_server_dies_with_its_first_step(observe: Observer, release: str) -> None:
    outcome = observe.outcome(Setup(release, DP_2_OF_TWO))

    assert isinstance(outcome, Failure)
    assert "assert len(sizes) == world_size" in str(outcome.error)


@pytest.mark.parametrize("release", RELEASES)
def test_patched_it_answers_as_one_rank_does(observe: Observer, release: str) -> None:
    reference = observe(Setup(release))
    patched = observe(Setup(release, DP_2_OF_TWO, patches="1"))
    difference = compare(patched.answers, reference.answers)

    assert difference.same_tokens == difference.prompts
    assert difference.is_noise, difference
    assert all(PATCH in line.message for line in patched.ledger())
