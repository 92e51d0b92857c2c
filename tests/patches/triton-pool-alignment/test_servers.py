"""A request pool that is no multiple of the attention-TP size, in real servers with Triton attention."""

from __future__ import annotations

import pytest
from rig.observer import TP_2_DENSE_TP_1, Failure, Observer, Setup
from rig.workload import Round, compare


pytestmark = pytest.mark.servers

TRITON = ("--attention-backend", "triton")
MODEL = "deepseek-v3-wide-keys"
ATTENTION_TP_2_DP_2 = ("--tp", "4", "--dp", "2", "--enable-dp-attention")
TOO_SMALL = "The expanded size of the tensor (3) must match the existing size (4)"

# As many at once as the pool of an attention-TP group holds, and fewer.
THREE = Round(((1, 2, 3, 4), (7, 8, 9), tuple(range(10, 60))), (12, 12, 12))
SIX = Round((*THREE.prompts, (5, 6), (11, 12, 13, 14), (200, 3, 77)), (12,) * 6)
TWO = Round(((1, 2, 3, 4), (7, 8, 9)), (8, 8))

each_release = pytest.mark.parametrize(
    "release",
    [
        pytest.param(one, marks=pytest.mark.servers_full)
        for one in ("0.5.9", "0.5.10.post1", "0.5.11", "0.5.12.post1", "0.5.13")
    ],
)


def server(
    release: str, flags: tuple[str, ...], *, patched: bool, pool: int = 3, rounds: tuple[Round, ...]
) -> Setup:
    return Setup(
        release, (*flags, *TRITON), patches="1" if patched else None, rounds=rounds,
        max_running_requests=pool, model=MODEL,
    )  # fmt: skip


@each_release
def test_unpatched_it_dies_in_the_first_step_of_as_many_requests_as_it_admits(
    observe: Observer, release: str
) -> None:
    setup = server(release, TP_2_DENSE_TP_1, patched=False, rounds=(TWO, THREE))
    outcome = observe.outcome(setup)

    assert isinstance(outcome, Failure)
    assert TOO_SMALL in outcome.error.log


@each_release
def test_patched_it_answers_them_as_one_rank_does(observe: Observer, release: str) -> None:
    setup = server(release, TP_2_DENSE_TP_1, patched=True, rounds=(TWO, THREE))
    reference = Setup(release, TRITON, rounds=(TWO, THREE), model=MODEL)

    assert compare(observe(setup).answers, observe(reference).answers).is_noise


@pytest.mark.servers_full
@pytest.mark.parametrize("patched", [False, True])
def test_under_dp_attention_the_pool_of_one_rank_counts(observe: Observer, patched: bool) -> None:
    setup = server("0.5.11", ATTENTION_TP_2_DP_2, patched=patched, pool=6, rounds=(SIX,))
    outcome = observe.outcome(setup)

    if patched:
        assert not isinstance(outcome, Failure)
        reference = Setup("0.5.11", TRITON, rounds=(SIX,), model=MODEL)
        assert compare(outcome.answers, observe(reference).answers).is_noise
    else:
        assert isinstance(outcome, Failure)
        assert TOO_SMALL in outcome.error.log
