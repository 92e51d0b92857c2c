"""``37199-gpt-oss-double-reduce``: the block of each release, asked whether it all-reduces."""

from __future__ import annotations

import itertools
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rig.sources.published import code_of

from sglang_commfix.engine.register import load


PATCH = "37199-gpt-oss-double-reduce"
AFFECTED = load()[PATCH].affected_releases
MODULE, SCOPE = "sglang.srt.models.gpt_oss", "GptOssSparseMoeBlock.forward_normal"
UTILS = "sglang.srt.layers.moe.utils"
CASES = tuple(itertools.product((1, 2), (False, True), (False, True)))

pytestmark = pytest.mark.releases


class Rows:
    """Hidden states, as far as the block looks at them."""

    shape = (3, 8)

    def view(self, *_: int) -> Rows:
        return self


def reductions(release: str, words: str, monkeypatch: pytest.MonkeyPatch) -> dict[Any, int]:
    """By TP size, fusion, and whether the communicator adds up."""
    code = code_of(release, words, MODULE, SCOPE)
    result = {}
    for tp, fusion, scatters in CASES:
        utils, seen = ModuleType(UTILS), []
        vars(utils)["should_use_dp_reduce_scatterv"] = lambda scatters=scatters: scatters
        monkeypatch.setitem(sys.modules, UTILS, utils)

        def all_reduce(rows: Rows, seen: list[Rows] = seen) -> Rows:
            seen.append(rows)
            return rows

        names: dict[str, Any] = {
            "tensor_model_parallel_all_reduce": all_reduce,
            "is_in_piecewise_cuda_graph": lambda: False,
            "is_in_tc_piecewise_cuda_graph": lambda: False,
            "get_forward": lambda fusion=fusion: SimpleNamespace(fuse_mlp_allreduce=fusion),
        }
        exec(code, names)
        block = SimpleNamespace(
            tp_size=tp,
            hidden_size=8,
            router=lambda rows: (rows, None),
            topk=lambda rows, logits: None,
            experts=lambda rows, topk: rows,
        )
        forward = names[SCOPE.rpartition(".")[2]]
        takes_fusion = "should_allreduce_fusion" in forward.__code__.co_varnames
        forward(block, Rows(), *((fusion,) if takes_fusion else ()))
        result[tp, fusion, scatters] = len(seen)
    return result


@pytest.mark.parametrize("release", AFFECTED)
def test_it_does_not_where_the_communicator_adds_up(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = reductions(release, "0", monkeypatch)
    patched = reductions(release, PATCH, monkeypatch)

    assert before == {case: int(case[0] > 1 and not case[1]) for case in CASES}
    assert patched == before | {(2, False, True): 0}
