"""``21249-cp-allreduce-fusion`` in the source of the releases that it is for."""

from __future__ import annotations

import ast

import pytest
from rig.fused.allreduce_fusion import (
    AFFECTED,
    COMMUNICATOR,
    DECIDE,
    FUSION,
    MODES,
    PREINIT,
    after,
    before,
    decision,
)
from rig.sources.published import plan_for

from sglang_commfix.engine.fingerprint import fingerprint


pytestmark = pytest.mark.releases

SERVER_ARGS = "sglang.srt.server_args"


@pytest.mark.parametrize("release", AFFECTED)
def test_the_feature_brings_what_it_requires(release: str) -> None:
    assert {patch["id"] for patch in plan_for(release, FUSION).having("apply")} == {FUSION, PREINIT}


@pytest.mark.parametrize("release", AFFECTED)
def test_whether_fusion_applies_is_decided_as_in_0_5_11(release: str) -> None:
    scope = "apply_flashinfer_allreduce_fusion"
    assert fingerprint(after(release, COMMUNICATOR, scope, FUSION)) == fingerprint(
        before("0.5.11", COMMUNICATOR, scope)
    )


def conditions(function: ast.AST) -> list[str]:
    """Under what fusion switches itself on, the list of models left out."""
    (branch,) = (
        node
        for node in ast.walk(function)
        if isinstance(node, ast.If)
        and ast.unparse(node.body[0]) == "self.enable_flashinfer_allreduce_fusion = True"
    )
    return [
        ast.unparse(part)
        for part in branch.test.values
        if not ast.unparse(part).startswith("model_arch")
    ]


@pytest.mark.parametrize("release", AFFECTED)
def test_fusion_switches_itself_on_as_in_0_5_11(release: str) -> None:
    scope = "ServerArgs._handle_model_specific_adjustments"
    was, now = before(release, SERVER_ARGS, scope), after(release, SERVER_ARGS, scope, FUSION)
    assert conditions(now) == conditions(before("0.5.11", SERVER_ARGS, scope))
    assert [c for c in conditions(was) if c not in conditions(now)] == ["self.attn_cp_size <= 1"]


@pytest.mark.parametrize("release", AFFECTED)
def test_an_mlp_fuses_as_in_0_5_18_and_without_cp_as_before_but_not_across_pipeline_stages(
    release: str,
) -> None:
    ours = decision(after(release, COMMUNICATOR, DECIDE, f"{FUSION},19918-scattered-mlp-fusion"))
    theirs = decision(before("0.5.18", COMMUNICATOR, DECIDE))
    unpatched = decision(after(release, COMMUNICATOR, DECIDE, "19918-scattered-mlp-fusion"))
    fused = 0
    for modes in MODES:
        expected = (unpatched if modes["cp"] == 1 else theirs)(**modes) and modes["pp"] == 1
        assert ours(**modes) == expected, modes
        fused += expected
    assert fused == 42
