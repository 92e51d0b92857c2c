"""``25404-idle-batch-mlp-sync`` in the source of the releases that it is for."""

from __future__ import annotations

import ast

import pytest
from rig.sources.published import RELEASES, after, plan_for, tree

from sglang_commfix.engine.fingerprint import find_scope, fingerprint, parse
from sglang_commfix.engine.register import Target, load


pytestmark = pytest.mark.releases

PATCH = "25404-idle-batch-mlp-sync"
OURS = Target("sglang.srt.managers.scheduler_dp_attn_mixin", "prepare_mlp_sync_batch_raw")
THEIRS = Target("sglang.srt.managers.scheduler_components.dp_attn", "prepare_mlp_sync_batch_raw")
AFFECTED = [r for r in RELEASES if load()[PATCH].affected.contains(r, True)]


def patched(release: str) -> ast.FunctionDef:
    scope = find_scope(parse(after(plan_for(release, PATCH).modules[OURS.module])), OURS.scope)
    assert isinstance(scope, ast.FunctionDef)
    return scope


def upstreams() -> ast.FunctionDef:
    syntax = tree("0.5.13").tree(THEIRS.module)
    scope = syntax and find_scope(syntax, THEIRS.scope)
    assert isinstance(scope, ast.FunctionDef)
    return scope


def what_counts(function: ast.FunctionDef) -> ast.If:
    """The statement that counts the tokens of a batch."""
    (found,) = [one for one in function.body if "num_tokens = 0" in ast.unparse(one)]
    assert isinstance(found, ast.If)
    return found


@pytest.mark.parametrize("release", AFFECTED)
def test_tokens_are_counted_as_in_the_fixed_release(release: str) -> None:
    assert fingerprint(what_counts(patched(release))) == fingerprint(what_counts(upstreams()))


@pytest.mark.parametrize("release", AFFECTED)
def test_nothing_else_of_the_function_changes(release: str) -> None:
    function = patched(release)
    condition = what_counts(function).test
    assert isinstance(condition, ast.BoolOp)
    assert ast.unparse(condition.values.pop()) == "local_batch.forward_mode.is_idle()"
    assert fingerprint(function) == tree(release).fingerprint(OURS)
