"""#32963: experts over two of four ranks that fuse (FlashInfer's kernel played), in real servers, against one rank."""

from __future__ import annotations

import pytest
from rig.fused.fused_servers import wrong_without_and_right_with
from rig.observer import Observer


PATCH = "32963-hybrid-ep-tp-fusion"
TP_4_EP_2 = ("--tp", "4", "--ep", "2")
# 0.5.12.post1 is in the rig's matrix.
RELEASES = ("0.5.17",)

# Four ranks each: beyond the default run, in which real layers show it.
pytestmark = [pytest.mark.servers, pytest.mark.servers_full]


@pytest.mark.parametrize("release", RELEASES)
def test_a_server_is_wrong_without_and_answers_as_one_rank_with_it(
    observe: Observer, release: str
) -> None:
    wrong_without_and_right_with(observe, release, TP_4_EP_2, PATCH)
