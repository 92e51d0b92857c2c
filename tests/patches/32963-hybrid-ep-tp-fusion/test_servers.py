"""#32963: experts over two of four ranks that fuse (FlashInfer's kernel played), in real servers, against one rank."""

from __future__ import annotations

import pytest
from rig.observation import FUSION, Observation, Observer, Setup
from rig.workload import compare


PATCH = "32963-hybrid-ep-tp-fusion"
TP_4_EP_2 = ("--tp", "4", "--ep", "2")
# 0.5.12.post1 is in the rig's matrix.
RELEASES = ("0.5.17",)

# Four ranks each: beyond the default run, in which real layers show it.
pytestmark = [pytest.mark.servers, pytest.mark.servers_full]


def server(observe: Observer, release: str, patches: str | None) -> Observation:
    return observe(Setup(release, (*TP_4_EP_2, *FUSION), patches=patches, probes=("flashinfer",)))


@pytest.mark.parametrize("release", RELEASES)
def test_a_server_is_wrong_without_and_answers_as_one_rank_with_it(
    observe: Observer, release: str
) -> None:
    reference = observe(Setup(release))
    unpatched, patched = server(observe, release, None), server(observe, release, PATCH)

    assert not compare(unpatched.answers, reference.answers).is_noise
    assert compare(patched.answers, reference.answers).is_noise
    for seen in (unpatched, patched):
        calls = seen.reports["flashinfer"]
        assert len(calls) == 4
        assert all(calls.values())
