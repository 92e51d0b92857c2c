"""``26923-himamba-writing-check`` on real ranks over gloo, with the real function: see ``rig.hicache``."""

from __future__ import annotations

import pytest
from rig.environment import Environment
from rig.hicache import all_go_on, one_waits


pytestmark = [pytest.mark.servers, pytest.mark.servers_full]

PATCH, CACHE = "26923-himamba-writing-check", "HiMambaRadixCache"
RELEASES = ("0.5.10.post1", "0.5.13")


@pytest.mark.servers_full
@pytest.mark.parametrize("release", RELEASES)
def test_one_rank_waits_in_the_all_reduce_and_patched_all_go_on(
    release: str, environment: Environment
) -> None:
    one_waits(release, CACHE, environment=environment)
    all_go_on(release, CACHE, PATCH, environment=environment)
