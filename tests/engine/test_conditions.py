"""When a launch meets a fault: expressions, what is known of them, and data that cannot be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig.stand_in import Upstream, patch

from sglang_commfix.engine.conditions import (
    Answer,
    Condition,
    Launch,
    Name,
    judge,
    parse,
    reasons,
)
from sglang_commfix.engine.errors import RegisterError
from sglang_commfix.engine.register import facts, load, load_facts


NOT, UNKNOWN, MAY, MEETS = Answer
PATCHES = load().patches
NOTHING = Launch(None, {}, None, None, None)


def knowing(**flags: Any) -> Launch:
    """A launch of which only these flags are known."""
    return replace(NOTHING, flags=flags)


def answer(text: str, launch: Launch) -> Answer:
    return parse(text, Name).answer(launch)


@pytest.mark.parametrize(
    ("text", "flags", "wanted"),
    [
        ("a", {"a": True}, MEETS),
        ("a", {"a": False}, NOT),
        ("a", {"a": None}, NOT),
        ("a", {}, UNKNOWN),
        ("not a", {"a": False}, MEETS),
        ("not a", {}, UNKNOWN),
        ("a == 2", {"a": 2}, MEETS),
        ("a != 2", {"a": 2}, NOT),
        ("a == 'none'", {"a": "none"}, MEETS),
        ("a == None", {"a": None}, MEETS),
        ("1 < a <= 4", {"a": 4}, MEETS),
        ("1 < a < 4", {"a": 4}, NOT),
        ("a == b == c > 1", {"a": 2, "b": 2, "c": 2}, MEETS),
        ("a == b == c > 1", {"a": 2, "b": 2}, UNKNOWN),
        ("a == b == c > 1", {"a": 2, "b": 3}, NOT),
        ("a == b > 1", {"b": 1}, NOT),
        ("a > 1", {"a": None}, NOT),
        ("a < 1", {"a": "none"}, NOT),
        ("a % b != 0", {"a": 3, "b": 2}, MEETS),
        ("a % b != 0", {"a": 4, "b": 2}, NOT),
        ("a % b != 0", {"a": None, "b": 2}, UNKNOWN),
        ("a % b != 0", {"a": 4, "b": 0}, UNKNOWN),
        ("a in ('x', 'y')", {"a": "y"}, MEETS),
        ("a in ('x', 'y')", {"a": "z"}, NOT),
        ("a in ('x', 'y')", {}, UNKNOWN),
        ("a or b", {"b": True}, MEETS),
        ("a or b", {"b": False}, UNKNOWN),
        ("a and b", {"b": False}, NOT),
        ("a and b", {"b": True}, UNKNOWN),
    ],
)
def test_an_expression_is_answered_from_what_is_known(
    text: str, flags: dict[str, Any], wanted: Answer
) -> None:
    assert answer(text, knowing(**flags)) is wanted


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a ==", "is no expression"),
        ("", "is no expression"),
        ("a = 1", "is no expression"),
        ("__import__('os')", "is not understood"),
        ("a.b == 1", "'a.b' is not understood"),
        ("a[0] == 1", r"'a\[0\]' is not understood"),
        ("a + 1 == 2", r"'a \+ 1' is not understood"),
        ("a == 1.5", "'1.5' is not understood"),
        ("a is None", "'Is' is not understood"),
        ("a in b", "'b' is not understood"),
        ("a in ()", r"'\(\)' is not understood"),
        ("a in ('x', b)", "is not understood"),
        ("1", "'1' is not understood"),
        ("(lambda: a)()", "is not understood"),
        ("a if b else c", "is not understood"),
        ("a % b % c == 0", "is not understood"),
        ("(" * 500 + "a" + ")" * 500, "is no expression"),
    ],
)
def test_what_is_no_plain_comparison_is_refused_in_one_line_that_says_what_there_may_be(
    text: str, wrong: str
) -> None:
    with pytest.raises(ValueError, match=wrong) as caught:
        parse(text, Name)

    assert "names, whole numbers, words in quotes, %, comparisons" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused_and_never_run(text: str) -> None:
    try:
        found = parse(text, Name)
    except ValueError:
        return
    assert found.answer(NOTHING) in Answer


class TestWhatSglangMakesOfFlags:
    def test_without_dp_attention_all_ranks_share_the_requests(self) -> None:
        launch = knowing(tp_size=8, dp_size=4, enable_dp_attention=False, attn_cp_size=1)

        assert launch.look("attn_dp_size") == 1
        assert launch.look("attn_tp_size") == 8

    def test_with_dp_attention_and_context_parallelism_groups_are_smaller(self) -> None:
        launch = knowing(
            tp_size=16, dp_size=4, enable_dp_attention=True, attn_cp_size=2, max_running_requests=12
        )

        assert launch.look("attn_tp_size") == 2
        assert launch.look("request_pool") == 3

    def test_dp_attention_with_one_group_is_none(self) -> None:
        assert knowing(dp_size=1).look("attn_dp_size") == 1

    def test_an_all_to_all_makes_the_expert_parallel_size_that_of_all_ranks(self) -> None:
        assert knowing(tp_size=8, ep_size=2, moe_a2a_backend="deepep").look("ep_size") == 8
        assert knowing(tp_size=8, ep_size=2, moe_a2a_backend="none").look("ep_size") == 2

    def test_a_config_is_that_of_the_text_model_where_there_is_one(self) -> None:
        inside = {"text_config": {"first_k_dense_replace": 3}, "first_k_dense_replace": 0}

        assert replace(NOTHING, config=inside).look_into_config("first_k_dense_replace") == 3
        assert replace(NOTHING, config={}).look_into_config("first_k_dense_replace") is None

    def test_flags_that_are_not_set_have_defaults_unless_sglang_chooses(self) -> None:
        launch = facts().launch()

        assert launch.look("tp_size") == 1
        assert launch.look("moe_dense_tp_size") is None
        assert answer("attention_backend == 'triton'", launch) is UNKNOWN

    @pytest.mark.parametrize("said", ["auto", None])
    def test_what_is_left_to_sglang_in_so_many_words_is_not_known_either(
        self, said: str | None
    ) -> None:
        launch = facts().launch({"moe_runner_backend": said, "moe_dense_tp_size": None})

        assert answer("moe_runner_backend == 'triton'", launch) is UNKNOWN
        assert answer("moe_dense_tp_size == 1", launch) is NOT

    @pytest.mark.parametrize(
        ("said", "wrong"),
        [({"flags": {"tp": 2}}, "'tp' is unknown"), ({"machine": "H100"}, "'H100' is unknown")],
    )
    def test_a_launch_of_something_unknown_is_refused(
        self, said: dict[str, Any], wrong: str
    ) -> None:
        with pytest.raises(ValueError, match=wrong):
            facts().launch(**said)


class TestConditions:
    def condition(self, **table: Any) -> Condition:
        return facts().condition(table)  # type: ignore[arg-type]

    def test_one_part_that_does_not_hold_is_enough_whatever_else_is_unknown(self) -> None:
        one = self.condition(
            releases=">=0.5.11", architectures=["GptOssForCausalLM"], flags=["tp_size > 1"]
        )

        assert one.answer(NOTHING) is UNKNOWN
        assert one.answer(replace(NOTHING, release="0.5.10.post1")) is NOT
        assert one.answer(replace(NOTHING, architecture="Qwen3MoeForCausalLM")) is NOT
        assert one.answer(knowing(tp_size=1)) is NOT

    def test_what_no_launch_can_tell_is_at_best_may(self) -> None:
        one = self.condition(flags=["tp_size > 1"], also="GPU memory is short")

        assert one.answer(knowing(tp_size=2)) is MAY
        assert one.answer(knowing(tp_size=1)) is NOT
        assert one.answer(NOTHING) is UNKNOWN

    def test_a_post_release_is_within_a_half_open_range(self) -> None:
        one = self.condition(releases=">=0.5.12,<0.5.13")

        assert one.answer(replace(NOTHING, release="0.5.12.post1")) is MEETS

    def test_a_family_stands_for_its_architectures_and_others_can_be_left_out(self) -> None:
        family = "models with Gemma's RMSNorm"
        qwen = replace(NOTHING, architecture="Qwen3NextForCausalLM")
        gpt = replace(NOTHING, architecture="GptOssForCausalLM")

        assert self.condition(architectures=[family]).answer(qwen) is MEETS
        assert self.condition(architectures=[family]).answer(gpt) is NOT
        assert self.condition(other_than=[family]).answer(qwen) is NOT
        assert self.condition(other_than=[family]).answer(gpt) is MEETS
        assert self.condition(other_than=[family]).answer(NOTHING) is UNKNOWN

    def test_a_machine_is_one_of_those_that_are_named(self) -> None:
        one = self.condition(machines=["Hopper", "H20"])

        assert one.answer(replace(NOTHING, machine="H20")) is MEETS
        assert one.answer(replace(NOTHING, machine="AMD")) is NOT

    def test_several_conditions_are_met_by_one_of_them(self) -> None:
        both = [self.condition(flags=["tp_size > 1"]), self.condition(flags=["pp_size > 1"])]

        assert judge(both, knowing(tp_size=1, pp_size=2)) is MEETS
        assert judge(both, knowing(tp_size=1)) is UNKNOWN
        assert judge(both, knowing(tp_size=1, pp_size=1)) is NOT

    def test_why_is_told_in_words_down_to_what_a_fact_is_made_of(self) -> None:
        one = [self.condition(flags=["flashinfer_fusion", "pp_size > 1"])]
        launch = facts().launch(
            {"tp_size": 2, "pp_size": 2}, release="0.5.12", architecture="GptOssForCausalLM"
        )

        assert reasons(one, launch) == (UNKNOWN, ("on Hopper, Blackwell",))
        assert reasons(one, replace(launch, machine="AMD"))[0] is NOT
        found = reasons(one, replace(launch, machine="Hopper"))
        assert found == (MEETS, ("FlashInfer's all-reduce fusion on", "`--pp-size` > 1"))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("tp_size == dp_size == ep_size > 1", "`--tp-size` = `--dp-size` = `--ep-size` > 1"),
            ("1 < ep_size < tp_size", "1 < `--ep-size` < `--tp-size`"),
            ("moe_dense_tp_size == 1", "`--moe-dense-tp-size 1`"),
            ("not enable_dp_attention", "no `--enable-dp-attention`"),
            ("not dp_attention", "no DP attention (`--enable-dp-attention`, `--dp-size` > 1)"),
            ("moe_a2a_backend in ('mori', 'nixl')", "`--moe-a2a-backend` `mori` or `nixl`"),
            ("request_pool % attn_tp_size != 0", "request pool % attention-TP size ≠ 0"),
            ("moe_a2a_backend != 'none'", "`--moe-a2a-backend` ≠ `none`"),
            ('machine == "H20"', "on H20"),
            ("SGLANG_USE_AITER", "`SGLANG_USE_AITER`"),
            (
                "moe_dense_tp_size == 1 or dp_attention",
                "either `--moe-dense-tp-size 1`, or DP attention (`--enable-dp-attention`, `--dp-size` > 1)",
            ),
        ],
    )
    def test_it_is_written_as_an_operator_types_it(self, text: str, words: str) -> None:
        assert self.condition(flags=[text]).words == (words,)


FLAGS = {
    "tp_size": st.sampled_from([1, 2, 3, 4, 8]),
    "dp_size": st.sampled_from([1, 2, 4]),
    "ep_size": st.sampled_from([1, 2, 4]),
    "pp_size": st.sampled_from([1, 2]),
    "attn_cp_size": st.sampled_from([1, 2]),
    "moe_dp_size": st.sampled_from([1, 2]),
    "nnodes": st.sampled_from([1, 2]),
    "max_running_requests": st.integers(1, 9),
    "moe_dense_tp_size": st.sampled_from([None, 1]),
    "attention_backend": st.sampled_from(["triton", "flashinfer", "fa3"]),
    "moe_runner_backend": st.sampled_from(["flashinfer_trtllm", "triton"]),
    "moe_a2a_backend": st.sampled_from(["none", "deepep", "mooncake", "nixl", "flashinfer"]),
    "speculative_algorithm": st.sampled_from([None, "EAGLE3", "DFLASH"]),
    "hicache_write_policy": st.sampled_from(["write_back", "write_through"]),
    "flashinfer_allreduce_fusion_backend": st.sampled_from([None, "auto"]),
}
EVERY_FLAG = {name: FLAGS.get(name, st.booleans()) for name in sorted(facts().names)}


@st.composite
def launches(draw: st.DrawFn) -> Launch:
    """A launch of which everything is known."""
    architecture = draw(st.sampled_from(sorted(facts().called)))
    dense = draw(st.sampled_from([0, 3]))
    return Launch(
        draw(st.sampled_from(PATCHES[0].fingerprints.releases)),
        {name: draw(value) for name, value in EVERY_FLAG.items()},
        architecture,
        {"architectures": [architecture], "first_k_dense_replace": dense},
        draw(st.sampled_from(facts().machines)),
    )


def less(launch: Launch, draw: st.DrawFn) -> Launch:
    """The same with a part of it unknown."""
    every = st.lists(st.booleans(), min_size=len(launch.flags), max_size=len(launch.flags))
    known = [name for name, is_known in zip(launch.flags, draw(every), strict=True) if is_known]
    kept = {name: draw(st.booleans()) for name in ("release", "architecture", "config", "machine")}
    return Launch(
        launch.release if kept["release"] else None,
        {name: value for name, value in launch.flags.items() if name in known},
        launch.architecture if kept["architecture"] else None,
        launch.config if kept["config"] else None,
        launch.machine if kept["machine"] else None,
    )


# What knowing more may turn an answer into.
LATER = {NOT: {NOT}, UNKNOWN: set(Answer), MAY: {MAY, MEETS}, MEETS: {MEETS}}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_knowing_more_never_takes_back_what_was_known(data: st.DataObject) -> None:
    whole = data.draw(launches())
    part = less(whole, data.draw)
    least = less(part, data.draw)
    for entry in PATCHES:
        answers = [entry.answer(launch) for launch in (least, part, whole)]
        assert answers[1] in LATER[answers[0]], entry.id
        assert answers[2] in LATER[answers[1]], entry.id


@settings(max_examples=60, deadline=None)
@given(launches())
def test_of_a_launch_that_is_known_whole_everything_can_be_told(launch: Launch) -> None:
    assert UNKNOWN not in {entry.answer(launch) for entry in PATCHES}


class TestAnEntry:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"meets": []}, "an entry says when its fault is met"),
            ({"meets": [{"flags": ["tp_sise > 1"]}]}, "'tp_sise' is unknown; there may be "),
            ({"meets": [{"flags": ["tp_size >"]}]}, "'tp_size >' is no expression; it may hold "),
            ({"meets": [{"config": ["layers > 0"]}]}, "'layers' is unknown; there may be first_k"),
            ({"meets": [{"architectures": ["Gpt"]}]}, "'Gpt' is unknown; there may be "),
            ({"meets": [{"other_than": ["Gpt"]}]}, "'Gpt' is unknown; there may be "),
            ({"meets": [{"machines": ["H100"]}]}, "'H100' is unknown; there may be AMD"),
            ({"meets": [{"releases": "new"}]}, "Invalid specifier"),
            ({"meets": [{"flag": ["tp_size > 1"]}]}, "'flag' is unknown; there may be releases"),
            ({"shown": []}, "an entry was shown on ranks"),
            ({"shown": ["H800"]}, "is 'H800', which is none of cpu ranks"),
            ({"avoid": [{"cost": "time"}]}, "what avoids a fault are flags"),
            ({"avoid": [{"what": "a", "flags": {"ep_size": 1}}]}, "what avoids a fault are flags"),
            ({"avoid": [{"flags": {"eps": 1}}]}, "'eps' is unknown; there may be "),
        ],
    )
    def test_what_it_cannot_say_of_launches_is_named_with_its_file_and_key(
        self, tmp_path: Path, upstream: Upstream, changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(RegisterError) as caught:
            upstream.register(tmp_path, patch(**changes))

        said = str(caught.value)
        assert message in said
        assert "patch.toml: " in said
        assert next(iter(changes)) in said or "an entry says" in said or "avoids" in said

    def test_a_release_without_the_fault_does_not_meet_it(
        self, tmp_path: Path, upstream: Upstream
    ) -> None:
        (entry,) = upstream.register(tmp_path).patches
        launch = facts().launch({"tp_size": 2}, release="1.1")

        assert entry.answer(launch) is MEETS
        assert entry.answer(replace(launch, release="1.3")) is NOT
        assert entry.answer(replace(launch, release=None)) is UNKNOWN

    def test_conditions_are_nothing_that_a_lock_is_made_from(
        self, tmp_path: Path, upstream: Upstream
    ) -> None:
        (before,) = upstream.register(tmp_path / "a").patches
        other = {"meets": [{"flags": ["pp_size > 1"]}], "shown": ["H200"], "avoid": [{"what": "x"}]}
        (after,) = upstream.register(tmp_path / "b", patch(**other)).patches

        assert before.meets != after.meets
        assert before.digest == after.digest


class TestFacts:
    GOOD = """
config = ["layers"]
machines = ["big"]
variables = []
unset = []
automatic = []
defaults = { size = 1 }
architectures = { A = "a" }
families = { both = ["A"] }
[[fact]]
id = "large"
says = "it is large"
when = [{ flags = ["size > 1"] }]
"""

    def test_a_fact_holds_if_one_of_its_conditions_does(self, tmp_path: Path) -> None:
        file = tmp_path / "launches.toml"
        file.write_text(self.GOOD)
        known = load_facts(file)

        assert known.facts["large"].answer(known.launch({"size": 2})) is MEETS
        assert known.facts["large"].answer(known.launch()) is NOT

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("size > 1", "sise > 1", "'sise' is unknown; there may be .*size"),
            ("size > 1", "large", "'large' is unknown"),
            ('both = ["A"]', 'both = ["B"]', "'B' is unknown; there may be A"),
            ('id = "large"', 'name = "large"', "'id' is missing"),
            ("size = 1", "size = 1.5", "should be bool or int or str"),
            ("config", "[", "Expected|Invalid"),
        ],
    )
    def test_what_is_wrong_in_the_file_is_named_with_it(
        self, tmp_path: Path, old: str, new: str, message: str
    ) -> None:
        file = tmp_path / "launches.toml"
        file.write_text(self.GOOD.replace(old, new, 1))

        with pytest.raises(RegisterError, match=message) as caught:
            load_facts(file)
        assert str(file) in str(caught.value)
