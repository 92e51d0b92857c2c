"""Real servers whose ranks fuse, FlashInfer's kernel played: without a patch, and with it alone."""

from __future__ import annotations

from collections.abc import Sequence

from rig.observer import FUSION, Observer, Setup
from rig.workload import compare


def wrong_without_and_right_with(
    observe: Observer, release: str, flags: Sequence[str], patch: str
) -> None:
    """Compare both with one rank; each of their four ranks has to have used the kernel."""
    reference = observe(Setup(release))
    unpatched, patched = (
        observe(Setup(release, (*flags, *FUSION), patches=patches, probes=("played_kernel",)))
        for patches in (None, patch)
    )

    assert not compare(unpatched.answers, reference.answers).is_noise
    assert compare(patched.answers, reference.answers).is_noise
    for seen in (unpatched, patched):
        calls = seen.reports["played_kernel"]
        assert len(calls) == 4
        assert all(calls.values())
