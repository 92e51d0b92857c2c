"""What ``22003-moe-cp-decoupled`` makes of 0.5.10, against what upstream published."""

from __future__ import annotations

import ast

import pytest
from rig.sources.published import after, plan_for, tree

from sglang_commfix.engine.fingerprint import find_scope, normal_form, parse
from sglang_commfix.engine.source import Source


pytestmark = pytest.mark.releases

PATCH = "22003-moe-cp-decoupled"
AFFECTED = ["0.5.10", "0.5.10.post1"]
COMMUNICATOR = "sglang.srt.layers.communicator"
PARALLEL_STATE = "sglang.srt.distributed.parallel_state"
SHOULD_FUSE = "LayerCommunicator.should_fuse_mlp_allreduce_with_next_layer"

# What upstream has as methods stands at the end of the module, and new names are marked as ours.
UPSTREAM_NAMES = {
    "commfix_is_enable_moe_cp_allgather": "is_enable_moe_cp_allgather",
    "commfix_get_moe_cp_size": "get_moe_cp_size",
    "commfix_gather_hidden_states_and_residual_moe": (
        "CommunicateWithAllReduceAndLayerNormFn._gather_hidden_states_and_residual_moe"
    ),
    "commfix_scatter_hidden_states_moe": (
        "CommunicateSummableTensorPairFn._scatter_hidden_states_moe"
    ),
}


class Upstream(ast.NodeTransformer):
    """Gives things upstream's names, and takes out what upstream does not have."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.parse(UPSTREAM_NAMES.get(node.id, node.id), mode="eval").body

    def visit_Expr(self, node: ast.Expr) -> ast.stmt | None:
        refusal = "commfix_refuse_moe_full_with_dp_attention(context)"
        return None if ast.unparse(node) == refusal else node


def scope(source: Source, name: str) -> ast.AST:
    found = find_scope(parse(source), name)
    assert found is not None
    return found


def original(release: str, module: str, name: str) -> ast.AST:
    source = tree(release).source(module)
    assert source is not None
    return scope(source, name)


def patched(release: str, module: str, name: str, select: str = PATCH) -> ast.AST:
    return scope(after(plan_for(release, select).modules[module]), name)


def in_upstreams_names(node: ast.AST) -> str:
    return normal_form(Upstream().visit(node))


@pytest.mark.parametrize("release", AFFECTED)
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("sglang.srt.server_args", "ServerArgs._handle_context_parallelism"),
        (PARALLEL_STATE, "destroy_model_parallel"),
        (COMMUNICATOR, "ScatterMode"),
        (COMMUNICATOR, "LayerScatterModes._compute_middle_residual_mode"),
        (COMMUNICATOR, "LayerScatterModes._compute_layer_output_mode"),
        (COMMUNICATOR, SHOULD_FUSE),
        (COMMUNICATOR, "CommunicateContext.init_new"),
        (COMMUNICATOR, "CommunicateWithAllReduceAndLayerNormFn.get_fn"),
        (COMMUNICATOR, "CommunicateSummableTensorPairFn.get_fn"),
    ],
)
def test_a_function_becomes_that_of_0_5_11_but_for_names_and_the_refusal_of_dp_attention(
    release: str, module: str, name: str
) -> None:
    before = normal_form(original(release, module, name))
    after = in_upstreams_names(patched(release, module, name))

    assert after == normal_form(original("0.5.11", module, name))
    assert after != before


@pytest.mark.parametrize("release", AFFECTED)
def test_with_19918_the_fusion_decision_becomes_that_of_0_5_13(release: str) -> None:
    both = patched(release, COMMUNICATOR, SHOULD_FUSE, f"{PATCH},19918-scattered-mlp-fusion")

    assert in_upstreams_names(both) == normal_form(original("0.5.13", COMMUNICATOR, SHOULD_FUSE))


@pytest.mark.parametrize("release", AFFECTED)
def test_the_mode_of_a_sparse_layer_is_decided_as_in_0_5_11(release: str) -> None:
    name = "LayerScatterModes._compute_mlp_mode"
    (ours,) = find(patched(release, COMMUNICATOR, name), ast.If, "if context.is_layer_sparse:")
    (theirs,) = find(original("0.5.11", COMMUNICATOR, name), ast.If, "if context.is_layer_sparse:")

    assert [in_upstreams_names(statement) for statement in ours.body] == [
        normal_form(statement) for statement in theirs.body
    ]


@pytest.mark.parametrize("release", AFFECTED)
def test_the_mode_of_a_dense_layer_is_decided_as_in_0_5_20_but_for_the_predicate(
    release: str,
) -> None:
    name = "LayerScatterModes._compute_mlp_mode"
    (ours,) = find(patched(release, COMMUNICATOR, name), ast.If, "if context.is_layer_sparse:")
    (theirs,) = find(original("0.5.20", COMMUNICATOR, name), ast.If, "if context.is_layer_sparse:")
    for branch in (ours.orelse, theirs.orelse):
        assert [type(statement) for statement in branch] == [ast.If, ast.If, ast.Return]
        condition = branch[1]
        assert isinstance(condition, ast.If)
        condition.test = ast.Constant(None)

    assert list(map(normal_form, ours.orelse)) == list(map(normal_form, theirs.orelse))


@pytest.mark.parametrize("release", AFFECTED)
def test_the_moe_data_parallel_group_is_made_as_in_0_5_11(release: str) -> None:
    name, first_line = "initialize_model_parallel", "if attn_cp_size > moe_dp_size:"
    (ours,) = find(patched(release, PARALLEL_STATE, name), ast.If, first_line)
    (theirs,) = find(original("0.5.11", PARALLEL_STATE, name), ast.If, first_line)
    for node in ast.walk(theirs):  # elastic expert parallelism, which 0.5.10 does not have
        if isinstance(node, ast.Call):
            node.keywords = [word for word in node.keywords if word.arg != "recovered_rank"]

    assert normal_form(ours) == normal_form(theirs)


def find(node: ast.AST, kind: type[ast.If], first_line: str) -> list[ast.If]:
    return [
        inner
        for inner in ast.walk(node)
        if isinstance(inner, kind) and ast.unparse(inner).startswith(first_line)
    ]
