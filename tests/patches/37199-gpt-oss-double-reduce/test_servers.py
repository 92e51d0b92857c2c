"""#37199: GPT-OSS on two DP ranks that share its experts, in real servers, against one rank."""

from __future__ import annotations

import pytest
from rig.observation import ATTENTION_DP_2_EP_2, Observation, Observer, Setup
from rig.workload import compare


PATCH = "37199-gpt-oss-double-reduce"
# Attention sinks, in Triton's interpreter.
TRITON = ("--attention-backend", "triton")
RELEASES = ("0.5.11", "0.5.12.post1", "0.5.13", "0.5.16", "0.5.17")

pytestmark = pytest.mark.servers


def server(
    observe: Observer, release: str, flags: tuple[str, ...] = (), patches: str | None = None
) -> Observation:
    return observe(Setup(release, (*flags, *TRITON), patches=patches, model="gpt-oss"))


@pytest.mark.servers_full
@pytest.mark.parametrize("release", RELEASES)
def test_unpatched_it_is_wrong(observe: Observer, release: str) -> None:
    reference = server(observe, release)
    unpatched = server(observe, release, ATTENTION_DP_2_EP_2)

    assert not compare(unpatched.answers, reference.answers).is_noise


@pytest.mark.servers_full
@pytest.mark.parametrize("release", RELEASES)
def test_patched_it_answers_as_one_rank_does(observe: Observer, release: str) -> None:
    reference = server(observe, release)
    patched = server(observe, release, ATTENTION_DP_2_EP_2, PATCH)

    assert compare(patched.answers, reference.answers).is_noise
