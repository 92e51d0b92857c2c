"""A model's own loop over its layers on real ranks, and what it captures for a draft.

Runs in the rig's Python as `capture_ranks.py MODELS`, and is asked by test_ranks.py: imports sglang
once, then forks the ranks of each case.

Real, of the release: process groups, the model class with its forward function and its layers, the
setter of the layers to capture. Replaced, as in `rig.layers`: attention, which is a partial sum, and
FlashInfer's fused kernel. The reference is `rig.layers.reference`: one process, in float64.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import sys
from types import SimpleNamespace
from typing import Any

from rig.answering import answer
from rig.checkpoints import CONFIGS
from rig.layers import forks, rank, reference
from rig.layers import models as layers
from rig.layers.case import Case, RankReport
from rig.layers.collectives import Recorder
from rig.shims import placeholders


torch: Any = importlib.import_module("torch")

SPARSE = dict(CONFIGS["qwen3-moe"])
DEEPSEEK = dict(CONFIGS["deepseek-v3"])


@dataclasses.dataclass(frozen=True)
class Family:
    """Where a model's classes are, and how it is configured."""

    module: str
    model: str
    attention: str
    head: str
    config: dict[str, Any]


FAMILIES = {
    "gpt-oss": Family(
        "gpt_oss",
        "GptOssModel",
        "GptOssAttention",
        "GptOssForCausalLM",
        {
            **SPARSE,
            "num_local_experts": SPARSE["num_experts"],
            "intermediate_size": SPARSE["moe_intermediate_size"],
            "sliding_window": 128,
            "swiglu_limit": 7.0,
            "attention_bias": True,
            "torch_dtype": torch.float32,
            "dtype": torch.float32,
            "quantization_config": None,
        },
    ),
    "deepseek-v3": Family(
        "deepseek_v2",
        "DeepseekV2Model",
        "DeepseekV2AttentionMLA",
        "DeepseekV2ForCausalLM",
        DEEPSEEK,
    ),
    "glm4-moe": Family(
        "glm4_moe",
        "Glm4MoeModel",
        "Glm4MoeAttention",
        "Glm4MoeForCausalLM",
        dict(layers.MODELS["glm4-moe"].config),
    ),
    "glm4-moe-lite": Family(
        "glm4_moe_lite",
        "Glm4MoeLiteModel",
        "DeepseekV2AttentionMLA",
        "Glm4MoeLiteForCausalLM",
        DEEPSEEK,
    ),
    "qwen3-moe": Family(
        "qwen3_moe", "Qwen3MoeModel", "Qwen3MoeAttention", "Qwen3MoeForCausalLM", SPARSE
    ),
    "qwen3-vl-moe": Family(
        "qwen3_vl_moe",
        "Qwen3MoeLLMModel",
        "Qwen3MoeAttention",
        "Qwen3VLMoeForConditionalGeneration",
        SPARSE,
    ),
    "bailing-moe": Family(
        "bailing_moe",
        "BailingMoEModel",
        "BailingMoEAttention",
        "BailingMoEForCausalLM",
        {
            **SPARSE,
            "first_k_dense_replace": 0,
            "num_shared_experts": 1,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "embedding_dropout": 0.0,
            "use_bias": False,
            "score_function": "softmax",
            "n_group": 0,
            "topk_group": 0,
        },
    ),
}


DENSE_FIRST = ("deepseek-v3", "glm4-moe", "glm4-moe-lite")


@dataclasses.dataclass(frozen=True)
class Captured:
    """What one rank has found. Errors are relative: the norm of what is off, by that of the right."""

    error: str | None = None
    states: tuple[float, ...] = ()
    """Of the captured states, in the order in which they were captured."""

    between: tuple[float, ...] = ()
    """By how much they differ from those of rank 0."""

    final: float = float("nan")
    """Of what leaves the final norm."""

    fused: tuple[bool, ...] = ()
    """By layer: did it leave its all-reduce to the next one?"""

    sent: tuple[str, ...] = ()
    """All collectives, in order, as "operation group"."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Attention(layers._Attention):  # type: ignore[misc]
    """GPT-OSS asks for more of it than the layers of the rig do."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.attn = SimpleNamespace()


def build(family: Family, config: dict[str, Any], weights: list[dict[str, Any]]) -> Any:
    """The model as the release makes it, with this rank's share of the weights."""
    module: Any = importlib.import_module(f"sglang.srt.models.{family.module}")
    for place in (module, *sys.modules.values()):
        if getattr(place, "__name__", "").startswith("sglang.srt.models") and hasattr(
            place, family.attention
        ):
            setattr(place, family.attention, Attention)
    read = layers._as_sglang_reads_it(config)
    read.text_config = read
    read.get_text_config = lambda *_: read
    model = getattr(module, family.model)(config=read)
    for layer, own in zip(model.layers, weights, strict=True):
        load(layer, own)
    return model


def load(layer: Any, weights: dict[str, Any]) -> None:
    """Like the rig's, for the names of all these families."""
    attention = layer.self_attn if hasattr(layer, "self_attn") else layer.attention
    attention.weight = weights["attention"]
    for name, parameter in layer.named_parameters():
        if name.endswith("layernorm.weight"):
            parameter.data.copy_(weights[name.removesuffix(".weight")])
        elif name in ("mlp.gate.weight", "mlp.router.weight"):
            parameter.data.copy_(weights["router"])
        elif name == "mlp.gate.e_score_correction_bias":
            parameter.data.copy_(weights["router_bias"])
        elif name == "mlp.router.bias":
            parameter.data.copy_(weights["router_offset"])
        elif name.startswith("mlp.experts.") and "experts.gate_bias" in weights:
            layers._load_fused_experts(name, parameter, layer.mlp.experts, weights)
        elif name.startswith("mlp.experts."):
            layers._load_experts(name, parameter, layer.mlp.experts, weights)
        elif name.endswith("bias"):
            parameter.data.zero_()
        else:
            layers._load_projection(name, parameter, weights)
    for module in layer.modules():
        method = getattr(module, "quant_method", None)
        if method is not None:
            method.process_weights_after_loading(module)
    if hasattr(layer.mlp, "experts"):
        layers._map_experts_on_cpu(layer.mlp.experts)


def set_layers_to_capture(family: Family, model: Any, ids: list[int]) -> None:
    """By the release's own setter, of a head that has nothing else."""
    module: Any = importlib.import_module(f"sglang.srt.models.{family.module}")
    head = getattr(module, family.head)
    state: Any = importlib.import_module("sglang.srt.distributed.parallel_state")
    pp_group = state.get_pp_group()
    shape = SimpleNamespace(num_hidden_layers=len(model.layers))
    instance = SimpleNamespace(model=model, pp_group=pp_group, config=shape)
    setter = getattr(head, "set_eagle3_layers_to_capture", None)
    if setter is None:
        setter = language_model_setter(module)
    setter(instance, ids)


def language_model_setter(module: Any) -> Any:
    raise NotImplementedError(f"{module.__name__} has no set_eagle3_layers_to_capture")


def run(case: Case, request: dict[str, Any], number: int, rendezvous: str) -> Captured:
    """Raises whatever sglang raises."""
    recorder = Recorder()
    rank.configure = functools.partial(lambda config, *_: config, {**SPARSE})
    server_args = rank._start_runtime(case, number, rendezvous, request["checkpoint"], recorder)
    family = FAMILIES[request["family"]]
    config = {**family.config, "num_hidden_layers": len(case.layers)}
    config["layer_types"] = ["full_attention"] * len(case.layers)
    if "first_k_dense_replace" in config:
        config["first_k_dense_replace"] = len(case.layers) - len(case.layers.lstrip("D"))
    weights = [layers.make_weights(config, kind, seed) for seed, kind in enumerate(case.layers)]

    model = build(family, config, weights)
    communicator: Any = importlib.import_module("sglang.srt.layers.communicator")
    if hasattr(communicator, "commfix_watch_captured_layers"):
        # What the patch lets the model runner do behind loading.
        communicator.commfix_watch_captured_layers(model)
    set_layers_to_capture(family, model, request["capture"])

    fused = [False] * len(case.layers)
    for index, layer in enumerate(model.layers):
        observe(layer.layer_communicator, fused, index)
    batch = rank._make_batch(case, 0, server_args)
    given = rank._hidden_states(case.tokens[0], config, seed=1000)
    sent: dict[str, list[str]] = {}
    with recorder.into(sent), torch.no_grad():
        output = rank._call(
            model.forward,
            input_ids=batch.input_ids,
            positions=batch.positions,
            forward_batch=batch,
            input_embeds=given.clone(),
        )
    hidden_states, captured = output[0], output[-1]
    if torch.is_tensor(captured):
        captured = captured.split(config["hidden_size"], dim=-1)
    states = reference.forward(given.double(), weights, config)
    final = reference._norm(
        states[-1], torch.ones(config["hidden_size"], dtype=torch.float64), config
    )
    # The layer ids name the layers whose outputs are captured.
    expected = [states[i] for i in request["capture"]]
    if len(captured) != len(expected):
        raise AssertionError(f"{len(captured)} states were captured, not {len(expected)}")
    return Captured(
        states=tuple(map(off, captured, expected)),
        between=tuple(off(one, first_rank(one)) for one in captured),
        final=off(hidden_states, final),
        fused=tuple(fused),
        sent=tuple(sent.get("", ())),
    )


def first_rank(tensor: Any) -> Any:
    state: Any = importlib.import_module("sglang.srt.distributed.parallel_state")
    other = tensor.clone()
    torch.distributed.broadcast(other, 0, group=state.get_tp_group().device_group)
    return other


def observe(communicator: Any, fused: list[bool], index: int) -> None:
    ask = communicator.should_fuse_mlp_allreduce_with_next_layer

    def asked(*args: Any, **kwargs: Any) -> bool:
        fused[index] = bool(ask(*args, **kwargs))
        return fused[index]

    communicator.should_fuse_mlp_allreduce_with_next_layer = asked


def off(actual: Any, right: Any) -> float:
    return float((actual.double() - right.double()).norm() / right.double().norm())


def run_ranks(request: dict[str, Any]) -> list[Any]:
    # The rig forks the ranks, and asks this module for what each of them does.
    rank.run = functools.partial(report, request)
    reports = forks.run(Case.from_json(request["case"]), request["checkpoint"])
    return [json.loads(one["error"]) if one["error"] else None for one in reports]


def report(
    request: dict[str, Any], case: Case, number: int, rendezvous: str, checkpoint: str
) -> RankReport:
    """In a report's one free text."""
    import traceback

    try:
        found = run(case, request, number, rendezvous)
    except Exception:
        found = Captured(error=traceback.format_exc())
    return RankReport(error=json.dumps(found.to_json()))


if __name__ == "__main__":
    placeholders.register()
    for name in ("model_executor.forward_batch_info", *(f"models.{m}" for m in sys.argv[1:])):
        importlib.import_module(f"sglang.srt.{name}")
    answer(run_ranks)
