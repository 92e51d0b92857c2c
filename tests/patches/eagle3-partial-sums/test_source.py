"""Which models take hidden states for a draft between two layers, in the source of every release."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from rig.sources.published import RELEASES, after, plan_for
from wheels import fetch

from sglang_commfix.engine.register import load


PATCH = "eagle3-partial-sums"
COMMUNICATOR = "sglang.srt.layers.communicator"
AFFECTED = [r for r in RELEASES if load()[PATCH].affected.contains(r, True)]

# Classes whose forward function reads between two layers, one of which may leave its all-reduce to
# the other.
READERS = {
    "GptOssModel": ">=0.5.1,<0.5.21",
    "Qwen2MoeModel": ">=0.5.2,<0.5.4.post2",
    "Qwen3MoeLLMModel": ">=0.5.3,<0.5.21",
    "DeepseekV2Model": ">=0.5.4.post2,<0.5.14",
    "Glm4MoeModel": ">=0.5.5,<0.5.21",
    "BailingMoEModel": ">=0.5.9,<0.5.21",
    "Glm4MoeLiteModel": ">=0.5.13,<0.5.21",
    "LagunaModel": ">=0.5.15,<0.5.21",
    "BailingMoELinearModel": ">=0.5.19,<0.5.21",
    "Glm5NextModel": ">=0.5.20,<0.5.21",
}
MODELS = (
    "bailing_moe", "bailing_moe_v3", "deepseek_v2", "glm4_moe", "glm4_moe_lite", "glm5_next", "gpt_oss",
    "laguna", "mimo_v2", "minimax_m2", "minimax_m3", "nemotron_h", "qwen2_moe", "qwen3_5", "qwen3_moe",
    "qwen3_next", "qwen3_vl_moe",
)  # fmt: skip
# This one adds up itself what it is about to read.
COMPLETES_ITSELF = {"NemotronHModel"}
# Their files have to do with a model that fuses; their own layers never do.
NEVER_FUSED = {
    "DeepseekV4Model", "KimiK3LinearModel", "KimiLinearModel", "LongcatFlashModel", "Qwen3LLMModel",
}  # fmt: skip

pytestmark = pytest.mark.releases


@cache
def models(release: str) -> dict[str, str]:
    files = [f"sglang/srt/models/{name}.py" for name in MODELS]
    folder = fetch(release, files) / "sglang" / "srt" / "models"
    return {file.stem: file.read_text(encoding="utf-8") for file in folder.glob("*.py")}


def readers(release: str) -> dict[str, bool]:
    """Classes that read between layers; do layers that they may have leave the all-reduce?"""
    texts = models(release)
    fusing = {name for name, text in texts.items() if "should_fuse_mlp_allreduce" in text}
    found = {}
    for name, text in texts.items():
        if "layers_to_capture" not in text:
            continue
        # Its own layers, or those of a class that is derived from it.
        own = {name} | {
            other
            for other in texts
            if re.search(rf"from sglang.srt.models.{name} import", texts[other])
        }
        imported = set(re.findall(r"from sglang\.srt\.models\.(\w+) import", text))
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and reads_between_layers(node):
                found[node.name] = bool(fusing & (own | imported))
    return found


def reads_between_layers(model: ast.ClassDef) -> bool:
    forward = next(
        (n for n in model.body if isinstance(n, ast.FunctionDef) and n.name == "forward"), None
    )
    loops = [n for n in ast.walk(forward or model) if forward and isinstance(n, ast.For)]
    for loop in loops:
        for node in ast.walk(loop):
            if isinstance(node, ast.If) and "layers_to_capture" in ast.unparse(node.test):
                calls = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
                if any(getattr(call.func, "attr", "") == "append" for call in calls):
                    return True
    return False


@pytest.mark.parametrize("release", AFFECTED)
def test_the_readers_are_those_that_the_entry_names(release: str) -> None:
    found = {name for name, fuses in readers(release).items() if fuses} - COMPLETES_ITSELF
    expected = {n for n, span in READERS.items() if SpecifierSet(span).contains(release, True)}

    assert found - NEVER_FUSED == expected


def test_they_are_the_names_in_the_new_text() -> None:
    text = (Path(__file__).parents[3] / "patches" / PATCH / "captured.py").read_text()
    names = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}

    assert {*READERS} <= names
    assert {name for name in names if str(name).endswith("Model")} == {*READERS}


class Layer:
    def __init__(self) -> None:
        self.layer_communicator = SimpleNamespace()

    def forward(self, hidden_states: object) -> object:
        return hidden_states


class CapturingLayer(Layer):
    def forward(self, hidden_states: object, captured_last_layer_outputs: object = None) -> object:
        return hidden_states


class Missing:
    """In the place of a layer of another pipeline stage."""

    def forward(self, hidden_states: object) -> object:
        return hidden_states


def model(name: str, layers: list[Any]) -> Any:
    def forward(self: object) -> None: ...

    forward.__qualname__ = f"{name}.forward"
    part = type(name, (), {"forward": forward})()
    part.layers, part.layers_to_capture = layers, []
    part.modules = lambda: [part]
    return part


@pytest.fixture(params=["0.5.1", "0.5.13", "0.5.20"])
def added(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The functions that stand at the end of the patched module."""
    text = after(plan_for(request.param, PATCH).modules[COMMUNICATOR]).text
    names: dict[str, Any] = {}
    exec(text[text.index("def commfix_watch_captured_layers") :], names)
    return names


def marked(added: dict[str, Any], part: Any) -> list[int]:
    ask = added["commfix_output_is_captured"]
    return [n for n, layer in enumerate(part.layers) if ask(layer.layer_communicator)]


def test_a_layer_is_told_when_the_layer_behind_it_is_named(added: dict[str, Any]) -> None:
    part = model("GptOssModel", [Layer() for _ in range(6)])
    added["commfix_watch_captured_layers"](part)
    assert marked(added, part) == []
    part.layers_to_capture = [2, 4]
    assert marked(added, part) == [1, 3]
    # Up to 0.5.10.post1 they are set once more, when graphs are captured.
    part.layers_to_capture = [3, 6]
    assert marked(added, part) == [2, 5]


def test_bailing_v3_names_the_layer_itself(added: dict[str, Any]) -> None:
    part = model("BailingMoELinearModel", [Layer() for _ in range(4)])
    part.layers_to_capture = None
    added["commfix_watch_captured_layers"](part)
    assert marked(added, part) == []
    part.layers_to_capture = [2]
    assert marked(added, part) == [2]


@pytest.mark.parametrize("name", ["DeepseekV2Model", "Qwen2MoeModel"])
def test_layers_that_capture_themselves_are_left_alone(added: dict[str, Any], name: str) -> None:
    for kind, expected in ((Layer, [1]), (CapturingLayer, [])):
        part = model(name, [kind() for _ in range(4)])
        part.layers_to_capture = [2]
        added["commfix_watch_captured_layers"](part)
        assert marked(added, part) == expected


def test_layers_of_other_stages_and_other_models_are_left_alone(added: dict[str, Any]) -> None:
    part = model("Glm4MoeModel", [Missing(), Layer(), Layer()])
    part.layers_to_capture = [1, 2]
    added["commfix_watch_captured_layers"](part)
    assert not hasattr(part.layers[0], "layer_communicator")
    assert added["commfix_output_is_captured"](part.layers[1].layer_communicator)

    other = model("NemotronHModel", [Layer(), Layer()])
    other.layers_to_capture = [1]
    added["commfix_watch_captured_layers"](other)
    assert marked(added, other) == []
