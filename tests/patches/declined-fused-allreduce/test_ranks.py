"""A fused all-reduce that declines, by the functions of every release, on two and four ranks."""

from __future__ import annotations

from typing import Any

import pytest
from rig.environment import Environment
from rig.fused.fused_calls import Answers, Asked
from rig.sources.published import RELEASES

from sglang_commfix.engine.register import load


pytestmark = pytest.mark.servers

ENTRY = "declined-fused-allreduce"
(PATCH,) = (patch for patch in load().patches if patch.id == ENTRY)
AFFECTED = PATCH.affected_releases
# To here a rank whose workspace cannot be created ends, and only a missing module is declined.
UNCAUGHT = RELEASES.index("0.5.9")
OLD = [release for release in AFFECTED if RELEASES.index(release) <= UNCAUGHT]
NEW = [release for release in AFFECTED if RELEASES.index(release) > UNCAUGHT]

EVERYONE = [0, 1, 2, 3]
SCENES: dict[str, dict[str, Any]] = {
    "fused": {"calls": 2},
    "no module": {"missing": True, "calls": 2},
    "no module, 4": {"missing": True, "world": 4},
    "no module, addition": {"missing": True, "addition": True},
    "no workspace": {"failing": [0, 1], "calls": 3},
    "no workspace, addition": {"failing": [0, 1], "addition": True},
    "no workspace, 4": {"failing": EVERYONE, "world": 4, "calls": 2},
    "not contiguous": {"apart": True, "addition": True, "calls": 2},
    "behind an MLP": {"failing": [0, 1], "behind_attention": False},
    "behind experts": {"failing": [0, 1], "behind_attention": False, "expert": 2},
    "behind experts, 4": {
        "failing": EVERYONE, "behind_attention": False, "expert": 4, "world": 4
    },
    "behind experts in slices": {
        "failing": EVERYONE, "behind_attention": False, "expert": 2, "world": 4
    },
    "one rank": {"failing": [1], "calls": 3},
    "soak": {"world": 2, "states": 1000, "limit": 150.0},
    "soak, 4": {"world": 4, "expert": 4, "behind_attention": False, "states": 200, "limit": 150.0},
}  # fmt: skip
SOAKS = ["soak", "soak, 4"]
DECLINED = [name for name in SCENES if name not in {"fused", "one rank", *SOAKS}]
OF_OLD = ["no module", "no module, 4"]

EXACT = 1e-6
# Half of the sum is missing, or more.
WRONG = 0.3


def scenes_of(release: str) -> list[str]:
    if release in NEW:
        return [*SCENES]
    # From here on the function adds to the residual itself.
    return ["fused", *OF_OLD, *(["no module, addition"] if release == "0.5.9" else [])]


# In the default run; the others have functions of the same kinds.
REPRESENTATIVE = {"0.5.20"}


def each(releases: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "release",
        [
            pytest.param(one, marks=[] if one in REPRESENTATIVE else [pytest.mark.servers_full])
            for one in releases
        ],
    )


def asked(release: str) -> list[Asked]:
    return [
        Asked(patches, scene)
        for scene in scenes_of(release)
        for patches in ("", ENTRY)
        # What hangs takes all of its time: see workspace-on-some-ranks.
        if scene not in SOAKS and (patches or scene != "one rank")
    ]


@pytest.fixture(scope="module")
def answers(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(environment, tmp_path_factory.mktemp("declined"), SCENES, asked)


@each(OLD + NEW)
def test_unpatched_nothing_is_reduced(answers: Answers, release: str) -> None:
    for scene in set(scenes_of(release)) & set(DECLINED):
        for rank in answers(release, "", scene):
            assert rank["fused"] == 0
            for call in rank["calls"]:
                assert call["norm"] > WRONG, scene
                assert call["residual"] > WRONG, scene


@each(OLD + NEW)
def test_patched_it_is_reduced_first_and_the_addition_added_once(
    answers: Answers, release: str
) -> None:
    for scene in set(scenes_of(release)) & set(DECLINED):
        for rank in answers(release, ENTRY, scene):
            assert rank["fused"] == 0
            assert rank["plain"] == len(rank["calls"]) > 0
            for call in rank["calls"]:
                assert call["norm"] < EXACT, scene
                assert call["residual"] < EXACT, scene


@each(OLD + NEW)
def test_patched_the_residual_that_was_given_is_left_alone_as_by_the_kernel(
    answers: Answers, release: str
) -> None:
    for scene in set(scenes_of(release)) - set(SOAKS):
        for rank in answers(release, ENTRY, scene):
            assert all(call["residual is new"] for call in rank["calls"]), scene


@each(OLD + NEW)
def test_patched_or_not_the_kernel_that_can_is_used(answers: Answers, release: str) -> None:
    genuine = answers(release, "", "fused")

    assert answers(release, ENTRY, "fused") == genuine
    for rank in genuine:
        assert (rank["fused"], rank["plain"], rank["tried"]) == (2, 0, 1)
        assert all(call["norm"] < EXACT for call in rank["calls"])


@each(NEW)
def test_a_workspace_that_could_not_be_created_is_not_tried_again(
    answers: Answers, release: str
) -> None:
    for patches in ("", ENTRY):
        for rank in answers(release, patches, "no workspace"):
            assert (rank["tried"], rank["off"]) == (1, True)


@each(NEW)
def test_patched_one_rank_without_a_workspace_is_enough_for_all_to_reduce_first(
    answers: Answers, release: str
) -> None:
    for rank in answers(release, ENTRY, "one rank"):
        assert (rank["fused"], rank["plain"], rank["off"]) == (0, 3, True)
        assert all(max(call["norm"], call["residual"]) < EXACT for call in rank["calls"])


@pytest.fixture(scope="module")
def soaked(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder = tmp_path_factory.mktemp("soaked")
    return Answers(environment, folder, SCENES, lambda _: [Asked(ENTRY, one) for one in SOAKS])


@pytest.mark.parametrize(
    "release", [pytest.param(one, marks=pytest.mark.servers_full) for one in NEW]
)
def test_patched_whatever_is_declined_on_whichever_ranks_all_are_right(
    soaked: Answers, release: str
) -> None:
    """States drawn by chance: workspaces on some ranks, strides, additions, a missing module."""
    for scene in SOAKS:
        found = soaked(release, ENTRY, scene)

        assert all(rank["worst"] < EXACT for rank in found)
        assert len({(rank["fused"], rank["plain"]) for rank in found}) == 1
        assert found[0]["fused"] > 0
        assert found[0]["plain"] > 0
