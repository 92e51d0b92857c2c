"""``11665-glm4-moe-double-reduce``: what it makes of the layer, and what upstream had made of it."""

from __future__ import annotations

import ast

import pytest
from rig.sources.published import RELEASES, after, plan_for, tree

from sglang_commfix.engine.fingerprint import find_scope, fingerprint, parse
from sglang_commfix.engine.register import Target, load


PATCH = "11665-glm4-moe-double-reduce"
INIT = Target("sglang.srt.models.glm4_moe", "Glm4MoeDecoderLayer.__init__")
AFFECTED = [r for r in RELEASES if load()[PATCH].affected.contains(r, True)]
BEFORE_THE_FIX_WAS_LOST = AFFECTED[: AFFECTED.index("0.5.4.post1")]

pytestmark = pytest.mark.releases


def patched(release: str) -> ast.AST:
    plan = plan_for(release, PATCH)
    scope = find_scope(parse(after(plan.modules[INIT.module])), INIT.scope)
    assert scope is not None
    return scope


def test_the_one_release_between_is_not_affected() -> None:
    assert "0.5.4" in RELEASES
    assert "0.5.4" not in AFFECTED
    assert {"0.5.1", "0.5.3.post3", "0.5.4.post1", "0.5.4.post3"} <= set(AFFECTED)


@pytest.mark.parametrize("release", BEFORE_THE_FIX_WAS_LOST)
def test_a_release_before_0_5_4_becomes_what_0_5_4_is(release: str) -> None:
    assert fingerprint(patched(release)) == tree("0.5.4").fingerprint(INIT)


@pytest.mark.parametrize("release", AFFECTED)
def test_nothing_else_of_the_layer_changes(release: str) -> None:
    scope = patched(release)
    for node in ast.walk(scope):
        if isinstance(node, ast.keyword) and node.arg == "allow_reduce_scatter":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False
            node.value.value = True
    assert fingerprint(scope) == tree(release).fingerprint(INIT)
