"""#24785: dense MLPs under DP attention, in real servers, against the answers of one rank."""

from __future__ import annotations

import pytest
from rig.observer import ATTENTION_DP_2_EP_2, Observation, Observer, Setup
from rig.workload import compare


PATCH = "24785-sum-len-contract"

# As they call themselves; the first is the main process.
RUNTIME_PROCESSES = [
    "sglang.launch_server",
    "sglang::data_parallel_controller",
    "sglang::detokenizer",
    "sglang::scheduler",
    "sglang::scheduler",
]

FIXED = [pytest.param(one, marks=pytest.mark.servers_full) for one in ("0.5.12.post1", "0.5.13")]

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def reference(observe: Observer) -> Observation:
    return observe(Setup("0.5.11"))


@pytest.fixture(scope="module")
def unpatched(observe: Observer) -> Observation:
    return observe(Setup("0.5.11", ATTENTION_DP_2_EP_2))


@pytest.fixture(scope="module")
def patched(observe: Observer) -> Observation:
    return observe(Setup("0.5.11", ATTENTION_DP_2_EP_2, patches="1"))


def test_0_5_11_answers_wrongly(reference: Observation, unpatched: Observation) -> None:
    difference = compare(unpatched.answers, reference.answers)

    assert difference.same_tokens < difference.prompts
    assert difference.mean > 0.2
    assert difference.max > 0.5


def test_0_5_11_with_the_patch_answers_as_one_rank_does(
    reference: Observation, patched: Observation
) -> None:
    difference = compare(patched.answers, reference.answers)

    assert difference.same_tokens == difference.prompts
    assert difference.is_noise, difference


@pytest.mark.parametrize("release", FIXED)
def test_a_fixed_release_keeps_its_right_answers(
    observe: Observer, reference: Observation, release: str
) -> None:
    fixed = observe(Setup(release, ATTENTION_DP_2_EP_2, patches="1"))

    assert compare(fixed.answers, reference.answers).is_noise


@pytest.mark.parametrize("release", FIXED)
def test_a_fixed_release_says_in_every_process_that_it_does_not_need_the_patch(
    observe: Observer, release: str
) -> None:
    observation = observe(Setup(release, ATTENTION_DP_2_EP_2, patches="1"))

    for line in observation.ledger():
        applied, _, not_needed = line.message.partition("not needed: ")
        assert PATCH not in applied
        assert PATCH in not_needed
    assert names_of_logging_processes(observation) == RUNTIME_PROCESSES


def test_every_process_of_the_runtime_logs_once_that_the_patch_is_applied(
    patched: Observation,
) -> None:
    for line in patched.ledger():
        assert line.level == "INFO"
        assert f"applying {PATCH}" in line.message or f", {PATCH}" in line.message
    assert names_of_logging_processes(patched) == RUNTIME_PROCESSES


def test_without_the_variable_no_process_logs_anything(unpatched: Observation) -> None:
    assert unpatched.ledger() == []


def names_of_logging_processes(observation: Observation) -> list[str]:
    titles = [observation.processes[line.pid] for line in observation.ledger()]
    return sorted(next(name for name in RUNTIME_PROCESSES if name in title) for title in titles)


@pytest.mark.servers_full
@pytest.mark.parametrize("patches", [None, "1"])
def test_a_model_without_dense_layers_is_right_with_and_without_the_patch(
    observe: Observer, patches: str | None
) -> None:
    one_rank = observe(Setup("0.5.11", model="qwen3-moe"))
    two_ranks = observe(Setup("0.5.11", ATTENTION_DP_2_EP_2, patches=patches, model="qwen3-moe"))

    assert compare(two_ranks.answers, one_rank.answers).is_noise
