"""#37199: GPT-OSS on two DP ranks that share its experts, in real servers, against one rank."""

from __future__ import annotations

import pytest
from rig.observer import ATTENTION_DP_2_EP_2, Observation, Observer, Setup
from rig.workload import compare


PATCH = "37199-gpt-oss-double-reduce"
# Attention sinks, in Triton's interpreter.
TRITON = ("--attention-backend", "triton")
# 0.5.12.post1 is in the rig's matrix.
RELEASES = ("0.5.17",)

# Triton's interpreter takes its time: beyond the default run, in which real layers show it.
pytestmark = [pytest.mark.servers, pytest.mark.servers_full]


def server(
    observe: Observer, release: str, flags: tuple[str, ...] = (), patches: str | None = None
) -> Observation:
    return observe(Setup(release, (*flags, *TRITON), patches=patches, model="gpt-oss"))


@pytest.mark.parametrize("release", RELEASES)
def test_a_server_is_wrong_without_and_answers_as_one_rank_with_it(
    observe: Observer, release: str
) -> None:
    reference = server(observe, release)
    unpatched = server(observe, release, ATTENTION_DP_2_EP_2)
    patched = server(observe, release, ATTENTION_DP_2_EP_2, PATCH)

    assert not compare(unpatched.answers, reference.answers).is_noise
    assert compare(patched.answers, reference.answers).is_noise
