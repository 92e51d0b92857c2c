"""``32963-hybrid-ep-tp-fusion`` in the source of the releases that it is for."""

from __future__ import annotations

import ast
import builtins
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rig.sources import published

from sglang_commfix.engine.fingerprint import find_scope, parse
from sglang_commfix.engine.register import load


pytestmark = pytest.mark.releases

ENTRY, STAGES = "32963-hybrid-ep-tp-fusion", "28619-pipeline-stage-fusion"
SCATTERED = "19918-scattered-mlp-fusion"
AFFECTED = load()[ENTRY].affected_releases
COMMUNICATOR = "sglang.srt.layers.communicator"
DECIDE = "LayerCommunicator.should_fuse_mlp_allreduce_with_next_layer"

# Sizes of tensor, expert, MoE tensor and attention-TP parallelism.
MODES = [
    (4, 1, 4, 4), (4, 4, 1, 4), (4, 2, 2, 4), (8, 2, 4, 8), (8, 4, 2, 8), (8, 2, 2, 8), (8, 2, 2, 4),
]  # fmt: skip


def decision(release: str, *selected: str) -> Callable[..., bool]:
    """The method of the release with these patches, as a function of the modes that it asks for."""
    modules = published.plan_for(release, ",".join(selected)).modules
    function = find_scope(parse(published.after(modules[COMMUNICATOR])), DECIDE)
    assert isinstance(function, ast.FunctionDef)
    for argument in function.args.args:
        argument.annotation = None
    function.returns = None
    code = compile(ast.Module([function], []), COMMUNICATOR, "exec")

    def decide(
        sizes: tuple[int, int, int, int], *, amd: bool, last_of_stage: bool, mode: str
    ) -> bool:
        tp, ep, moe_tp, attn_tp = sizes
        settings = SimpleNamespace(enable_aiter_allreduce_fusion=amd, comm=None)
        settings.comm = settings
        distributed = SimpleNamespace(
            get_moe_expert_parallel_world_size=lambda: ep,
            get_moe_tensor_parallel_world_size=lambda: moe_tp,
        )
        names: dict[str, Any] = {
            "__builtins__": vars(builtins) | {"__import__": lambda *_: distributed},
            "_use_aiter": amd,
            "ScatterMode": SimpleNamespace(SCATTERED="SCATTERED", MOE_FULL="MOE_FULL"),
            "get_global_server_args": lambda: settings,
            "get_server_args": lambda: settings,
            "get_exec": lambda: settings,
            "get_parallel": lambda: SimpleNamespace(moe_ep_size=ep, moe_tp_size=moe_tp, tp_size=tp),
            "get_tensor_model_parallel_world_size": lambda: tp,
            "get_moe_a2a_backend": lambda: SimpleNamespace(is_none=lambda: True),
            "is_enable_moe_cp_allgather": lambda: False,
            "is_dp_attention_enabled": lambda: False,
            "get_attn_tp_context": lambda: SimpleNamespace(input_scattered=False),
            "apply_flashinfer_allreduce_fusion": lambda _: not amd,
        }
        exec(code, names)
        layer = SimpleNamespace(
            layer_scatter_modes=SimpleNamespace(mlp_mode=mode),
            is_last_layer=False,
            _speculative_algo=None,
            _context=SimpleNamespace(tp_size=tp, attn_tp_size=attn_tp),
        )
        if last_of_stage:
            layer.commfix_is_last_of_stage = True
        batch = SimpleNamespace(input_ids=SimpleNamespace(shape=(4,)))
        return bool(names[function.name](layer, batch))

    return decide


@pytest.mark.parametrize("release", AFFECTED)
def test_any_selection_says_no_where_one_of_its_entries_does_and_nowhere_else(release: str) -> None:
    entries = [ENTRY, STAGES]
    if release in load()[SCATTERED].affected_releases:
        entries.append(SCATTERED)
    modes = [
        (sizes, {"amd": amd, "last_of_stage": last, "mode": mode})
        for sizes, amd, last, mode in itertools.product(
            MODES, (False, True), (False, True), ("FULL", "SCATTERED")
        )
    ]
    alone = {entry: decision(release, entry) for entry in entries}
    for count in range(1, len(entries) + 1):
        for chosen in itertools.combinations(entries, count):
            together = decision(release, *chosen)
            for sizes, more in modes:
                each = [alone[entry](sizes, **more) for entry in chosen]
                assert together(sizes, **more) == all(each), (chosen, sizes, more)


@pytest.mark.parametrize("release", AFFECTED)
def test_an_mlp_fuses_where_the_attention_tp_group_does_both_sums(release: str) -> None:
    decide = decision(release, ENTRY)
    flashinfer, amd = (
        [decide(sizes, amd=amd, last_of_stage=False, mode="FULL") for sizes in MODES]
        for amd in (False, True)
    )

    assert flashinfer == [True, True, True, True, True, False, False]
    assert amd == [True, True, False, False, False, False, False]


@pytest.mark.parametrize("release", AFFECTED)
def test_a_stages_last_layer_alone_keeps_its_all_reduce(release: str) -> None:
    decide = decision(release, STAGES)
    for amd in (False, True):
        assert decide(MODES[0], amd=amd, last_of_stage=False, mode="FULL")
        assert not decide(MODES[0], amd=amd, last_of_stage=True, mode="FULL")
