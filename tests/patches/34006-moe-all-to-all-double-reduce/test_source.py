"""``34006-moe-all-to-all-double-reduce``: the functions of the releases, asked about each all-to-all."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

import pytest
from rig.sources.published import code_of, tree

from sglang_commfix.engine.fingerprint import find_scope
from sglang_commfix.engine.register import load


PATCH = "34006-moe-all-to-all-double-reduce"
AFFECTED = load()[PATCH].affected_releases
BLOCK = ("sglang.srt.models.qwen3_moe", "Qwen3MoeSparseMoeBlock.forward")
UTILS = "sglang.srt.layers.moe.utils"
COMBINING = ("mooncake", "mori", "nixl", "flashinfer")

# Asked for fusion, the block leaves every reduction out.
NORMAL, COMPLETE, DEEPEP = "forward_normal", "forward_normal without a reduction", "forward_deepep"

pytestmark = pytest.mark.releases


class Backend:
    """Answers as a member of MoeA2ABackend."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __getattr__(self, name: str) -> Any:
        return lambda: name == f"is_{self.value}"


def since(first: str, stop: str | None = None) -> list[str]:
    return list(AFFECTED[AFFECTED.index(first) : AFFECTED.index(stop) if stop else None])


def members(release: str) -> dict[str, str]:
    """The all-to-alls that the release has, by what its flag calls them."""
    module = tree(release).tree(UTILS)
    scope = module and find_scope(module, "MoeA2ABackend")
    assert scope is not None
    assigned = [one for one in scope.body if isinstance(one, ast.Assign)]
    return {ast.literal_eval(one.value): ast.unparse(one.targets[0]) for one in assigned}


def function(release: str, words: str, module: str, scope: str, **names: Any) -> Any:
    """The release's function, its text as it runs, with stand-ins for what it calls."""
    exec(code_of(release, words, module, scope), names)
    return names[scope.rpartition(".")[2]]


def way(release: str, words: str, backend: str) -> str:
    forward = function(
        release, words, *BLOCK,
        get_moe_a2a_backend=lambda: Backend(backend), is_deepep_class_backend=lambda: False,
    )  # fmt: skip
    block = SimpleNamespace(
        forward_normal=lambda _, fusion=False, *__: COMPLETE if fusion else NORMAL,
        forward_deepep=lambda *_: DEEPEP,
    )
    return str(forward(block, "hidden states", "batch"))


@pytest.mark.parametrize("release", since("0.5.4", "0.5.18"))
def test_the_block_takes_the_way_of_deepep_for_what_is_combined_as_there(release: str) -> None:
    here = members(release)
    for backend in {"mooncake", "mori", "nixl"} & set(here):
        assert way(release, "0", backend) == NORMAL
        assert way(release, PATCH, backend) == DEEPEP


@pytest.mark.parametrize("release", since("0.5.9", "0.5.11"))
def test_with_flashinfer_the_block_leaves_its_reductions_out(release: str) -> None:
    assert way(release, "0", "flashinfer") == NORMAL
    assert way(release, PATCH, "flashinfer") == COMPLETE


@pytest.mark.parametrize("release", since("0.5.4", "0.5.18"))
def test_every_other_all_to_all_goes_its_way_as_before(release: str) -> None:
    for backend in set(members(release)) - set(COMBINING):
        assert way(release, "0", backend) == way(release, PATCH, backend)


def skips(release: str, words: str, backend: str, *, is_tp_path: bool) -> bool:
    """What the question answers where no one else has taken the reduction over."""
    no = {
        name: lambda: False
        for name in (
            "should_use_dp_reduce_scatterv",
            "should_use_flashinfer_cutlass_moe_fp4_allgather",
            "should_skip_mlp_all_reduce",
        )
    }
    scope = "should_skip_post_experts_all_reduce"
    if release == "0.5.21":
        scope = "post_experts_output_is_complete"
    asked = function(
        release, words, UTILS, scope, **no,
        get_moe_a2a_backend=lambda: Backend(backend),
        get_parallel=lambda: SimpleNamespace(dwdp_size=1),
    )  # fmt: skip
    return bool(asked(is_tp_path=is_tp_path))


@pytest.mark.parametrize("release", since("0.5.11"))
@pytest.mark.parametrize("is_tp_path", [False, True])
def test_no_model_that_asks_reduces_what_is_combined(release: str, is_tp_path: bool) -> None:
    for backend in COMBINING:
        assert skips(release, PATCH, backend, is_tp_path=is_tp_path)
    for backend in set(members(release)) - set(COMBINING):
        before = skips(release, "0", backend, is_tp_path=is_tp_path)
        assert skips(release, PATCH, backend, is_tp_path=is_tp_path) == before


@pytest.mark.parametrize("release", since("0.5.11"))
def test_without_the_patch_it_answers_no(release: str) -> None:
    known = {backend for backend in COMBINING if skips(release, "0", backend, is_tp_path=False)}

    assert known == ({"flashinfer"} if release in since("0.5.15") else set())
