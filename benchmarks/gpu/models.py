"""Writes the checkpoints that the GPU cases are asked with: random weights, real safetensors.

    python benchmarks/gpu/models.py FOLDER [NAME ...]

Four layers, hidden size 2048, bfloat16, 0.4 to 0.9 GB each. A tensor depends on its name and shape
alone, so that every release and layout loads the same numbers. Every sub-layer weighs about as much
as the residual it is added to, and logits spread by about 3: a partial sum that goes without its
all-reduce moves log-probabilities by whole units, bfloat16 by hundredths.
"""

from __future__ import annotations

import importlib
import json
import sys
import zlib
from pathlib import Path
from typing import Any


torch: Any = importlib.import_module("torch")
save_file: Any = importlib.import_module("safetensors.torch").save_file

Config = dict[str, Any]
Weights = dict[str, Any]

VOCABULARY = 32768
HIDDEN = 2048
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

COMMON: Config = {
    "torch_dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "max_position_embeddings": 16384,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "use_cache": True,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
}
CONFIGS: dict[str, Config] = {
    "deepseek-v3": {
        **COMMON,
        **GROUPED,
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_key_value_heads": 16,
        "q_lora_rank": 768,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
        "ep_size": 1,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rope_interleave": True,
        "pretraining_tp": 1,
    },
    "glm4-moe": {
        **COMMON,
        **GROUPED,
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "num_key_value_heads": 4,
        "head_dim": 128,
        "use_qk_norm": True,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "partial_rotary_factor": 0.5,
    },
    "gpt-oss": {
        **COMMON,
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "attention_bias": True,
        "intermediate_size": 768,
        "num_local_experts": 16,
        "swiglu_limit": 7.0,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        "router_aux_loss_coef": 0.001,
        "output_router_logits": False,
    },
    "qwen3-moe": {
        **COMMON,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 16,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "use_sliding_window": False,
        "sliding_window": None,
        "router_aux_loss_coef": 0.001,
        "output_router_logits": False,
    },
}


def normal(name: str, shape: tuple[int, ...], deviation: float) -> Any:
    """Return random numbers that the name decides."""
    generator = torch.Generator(device=DEVICE).manual_seed(zlib.crc32(name.encode()))
    numbers = torch.randn(shape, generator=generator, device=DEVICE) * deviation
    return numbers.to(torch.bfloat16).cpu()


class Checkpoint:
    """A model's weights while they are made."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.weights: Weights = {}

    def linear(self, name: str, outputs: int, inputs: int, gain: float = 1.0) -> None:
        """Add a projection that keeps the deviation, times ``gain``."""
        self.weights[f"{name}.weight"] = normal(name, (outputs, inputs), gain / inputs**0.5)

    def norm(self, name: str, size: int) -> None:
        """Add the weight of an RMSNorm."""
        self.weights[f"{name}.weight"] = 1 + normal(name, (size,), 0.1)

    def mlp(self, name: str, inner: int, gain: float) -> None:
        """Add a gated MLP."""
        self.linear(f"{name}.gate_proj", inner, HIDDEN, 1.5)
        self.linear(f"{name}.up_proj", inner, HIDDEN, 1.5)
        self.linear(f"{name}.down_proj", HIDDEN, inner, gain)

    def latent_attention(self, name: str) -> None:
        """Add DeepSeek's attention."""
        c = self.config
        heads, rope, nope = c["num_attention_heads"], c["qk_rope_head_dim"], c["qk_nope_head_dim"]
        self.linear(f"{name}.q_a_proj", c["q_lora_rank"], HIDDEN)
        self.norm(f"{name}.q_a_layernorm", c["q_lora_rank"])
        self.linear(f"{name}.q_b_proj", heads * (nope + rope), c["q_lora_rank"])
        self.linear(f"{name}.kv_a_proj_with_mqa", c["kv_lora_rank"] + rope, HIDDEN)
        self.norm(f"{name}.kv_a_layernorm", c["kv_lora_rank"])
        self.linear(f"{name}.kv_b_proj", heads * (nope + c["v_head_dim"]), c["kv_lora_rank"])
        self.linear(f"{name}.o_proj", HIDDEN, heads * c["v_head_dim"], 2.0)

    def attention(self, name: str) -> None:
        """Add grouped-query attention with normed queries and keys."""
        c = self.config
        size = c["head_dim"]
        self.linear(f"{name}.q_proj", c["num_attention_heads"] * size, HIDDEN)
        for part in ("k_proj", "v_proj"):
            self.linear(f"{name}.{part}", c["num_key_value_heads"] * size, HIDDEN)
        self.linear(f"{name}.o_proj", HIDDEN, c["num_attention_heads"] * size, 2.0)
        self.norm(f"{name}.q_norm", size)
        self.norm(f"{name}.k_norm", size)

    def attention_with_sinks(self, name: str) -> None:
        """Add GPT-OSS's attention, with biases."""
        c = self.config
        heads = {"q_proj": c["num_attention_heads"], "k_proj": c["num_key_value_heads"]}
        for part, count in {**heads, "v_proj": heads["k_proj"]}.items():
            self.linear(f"{name}.{part}", count * c["head_dim"], HIDDEN)
            bias = normal(f"{name}.{part}.bias", (count * c["head_dim"],), 0.02)
            self.weights[f"{name}.{part}.bias"] = bias
        self.linear(f"{name}.o_proj", HIDDEN, heads["q_proj"] * c["head_dim"], 2.0)
        self.weights[f"{name}.o_proj.bias"] = normal(f"{name}.o_proj.bias", (HIDDEN,), 0.02)
        self.weights[f"{name}.sinks"] = normal(f"{name}.sinks", (heads["q_proj"],), 1.0)

    def stacked_experts(self, name: str) -> None:
        """Add GPT-OSS's router and experts, all experts in one tensor."""
        experts, inner = self.config["num_local_experts"], self.config["intermediate_size"]
        self.linear(f"{name}.router", experts, HIDDEN, 2.0)
        shapes: dict[str, tuple[tuple[int, ...], float]] = {
            "router.bias": ((experts,), 0.02),
            "experts.gate_up_proj": ((experts, HIDDEN, 2 * inner), 1.5 / HIDDEN**0.5),
            "experts.gate_up_proj_bias": ((experts, 2 * inner), 0.02),
            "experts.down_proj": ((experts, inner, HIDDEN), 1.0 / inner**0.5),
            "experts.down_proj_bias": ((experts, HIDDEN), 0.02),
        }
        for part, (shape, deviation) in shapes.items():
            self.weights[f"{name}.{part}"] = normal(f"{name}.{part}", shape, deviation)

    def layer(self, index: int) -> None:
        """Add a decoder layer."""
        c, name = self.config, f"model.layers.{index}"
        self.norm(f"{name}.input_layernorm", HIDDEN)
        self.norm(f"{name}.post_attention_layernorm", HIDDEN)
        if "num_local_experts" in c:
            self.attention_with_sinks(f"{name}.self_attn")
            self.stacked_experts(f"{name}.mlp")
            return
        attention = self.latent_attention if "kv_lora_rank" in c else self.attention
        attention(f"{name}.self_attn")
        if index < c.get("first_k_dense_replace", 0):
            self.mlp(f"{name}.mlp", c["intermediate_size"], 1.5)
            return
        experts = c.get("n_routed_experts") or c["num_experts"]
        self.linear(f"{name}.mlp.gate", experts, HIDDEN, 2.0)
        for expert in range(experts):
            self.mlp(f"{name}.mlp.experts.{expert}", c["moe_intermediate_size"], 1.5)
        if "n_shared_experts" in c:
            bias = normal(f"{name}.bias", (experts,), 0.02)
            self.weights[f"{name}.mlp.gate.e_score_correction_bias"] = bias.float()
            self.mlp(f"{name}.mlp.shared_experts", c["moe_intermediate_size"], 1.0)

    def write(self, folder: Path) -> None:
        """Write everything that a release loads."""
        self.weights["model.embed_tokens.weight"] = normal("embed", (VOCABULARY, HIDDEN), 1.0)
        for index in range(self.config["num_hidden_layers"]):
            self.layer(index)
        self.norm("model.norm", HIDDEN)
        self.linear("lm_head", VOCABULARY, HIDDEN, 3.0)
        folder.mkdir(parents=True, exist_ok=True)
        ends = {name: self.config[name] for name in ("bos_token_id", "eos_token_id")}
        (folder / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(self.config, indent=1), encoding="utf-8")
        weights = {name: weight.contiguous() for name, weight in self.weights.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    folder, *names = sys.argv[1:]
    for name in names or CONFIGS:
        Checkpoint(CONFIGS[name]).write(Path(folder) / name)
        print(f"wrote {folder}/{name}", flush=True)


if __name__ == "__main__":
    main()
