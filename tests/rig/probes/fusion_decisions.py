"""Asks every layer of the model whether it would leave its MLP's all-reduce to the next layer.

All-reduce fusion needs a GPU. Whether it is available is a question of its own in sglang, asked
through `apply_flashinfer_allreduce_fusion`: with its answer set to yes, what is left is the
decision of the layers' own LayerCommunicator objects.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

from rig.probes import probe


def install() -> None:
    probe.register("fusion_decisions", _examine)


def _examine(model_runner: Any) -> list[dict[str, object]]:
    communicator: Any = importlib.import_module("sglang.srt.layers.communicator")
    torch = importlib.import_module("torch")
    batch = SimpleNamespace(input_ids=torch.zeros(4, dtype=torch.int64))
    available = communicator.apply_flashinfer_allreduce_fusion
    communicator.apply_flashinfer_allreduce_fusion = lambda batch_size: True
    try:
        return [
            {
                "mlp_mode": layer.layer_communicator.layer_scatter_modes.mlp_mode.name,
                "is_last": layer.layer_communicator.is_last_layer,
                "fuses": layer.layer_communicator.should_fuse_mlp_allreduce_with_next_layer(batch),
            }
            for layer in model_runner.model.model.layers
        ]
    finally:
        communicator.apply_flashinfer_allreduce_fusion = available
