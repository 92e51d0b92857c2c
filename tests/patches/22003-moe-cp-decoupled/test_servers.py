"""#22003: context parallelism of Qwen3-MoE with one copy of the experts, in real servers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rig.asking import ask as ask_program
from rig.environment import Environment
from rig.observer import Observation, Observer, Setup
from rig.server import ServerError
from rig.workload import ONE_BY_ONE, PROMPTS, compare


PATCH = "22003-moe-cp-decoupled"
RELEASE = "0.5.10.post1"
FIXED = "0.5.11"
MODEL = "qwen3-moe"
PROBE = "context_parallel"
SCRIPT = Path(__file__).with_name("moe_cp_decisions.py")

CP_2 = ("--attn-cp-size", "2", "--enable-prefill-context-parallel")
TP_2_CP_2 = ("--tp", "2", *CP_2, "--moe-dp-size", "1")
TP_4_CP_2 = ("--tp", "4", *CP_2, "--moe-dp-size", "1")

pytestmark = pytest.mark.servers

Ask = Callable[..., Observation]
Decide = Callable[[str, str | None], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def reference(observe: Observer) -> Observation:
    return observe(Setup(RELEASE, model=MODEL))


@pytest.fixture(scope="module")
def ask(observe: Observer) -> Ask:
    """Serve the prompts one by one, and let the probe see what the ranks do with them."""

    def ask(release: str, flags: tuple[str, ...], patches: str | None = None) -> Observation:
        return observe(
            Setup(release, flags, patches, model=MODEL, probes=(PROBE,), rounds=ONE_BY_ONE)
        )

    return ask


@pytest.fixture(scope="module")
def decide(environment: Environment) -> Decide:
    """Run `moe_cp_decisions` in the rig's environment, once for each release and setting."""

    @cache
    def decide(release: str, patches: str | None) -> list[dict[str, Any]]:
        decisions: list[dict[str, Any]]
        (decisions,) = ask_program(release, SCRIPT, "all", environment=environment, patches=patches)
        assert len(decisions) == 196
        return decisions

    return decide


def prefills(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of `PROMPTS`: sglang's health check sends one token, once or more often."""
    return [prefill for prefill in report["prefills"] if prefill["tokens"] > 1]


@pytest.mark.servers_full
def test_0_5_10_rejects_fewer_copies_of_the_experts_than_cp_ranks(observe: Observer) -> None:
    message = "Attention context parallel size must be equal to MoE context parallel size"
    with pytest.raises(ServerError, match=message):
        observe(Setup(RELEASE, TP_2_CP_2, model=MODEL))


@pytest.mark.servers_full
@pytest.mark.parametrize("ep", ["1", "2", "4"])
class TestFourRanks:
    @pytest.fixture
    def flags(self, ep: str) -> tuple[str, ...]:
        return (*TP_4_CP_2, "--ep", ep)

    def test_0_5_10_with_the_patch_answers_as_one_rank_does(
        self, ask: Ask, reference: Observation, flags: tuple[str, ...]
    ) -> None:
        patched = ask(RELEASE, flags, PATCH)

        assert compare(patched.answers, reference.first_answers).is_noise

    def test_0_5_11_answers_as_one_rank_does(
        self, ask: Ask, reference: Observation, flags: tuple[str, ...]
    ) -> None:
        upstream = ask(FIXED, flags)

        assert compare(upstream.answers, reference.first_answers).is_noise

    def test_groups_scatter_modes_and_tokens_are_those_of_0_5_11_on_every_rank(
        self, ask: Ask, flags: tuple[str, ...]
    ) -> None:
        patched = ask(RELEASE, flags, PATCH).reports[PROBE]
        upstream = ask(FIXED, flags).reports[PROBE]

        assert sorted(patched) == [0, 1, 2, 3]
        for rank, report in patched.items():
            assert report["groups"] == upstream[rank]["groups"]
            assert report["layers"] == upstream[rank]["layers"]
            assert prefills(report) == prefills(upstream[rank])

    def test_attention_sees_a_chunk_of_the_prompt_and_the_experts_see_all_of_it(
        self, ask: Ask, flags: tuple[str, ...]
    ) -> None:
        for rank, report in ask(RELEASE, flags, PATCH).reports[PROBE].items():
            assert {layer["mlp_mode"] for layer in report["layers"]} == {"MOE_FULL"}
            assert report["groups"]["MOE_DP"] == report["groups"]["ATTN_CP"]
            seen = {prefill["tokens"]: prefill for prefill in prefills(report)}
            assert sorted(seen) == sorted(map(len, PROMPTS))
            for tokens, prefill in seen.items():
                if tokens == 3:  # too short to be split
                    assert prefill["chunks"] is None
                    assert prefill["attention"] == prefill["mlp"] == tokens
                else:
                    cp_rank = report["groups"]["ATTN_CP"].index(rank)
                    assert sum(prefill["chunks"]) == tokens
                    assert prefill["attention"] == prefill["chunks"][cp_rank]
                    assert prefill["mlp"] == 2 * max(prefill["chunks"])
            assert seen[5]["chunks"] == [3, 2]


@pytest.mark.servers_full
def test_the_patch_is_right_together_with_all_others(ask: Ask, reference: Observation) -> None:
    patched = ask(RELEASE, TP_2_CP_2, "all")

    assert compare(patched.answers, reference.first_answers).is_noise


@pytest.mark.servers_full
@pytest.mark.parametrize("patches", [None, PATCH])
def test_as_many_copies_as_cp_ranks_are_right_with_and_without_the_patch(
    ask: Ask, reference: Observation, patches: str | None
) -> None:
    asked = ask(RELEASE, ("--tp", "2", *CP_2, "--moe-dp-size", "2"), patches)

    assert compare(asked.answers, reference.first_answers).is_noise
    report = asked.reports[PROBE][0]
    assert {layer["mlp_mode"] for layer in report["layers"]} == {"FULL"}
    assert any(prefill["chunks"] for prefill in prefills(report))


@pytest.mark.servers_full
@pytest.mark.parametrize(("cp", "moe_dp"), [("4", "2"), ("1", "2")])
def test_other_sizes_are_rejected_in_the_words_of_0_5_11(
    observe: Observer, cp: str, moe_dp: str
) -> None:
    message = "attn_cp_size != moe_dp_size is only supported when moe_dp_size == 1"
    flags = ("--tp", "4", "--attn-cp-size", cp, "--moe-dp-size", moe_dp)
    with pytest.raises(ServerError, match=message):
        observe(Setup(RELEASE, flags, PATCH, model=MODEL))


@pytest.mark.servers_full
def test_deepseek_v3_whose_prompts_are_not_split_is_right_with_and_without_the_patch(
    observe: Observer,
) -> None:
    flags = ("--tp", "4", "--attn-cp-size", "2", "--moe-dp-size", "1")
    one_rank = observe(Setup(RELEASE))
    for patches in (None, PATCH):
        four_ranks = observe(Setup(RELEASE, flags, patches))
        assert compare(four_ranks.answers, one_rank.answers).is_noise


@pytest.mark.servers_full
class TestDecisions:
    """Of every layer's communicator, for 196 combinations of sizes: see `moe_cp_decisions`."""

    def test_equal_sizes_are_decided_as_before(self, decide: Decide) -> None:
        before, after = decide(RELEASE, None), decide(RELEASE, PATCH)

        for old, new in zip(before, after, strict=True):
            if new["case"]["cp"] == new["case"]["moe_dp"]:
                assert old == new

    def test_context_parallelism_of_sparse_attention_is_decided_as_before_but_not_fused(
        self, decide: Decide
    ) -> None:
        before, after = decide(RELEASE, None), decide(RELEASE, PATCH)

        for old, new in zip(before, after, strict=True):
            if new["case"]["nsa"] and new["case"]["cp"] > new["case"]["moe_dp"]:
                for there, here in zip(old["layers"], new["layers"], strict=True):
                    assert here["mlp_mode"] != "MOE_FULL"
                    assert {**here, "fuses": None} == {**there, "fuses": None}

    def test_without_dp_attention_sparse_layers_are_decided_as_in_0_5_11(
        self, decide: Decide
    ) -> None:
        upstream, patched = decide(FIXED, None), decide(RELEASE, PATCH)

        for theirs, ours in zip(upstream, patched, strict=True):
            if ours["case"]["dp"] == 1 and not ours["case"]["dense_tp_1"]:
                assert ours["layers"][1:] == theirs["layers"][1:]

    def test_more_cp_ranks_than_copies_never_fuse_and_never_reduce_scatter_in_mode_moe_full(
        self, decide: Decide
    ) -> None:
        modes = set()
        for decision in decide(RELEASE, PATCH):
            if decision["case"]["cp"] == decision["case"]["moe_dp"]:
                continue
            for layer in decision["layers"]:
                assert layer.get("fuses") in {False, None}
                modes.add(layer["mlp_mode"])
                if layer["mlp_mode"] == "MOE_FULL" and "error" not in layer:
                    assert layer["reduce_scatters"] == [False, False]
        assert modes == {"SCATTERED", "FULL", "MOE_FULL"}

    def test_mode_moe_full_is_refused_under_dp_attention(self, decide: Decide) -> None:
        refusal = "--attn-cp-size above --moe-dp-size does not go with --enable-dp-attention"
        refused = 0
        for decision in decide(RELEASE, PATCH):
            for layer in decision["layers"]:
                is_refused = refusal in layer.get("error", "")
                assert is_refused == (
                    layer["mlp_mode"] == "MOE_FULL" and decision["case"]["dp"] > 1
                )
                refused += is_refused
        assert refused > 0
