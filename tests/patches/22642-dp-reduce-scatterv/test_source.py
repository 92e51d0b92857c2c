"""``22642-dp-reduce-scatterv``: the choice it adds, and the models that it relies on."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import reduction_contract
from fingerprints import wanted_files
from hypothesis import given
from hypothesis import strategies as st
from reduction_contract import MODELS, contract_of
from rig.sources.published import RELEASES, plan_for
from wheels import fetch

from sglang_commfix.engine.register import load, patches_folder
from sglang_commfix.engine.tree import Tree
from sglang_commfix.files import Sglang


PATCH = "22642-dp-reduce-scatterv"
FILE = patches_folder() / PATCH / "reduce_scatter.py"
AFFECTED = [r for r in RELEASES if load()[PATCH].affected.contains(r, True)]


def pure_part() -> dict[str, Any]:
    """What the added file holds that needs neither torch nor sglang."""
    tree = ast.parse(FILE.read_text())
    kept = [
        node
        for node in tree.body
        if (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant))
        or (isinstance(node, ast.FunctionDef) and node.name == "commfix_reduce_scatter_way")
    ]
    names: dict[str, Any] = {}
    exec(compile(ast.Module(kept, []), str(FILE), "exec"), names)
    return names


PURE = pure_part()
way: Callable[[list[int], bool], str] = PURE["commfix_reduce_scatter_way"]
tokens = st.lists(st.integers(0, 20_000), min_size=2, max_size=16)
# Near each other, as scheduled batches often are: random numbers hardly ever are.
close = st.integers(0, 3000).flatmap(
    lambda base: st.lists(st.integers(base, base + base // 8 + 1), min_size=2, max_size=16)
)
some_tokens = st.one_of(tokens, close)


class TestChoice:
    @given(some_tokens, st.booleans())
    def test_equal_chunks_are_chosen_exactly_if_they_are_equal(
        self, sizes: list[int], grouped: bool
    ) -> None:
        even = len(set(sizes)) == 1 and sum(sizes) >= 16
        assert (way(sizes, grouped) == "equal") == even

    @given(some_tokens, st.booleans())
    def test_little_is_padded_and_only_where_the_copy_was_measured(
        self, sizes: list[int], grouped: bool
    ) -> None:
        if way(sizes, grouped) == "padded":
            assert len(sizes) * max(sizes) < 1.053 * sum(sizes)
            assert sum(sizes) >= 2048

    @given(some_tokens, st.booleans())
    def test_grouped_reduces_need_their_size_and_their_means(
        self, sizes: list[int], grouped: bool
    ) -> None:
        if way(sizes, grouped) == "uneven":
            assert grouped
            assert sum(sizes) >= 8192

    @given(some_tokens, st.booleans())
    def test_what_is_chosen_moves_less_than_the_all_reduce_it_replaces(
        self, sizes: list[int], grouped: bool
    ) -> None:
        """By bytes on the busiest link of a ring; an all-reduce moves 2 (n - 1) / n of all."""
        ranks, total = len(sizes), sum(sizes)
        all_reduce = 2 * (ranks - 1) / ranks * total
        moved = {
            "equal": (ranks - 1) / ranks * total,
            "padded": (ranks - 1) * max(sizes),
            "uneven": total - min(sizes),
            "all_reduce": all_reduce,
        }[way(sizes, grouped)]
        assert moved <= all_reduce
        if way(sizes, grouped) != "all_reduce":
            assert moved < 0.76 * all_reduce

    @given(some_tokens, st.booleans(), st.randoms(use_true_random=False))
    def test_the_choice_does_not_depend_on_which_rank_has_what(
        self, sizes: list[int], grouped: bool, order: Any
    ) -> None:
        shuffled = list(sizes)
        order.shuffle(shuffled)
        assert way(shuffled, grouped) == way(sizes, grouped)

    @given(st.lists(st.integers(0, 7), min_size=2, max_size=2), st.booleans())
    def test_below_what_was_measured_nothing_changes(self, sizes: list[int], grouped: bool) -> None:
        assert way(sizes, grouped) == "all_reduce"

    @given(st.integers(0, 50_000), st.booleans())
    def test_two_ranks_of_which_one_is_idle_keep_the_all_reduce(
        self, count: int, grouped: bool
    ) -> None:
        assert way([count, 0], grouped) == "all_reduce"

    @given(tokens.filter(lambda sizes: len(sizes) > 2 and sum(sizes) >= 8192))
    def test_three_ranks_and_more_with_many_tokens_never_keep_it(self, sizes: list[int]) -> None:
        assert way(sizes, True) != "all_reduce"

    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [
            ([4096, 4096], "equal"),
            ([4096, 4000], "padded"),
            ([1000, 1001], "all_reduce"),
            ([1024, 1025], "padded"),
            ([4500, 3500], "all_reduce"),
            ([4500, 3700], "uneven"),
            ([1024] * 8, "equal"),
            ([1024] * 7 + [0], "all_reduce"),
            ([2048] * 7 + [0], "uneven"),
        ],
    )
    def test_examples(self, sizes: list[int], expected: str) -> None:
        assert way(sizes, True) == expected


@cache
def release_folder(release: str) -> Path:
    return fetch(release, [*wanted_files(load().patches), MODELS, *IMPORTED_FILES])


IMPORTED_FILES = [
    "sglang/srt/distributed/",
    "sglang/srt/layers/dp_attention.py",
    "sglang/srt/layers/moe/__init__.py",
    "sglang/srt/layers/moe/utils.py",
    "sglang/srt/utils.py",
    "sglang/srt/utils/",
]


def bound_in(tree: Tree, module: str) -> Iterator[str]:
    syntax = tree.tree(module)
    assert syntax is not None, module
    for node in syntax.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name == "*":
                    inside = f"{module}." if node.level else ""
                    yield from bound_in(tree, f"{inside}{node.module}")
                else:
                    yield alias.asname or alias.name


@pytest.mark.releases
@pytest.mark.one_python
@pytest.mark.parametrize("release", AFFECTED)
def test_what_the_added_code_imports_is_there(release: str) -> None:
    tree = Tree(Sglang(release_folder(release) / "sglang"))
    for node in ast.parse(FILE.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert {alias.name for alias in node.names} <= set(bound_in(tree, node.module or "")), (
                node.module
            )


def on_record(release: str) -> dict[str, dict[str, Any]]:
    """What ``models.json`` says of one release."""
    recorded = json.loads((patches_folder() / PATCH / "models.json").read_text())
    return {
        layer: {key: value for key, value in run.items() if key != "releases"}
        for layer, runs in recorded.items()
        for run in runs
        if RELEASES.index(run["releases"][0])
        <= RELEASES.index(release)
        <= RELEASES.index(run["releases"][1])
    }


@pytest.mark.releases
@pytest.mark.one_python
@pytest.mark.parametrize("release", AFFECTED)
class TestModels:
    def test_what_is_on_record_follows_from_the_source(self, release: str) -> None:
        assert contract_of(release_folder(release)) == on_record(release)

    def test_with_what_it_requires_every_model_that_is_promised_a_reduction_leaves_its_own_out(
        self, release: str
    ) -> None:
        plan = plan_for(release, PATCH)
        patched = {
            name.removeprefix("sglang.srt.models."): module.after.decode()
            for name, module in plan.modules.items()
            if name.startswith("sglang.srt.models.")
        }
        assert not plan.having("refused")
        broken = {
            layer
            for layer, found in contract_of(release_folder(release), patched).items()
            if found["verdict"] not in ("honours", "not promised")
        }
        assert broken <= {"minimax_m2.MiniMaxM2DecoderLayer"}

    def test_the_models_without_a_patch_have_no_dp_attention_to_speed_up(
        self, release: str
    ) -> None:
        """MiniMax-M2 splits its heads over all ranks, and under DP attention nobody adds up."""
        module = Tree(Sglang(release_folder(release) / "sglang")).tree(
            "sglang.srt.models.minimax_m2"
        )
        if module is None:
            assert "minimax_m2.MiniMaxM2DecoderLayer" not in on_record(release)
            return
        attention = next(
            node
            for node in module.body
            if isinstance(node, ast.ClassDef) and node.name == "MiniMaxM2Attention"
        )
        text = ast.unparse(attention)
        assert "tp_size = get_tensor_model_parallel_world_size()" in text
        assert "reduce_results=False" in text
        assert "attn_tp" not in text
        assert "get_attention_tp" not in text


def test_the_exceptions_are_those_that_are_known() -> None:
    recorded = json.loads((patches_folder() / PATCH / "models.json").read_text())
    exceptions = {
        (layer, *run["releases"])
        for layer, runs in recorded.items()
        for run in runs
        if run["verdict"] not in ("honours", "not promised")
    }
    assert {layer for layer, _, _ in exceptions} == {
        "glm4_moe.Glm4MoeDecoderLayer",
        "interns1pro.InternS1ProTextDecoderLayer",
        "minimax_m2.MiniMaxM2DecoderLayer",
        "qwen3_moe.Qwen3MoeDecoderLayer",
    }


DECODER = """
from sglang.srt.layers.communicator import LayerCommunicator
from sglang.srt.models.blocks import Block

class Layer:
    def __init__(self, config):
        self.mlp = Block(config)
        self.layer_communicator = LayerCommunicator(allow_reduce_scatter=True)

    def forward(self, x, batch):
        x = self.layer_communicator.prepare_mlp(x, batch)
        skip = self.layer_communicator.should_use_reduce_scatter(batch)
        x = self.mlp(x, batch, skip)
        return self.layer_communicator.postprocess_layer(x, batch)
"""
BLOCK = """
class Block:
    def __init__(self, config):
        self.down_proj = RowParallelLinear(config, reduce_results=True)
        self.shared = Shared(config, reduce_results=False)
        self.experts = get_moe_impl_class(config)(config)

    def forward(self, x, batch=None, use_reduce_scatter=False):
        if config.fast and x.shape[0] > 0:
            return self.fast(x, use_reduce_scatter)
        x = self.experts(x) + self.shared(x)
        if self.tp_size > 1 and not use_reduce_scatter:
            x = tensor_model_parallel_all_reduce(x)
        return x

    def fast(self, x, skip):
        x, _ = self.down_proj(x, skip_all_reduce=skip)
        return x

class Shared:
    def __init__(self, config, reduce_results=True):
        self.down_proj = RowParallelLinear(config, reduce_results=reduce_results)

    def forward(self, x):
        return self.down_proj(x)
"""


@pytest.mark.parametrize(
    ("before", "after", "verdict", "reductions"),
    [
        ("", "", "honours", []),
        ("not use_reduce_scatter:", "True:", "ignores",
         ["blocks.Block.forward: tensor_model_parallel_all_reduce"]),
        ("skip_all_reduce=skip", "", "ignores", ["blocks.Block.fast: down_proj"]),
        ("fast(x, use_reduce_scatter)", "fast(x, False)", "ignores",
         ["blocks.Block.fast: down_proj"]),
        ("Shared(config, reduce_results=False)", "Shared(config)", "ignores",
         ["blocks.Shared.forward: down_proj"]),
        ("(config)(config)", "(config)(config, reduce_results=True)", "ignores",
         ["blocks.Block.forward: experts"]),
        ("x, batch, skip", "x, batch", "ignores",
         ["blocks.Block.fast: down_proj",
          "blocks.Block.forward: tensor_model_parallel_all_reduce"]),
        ("get_moe_impl_class(config)(config)", "Mystery(config)", "unclear", []),
        ("allow_reduce_scatter=True", "", "not promised", []),
    ],
)  # fmt: skip
def test_a_block_that_reduces_in_spite_of_the_promise_is_found(
    tmp_path: Path, before: str, after: str, verdict: str, reductions: list[str]
) -> None:
    folder = tmp_path / MODELS
    folder.mkdir(parents=True)
    for name, text in (("layer", DECODER), ("blocks", BLOCK)):
        (folder / f"{name}.py").write_text(text.replace(before, after) if before else text)
    (found,) = contract_of(tmp_path).values()
    assert found["verdict"] == verdict
    assert found.get("reductions", []) == reductions


def test_the_tool_takes_its_releases_from_the_patch() -> None:
    assert [r for r in RELEASES if reduction_contract.RELEASES.contains(r, True)] == AFFECTED
