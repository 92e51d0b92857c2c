"""A real Qwen3-VL-MoE server with an image: two ranks that fuse (FlashInfer's kernel played) against one."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import pytest
from rig.checkpoints import ensure_model
from rig.environment import Environment
from rig.server import Server


PATCH = "qwen3-vl-deepstack-fusion"
RELEASE = "0.5.12.post1"
NOISE, FAULT = 1e-3, 1e-1

FLAGS = ("--enable-multimodal", "--mm-attention-backend", "sdpa")
IMAGE_PROMPT = "ab<|vision_start|><|image_pad|><|vision_end|>cdefgh"
TEXT_PROMPT = "hello world, text alone"

pytestmark = [pytest.mark.servers, pytest.mark.servers_full]


def png(width: int, height: int) -> str:
    """An image of stripes and slopes, as base64."""
    rows = b"".join(
        b"\0" + bytes(v for x in range(width) for v in (x * 7 % 256, y * 5 % 256, (x * y) % 256))
        for y in range(height)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


@dataclass(frozen=True)
class Answers:
    image: list[float]
    text: list[float]
    """Log-probabilities of the prompts' tokens but the first."""

    fused_calls: dict[int, Any]


def serve(environment: Environment, ranks: int, select: str | None = None) -> Answers:
    with Server(
        RELEASE,
        ensure_model("qwen3-vl-moe", environment.models),
        ["--tp", str(ranks), *FLAGS],
        environment=environment,
        env={} if select is None else {"SGLANG_COMMFIX": select},
        probes=("played_kernel",) if ranks > 1 else (),
    ) as server:
        image = logprobs(server, IMAGE_PROMPT, [png(96, 64)])
        text = logprobs(server, TEXT_PROMPT, [])
        return Answers(image, text, server.reports("played_kernel") if ranks > 1 else {})


def logprobs(server: Server, text: str, images: list[str]) -> list[float]:
    question = {
        "text": text,
        "sampling_params": {"temperature": 0, "max_new_tokens": 1},
        "return_logprob": True,
        "logprob_start_len": 0,
        **({"image_data": images} if images else {}),
    }
    answer = server._post("/generate", question, 120.0)
    return [entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]]


def furthest(here: list[float], there: list[float]) -> float:
    return max(abs(one - other) for one, other in zip(here, there, strict=True))


def test_an_image_is_answered_as_by_one_rank_with_the_patch_alone(
    environment: Environment,
) -> None:
    one = serve(environment, 1)
    unpatched, patched = serve(environment, 2), serve(environment, 2, PATCH)

    assert furthest(unpatched.image, one.image) > FAULT
    assert furthest(patched.image, one.image) < NOISE
    assert furthest(unpatched.text, one.text) < NOISE
    assert furthest(patched.text, one.text) < NOISE
    assert min(*unpatched.fused_calls.values(), *patched.fused_calls.values()) > 0
