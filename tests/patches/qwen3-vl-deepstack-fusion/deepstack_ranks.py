"""The release's own `Qwen3MoeLLMModel.forward` on real ranks over gloo, against one process in float64.

Runs in the rig's Python, and is asked by test_ranks.py: imports sglang once, then forks the ranks of
each scenario. Layers, their weights and FlashInfer's
stand-in are those of `rig.layers`; the features are random numbers, as large as the hidden states.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from typing import TYPE_CHECKING, Any

from rig import forked
from rig.answering import answer
from rig.layers import models, reference
from rig.layers import rank as rig_rank
from rig.layers.case import Case, Layout
from rig.layers.collectives import Recorder
from rig.layers.models import FEATURES, configure, make_weights
from rig.shims import placeholders


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


torch: Any = importlib.import_module("torch")

Tensor = Any

PATIENCE = 60.0
TOKENS = 5


def run(scenario: dict[str, Any], rank: int, rendezvous: str, checkpoint: str) -> dict[str, Any]:
    """How far this rank is from the right output, and from what it would be with other features."""
    layers = "S" * scenario["layers"]
    layout = Layout(tp=scenario["ranks"], ep=scenario["ep"])
    case = Case(layout, (TOKENS,), model="qwen3-moe", layers=layers, fusion=scenario["fused"])
    recorder = Recorder()
    server_args = rig_rank._start_runtime(case, rank, rendezvous, checkpoint, recorder)
    config = configure(case.model, layers)
    weights = [make_weights(config, kind, seed) for seed, kind in enumerate(layers)]
    batch = rig_rank._make_batch(case, 0, server_args)
    size = config["hidden_size"]
    given = random_numbers(TOKENS, size, 1000)
    features = random_numbers(TOKENS, FEATURES * size, 2000)
    if scenario.get("declines"):
        decline()

    model = make_model(case, config, weights, scenario["transformers_order"])
    steps: dict[str, list[str]] = {}
    with recorder.into(steps), torch.no_grad():
        output = model.forward(
            batch.input_ids,
            batch.positions,
            batch,
            input_embeds=given.clone(),
            input_deepstack_embeds=features.clone() if scenario["features"] else None,
        )
    wire = [operation for step in steps.values() for operation in step]
    scale = 1.0 if scenario["features"] else 0.0

    def error(times: float) -> float:
        return relative_error(output, expected(given, features * times, weights, config))

    return {
        "digest": hashlib.sha256(output.numpy().tobytes()).hexdigest(),
        "error": error(scale),
        "without features": error(0.0),
        "once per rank": error(scale * layout.tp),
        "fused calls": sum(operation.startswith("fused_all_reduce") for operation in wire),
        "other calls": sum(not operation.startswith("fused_all_reduce") for operation in wire),
    }


def random_numbers(tokens: int, size: int, seed: int) -> Tensor:
    return torch.randn(tokens, size, generator=torch.Generator().manual_seed(seed))


def make_model(
    case: Case, config: dict[str, Any], weights: list[dict[str, Tensor]], transformers_order: bool
) -> Any:
    """The rig's, with a real norm in the end: the tests count in units of what leaves that."""
    layernorm: Any = importlib.import_module("sglang.srt.layers.layernorm")
    model = models.make_model(case.model, config, weights, with_features=True)
    model.norm = layernorm.RMSNorm(config["hidden_size"], eps=config["rms_norm_eps"])
    model.use_hf_deepstack_order = transformers_order
    return model


def decline() -> None:
    """From here on the next layer may not use the fused kernel, and all-reduces by itself."""
    communicator: Any = importlib.import_module("sglang.srt.layers.communicator")
    decide = communicator.LayerCommunicator.prepare_attn

    @functools.wraps(decide)
    def prepare_attn(*args: Any, **kwargs: Any) -> Any:
        before = communicator.apply_flashinfer_allreduce_fusion
        communicator.apply_flashinfer_allreduce_fusion = lambda *_: False
        try:
            return decide(*args, **kwargs)
        finally:
            communicator.apply_flashinfer_allreduce_fusion = before

    communicator.LayerCommunicator.prepare_attn = prepare_attn


def expected(
    given: Tensor, features: Tensor, weights: list[dict[str, Tensor]], config: dict[str, Any]
) -> Tensor:
    """One process, float64, written down independently of sglang."""
    behind = features.double().split(config["hidden_size"], dim=-1)
    hidden_states = reference.forward(given.double(), weights, config, behind)[-1]
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    return hidden_states * torch.rsqrt(variance + config["rms_norm_eps"])


def relative_error(actual: Tensor, wanted: Tensor) -> float:
    return float((actual.double() - wanted).abs().max() / wanted.pow(2).mean().sqrt())


def run_ranks(scenario: dict[str, Any], checkpoint: str) -> list[Any]:
    """Return what each rank has found, its error, or where it stands."""

    def body(rank: int, folder: Path, begin_step: Callable[[], None]) -> dict[str, Any]:
        begin_step()
        return run(scenario, rank, f"file://{folder}/rendezvous", checkpoint)

    return forked.run(scenario["ranks"], body, stall=PATIENCE)


def take_interpreted_kernels() -> None:
    """Some releases check at import that their LoRA kernels are compiled, which the rig's are not."""
    jit: Any = importlib.import_module("triton.runtime.jit")
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    jit.JITFunction = interpreter.InterpretedFunction


if __name__ == "__main__":
    placeholders.register()
    take_interpreted_kernels()
    importlib.import_module("sglang.srt.model_executor.forward_batch_info")
    importlib.import_module("sglang.srt.models.qwen3_vl_moe")
    answer(lambda asked: run_ranks(**asked))
