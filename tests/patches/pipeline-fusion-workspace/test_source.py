"""``pipeline-fusion-workspace`` in the source of the releases that it is for."""

from __future__ import annotations

import ast
import builtins
from types import SimpleNamespace
from typing import Any

import pytest
from rig.sources import published

from sglang_commfix.engine.fingerprint import find_scope, parse
from sglang_commfix.engine.register import load


pytestmark = pytest.mark.releases

ENTRY = "pipeline-fusion-workspace"
AFFECTED = load()[ENTRY].affected_releases
FLASHINFER = "sglang.srt.layers.flashinfer_comm_fusion"


def created(release: str, *, patched: bool) -> dict[str, Any]:
    """With what the second stage's second rank of two creates its workspace: it is the last of four."""
    module = published.plan_for(release, ENTRY).modules[FLASHINFER]
    tree = parse(published.after(module)) if patched else published.tree(release).tree(FLASHINFER)
    assert tree is not None
    function = find_scope(tree, "ensure_workspace_initialized")
    assert isinstance(function, ast.FunctionDef)
    found: dict[str, Any] = {}
    group = SimpleNamespace(rank_in_group=1, device_group="ranks 2 and 3")
    distributed = SimpleNamespace(get_tp_group=lambda: group)
    names: dict[str, Any] = {
        "__builtins__": vars(builtins) | {"__import__": lambda *_: distributed},
        "is_flashinfer_available": lambda: True,
        "_flashinfer_comm": object(),
        "get_tensor_model_parallel_world_size": lambda: 2,
        "dist": SimpleNamespace(get_rank=lambda: 3),
        "_workspace_manager": SimpleNamespace(initialized=False, initialize=found.update),
    }
    exec(compile(ast.Module([function], []), FLASHINFER, "exec"), names)
    names[function.name]()
    return {name: found.get(name) for name in ("world_size", "rank", "group")}


@pytest.mark.parametrize("release", AFFECTED)
def test_unpatched_a_rank_of_the_second_stage_lies_outside_its_group(release: str) -> None:
    assert created(release, patched=False) == {"world_size": 2, "rank": 3, "group": None}


@pytest.mark.parametrize("release", AFFECTED)
def test_patched_it_creates_the_workspace_with_its_own_stage(release: str) -> None:
    own = {"world_size": 2, "rank": 1, "group": "ranks 2 and 3"}

    assert created(release, patched=True) == own


@pytest.mark.parametrize("release", AFFECTED)
def test_the_kernel_is_told_the_same_rank_as_the_workspace(release: str) -> None:
    module = published.plan_for(release, ENTRY).modules[FLASHINFER]
    function = find_scope(parse(published.after(module)), "flashinfer_allreduce_residual_rmsnorm")
    assert function is not None
    told = [
        ast.unparse(keyword.value)
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "world_rank"
    ]

    assert told == ["_workspace_manager.rank"]
