"""The two entries of #21249 in the source of the releases that they are for."""

from __future__ import annotations

import ast
import builtins
import copy
import itertools
import textwrap
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import published
import pytest

from sglang_commfix.engine.fingerprint import find_scope, fingerprint, parse
from sglang_commfix.run.plan import Plan


pytestmark = pytest.mark.releases

FUSION, PREINIT = "21249-cp-allreduce-fusion", "21249-workspace-preinit"
AFFECTED = ["0.5.10", "0.5.10.post1"]
COMMUNICATOR = "sglang.srt.layers.communicator"
FLASHINFER = "sglang.srt.layers.flashinfer_comm_fusion"
RUNNER = "sglang.srt.model_executor.model_runner"
SERVER_ARGS = "sglang.srt.server_args"
DECIDE = "LayerCommunicator.should_fuse_mlp_allreduce_with_next_layer"
OP = "flashinfer_allreduce_residual_rmsnorm"


def plan(release: str, select: str = FUSION) -> Plan:
    return published.plan_for(release, select)


def before(release: str, module: str, scope: str) -> Any:
    syntax = published.tree(release).tree(module)
    assert syntax is not None
    return copy.deepcopy(find_scope(syntax, scope))  # tests change it


@cache
def syntax_after(release: str, module: str, select: str) -> ast.Module:
    return parse(published.after(plan(release, select).modules[module]))


def after(release: str, module: str, scope: str, select: str = FUSION) -> Any:
    return copy.deepcopy(find_scope(syntax_after(release, module, select), scope))


def calls(node: ast.AST) -> list[str]:
    """The functions and methods called inside `node`, by their last names, in their order."""
    found = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
    found.sort(key=lambda call: (call.lineno, call.col_offset))
    return [ast.unparse(call.func).rpartition(".")[2] for call in found]


def names(arguments: ast.arguments) -> list[str]:
    return [argument.arg for argument in arguments.args]


@pytest.mark.parametrize("release", AFFECTED)
def test_the_feature_brings_what_it_requires(release: str) -> None:
    assert {patch["id"] for patch in plan(release).having("apply")} == {FUSION, PREINIT}


@pytest.mark.parametrize("release", AFFECTED)
def test_workspaces_are_created_behind_the_groups_and_before_every_forward_pass(
    release: str,
) -> None:
    made = calls(after(release, RUNNER, "ModelRunner.__init__"))
    assert made.index("init_torch_distributed") < made.index("initialize")

    order = calls(after(release, RUNNER, "ModelRunner.initialize"))
    created = order.index("commfix_pre_initialize_workspaces")
    assert order.index("load_model") < created
    assert order.index("init_memory_pool") < created
    for later in ("kernel_warmup", "init_device_graphs", "init_piecewise_cuda_graphs"):
        assert created < order.index(later)


@pytest.mark.parametrize("release", AFFECTED)
def test_the_registered_operator_keeps_its_arguments(release: str) -> None:
    fake = f"fake_{OP}"
    assert names(after(release, FLASHINFER, OP).args) == names(before(release, FLASHINFER, OP).args)
    assert fingerprint(after(release, FLASHINFER, fake)) == fingerprint(
        before(release, FLASHINFER, fake)
    )


@pytest.mark.parametrize("release", AFFECTED)
def test_whether_fusion_applies_is_decided_as_in_0_5_11(release: str) -> None:
    scope = "apply_flashinfer_allreduce_fusion"
    assert fingerprint(after(release, COMMUNICATOR, scope)) == fingerprint(
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
    was, now = before(release, SERVER_ARGS, scope), after(release, SERVER_ARGS, scope)
    assert conditions(now) == conditions(before("0.5.11", SERVER_ARGS, scope))
    assert [c for c in conditions(was) if c not in conditions(now)] == ["self.attn_cp_size <= 1"]


def decision(function: ast.FunctionDef) -> Callable[..., bool]:
    """The method as a function of the modes that it asks for."""
    function.name = "decide"
    text = ast.unparse(function).replace("forward_batch: ForwardBatch", "forward_batch")
    group_fuses = ast.unparse(after("0.5.10", FLASHINFER, "commfix_moe_group_fuses"))

    def decide(
        *, ep: int, moe_tp: int, cp: int, moe_dp: int, pp: int, mode: str, last: bool
    ) -> bool:
        server_args = SimpleNamespace(pp_size=pp, attn_cp_size=cp, moe_dp_size=moe_dp)
        module = SimpleNamespace(
            get_moe_ep_group=lambda: SimpleNamespace(world_size=ep),
            get_moe_tp_group=lambda: SimpleNamespace(world_size=moe_tp),
            get_global_server_args=lambda: server_args,
        )
        builtin = vars(builtins) | {"__import__": lambda *_: module}
        appended: dict[str, Any] = {"__builtins__": builtin}
        exec(group_fuses, appended)
        module.commfix_moe_group_fuses = appended["commfix_moe_group_fuses"]
        namespace: dict[str, Any] = {
            "__builtins__": builtin,
            "_use_aiter": False,
            "ScatterMode": SimpleNamespace(SCATTERED="SCATTERED", FULL="FULL"),
            "get_global_server_args": lambda: server_args,
            "get_parallel": lambda: SimpleNamespace(moe_ep_size=ep, moe_tp_size=moe_tp),
            "is_enable_moe_cp_allgather": lambda: cp > moe_dp,
            "is_dp_attention_enabled": lambda: False,
            "get_attn_tp_context": lambda: SimpleNamespace(input_scattered=False),
            "apply_flashinfer_allreduce_fusion": lambda _: True,
        }
        exec(textwrap.dedent(text), namespace)
        layer = SimpleNamespace(
            layer_scatter_modes=SimpleNamespace(mlp_mode=mode),
            is_last_layer=last,
            _speculative_algo=None,
            _context=SimpleNamespace(tp_size=4),
        )
        batch = SimpleNamespace(input_ids=SimpleNamespace(shape=(4,)))
        result: bool = namespace["decide"](layer, batch)
        return result

    return decide


MODES = [
    dict(zip(("ep", "moe_tp", "cp", "moe_dp", "pp", "mode", "last"), values, strict=True))
    for values in itertools.product(
        (1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 2), ("FULL", "SCATTERED"), (False, True)
    )
]


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


@pytest.mark.parametrize("release", AFFECTED)
def test_without_the_feature_an_mlp_fuses_as_before_but_not_across_pipeline_stages(
    release: str,
) -> None:
    ours = decision(after(release, COMMUNICATOR, DECIDE, PREINIT))
    theirs = decision(before(release, COMMUNICATOR, DECIDE))
    for modes in MODES:
        assert ours(**modes) == (theirs(**modes) and modes["pp"] == 1), modes
