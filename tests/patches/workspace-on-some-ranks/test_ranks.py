"""A workspace that one rank lacks, by the functions of every release, on two and four ranks."""

from __future__ import annotations

from typing import Any

import pytest
from rig.environment import Environment
from rig.fused.fused_calls import Answers, Asked
from rig.sources.published import RELEASES

from sglang_commfix.engine.register import load


pytestmark = pytest.mark.servers

ENTRY = "workspace-on-some-ranks"
# Without it, up to 0.5.20, who has no workspace does not reduce at all.
DECLINED = "declined-fused-allreduce"
(PATCH,) = (patch for patch in load().patches if patch.id == ENTRY)
AFFECTED = PATCH.affected_releases
REDUCED_UPSTREAM = RELEASES.index("0.5.21")

KERNEL, ALL_REDUCE = "in FlashInfer's kernel", "all-reduce over [0, 1]"
EXACT = 1e-6

SCENES: dict[str, dict[str, Any]] = {
    "fused": {"calls": 2},
    "one rank, unpatched": {"failing": [1], "limit": 2.0},
    "one rank": {"failing": [1], "calls": 3},
    "one rank of four": {"failing": [2], "world": 4, "calls": 3},
    "one rank, behind experts": {
        "failing": [0], "expert": 2, "behind_attention": False, "calls": 3
    },
}  # fmt: skip


each_release = pytest.mark.parametrize(
    "release",
    [
        pytest.param(one, marks=[] if one in {"0.5.23"} else [pytest.mark.servers_full])
        for one in AFFECTED
    ],
)


def asked(_: str) -> list[Asked]:
    return [
        Asked(patches, scene)
        for scene in SCENES
        for patches in ("", f"{ENTRY},{DECLINED}")
        if (patches == "") == scene.endswith("unpatched") or scene == "fused"
    ]


@pytest.fixture(scope="module")
def answers(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(environment, tmp_path_factory.mktemp("some"), SCENES, asked)


@each_release
def test_unpatched_the_ranks_that_have_one_wait_in_the_kernel_for_the_rank_that_has_none(
    answers: Answers, release: str
) -> None:
    has_one, has_none = answers(release, "", "one rank, unpatched")

    assert has_one == {"hangs": KERNEL}
    if RELEASES.index(release) < REDUCED_UPSTREAM:
        assert has_none["calls"][0]["norm"] > 0.3
    else:
        assert has_none == {"hangs": ALL_REDUCE}


@each_release
@pytest.mark.parametrize("scene", [name for name in SCENES if not name.endswith("unpatched")][1:])
def test_patched_no_rank_fuses_from_that_call_on(
    answers: Answers, release: str, scene: str
) -> None:
    for rank in answers(release, f"{ENTRY},{DECLINED}", scene):
        assert (rank["fused"], rank["plain"], rank["tried"], rank["off"]) == (0, 3, 1, True)
        assert all(max(call["norm"], call["residual"]) < EXACT for call in rank["calls"])


@each_release
def test_patched_or_not_ranks_that_all_have_one_fuse(answers: Answers, release: str) -> None:
    for patches in ("", f"{ENTRY},{DECLINED}"):
        for rank in answers(release, patches, "fused"):
            assert (rank["fused"], rank["plain"], rank["tried"]) == (2, 0, 1)
