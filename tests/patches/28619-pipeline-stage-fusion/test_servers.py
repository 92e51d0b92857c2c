"""#28619: two stages of two ranks that fuse (FlashInfer's kernel played), in real servers, against one rank."""

from __future__ import annotations

import pytest
from rig.observation import FUSION, Observation, Observer, Setup
from rig.workload import compare


PATCH = "28619-pipeline-stage-fusion"
TP_2_PP_2 = ("--tp", "2", "--pp-size", "2")

# With what gives the stages workspaces of their own, where the release does not.
RELEASES = {
    "0.5.9": ("pipeline-fusion-workspace",),
    "0.5.11": ("24452-workspace-groups",),
    "0.5.12.post1": (),
    "0.5.13": (),
    "0.5.16": (),
    "0.5.17": (),
    "0.5.20": (),
}
FLAG_ASKS = ("0.5.16", "0.5.17", "0.5.20")

# Four ranks each: beyond the default run, in which real layers show it.
pytestmark = [pytest.mark.servers, pytest.mark.servers_full]


def server(observe: Observer, release: str, *patches: str) -> Observation:
    flags = (*TP_2_PP_2, *(FUSION if release in FLAG_ASKS else ()))
    select = ",".join((*RELEASES[release], *patches)) or None
    return observe(Setup(release, flags, patches=select, probes=("flashinfer",)))


@pytest.mark.parametrize("release", RELEASES)
def test_a_server_of_two_stages_is_wrong_without_and_answers_as_one_rank_with_it(
    observe: Observer, release: str
) -> None:
    reference = observe(Setup(release))
    unpatched, patched = server(observe, release), server(observe, release, PATCH)

    assert not compare(unpatched.answers, reference.answers).is_noise
    assert compare(patched.answers, reference.answers).is_noise
    for calls in (unpatched.reports["flashinfer"], patched.reports["flashinfer"]):
        assert len(calls) == 4
        assert all(calls.values())
