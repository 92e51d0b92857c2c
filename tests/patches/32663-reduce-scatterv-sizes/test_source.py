"""``32663-reduce-scatterv-sizes``: the question, asked in every layout, against 0.5.17's."""

from __future__ import annotations

import itertools
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rig.sources.published import code_of

from sglang_commfix.engine.register import load


PATCH = "32663-reduce-scatterv-sizes"
AFFECTED = load()[PATCH].affected_releases
MODULE, SCOPE = "sglang.srt.layers.moe.utils", "should_use_dp_reduce_scatterv"
STATE = "sglang.srt.distributed.parallel_state"

pytestmark = pytest.mark.releases


def answers(release: str, words: str, monkeypatch: pytest.MonkeyPatch) -> dict[Any, bool]:
    """By TP, DP and EP size, whether there is no all-to-all, and FP4's all-gather."""
    code = code_of(release, words, MODULE, SCOPE)
    result = {}
    sizes = (1, 2, 4, 8)
    for tp, dp, ep, none, fp4 in itertools.product(
        sizes, sizes, sizes, (True, False), (True, False)
    ):
        if dp > tp or ep > tp:
            continue
        state = ModuleType(STATE)
        vars(state)["get_tensor_model_parallel_world_size"] = lambda tp=tp: tp
        monkeypatch.setitem(sys.modules, STATE, state)
        names: dict[str, Any] = {
            "should_use_flashinfer_cutlass_moe_fp4_allgather": lambda fp4=fp4: fp4,
            "get_moe_a2a_backend": lambda none=none: SimpleNamespace(is_none=lambda: none),
            "is_dp_attention_enabled": lambda dp=dp: dp > 1,
            "get_attention_dp_size": lambda dp=dp: dp,
            "get_moe_expert_parallel_world_size": lambda ep=ep: ep,
            "get_parallel": lambda tp=tp, dp=dp, ep=ep: SimpleNamespace(
                tp_size=tp, attn_dp_size=dp, moe_ep_size=ep
            ),
        }
        exec(code, names)
        result[tp, dp, ep, none, fp4] = bool(names[SCOPE]())
    return result


@pytest.mark.parametrize("release", AFFECTED)
def test_it_is_answered_as_in_0_5_17(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = answers("0.5.17", "0", monkeypatch)

    assert answers(release, PATCH, monkeypatch) == fixed
    assert any(fixed.values())


@pytest.mark.parametrize("release", AFFECTED)
def test_only_where_a_dp_rank_is_several_ranks_the_answer_changes(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = answers(release, "0", monkeypatch)
    patched = answers(release, PATCH, monkeypatch)
    changed = {(tp, dp, ep) for tp, dp, ep, *_ in before if before[tp, dp, ep, True, False]}

    assert (
        {case[:3] for case in before if before[case] != patched[case]}
        == {(tp, dp, ep) for tp, dp, ep in changed if tp != dp}
        == {(4, 2, 2), (8, 2, 2), (8, 4, 4)}
    )
