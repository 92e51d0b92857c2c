"""What is captured for a draft, by each model's own loop over its layers on two real ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from rig.asking import Respondent
from rig.checkpoints import ensure_model
from rig.environment import ensure
from rig.layers.case import Case, Layout
from rig.releases import LAYERS


pytestmark = pytest.mark.servers

TWO = Layout(tp=2)
ONE = Layout(tp=1)
# Outputs of these layers, of five.
CAPTURED = [1, 3]

# Families of models that read between two layers, and where.
FAULTY = {
    "gpt-oss": ">=0.5.1,<0.5.21",
    "qwen3-moe": ">=0.5.2,<0.5.4.post2",
    "deepseek-v3": ">=0.5.4.post2,<0.5.14",
    "glm4-moe": ">=0.5.5,<0.5.21",
    "bailing-moe": ">=0.5.9,<0.5.21",
    "qwen3-vl-moe": ">=0.5.11,<0.5.21",
    "glm4-moe-lite": ">=0.5.13,<0.5.21",
}
# And where two of them no longer do.
SOUND = {"qwen3-moe": ">=0.5.4.post2,<0.5.21", "deepseek-v3": ">=0.5.14,<0.5.21"}
MODULES = {
    "gpt-oss": "gpt_oss",
    "qwen3-moe": "qwen3_moe",
    "deepseek-v3": "deepseek_v2",
    "glm4-moe": "glm4_moe",
    "bailing-moe": "bailing_moe",
    "qwen3-vl-moe": "qwen3_vl_moe",
    "glm4-moe-lite": "glm4_moe_lite",
}
DENSE_FIRST = ("deepseek-v3", "glm4-moe", "glm4-moe-lite")

BY_DEFAULT = ("0.5.20",)
# The first release and the last of each way of reading, and of each way of being told what to read.
IN_FULL = (
    "0.5.1", "0.5.2", "0.5.4.post1", "0.5.4.post2", "0.5.5", "0.5.7", "0.5.9", "0.5.10.post1",
    "0.5.11", "0.5.12.post1", "0.5.13", "0.5.14", "0.5.16", "0.5.17", "0.5.19",
)  # fmt: skip


def releases() -> Iterator[Any]:
    yield from BY_DEFAULT
    for release in IN_FULL:
        yield pytest.param(release, marks=pytest.mark.servers_full)


def families(table: dict[str, str], release: str) -> list[str]:
    return [name for name, span in table.items() if SpecifierSet(span).contains(release, True)]


class Ranks(Respondent):
    """One Python with one release, patched or not, that forks the ranks of each case."""

    def __init__(self, release: str, *, patched: bool) -> None:
        known = families(FAULTY, release) + families(SOUND, release)
        environment = ensure([release])
        super().__init__(
            release,
            Path(__file__).with_name("capture_ranks.py"),
            *(MODULES[family] for family in known),
            environment=environment,
            patches="eagle3-partial-sums" if patched else None,
        )
        self.checkpoint = str(ensure_model("deepseek-v3", environment.models))

    def run(self, family: str, layout: Layout, **more: Any) -> list[dict[str, Any]]:
        """By rank."""
        layers = "DSSSS" if family in DENSE_FIRST else "SSSSS"
        case = Case(layout, (7,), layers=layers, **{"fusion": True, **more})
        ranks: list[dict[str, Any]] = self(
            {
                "case": case.to_json(),
                "checkpoint": self.checkpoint,
                "family": family,
                "capture": CAPTURED,
            }
        )
        for rank in ranks:
            assert rank is not None, self.log[-3000:]
            assert rank["error"] is None, rank["error"]
        return ranks


@pytest.fixture(scope="module")
def ranks() -> Iterator[Any]:
    """Start a release once for each selection of patches."""
    running: dict[tuple[str, bool], Ranks] = {}
    with ExitStack() as stack:

        def start(release: str, *, patched: bool) -> Ranks:
            if (release, patched) not in running:
                # At most one release at a time: each holds its imports in memory.
                if any(other != release for other, _ in running):
                    stack.close()
                    running.clear()
                running[release, patched] = stack.enter_context(Ranks(release, patched=patched))
            return running[release, patched]

        yield start


def test_the_rig_has_each_of_these_releases() -> None:
    assert {*BY_DEFAULT, *IN_FULL} <= {*LAYERS}


@pytest.mark.parametrize("release", [*releases()])
class TestFusedLayers:
    def test_unpatched_a_draft_gets_partial_sums_and_each_rank_its_own(
        self, ranks: Any, release: str
    ) -> None:
        for family in families(FAULTY, release):
            zero, one = ranks(release, patched=False).run(family, TWO)

            for rank in (zero, one):
                assert min(rank["states"]) > 0.1, family
                # The answers are right all the same.
                assert rank["final"] < 1e-5, family
                assert rank["fused"] == [True, True, True, True, False], family
            assert min(one["between"]) > 0.1, family

    def test_patched_it_gets_what_one_process_has(self, ranks: Any, release: str) -> None:
        for family in families(FAULTY, release):
            for rank in ranks(release, patched=True).run(family, TWO):
                assert max(rank["states"]) < 1e-5, family
                assert max(rank["between"]) == 0, family
                assert rank["final"] < 1e-5, family

    def test_patched_only_captured_layers_are_not_fused_and_nothing_more_is_sent(
        self, ranks: Any, release: str
    ) -> None:
        for family in families(FAULTY, release):
            unpatched = ranks(release, patched=False).run(family, TWO)[0]
            patched = ranks(release, patched=True).run(family, TWO)[0]

            assert patched["fused"] == [True, False, True, False, False], family
            assert len(patched["sent"]) == len(unpatched["sent"]), family

    def test_a_model_that_captures_behind_the_fused_norm_stays_fused(
        self, ranks: Any, release: str
    ) -> None:
        for family in families(SOUND, release):
            for patched in (False, True):
                for rank in ranks(release, patched=patched).run(family, TWO):
                    assert max(rank["states"]) < 1e-5, family
                    assert rank["fused"] == [True, True, True, True, False], family

    def test_unfused_patched_and_unpatched_send_the_same(self, ranks: Any, release: str) -> None:
        family = families(FAULTY, release)[-1]
        unpatched = ranks(release, patched=False).run(family, TWO, fusion=False)
        patched = ranks(release, patched=True).run(family, TWO, fusion=False)

        for before, after in zip(unpatched, patched, strict=True):
            assert after["sent"] == before["sent"]
            assert after["states"] == before["states"]
            assert max(after["states"]) < 1e-5


@pytest.mark.parametrize("release", [*releases()])
def test_one_process_is_right_with_and_without(ranks: Any, release: str) -> None:
    for family in families(FAULTY, release):
        for patched in (False, True):
            (rank,) = ranks(release, patched=patched).run(family, ONE)
            assert max(rank["states"]) < 1e-5, family
            assert rank["fused"] == [False] * 5, family


@pytest.mark.parametrize("release", BY_DEFAULT)
@pytest.mark.parametrize("forward", ["extend", "decode"])
def test_decode_steps_are_as_prefill(ranks: Any, release: str, forward: str) -> None:
    for rank in ranks(release, patched=True).run("glm4-moe", TWO, forward=forward):
        assert max(rank["states"]) < 1e-5
        assert rank["fused"] == [True, False, True, False, False]
