"""``27489-unified-writing-check``: what every affected release does on simulated ranks."""

from __future__ import annotations

import pytest
from rig.hicache.writing_check import FACTS, Function

from sglang_commfix.engine.register import load


pytestmark = pytest.mark.releases

PATCH = "27489-unified-writing-check"
MODULE = "sglang.srt.mem_cache.unified_radix_cache"
SHOWN = Function(PATCH, MODULE, "UnifiedRadixCache.writing_check", "0.5.13")


@pytest.mark.parametrize("release", load()[PATCH].affected_releases)
@pytest.mark.parametrize("fact", FACTS)
def test_in_every_affected_release(fact: str, release: str) -> None:
    FACTS[fact](SHOWN, release)
