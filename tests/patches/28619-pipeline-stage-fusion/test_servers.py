"""#28619: two stages of two ranks that fuse (FlashInfer's kernel played), in real servers, against one rank."""

from __future__ import annotations

import pytest
from rig.fused.fused_servers import wrong_without_and_right_with
from rig.observer import Observer


PATCH = "28619-pipeline-stage-fusion"
TP_2_PP_2 = ("--tp", "2", "--pp-size", "2")

# 0.5.12.post1 is in the rig's matrix.
RELEASES = ("0.5.17", "0.5.20")

# Four ranks each: beyond the default run, in which real layers show it.
pytestmark = [pytest.mark.servers, pytest.mark.servers_full]


@pytest.mark.parametrize("release", RELEASES)
def test_a_server_of_two_stages_is_wrong_without_and_answers_as_one_rank_with_it(
    observe: Observer, release: str
) -> None:
    wrong_without_and_right_with(observe, release, TP_2_PP_2, PATCH)
