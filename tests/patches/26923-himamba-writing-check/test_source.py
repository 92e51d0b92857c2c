"""``26923-himamba-writing-check``: what every affected release does on simulated ranks."""

from __future__ import annotations

import pytest
from rig.hicache.writing_check import FACTS, Function

from sglang_commfix.engine.register import load


pytestmark = pytest.mark.releases

PATCH = "26923-himamba-writing-check"
MODULE = "sglang.srt.mem_cache.hi_mamba_radix_cache"
SHOWN = Function(PATCH, MODULE, "HiMambaRadixCache.writing_check", "0.5.14")


@pytest.mark.parametrize("release", load()[PATCH].affected_releases)
@pytest.mark.parametrize("fact", FACTS)
def test_in_every_affected_release(fact: str, release: str) -> None:
    FACTS[fact](SHOWN, release)
