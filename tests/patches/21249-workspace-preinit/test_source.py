"""``21249-workspace-preinit`` in the source of the releases that it is for."""

from __future__ import annotations

import ast

import pytest
from rig.fused.allreduce_fusion import (
    AFFECTED,
    COMMUNICATOR,
    DECIDE,
    FLASHINFER,
    MODES,
    PREINIT,
    after,
    before,
    decision,
)

from sglang_commfix.engine.fingerprint import fingerprint


pytestmark = pytest.mark.releases

RUNNER = "sglang.srt.model_executor.model_runner"
OP = "flashinfer_allreduce_residual_rmsnorm"


def calls(node: ast.AST) -> list[str]:
    """The functions and methods called inside `node`, by their last names, in their order."""
    found = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
    found.sort(key=lambda call: (call.lineno, call.col_offset))
    return [ast.unparse(call.func).rpartition(".")[2] for call in found]


def names(arguments: ast.arguments) -> list[str]:
    return [argument.arg for argument in arguments.args]


@pytest.mark.parametrize("release", AFFECTED)
def test_workspaces_are_created_behind_the_groups_and_before_every_forward_pass(
    release: str,
) -> None:
    made = calls(after(release, RUNNER, "ModelRunner.__init__", PREINIT))
    assert made.index("init_torch_distributed") < made.index("initialize")

    order = calls(after(release, RUNNER, "ModelRunner.initialize", PREINIT))
    created = order.index("commfix_pre_initialize_workspaces")
    assert order.index("load_model") < created
    assert order.index("init_memory_pool") < created
    for later in ("kernel_warmup", "init_device_graphs", "init_piecewise_cuda_graphs"):
        assert created < order.index(later)


@pytest.mark.parametrize("release", AFFECTED)
def test_the_registered_operator_keeps_its_arguments(release: str) -> None:
    fake = f"fake_{OP}"
    assert names(after(release, FLASHINFER, OP, PREINIT).args) == names(
        before(release, FLASHINFER, OP).args
    )
    assert fingerprint(after(release, FLASHINFER, fake, PREINIT)) == fingerprint(
        before(release, FLASHINFER, fake)
    )


@pytest.mark.parametrize("release", AFFECTED)
def test_without_the_feature_an_mlp_fuses_as_before_but_not_across_pipeline_stages(
    release: str,
) -> None:
    ours = decision(after(release, COMMUNICATOR, DECIDE, PREINIT))
    theirs = decision(before(release, COMMUNICATOR, DECIDE))
    for modes in MODES:
        assert ours(**modes) == (theirs(**modes) and modes["pp"] == 1), modes
