"""``28619-pipeline-stage-fusion`` in the source of the releases that it is for."""

from __future__ import annotations

import ast
import re
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from rig.sources import published

from sglang_commfix.engine.fingerprint import find_scope, parse
from sglang_commfix.engine.register import load


pytestmark = pytest.mark.releases

ENTRY = "28619-pipeline-stage-fusion"
AFFECTED = load()[ENTRY].affected_releases
ASKS = "should_fuse_mlp_allreduce_with_next_layer"
MARK = "commfix_is_last_of_stage"

# Their layers are made by a class of another file.
INHERITED = {"qwen3_moe.py": "(Qwen2MoeModel)"}


@cache
def models(release: str) -> dict[str, str]:
    """The model files in which a layer asks whether it may leave its all-reduce to the next."""
    folder = published.released(release) / "sglang" / "srt" / "models"
    texts = {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*.py")}
    return {name: text for name, text in sorted(texts.items()) if ASKS in text}


@pytest.mark.parametrize("release", AFFECTED)
def test_every_layer_asks_the_communicator_that_is_marked(release: str) -> None:
    assert models(release)
    for name, text in models(release).items():
        asked = set(re.findall(rf"([\w.]*){ASKS}", text))
        assert asked <= {"self.layer_communicator.", "layer.layer_communicator."}, name


@pytest.mark.parametrize("release", AFFECTED)
def test_every_model_with_stages_has_its_layers_made_where_the_mark_is_set(release: str) -> None:
    for name, text in models(release).items():
        if name in INHERITED:
            assert INHERITED[name] in text
        elif "PPProxyTensors(" in text:
            (made,) = re.findall(r"= make_layers\(.*?\n        \)", text, re.DOTALL)
            assert "pp_rank=" in made, name
            assert "pp_size=" in made, name


class Layer:
    def __init__(self, idx: int) -> None:
        self.idx = idx
        self.layer_communicator = SimpleNamespace()


class Bare:
    """A layer of a model that fuses nothing."""

    def __init__(self, idx: int) -> None:
        pass


@cache
def make_layers(release: str) -> Any:
    """The real function of the patched release, with what it imports replaced."""
    plan = published.plan_for(release, ENTRY)
    (module,) = (name for name in plan.modules if name.startswith("sglang.srt.utils"))
    function = find_scope(parse(published.after(plan.modules[module])), "make_layers")
    assert isinstance(function, ast.FunctionDef)
    function.body = [node for node in function.body if not isinstance(node, ast.ImportFrom)]
    for argument in function.args.args:
        argument.annotation = None
    function.returns = None
    names: dict[str, Any] = {
        "get_pp_indices": lambda all_, rank, size: (all_ * rank // size, all_ * (rank + 1) // size),
        "PPMissingLayer": lambda return_tuple: None,
        "get_offloader": lambda: SimpleNamespace(wrap_modules=lambda made, **_: list(made)),
        "torch": SimpleNamespace(nn=SimpleNamespace(ModuleList=list)),
        "add_prefix": lambda idx, prefix: f"{prefix}.{idx}",
    }
    exec(compile(ast.Module([function], []), module, "exec"), names)
    return names["make_layers"]


def made(release: str, layer: type, rank: int | None, size: int | None) -> list[Any]:
    found = make_layers(release)(6, lambda idx, prefix: layer(idx), rank, size)
    return [one for one in (found if rank is None else found[0]) if one is not None]


@pytest.mark.parametrize("release", AFFECTED)
def test_the_last_layer_of_a_stage_is_marked_and_no_other(release: str) -> None:
    def marked(rank: int | None, size: int | None) -> list[int]:
        layers = made(release, Layer, rank, size)
        return [layer.idx for layer in layers if hasattr(layer.layer_communicator, MARK)]

    assert marked(None, None) == []
    assert marked(0, 1) == []
    assert [marked(rank, 2) for rank in range(2)] == [[2], []]
    assert [marked(rank, 3) for rank in range(3)] == [[1], [3], []]


@pytest.mark.parametrize("release", AFFECTED)
def test_layers_without_a_communicator_are_left_alone(release: str) -> None:
    assert [vars(layer) for layer in made(release, Bare, 0, 2)] == [{}] * 3
