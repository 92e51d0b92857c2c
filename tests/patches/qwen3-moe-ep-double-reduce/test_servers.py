"""Qwen3-MoE under DP attention and expert parallelism, in real servers, against one rank."""

from __future__ import annotations

import pytest
from rig.observer import ATTENTION_DP_2_EP_2, Observation, Observer, Setup
from rig.workload import compare


PATCH = "qwen3-moe-ep-double-reduce"
RELEASE = "0.5.10.post1"
MODEL = "qwen3-moe"

# In every run the layers show it, in tests/servers/test_layers.py.
pytestmark = pytest.mark.servers_full


@pytest.fixture(scope="module")
def reference(observe: Observer) -> Observation:
    return observe(Setup(RELEASE, model=MODEL))


def test_0_5_10_decodes_wrongly_after_a_right_prompt(
    observe: Observer, reference: Observation
) -> None:
    unpatched = observe(Setup(RELEASE, ATTENTION_DP_2_EP_2, model=MODEL))
    difference = compare(unpatched.answers, reference.answers)

    assert difference.same_tokens < difference.prompts
    assert difference.max < 1e-3  # of the prompts, which are processed in SUM_LEN padding


def test_0_5_10_with_the_patch_answers_as_one_rank_does(
    observe: Observer, reference: Observation
) -> None:
    patched = observe(Setup(RELEASE, ATTENTION_DP_2_EP_2, patches="1", model=MODEL))

    assert compare(patched.answers, reference.answers).is_noise
    assert all(PATCH in line.message for line in patched.ledger())
