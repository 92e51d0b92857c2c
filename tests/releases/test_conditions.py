"""What is said of launches, against the wheels, and against what servers and layers have shown."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from rig.entries import FOLDER, declared
from rig.expected import FLAGS as MODEL_FLAGS
from rig.expected import LAYOUTS, RIGHT, TP4_CP4_MOE_DP2, TP4_DP2_CP2
from rig.layers.case import Case
from rig.matrix import expected
from rig.sources.arguments import (
    automatic,
    built_with,
    defaults,
    leaving,
    models,
    spanning,
    texts,
)
from rig.sources.published import RELEASES

from sglang_commfix.engine.conditions import (
    Answer,
    Comparison,
    Condition,
    Constant,
    Fact,
    Launch,
    Logic,
    Membership,
    Name,
    logic_in,
    names_in,
)
from sglang_commfix.engine.register import Patch, facts, load, patches_folder
from sglang_commfix.run.plan import DEFAULT_KINDS


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
REGISTER = {patch.id: patch for patch in load().patches}
DATA = tomllib.loads((patches_folder() / "launches.toml").read_text())
TABLES = {fact["id"]: fact["when"] for fact in DATA["fact"]}

each_release = pytest.mark.parametrize("release", RELEASES)
reads_wheels = pytest.mark.releases
pytestmark = pytest.mark.one_python


def holds(table: Mapping[str, Any], release: str) -> bool:
    return SpecifierSet(table.get("releases", "")).contains(release, prereleases=True)


class TestDefaults:
    pytestmark = reads_wheels

    @each_release
    def test_a_flag_that_is_not_set_is_what_the_release_makes_of_it(self, release: str) -> None:
        known = defaults(release)

        for name, value in {**DATA["defaults"], **dict.fromkeys(DATA["unset"])}.items():
            if name in known and (release, name) not in CHANGED:
                assert (name, known[name]) == (name, value)

    def test_every_flag_is_one_of_some_release_and_variables_are_read(self) -> None:
        names = {*DATA["defaults"], *DATA["unset"], *DATA["automatic"]}

        assert names <= {name for release in RELEASES for name in defaults(release)}

    @pytest.mark.parametrize("name", DATA["automatic"])
    def test_what_is_chosen_by_itself_has_no_value_until_then(self, name: str) -> None:
        assert {defaults(release).get(name) for release in RELEASES} <= {None, "auto"}


# 0.5.1 writes to host memory by another policy; its HiCache has none of the faults.
CHANGED = {
    (release, "hicache_write_policy") for release in RELEASES if Version(release) < Version("0.5.2")
}


class TestFusionByItself:
    pytestmark = reads_wheels

    @each_release
    def test_it_is_for_the_architectures_and_machines_of_the_release_and_asks_for_the_same(
        self, release: str
    ) -> None:
        read = {
            (architecture, machine): frozenset({*place.asks, "tp_size > 1"})
            for place in automatic(release)
            for architecture in place.architectures
            for machine in place.machines
        }
        (rest,) = (
            set(table["flags"])
            for table in TABLES["flashinfer_fusion"]
            if "flashinfer_fusion_by_itself" in table["flags"] and holds(table, release)
        )
        rest -= {
            "flashinfer_fusion_by_itself",
            "not enable_deterministic_inference",
            "not enforce_disable_flashinfer_allreduce_fusion",
        }
        said = {
            (architecture, machine): frozenset({*table["flags"], *rest})
            for table in TABLES["flashinfer_fusion_by_itself"]
            if holds(table, release) and "also" not in table
            for architecture in table["architectures"]
            for machine in table["machines"]
        }

        assert said == read

    def test_only_from_0_5_23_on_it_is_for_mimo_v2_too(self) -> None:
        names = "MiMoV2ForCausalLM", "MiMoV2FlashForCausalLM"
        for release in RELEASES:
            text = texts(release).get("sglang/srt/arg_groups/overrides.py", "")
            assert (f"model_arch in {names}".replace("'", '"') in text) == (release == "0.5.23")

    @each_release
    def test_what_switches_it_off_exists_in_the_release(self, release: str) -> None:
        text = "\n".join(texts(release).values())
        wanted = {
            "not enforce_disable_flashinfer_allreduce_fusion": re.search(
                r"if (self|view)\.enforce_disable_flashinfer_allreduce_fusion:", text
            ),
            "not enable_deterministic_inference": re.search(
                r"enforce_disable_flashinfer_allreduce_fusion\s*=\s*True", text
            ),
        }
        for table in TABLES["flashinfer_fusion"]:
            if holds(table, release):
                for ask, found in wanted.items():
                    if ask.removeprefix("not ") in defaults(release):
                        assert (ask in table["flags"]) == bool(found), (ask, table)

    @each_release
    def test_architectures_of_which_it_is_said_leave_all_reduces_to_the_next_layer(
        self, release: str
    ) -> None:
        said = {
            architecture
            for table in TABLES["leaves_allreduce"]
            if holds(table, release)
            for architecture in table.get("architectures", ())
        }

        assert said <= leaving(release) | {
            # Their layers are chosen by names in a dictionary.
            "KimiVLForConditionalGeneration",
            "NemotronHPuzzleForCausalLM",
        }
        assert bool(said) == bool(leaving(release))


class TestWhatElseIsSaidOfReleases:
    pytestmark = reads_wheels

    def test_every_architecture_is_one_of_some_release(self) -> None:
        every = {text for release in RELEASES for text in models(release).values()}
        words = {word for text in every for word in re.findall(r"\w+", text)}

        assert facts().called.keys() <= words

    def test_models_with_gemmas_norm_are_those_that_leave_all_reduces_and_have_it(self) -> None:
        entry = REGISTER["32963-hybrid-ep-tp-fusion"]
        having = {
            name
            for release in entry.affected_releases
            for name in built_with(release, "GemmaRMSNorm") & leaving(release)
            if name in facts().called
        }

        assert having == set(facts().classes["models with Gemma's RMSNorm"])

    @each_release
    def test_an_all_to_all_makes_the_expert_parallel_size_the_tensor_parallel_size(
        self, release: str
    ) -> None:
        asked = {
            str(value)
            for one in REGISTER["34006-moe-all-to-all-double-reduce"].meets
            if one.releases.contains(release, True)
            for part in one.flags
            for value in values_of(part)
        }

        assert asked <= spanning(release)
        assert not {"none", "ascend_tp"} & spanning(release)
        assert "deepep" in spanning(release)


def values_of(part: Logic) -> tuple[Any, ...]:
    """The words that an all-to-all is compared with."""
    if isinstance(part, Membership):
        return part.values
    if isinstance(part, Comparison) and part.operands[0] == Name("moe_a2a_backend"):
        return tuple(one.value for one in part.operands[1:] if isinstance(one, Constant))
    return ()


class TestAvoidance:
    @each_release
    @pytest.mark.releases
    def test_the_flags_are_those_of_every_release_for_which_it_is_said(self, release: str) -> None:
        for patch in REGISTER.values():
            for one in patch.avoid:
                if release in patch.affected_releases and one.releases.contains(release, True):
                    assert one.flags.keys() <= defaults(release).keys()

    def test_a_launch_that_meets_a_fault_does_not_with_the_flags_that_avoid_it(self) -> None:
        found = set()
        for shown in SHOWN:
            patch = REGISTER[shown.entry]
            for one in patch.avoid:
                release = shown.launch.release or ""
                if one.flags and one.releases.contains(release, True):
                    flags = {**shown.launch.flags, **one.flags}
                    changed = Launch(
                        release, flags, shown.launch.architecture, shown.launch.config,
                        shown.launch.machine,
                    )  # fmt: skip
                    assert patch.answer(changed) is Answer.NOT, (shown, one)
                    found.add(patch.id)

        assert found == {p.id for p in REGISTER.values() if any(one.flags for one in p.avoid)}


# What the rig's models and those of benchmarks/gpu are.
ARCHITECTURES = {
    "deepseek-v3": "DeepseekV3ForCausalLM",
    "glm4-moe": "Glm4MoeForCausalLM",
    "gpt-oss": "GptOssForCausalLM",
    "qwen3-moe": "Qwen3MoeForCausalLM",
    "qwen3-next": "Qwen3NextForCausalLM",
    "qwen3-vl-moe": "Qwen3VLMoeForConditionalGeneration",
    "DeepSeek-V3-like": "DeepseekV3ForCausalLM",
    "Qwen3-MoE-like": "Qwen3MoeForCausalLM",
}
SHORT = {"tp": "tp_size", "dp": "dp_size", "ep": "ep_size"}
ASKED = {"enable_flashinfer_allreduce_fusion": True}
# Or on a CPU: with a GPU that could fuse.
NOT_FUSED_NAME = "enforce_disable_flashinfer_allreduce_fusion"
NOT_FUSED = {NOT_FUSED_NAME: True}


@dataclass(frozen=True)
class Shown:
    """A launch in which an entry was shown."""

    entry: str
    launch: Launch
    where: str

    def __str__(self) -> str:
        return f"{self.entry} {self.launch.release} {self.where}"


def launch(
    release: str, model: str, flags: Mapping[str, Any], *, dense: int | None = None
) -> Launch:
    """A launch on a Hopper, with the flags that conditions know; `dense` layers are in front."""
    known = {name: value for name, value in flags.items() if name in facts().names}
    architecture = ARCHITECTURES[model]
    if dense is None:
        dense = 1 if model in {"deepseek-v3", "DeepSeek-V3-like", "glm4-moe"} else 0
    config = {"architectures": [architecture], "first_k_dense_replace": dense}
    # Before 0.5.10 nothing switches off what switches itself on: so it is on another machine.
    old = Version(release) < Version("0.5.10")
    machine = "NVIDIA" if old and known.get(NOT_FUSED_NAME) else "Hopper"
    return facts().launch(known, release=release, config=config, machine=machine)


def of_command(words: str) -> dict[str, Any]:
    """The flags of a command line, by their names in ServerArgs."""
    found: dict[str, Any] = {}
    name = ""
    for word in words.split():
        if word.startswith("--"):
            name = word.removeprefix("--").replace("-", "_")
            name = SHORT.get(name, name)
            found[name] = True
        else:
            found[name] = int(word) if word.isdecimal() else word
    return found


def of_case(release: str, case: Case) -> Launch:
    """A case of layers, as a server would be launched that has such layers."""
    layout = case.layout
    flags: dict[str, Any] = {
        "tp_size": layout.tp, "dp_size": layout.dp, "ep_size": layout.ep, "pp_size": layout.pp,
        "attn_cp_size": layout.attn_cp, "moe_dp_size": layout.moe_dp,
        "moe_dense_tp_size": layout.moe_dense_tp, "enable_dp_attention": layout.dp > 1,
        "speculative_algorithm": "EAGLE3" if case.capture else None,
        "moe_a2a_backend": case.all_to_all or "none",
        **(ASKED if case.fusion else NOT_FUSED),
    }  # fmt: skip
    model = "qwen3-vl-moe" if case.deepstack else case.model
    return launch(release, model, flags, dense=case.layers.count("D"))


def affected(entry: str, releases: str = "") -> list[str]:
    wanted = SpecifierSet(releases)
    return [r for r in REGISTER[entry].affected_releases if wanted.contains(r, prereleases=True)]


def shown_by_layers() -> Iterator[Shown]:
    for entry, proofs in declared("layers.py", "PROOFS"):
        for proof in proofs:
            for release in affected(entry, proof.releases):
                yield Shown(entry, of_case(release, proof.case), f"layers {proof.case}")


TP_2 = {"tp_size": 2}
TP_2_PP_2 = {"tp_size": 2, "pp_size": 2}
DP_2 = {"tp_size": 2, "dp_size": 2, "enable_dp_attention": True}
DENSE_TP_1 = {"tp_size": 2, "moe_dense_tp_size": 1}
TRITON = {"attention_backend": "triton"}
HICACHE = {"tp_size": 2, "enable_hierarchical_cache": True}
# The servers and ranks of an entry's own tests: what they are given, and what is forced there.
OF_TESTS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "11665-glm4-moe-double-reduce": [("==0.5.4.post2", "glm4-moe", DP_2)],
    "19918-dummy-run-alignment": [
        (releases, "deepseek-v3", {**DENSE_TP_1, "max_running_requests": pool, **more})
        for releases, pool, more in (
            ("==0.5.6.post2", 5, {"enable_flashinfer_autotune": True, "attention_backend": "flashinfer"}),
            ("==0.5.9", 5, {"moe_runner_backend": "flashinfer_trtllm"}),
            (">=0.5.10", 1, {"moe_runner_backend": "flashinfer_mxfp4"}),
            (">=0.5.11", 1, {"moe_runner_backend": "flashinfer_cutedsl"}),
        )
    ],
    "19918-scattered-mlp-fusion": [(">=0.5.7", "deepseek-v3", DENSE_TP_1)],
    "21249-cp-allreduce-fusion": [("", "qwen3-moe", {"tp_size": 4, "attn_cp_size": 2, "moe_dp_size": 2})],
    "21249-workspace-preinit": [("", "qwen3-moe", TP_2_PP_2), ("", "deepseek-v3", TP_2)],
    "22003-moe-cp-decoupled": [("", "qwen3-moe", {"tp_size": 2, "attn_cp_size": 2, "moe_dp_size": 1})],
    "22642-dp-reduce-scatterv": [(">=0.5.9", "deepseek-v3", {**DP_2, "ep_size": 2})],
    "24452-workspace-groups": [("", "deepseek-v3", TP_2_PP_2), ("", "qwen3-moe", {"tp_size": 4, "ep_size": 2})],
    "24785-sum-len-contract": [("", "deepseek-v3", {**DP_2, "ep_size": 2})],
    "25404-idle-batch-mlp-sync": [("", "deepseek-v3", {**DP_2, "disaggregation_mode": "decode"})],
    "26923-hicache-writing-check": [("", "qwen3-moe", HICACHE)],
    "26923-himamba-writing-check": [("<0.5.13", "qwen3-next", HICACHE)],
    "27489-unified-writing-check": [
        ("", "qwen3-moe", {**HICACHE, "SGLANG_ENABLE_UNIFIED_RADIX_TREE": True})
    ],
    "28619-pipeline-stage-fusion": [(">=0.5.7", "deepseek-v3", TP_2_PP_2)],
    "32663-reduce-scatterv-sizes": [
        ("", "qwen3-moe", {"tp_size": 4, "dp_size": 2, "enable_dp_attention": True, "ep_size": 2})
    ],
    "32963-hybrid-ep-tp-fusion": [("", "deepseek-v3", {"tp_size": 4, "ep_size": 2})],
    "37199-gpt-oss-double-reduce": [("", "gpt-oss", {**DP_2, "ep_size": 2, **TRITON})],
    "declined-fused-allreduce": [(">=0.5.7", "deepseek-v3", TP_2), ("", "gpt-oss", {**TP_2, **ASKED})],
    "eagle3-partial-sums": [
        (">=0.5.7", "gpt-oss", {**TP_2, "speculative_algorithm": "EAGLE3"}),
        (">=0.5.7", "glm4-moe", {**TP_2, "speculative_algorithm": "DFLASH"}),
    ],
    "pipeline-fusion-workspace": [("", "deepseek-v3", {**TP_2_PP_2, **ASKED})],
    "qwen3-moe-ep-double-reduce": [("", "qwen3-moe", {**DP_2, "ep_size": 2})],
    "qwen3-vl-deepstack-fusion": [
        ("", "qwen3-vl-moe", {**TP_2, **ASKED}), (">=0.5.14", "qwen3-vl-moe", TP_2)
    ],
    "triton-pool-alignment": [
        ("", "deepseek-v3", {**DENSE_TP_1, **TRITON, "max_running_requests": 3}),
        ("", "deepseek-v3", {**DP_2, "tp_size": 4, **TRITON, "max_running_requests": 6}),
    ],
    "workspace-on-some-ranks": [("", "qwen3-moe", TP_2)],
}  # fmt: skip


# Launches next to them that are right: of an entry's tests, or by its text.
RIGHT_BESIDE: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "11665-glm4-moe-double-reduce": [("", "glm4-moe", TP_2), ("", "deepseek-v3", DP_2)],
    "19918-dummy-run-alignment": [
        (">=0.5.7", "deepseek-v3", {**DENSE_TP_1, "max_running_requests": 4}),
        (">=0.5.7", "deepseek-v3", {**TP_2, "max_running_requests": 3}),
        (">=0.5.10", "deepseek-v3", {**DENSE_TP_1, "max_running_requests": 3}),
        (">=0.5.7", "deepseek-v3", {**DENSE_TP_1, "moe_runner_backend": "triton"}),
    ],
    "19918-scattered-mlp-fusion": [("", "deepseek-v3", TP_2), ("", "qwen3-moe", DENSE_TP_1)],
    "21249-workspace-preinit": [("", "qwen3-moe", {**TP_2_PP_2, **DP_2})],
    "22003-moe-cp-decoupled": [
        ("", "qwen3-moe", {"tp_size": 2, "attn_cp_size": 2, "moe_dp_size": 2}),
        ("", "deepseek-v3", {"tp_size": 4, "attn_cp_size": 2}),
    ],
    "22642-dp-reduce-scatterv": [
        ("", "deepseek-v3", {**DP_2, "ep_size": 2, "enable_symm_mem": True}),
        ("", "deepseek-v3", {**DP_2, "ep_size": 1}),
    ],
    "24785-sum-len-contract": [("", "qwen3-moe", {**DP_2, "ep_size": 2})],
    "26923-hicache-writing-check": [
        (">=0.5.10", "qwen3-next", HICACHE),
        ("", "qwen3-moe", {**HICACHE, **DP_2}),
        ("", "qwen3-moe", {**HICACHE, "hicache_write_policy": "write_back"}),
        (">=0.5.12", "qwen3-moe", {**HICACHE, "SGLANG_ENABLE_UNIFIED_RADIX_TREE": True}),
    ],
    "26923-himamba-writing-check": [("", "qwen3-moe", HICACHE), (">=0.5.13", "qwen3-next", HICACHE)],
    "27489-unified-writing-check": [("", "qwen3-moe", HICACHE)],
    "28619-pipeline-stage-fusion": [
        (">=0.5.14", "qwen3-moe", TP_2_PP_2),
        ("", "deepseek-v3", TP_2),
        (">=0.5.4.post1", "deepseek-v3", {**TP_2_PP_2, **DP_2, **ASKED}),
    ],
    "32663-reduce-scatterv-sizes": [("", "qwen3-moe", {**DP_2, "ep_size": 2})],
    "32963-hybrid-ep-tp-fusion": [
        ("", "qwen3-next", {"tp_size": 4, "ep_size": 2}),
        ("", "qwen3-moe", {"tp_size": 4, "ep_size": 4}),
        ("", "qwen3-moe", {"tp_size": 4, "ep_size": 2, "moe_a2a_backend": "deepep"}),
    ],
    "34006-moe-all-to-all-double-reduce": [
        ("", "qwen3-moe", {**TP_2, "moe_a2a_backend": "deepep"}),
        (">=0.5.18", "qwen3-moe", {**TP_2, "moe_a2a_backend": "mooncake"}),
        ("", "deepseek-v3", {**TP_2, "moe_a2a_backend": "mooncake"}),
    ],
    "37199-gpt-oss-double-reduce": [
        ("", "gpt-oss", {**DP_2, "tp_size": 4, "ep_size": 2}), ("", "qwen3-moe", {**DP_2, "ep_size": 2})
    ],
    "eagle3-partial-sums": [
        (">=0.5.4.post2", "qwen3-moe", {**TP_2, **ASKED, "speculative_algorithm": "EAGLE3"}),
        (">=0.5.14", "deepseek-v3", {**TP_2, **ASKED, "speculative_algorithm": "EAGLE3"}),
        ("", "gpt-oss", {**TP_2, **ASKED, "speculative_algorithm": "EAGLE"}),
    ],
    "qwen3-moe-ep-double-reduce": [("", "qwen3-moe", DP_2)],
    "qwen3-vl-deepstack-fusion": [("<0.5.14", "qwen3-vl-moe", TP_2), ("", "qwen3-moe", TP_2)],
    "triton-pool-alignment": [
        ("", "deepseek-v3", {**DENSE_TP_1, **TRITON, "max_running_requests": 4}),
        ("", "deepseek-v3", {**TP_2, **TRITON, "max_running_requests": 3}),
        ("", "deepseek-v3", {**DENSE_TP_1, "attention_backend": "fa3", "max_running_requests": 3}),
    ],
}  # fmt: skip


def shown_by_tests() -> Iterator[Shown]:
    for entry, launches in OF_TESTS.items():
        for releases, model, flags in launches:
            for release in affected(entry, releases):
                yield Shown(entry, launch(release, model, flags), f"tests {model} {flags}")


def matrix_launch(release: str, model: str, layout: Any) -> Launch:
    flags = of_command(" ".join((*layout.flags, *MODEL_FLAGS[model])))
    fused = ASKED if layout.fused else NOT_FUSED
    return launch(release, model, {"max_running_requests": 8, **flags, **fused})


def shown_by_matrix() -> Iterator[Shown]:
    for entry, all_of_them in declared("matrix.py", "EXCEPTIONS"):
        for one in all_of_them:
            for layout, release, model in product(one.layouts, one.releases, one.models):
                there = model in layout.models and release in layout.releases
                if there and None in one.patches and layout not in NOT_HELPED.get(entry, ()):
                    seen = matrix_launch(release, model, layout)
                    yield Shown(entry, seen, f"servers {model} {layout.name}")


# Rejected with the patch as well, in other words.
NOT_HELPED = {"22003-moe-cp-decoupled": (TP4_DP2_CP2, TP4_CP4_MOE_DP2)}


def results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / name).read_text())
    return found


def gpu_launch(case: Mapping[str, Any]) -> Launch:
    hooks = case.get("hooks") or {}
    model = "qwen3-vl-moe" if "GPU_DEEPSTACK" in hooks else case["model"]
    forced = {"speculative_algorithm": "EAGLE3"} if "GPU_CAPTURE" in hooks else {}
    if case.get("warm_up_forced"):
        forced = {"moe_runner_backend": "flashinfer_trtllm"}
    flags = {**TRITON, "max_running_requests": 48, **case["flags"], **forced}
    if model == "qwen3-vl-moe" and case["release"] == "0.5.12.post1":
        flags |= ASKED  # by itself for what it is made of, Qwen3 MoE's layers
    return launch(case["release"], model, flags)


def shown_on_two_gpus() -> Iterator[Shown]:
    for case in results("h100-two-gpus.json")["cases"]:
        if case.get("arm") == "unpatched" and case["entry"] != "none":
            yield Shown(case["entry"], gpu_launch(case), f"two GPUs {case['case']}")


SHOWN = tuple(chain(shown_by_layers(), shown_by_tests(), shown_by_matrix(), shown_on_two_gpus()))
# A launch can meet it at best in part.
ONLY_MAY = {patch.id for patch in REGISTER.values() if all(one.also for one in patch.meets)}
PARTLY = {"21249-workspace-preinit", "24452-workspace-groups"}


def met(seen: Launch) -> set[str]:
    """What is wrong with a launch, as far as it can tell."""
    return {
        patch.id
        for patch in REGISTER.values()
        if patch.kind in DEFAULT_KINDS and patch.answer(seen) is Answer.MEETS
    }


class TestWhatWasShown:
    @pytest.mark.parametrize("entry", REGISTER)
    def test_a_launch_in_which_an_entry_was_shown_meets_it(self, entry: str) -> None:
        answers = {
            str(one): REGISTER[entry].answer(one.launch) for one in SHOWN if one.entry == entry
        }

        assert answers, f"what its own tests launch stands in OF_TESTS: {entry} is not there"
        wanted = {Answer.MAY} if entry in ONLY_MAY else {Answer.MEETS}
        if entry in PARTLY:
            wanted = {Answer.MAY, Answer.MEETS}
        assert {one: str(got) for one, got in answers.items() if got not in wanted} == {}
        assert wanted <= set(answers.values())

    @pytest.mark.parametrize("entry", REGISTER)
    def test_it_meets_it_in_no_release_without_the_fault(self, entry: str) -> None:
        patch = REGISTER[entry]
        others = [release for release in RELEASES if release not in patch.affected_releases]
        for one in SHOWN:
            if one.entry == entry:
                for release in others:
                    assert patch.answer(replace(one.launch, release=release)) is Answer.NOT

    @pytest.mark.parametrize("entry", RIGHT_BESIDE)
    def test_a_launch_beside_it_that_is_right_does_not_meet_it(self, entry: str) -> None:
        for releases, model, flags in RIGHT_BESIDE[entry]:
            assert affected(entry, releases), releases
            for release in affected(entry, releases):
                found = REGISTER[entry].answer(launch(release, model, flags))
                assert found is Answer.NOT, (release, model, flags, str(found))

    @pytest.mark.parametrize("entry", REGISTER)
    def test_where_nothing_is_known_but_the_release_nothing_can_be_told(self, entry: str) -> None:
        patch = REGISTER[entry]
        nothing = Launch(patch.affected_releases[0], {}, None, None, None)

        assert patch.answer(nothing) is Answer.UNKNOWN

    def test_one_rank_meets_nothing(self) -> None:
        for release in RELEASES:
            for model in ARCHITECTURES:
                seen = launch(release, model, {**TRITON, "max_running_requests": 7})
                met_or_may = {p.id for p in REGISTER.values() if p.answer(seen) is not Answer.NOT}
                assert met_or_may == set(), (release, model)

    def test_servers_that_are_right_without_patches_meet_nothing(self) -> None:
        right = {
            (release, model, layout)
            for layout in LAYOUTS
            for release in layout.releases
            for model in layout.models
            if expected(release, model, layout, None) == RIGHT
        }

        found = {
            f"{release} {model} {layout.name}": met(matrix_launch(release, model, layout))
            for release, model, layout in right
        }
        assert len(found) > 20
        assert {where: ids for where, ids in found.items() if ids} == {}

    def test_servers_that_were_wrong_or_died_without_patches_meet_something(self) -> None:
        layouts = {layout.name: layout for layout in LAYOUTS}
        rows = [
            row
            for row in results("servers.json")["cells"]
            if row["patches"] is None and row["found"]["outcome"] in {"wrong", "dies"}
        ]

        assert len(rows) >= 13
        for row in rows:
            layout = layouts[row["layout"]]
            seen = matrix_launch(row["release"], row["model"], layout)
            assert met(seen), (row["release"], row["model"], row["layout"])

    def test_two_gpus_on_which_nothing_was_wrong_meet_nothing(self) -> None:
        right = [
            case
            for case in results("h100-two-gpus.json")["cases"]
            if case.get("entry") in {None, "none"} and case.get("arm") != "patched"
        ]

        assert len(right) > 10
        assert {case["case"]: ids for case in right if (ids := met(gpu_launch(case)))} == {}

    def test_ranks_on_one_gpu_meet_something_where_they_were_wrong_and_nothing_elsewhere(
        self,
    ) -> None:
        wrong, right = set(), set()
        for case in results("h100-several-ranks.json")["cases"]:
            if case["SGLANG_COMMFIX"] is None:
                (wrong if was_wrong(case) else right).add(case["case"])
                seen = gpu_launch(case)
                if case["case"] in NOT_FUSED_THERE:
                    seen = replace(seen, flags={**seen.flags, **NOT_FUSED})
                ids = met(seen) | {
                    p.id for p in REGISTER.values()
                    if p.id in MAY_THERE.get(case["case"], ()) and p.answer(seen) >= Answer.MAY
                }  # fmt: skip
                assert bool(ids) == was_wrong(case), (case["case"], ids)

        assert len(wrong) >= 8
        assert len(right) >= 8


# From FlashInfer 0.6.11 on ranks that share a GPU cannot fuse.
NOT_FUSED_THERE = {"ds-dense1s-12"}
# No launch can tell that a rank gets no memory. What is a feature is refused without it.
MAY_THERE = {
    "qw-oom1-10": ("21249-workspace-preinit",),
    "qw-cp2-10": ("22003-moe-cp-decoupled",),
}


def was_wrong(case: Mapping[str, Any]) -> bool:
    """It ended otherwise, or went on with other tokens from near the beginning."""
    if "outcome" in case:
        return True
    figures = [case[name] for name in ("all_at_once", "one_by_one") if name in case]
    return any(int(figure["greedy"].split()[0]) < 20 for figure in figures)


# Words by which a text may speak of what is no flag by itself. Any will do; none: of nothing.
IN_WORDS: dict[str, tuple[str, ...]] = {
    "aiter_fusion": ("aiter",),
    "dp_attention": ("--enable-dp-attention", "DP attention"),
    "flashinfer_fusion": ("all-reduce fusion",),
    "flashinfer_fusion_by_itself": ("fusion switches itself on",),
    "leaves_allreduce": (),
    "attn_dp_size": ("--dp-size",),
    "attn_tp_size": ("attention-TP size",),
    "nnodes": ("--nnodes", "on one node"),
    "request_pool": ("--max-running-requests",),
}
# Flags that texts name and no condition asks for, each with the reason.
NOT_ASKED_FOR = {
    ("22003-moe-cp-decoupled", "--enable-prefill-context-parallel"): "refused with it and without",
    ("22642-dp-reduce-scatterv", "--chunked-prefill-size"): "it says how much is gained",
    ("25404-idle-batch-mlp-sync", "--disaggregation-mode"): "reported with it, possible without",
    ("triton-pool-alignment", "--tp"): "the short name, in an example",
}


def text_of(patch: Patch) -> str:
    return re.sub(r"\s+", " ", f"{patch.flags} {patch.hits}")


def plain(text: str) -> str:
    """Models are written with blanks and with hyphens."""
    return re.sub(r"[^a-z0-9.]", "", text.casefold())


def flags_of(conditions: Iterable[Condition]) -> set[str]:
    """Those that conditions ask for, by themselves or in a fact."""
    asked = list(names_in(conditions))
    found = {name.flag for name in asked if name.flag}
    if {"attn_dp_size", "attn_tp_size"} & {name.name for name in asked}:
        found |= {"--dp-size", "--enable-dp-attention"}
    if "request_pool" in {name.name for name in asked}:
        found.add("--max-running-requests")
    for one in logic_in(conditions):
        found |= flags_of(one.when) if isinstance(one, Fact) else set()
    return found


@pytest.mark.parametrize("entry", REGISTER)
def test_a_condition_is_about_some_affected_release(entry: str) -> None:
    for one in REGISTER[entry].meets:
        assert any(one.releases.contains(r, True) for r in REGISTER[entry].affected_releases), one


class TestTexts:
    @pytest.mark.parametrize("entry", REGISTER)
    def test_they_name_every_flag_and_fact_that_a_condition_asks_for(self, entry: str) -> None:
        patch = REGISTER[entry]
        names = [name for name in names_in(patch.meets) if not name.in_config]
        wanted = {name.name: IN_WORDS.get(name.name, (name.flag or name.name,)) for name in names}
        wanted |= {
            one.id: IN_WORDS[one.id] for one in logic_in(patch.meets) if isinstance(one, Fact)
        }
        text = text_of(patch)

        missing = {
            name
            for name, words in wanted.items()
            if words and not any(one in text for one in words)
        }
        assert missing == set()

    @pytest.mark.parametrize("entry", REGISTER)
    def test_they_name_every_architecture_that_a_condition_names(self, entry: str) -> None:
        patch = REGISTER[entry]
        text = plain(text_of(patch))
        names = {name for one in patch.meets for name in (*one.architectures, *one.other_than)}
        called = {name: facts().called.get(name, name) for name in names}

        missing = {n for n, c in called.items() if plain(n) not in text and plain(c) not in text}
        assert missing == set()

    @pytest.mark.parametrize("entry", REGISTER)
    def test_every_flag_that_they_name_is_asked_for_by_a_condition(self, entry: str) -> None:
        patch = REGISTER[entry]
        asked = flags_of(patch.meets)
        asked |= {f"--{name.replace('_', '-')}" for one in patch.avoid for name in one.flags}
        named = set(re.findall(r"--[a-z0-9-]+", text_of(patch)))

        assert named - asked == {flag for at, flag in NOT_ASKED_FOR if at == entry}


def shown_on_h100() -> set[str]:
    """What was wrong there without patches, and what an entry was tried for by name."""
    two = [c for c in results("h100-two-gpus.json")["cases"] if c.get("arm") == "unpatched"]
    named = {case["entry"] for case in two} - {"none"}
    several = [c for c in results("h100-several-ranks.json")["cases"] if not c["SGLANG_COMMFIX"]]
    wrong = [case for case in two if case["entry"] != "none"]
    wrong += [case for case in several if was_wrong(case)]
    launches = [gpu_launch(case) for case in wrong]
    return named | {
        patch.id
        for patch in REGISTER.values()
        if any(patch.answer(one) is Answer.MEETS for one in launches)
    }


# A collective was timed there, by itself.
NOT_BY_THE_ENTRY = {("22642-dp-reduce-scatterv", "H200")}


@pytest.mark.parametrize("entry", REGISTER)
def test_an_entry_says_where_it_was_shown_and_nothing_else(entry: str) -> None:
    folder = FOLDER / entry
    evidence = re.sub(r"\s+", " ", (folder / "evidence.md").read_text())
    found = {
        "cpu ranks": "gloo" in evidence
        or any((folder / name).is_file() for name in ("layers.py", "test_ranks.py")),
        "cpu server": "A real server of 0.5.4.post2 on the CPU" in evidence
        or (folder / "test_servers.py").is_file(),
        "H100": entry in shown_on_h100() or "H100" in evidence,
        "H200": "H200" in evidence,
    }

    wanted = {
        name for name, is_so in found.items() if is_so and (entry, name) not in NOT_BY_THE_ENTRY
    }
    assert set(REGISTER[entry].shown) == wanted, (
        "layers.py or test_ranks.py shows it on cpu ranks, test_servers.py in a cpu server;"
        f" H100 and H200 stand in evidence.md: {found}"
    )
