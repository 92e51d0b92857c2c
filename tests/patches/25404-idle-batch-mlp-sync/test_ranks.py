"""``25404-idle-batch-mlp-sync`` on real ranks over gloo, see sync_ranks.py."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rig.asking import ask
from rig.checkpoints import ensure_model
from rig.environment import Environment, ensure
from rig.releases import LAYERS
from rig.sources.published import RELEASES

from sglang_commfix.engine.register import load


pytestmark = [pytest.mark.servers, pytest.mark.servers_full]

PATCH, FIXED = "25404-idle-batch-mlp-sync", "0.5.13"
SHOWN = ("0.5.9", "0.5.12.post1")
AFFECTED = [r for r in RELEASES if load()[PATCH].affected.contains(r, True)]
OTHERS = [release for release in AFFECTED if release in LAYERS and release != SHOWN[-1]]

# One rank is idle while another works, in two steps.
MIXED = [
    [["idle", []], ["decode", [1, 1]], ["none", []], ["logprob", [3]]],
    [["extend", [3, 4]], ["idle", []], ["idle", []], ["prebuilt", [2]]],
]
KINDS = ["idle", "idle", "none", "decode", "extend", "logprob", "prebuilt"]
LAYOUTS = ((2, 1), (4, 1), (4, 2))  # ranks, and how many of them share attention
STEPS = 250

# Seconds in which no rank begins a step: where a hang is expected, and where none is.
HANGS, GOES_ON = 5, 90


def run(
    release: str, scenarios: list[dict[str, Any]], patches: str | None, environment: Environment
) -> list[list[Any]]:
    checkpoint = str(ensure_model("deepseek-v3", environment.models))
    program = Path(__file__).with_name("sync_ranks.py")
    questions = [{**one, "checkpoint": checkpoint} for one in scenarios]
    return ask(release, program, *questions, environment=environment, patches=patches)


def soaks() -> list[dict[str, Any]]:
    drawn = {"seed": 1, "steps": STEPS, "kinds": KINDS}
    return [
        {"world": world, "attn_tp": attn_tp, "stall": GOES_ON, "drawn": drawn}
        for world, attn_tp in LAYOUTS
    ]


def works(step: list[Any]) -> bool:
    """Tell whether any rank was told of tokens."""
    return any(one is not None and any(one["global_num_tokens"] or ()) for one in step)


def compare(ours: list[list[Any]], theirs: list[list[Any]]) -> int:
    """Compare what ranks were told in each step, and return in how many steps one worked."""
    compared = 0
    for group, fixed in zip(ours, theirs, strict=True):
        for step, expected in zip(zip(*group, strict=True), zip(*fixed, strict=True), strict=True):
            # Where no rank has a token, 0.5.13 says so to batches that are told nothing here.
            if works(expected):
                assert step == expected
                compared += 1
            else:
                assert not works(step)
    return compared


@pytest.mark.parametrize(
    "release", [pytest.param(SHOWN[0], marks=pytest.mark.servers_full), *SHOWN[1:]]
)
def test_unpatched_the_idle_rank_dies_and_the_others_wait_in_the_all_gather(
    release: str, environment: Environment
) -> None:
    asked = [{"world": world, "stall": HANGS, "steps": MIXED} for world in (2, 4)]
    for idle, *others in run(release, asked, None, environment):
        assert "TypeError: 'NoneType' object is not iterable" in idle["error"]
        assert "prepare_mlp_sync_batch_raw" in idle["error"]
        for other in others:
            assert "all_gather_into_tensor" in other["stands"]
            assert "prepare_mlp_sync_batch_raw" in other["stands"]


def test_patched_every_batch_is_told_what_the_fixed_release_tells_it(
    environment: Environment,
) -> None:
    asked = [*({"world": world, "stall": GOES_ON, "steps": MIXED} for world in (2, 4)), *soaks()]
    theirs = run(FIXED, asked, None, environment)
    for release in SHOWN[-1:]:
        ours = run(release, asked, PATCH, environment)
        assert compare(ours, theirs) > STEPS
        first, *_ = ours[1]
        assert first[0]["mode"] == "IDLE"
        assert first[0]["global_num_tokens"] == [0, 2, 0, 3]
        assert first[0]["global_num_tokens_for_logprob"] == [0, 2, 0, 3]


@pytest.mark.servers_full
@pytest.mark.parametrize("release", OTHERS)
def test_every_other_affected_release_tells_the_same(release: str) -> None:
    ours = run(release, soaks(), PATCH, ensure([release]))

    assert compare(ours, soaks_of_fixed()) > STEPS


@cache
def soaks_of_fixed() -> list[list[Any]]:
    return run(FIXED, soaks(), None, ensure([FIXED]))
