"""Tiny checkpoints with random weights that sglang loads as it loads real ones.

Real model classes, real safetensors in bfloat16, a byte-level tokenizer: small enough for a CPU,
and deterministic down to the bit without any package. The standard deviations make every
sub-layer weigh about as much as the residual it is added to, so that a hidden state which is
reduced twice, or not at all, changes greedy tokens and log-probabilities plainly.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import struct
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Iterator


Config = dict[str, Any]
Weights = dict[str, tuple[tuple[int, ...], bytes]]

VOCABULARY = 512
_BYTES = 256
_SPECIAL = {"<pad>": 256, "<s>": 257, "</s>": 258}
_VISION = {
    "<|image_pad|>": 259,
    "<|vision_start|>": 260,
    "<|vision_end|>": 261,
    "<|video_pad|>": 262,
}

_COMMON: Config = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "pad_token_id": _SPECIAL["<pad>"],
    "bos_token_id": _SPECIAL["<s>"],
    "eos_token_id": _SPECIAL["</s>"],
}

CONFIGS: dict[str, Config] = {
    # One dense layer in front of two sparse ones, as in the real model.
    "deepseek-v3": {
        **_COMMON,
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "routed_scaling_factor": 2.5,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 16,
        "num_nextn_predict_layers": 0,
        # sglang's MLA has no plain rotary embedding on a CPU.
        "rope_scaling": {
            "type": "yarn",
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 512,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "beta_fast": 32,
            "beta_slow": 1,
        },
    },
    "qwen3-moe": {
        **_COMMON,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "num_experts": 8,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
        "sliding_window": None,
        "router_aux_loss_coef": 0.001,
        "output_router_logits": False,
    },
}

# From 0.5.12.post1 on Triton's decode kernel takes MLA's keys as wide as in the real model (512 and
# 64 of rotary embedding), or half as wide.
CONFIGS["deepseek-v3-wide-keys"] = {
    **CONFIGS["deepseek-v3"],
    "kv_lora_rank": 256,
    "qk_rope_head_dim": 32,
}

CONFIGS["gpt-oss"] = {
    **_COMMON,
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "head_dim": 32,
    "intermediate_size": 64,
    "num_local_experts": 8,
    "attention_bias": True,
    # The layers take their type from here, whatever the server is told.
    "torch_dtype": "float32",
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 16,
    # The real one is 7, which these activations would hardly ever meet.
    "swiglu_limit": 2.0,
    "router_aux_loss_coef": 0.001,
    "output_router_logits": False,
    "rope_scaling": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    },
}

# Features of the first three of its vision encoder's layers are added behind the first three layers.
CONFIGS["qwen3-vl-moe"] = {
    "architectures": ["Qwen3VLMoeForConditionalGeneration"],
    "model_type": "qwen3_vl_moe",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "bos_token_id": _SPECIAL["<s>"],
    "eos_token_id": _SPECIAL["</s>"],
    "image_token_id": _VISION["<|image_pad|>"],
    "video_token_id": _VISION["<|video_pad|>"],
    "vision_start_token_id": _VISION["<|vision_start|>"],
    "vision_end_token_id": _VISION["<|vision_end|>"],
    "text_config": {
        **{k: v for k, v in CONFIGS["qwen3-moe"].items() if k != "architectures"},
        "model_type": "qwen3_vl_moe_text",
        "num_hidden_layers": 5,
        "rope_scaling": {
            "rope_type": "default",
            "mrope_section": [8, 4, 4],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "model_type": "qwen3_vl_moe",
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": _COMMON["hidden_size"],
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1, 2],
        "hidden_act": "gelu_pytorch_tanh",
    },
}


def ensure_model(name: str, folder: Path) -> Path:
    """Write the checkpoint into a folder of its own in `folder` unless it is there already."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    path = folder / f"{name}-{version}"
    if not path.is_dir():
        partial = folder / f"{path.name}.{random.SystemRandom().getrandbits(32):08x}.partial"
        partial.mkdir(parents=True)
        try:
            write_model(name, partial)
            partial.rename(path)
        except OSError:
            # Another process may have been faster; then its result is as good as this one.
            if not path.is_dir():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def write_model(name: str, folder: Path) -> None:
    """Write the checkpoint `name` of CONFIGS into an existing folder."""
    config = CONFIGS[name]
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {key: config[key] for key in ("bos_token_id", "eos_token_id")},
    )
    special = _SPECIAL
    if "vision_config" in config:
        special = _SPECIAL | _VISION
        _write_processors(folder, config["vision_config"])
    _write_tokenizer(folder, special)
    weights = _Weights(config.get("text_config", config))
    write = {
        "deepseek_v3": _deepseek_v3,
        "gpt_oss": _gpt_oss,
        "qwen3_moe": _qwen3_moe,
        "qwen3_vl_moe": _qwen3_vl_moe,
    }[config["model_type"]]
    write(weights, config)
    _write_safetensors(folder / "model.safetensors", weights.tensors)


class _Weights:
    """Random tensors by checkpoint name, drawn in the order in which they are asked for."""

    def __init__(self, config: Config) -> None:
        self.tensors: Weights = {}
        self.hidden: int = config["hidden_size"]
        self._random = random.Random(0)

    def matrix(self, name: str, rows: int, columns: int, deviation: float = 0.08) -> None:
        self._add(name, (rows, columns), 0.0, deviation)

    def norm(self, name: str, size: int) -> None:
        self._add(name, (size,), 1.0, 0.1)

    def bias(self, name: str, size: int) -> None:
        self._add(name, (size,), 0.0, 0.01)

    def linear(self, name: str, rows: int, columns: int) -> None:
        self.matrix(name + ".weight", rows, columns, deviation=0.12)
        self.bias(name + ".bias", rows)

    def layer_norm(self, name: str, size: int) -> None:
        self.norm(name + ".weight", size)
        self.bias(name + ".bias", size)

    def stack(self, name: str, *shape: int, deviation: float = 0.08) -> None:
        self._add(name, shape, 0.0, deviation)

    def gated_mlp(self, prefix: str, size: int) -> None:
        self.matrix(prefix + "gate_proj.weight", size, self.hidden)
        self.matrix(prefix + "up_proj.weight", size, self.hidden)
        self.matrix(prefix + "down_proj.weight", self.hidden, size)

    def _add(self, name: str, shape: tuple[int, ...], mean: float, deviation: float) -> None:
        count = math.prod(shape)
        values = array("f", (self._random.gauss(mean, deviation) for _ in range(count)))
        self.tensors[name] = (shape, _bfloat16(values))


def _frame(weights: _Weights, config: Config, model: str = "model.") -> Iterator[tuple[int, str]]:
    """What all models share; yields every layer with its prefix for the rest."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    weights.matrix(model + "embed_tokens.weight", vocabulary, hidden, deviation=1.0)
    weights.matrix("lm_head.weight", vocabulary, hidden, deviation=0.3)
    weights.norm(model + "norm.weight", hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"{model}layers.{layer}."
        weights.norm(prefix + "input_layernorm.weight", hidden)
        weights.norm(prefix + "post_attention_layernorm.weight", hidden)
        yield layer, prefix


def _experts(weights: _Weights, prefix: str, count: int, size: int) -> None:
    weights.matrix(prefix + "gate.weight", count, weights.hidden, deviation=0.3)
    for expert in range(count):
        weights.gated_mlp(f"{prefix}experts.{expert}.", size)


def _deepseek_v3(weights: _Weights, config: Config) -> None:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, value = (
        config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    for layer, prefix in _frame(weights, config):
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        weights.matrix(attention + "q_a_proj.weight", q_rank, hidden)
        weights.norm(attention + "q_a_layernorm.weight", q_rank)
        weights.matrix(attention + "q_b_proj.weight", heads * (nope + rope), q_rank)
        weights.matrix(attention + "kv_a_proj_with_mqa.weight", kv_rank + rope, hidden)
        weights.norm(attention + "kv_a_layernorm.weight", kv_rank)
        weights.matrix(attention + "kv_b_proj.weight", heads * (nope + value), kv_rank)
        weights.matrix(attention + "o_proj.weight", hidden, heads * value)
        if layer < config["first_k_dense_replace"]:
            weights.gated_mlp(mlp, config["intermediate_size"])
            continue
        size = config["moe_intermediate_size"]
        _experts(weights, mlp, config["n_routed_experts"], size)
        weights.bias(mlp + "gate.e_score_correction_bias", config["n_routed_experts"])
        weights.gated_mlp(mlp + "shared_experts.", size * config["n_shared_experts"])


def _qwen3_attention(weights: _Weights, attention: str, config: Config) -> None:
    hidden, size = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    weights.matrix(attention + "q_proj.weight", heads * size, hidden)
    weights.matrix(attention + "k_proj.weight", kv_heads * size, hidden)
    weights.matrix(attention + "v_proj.weight", kv_heads * size, hidden)
    weights.matrix(attention + "o_proj.weight", hidden, heads * size)
    weights.norm(attention + "q_norm.weight", size)
    weights.norm(attention + "k_norm.weight", size)


def _qwen3_moe(weights: _Weights, config: Config) -> None:
    for _, prefix in _frame(weights, config):
        _qwen3_attention(weights, prefix + "self_attn.", config)
        _experts(weights, prefix + "mlp.", config["num_experts"], config["moe_intermediate_size"])


def _gpt_oss(weights: _Weights, config: Config) -> None:
    hidden, size = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    experts, width = config["num_local_experts"], config["intermediate_size"]
    for _, prefix in _frame(weights, config):
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        weights.linear(attention + "q_proj", heads * size, hidden)
        weights.linear(attention + "k_proj", kv_heads * size, hidden)
        weights.linear(attention + "v_proj", kv_heads * size, hidden)
        weights.linear(attention + "o_proj", hidden, heads * size)
        weights.stack(attention + "sinks", heads, deviation=1.0)
        weights.linear(mlp + "router", experts, hidden)
        weights.stack(mlp + "experts.gate_up_proj", experts, hidden, 2 * width)
        weights.stack(mlp + "experts.gate_up_proj_bias", experts, 2 * width)
        weights.stack(mlp + "experts.down_proj", experts, width, hidden)
        weights.stack(mlp + "experts.down_proj_bias", experts, hidden)


def _qwen3_vl_moe(weights: _Weights, config: Config) -> None:
    text, vision = config["text_config"], config["vision_config"]
    hidden, size = text["hidden_size"], text["moe_intermediate_size"]
    for _, prefix in _frame(weights, text, "model.language_model."):
        _qwen3_attention(weights, prefix + "self_attn.", text)
        weights.matrix(prefix + "mlp.gate.weight", text["num_experts"], hidden, deviation=0.3)
        experts = prefix + "mlp.experts."
        weights.stack(experts + "gate_up_proj", text["num_experts"], hidden, 2 * size)
        weights.stack(experts + "down_proj", text["num_experts"], size, hidden)
    visual, width, merged = "model.visual.", vision["hidden_size"], 4 * vision["hidden_size"]
    patch = (vision["in_channels"], vision["temporal_patch_size"], *[vision["patch_size"]] * 2)
    weights.stack(visual + "patch_embed.proj.weight", width, *patch)
    weights.bias(visual + "patch_embed.proj.bias", width)
    weights.matrix(visual + "pos_embed.weight", vision["num_position_embeddings"], width)
    for block in range(vision["depth"]):
        prefix = f"{visual}blocks.{block}."
        weights.layer_norm(prefix + "norm1", width)
        weights.layer_norm(prefix + "norm2", width)
        weights.linear(prefix + "attn.qkv", 3 * width, width)
        weights.linear(prefix + "attn.proj", width, width)
        weights.linear(prefix + "mlp.linear_fc1", vision["intermediate_size"], width)
        weights.linear(prefix + "mlp.linear_fc2", width, vision["intermediate_size"])
    mergers = [("merger.", width)]
    mergers += [
        (f"deepstack_merger_list.{number}.", merged)
        for number in range(len(vision["deepstack_visual_indexes"]))
    ]
    for name, normed in mergers:
        weights.layer_norm(visual + name + "norm", normed)
        weights.linear(visual + name + "linear_fc1", merged, merged)
        weights.linear(visual + name + "linear_fc2", vision["out_hidden_size"], merged)


def _bfloat16(values: array[float]) -> bytes:
    """The upper halves of the float32 bit patterns, rounded to nearest, ties to even."""
    bits = struct.unpack(f"={len(values)}I", values.tobytes())
    return struct.pack(
        f"<{len(values)}H", *((word + 0x7FFF + (word >> 16 & 1)) >> 16 for word in bits)
    )


def _write_safetensors(path: Path, tensors: Weights) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, data) in tensors.items():
        end = offset + len(data)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(data for _, data in tensors.values())


def _write_processors(folder: Path, vision: Config) -> None:
    """What cuts images and videos into patches."""
    common = {
        "processor_class": "Qwen3VLProcessor",
        "patch_size": vision["patch_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": 1024, "longest_edge": 65536},
    }
    image = {"image_processor_type": "Qwen2VLImageProcessorFast", **common}
    video = {"video_processor_type": "Qwen3VLVideoProcessor", **common}
    _write_json(folder / "preprocessor_config.json", image)
    _write_json(folder / "video_preprocessor_config.json", video)


def _write_tokenizer(folder: Path, special: dict[str, int]) -> None:
    vocabulary = {letter: index for index, letter in enumerate(_byte_alphabet())} | special
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    _write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": index, "content": content, "special": True, "normalized": False,
                    "single_word": False, "lstrip": False, "rstrip": False,
                }
                for content, index in special.items()
            ],
            "normalizer": None,
            "pre_tokenizer": {**byte_level, "use_regex": True},
            "post_processor": None,
            "decoder": {**byte_level, "use_regex": True},
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None,
                "continuing_subword_prefix": None, "end_of_word_suffix": None,
                "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                "vocab": vocabulary, "merges": [],
            },
        },
    )  # fmt: skip
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": "<pad>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "model_max_length": 2048,
            "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
        },
    )


def _byte_alphabet() -> list[str]:
    """One printable letter for each byte, as byte-level BPE has it: Latin-1 where that prints."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(_BYTES) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(_BYTES + index) for index, byte in enumerate(others)}
    return [letters[byte] for byte in range(_BYTES)]


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
