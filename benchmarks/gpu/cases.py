"""The cases: what is served, on which release, what is forced, and what it is compared with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


# One prompt at a time, each of at most 2048 tokens, is fused; all eight at once are too many in
# prefill, and fused again in decode.
LENGTHS = (5, 33, 64, 130, 301, 777, 1025, 2000)
COMMON: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "disable_piecewise_cuda_graph": True,
    "cuda_graph_max_bs": 8,
    "mem_fraction_static": 0.85,
    "max_total_tokens": 16384,
    "max_running_requests": 16,
    "chunked_prefill_size": 8192,
    "disable_radix_cache": True,
    "random_seed": 1,
    "watchdog_timeout": 200,
}
EAGER = {"disable_cuda_graph": True}
STAGES = {"tp_size": 2, "pp_size": 2}
POOL = {"tp_size": 2, "moe_dense_tp_size": 1, "max_running_requests": 3}
POOL_OF_GROUPS = {
    "tp_size": 4,
    "dp_size": 2,
    "enable_dp_attention": True,
    "max_running_requests": 6,
}
HYBRID = {"tp_size": 4, "ep_size": 2}
DATA_PARALLEL = {"dp_size": 2, "ep_size": 2, "enable_dp_attention": True}
TRITON_EXPERTS = {"moe_runner_backend": "triton"}
STRICT = {"SGLANG_COMMFIX_STRICT": "1"}


@dataclass(frozen=True)
class Case:
    """One setup. ``entry`` is the patch it shows, or ``none`` where nothing may change.

    ``fleet`` stands for no patch either: its ranks may run different ones, and say so. Without an
    entry it is a reference on one rank. ``environ`` is what the patched arm has beside
    ``SGLANG_COMMFIX``.
    """

    name: str
    release: str
    model: str
    flags: dict[str, Any]
    entry: str = ""
    against: str = ""
    hooks: dict[str, str] = field(default_factory=dict)
    together: bool = True
    seconds: float = 240.0
    arms: tuple[str, ...] = ("unpatched", "patched")
    environ: dict[str, str] = field(default_factory=lambda: STRICT)

    @property
    def ranks(self) -> int:
        """Processes that hold a part of the model."""
        return int(self.flags.get("tp_size", 1)) * int(self.flags.get("pp_size", 1))


def own(model: str) -> dict[str, Any]:
    """Return the flags that a model needs in every case."""
    return dict(TRITON_EXPERTS) if model == "gpt-oss" else {}


def one_rank(release: str, model: str) -> Case:
    return Case(f"{model}-tp1-{release}", release, model, {"tp_size": 1, **own(model)})


def captured(release: str, model: str) -> list[Case]:
    """EAGLE-3: the states captured for a draft."""
    hooks = {"GPU_CAPTURE": "1"}
    flags = {**EAGER, **own(model)}
    alone = f"eagle3-{model}-tp1-{release}"
    return [
        Case(alone, release, model, {"tp_size": 1, **flags}, hooks=hooks, together=False),
        Case(
            f"eagle3-{model}-tp2-{release}",
            release,
            model,
            {"tp_size": 2, **flags},
            "eagle3-partial-sums",
            alone,
            hooks,
            together=False,
        ),
    ]


def deepstack(release: str) -> list[Case]:
    """Qwen3-VL-MoE: vision features of the first layers."""
    hooks = {"GPU_DEEPSTACK": "1"}
    alone = f"deepstack-tp1-{release}"
    return [
        Case(alone, release, "qwen3-moe", {"tp_size": 1, **EAGER}, hooks=hooks),
        Case(
            f"deepstack-tp2-{release}",
            release,
            "qwen3-moe",
            {"tp_size": 2, **EAGER},
            "qwen3-vl-deepstack-fusion",
            alone,
            hooks,
        ),
    ]


def stages(release: str, model: str) -> Case:
    """Two pipeline stages of two ranks."""
    return Case(
        f"stages-{model}-{release}",
        release,
        model,
        STAGES,
        "28619-pipeline-stage-fusion",
        f"{model}-tp1-{release}",
    )


def pool(release: str) -> Case:
    """A request pool that is no multiple of the attention-TP size, under the Triton back-end."""
    return Case(
        f"pool-{release}",
        release,
        "deepseek-v3",
        POOL,
        "triton-pool-alignment",
        f"deepseek-v3-tp1-{release}",
    )


def pool_variant(release: str, name: str, flags: dict[str, Any]) -> Case:
    """The same without CUDA graphs, or with a pool for each group of DP attention."""
    return Case(
        f"pool-{name}-{release}",
        release,
        "deepseek-v3",
        flags,
        "triton-pool-alignment",
        f"deepseek-v3-tp1-{release}",
    )


def hybrid(release: str, model: str) -> Case:
    """Experts over two ranks, each expert's weights over two more."""
    return Case(
        f"hybrid-{model}-{release}",
        release,
        model,
        HYBRID,
        "32963-hybrid-ep-tp-fusion",
        f"{model}-tp1-{release}",
    )


def declined(release: str) -> Case:
    """FlashInfer's kernel declines on every rank, in CUDA graphs too."""
    return Case(
        f"declined-{release}",
        release,
        "qwen3-moe",
        {"tp_size": 2},
        "declined-fused-allreduce",
        f"qwen3-moe-tp1-{release}",
        {"GPU_DECLINE": "all"},
    )


def one_fails(release: str) -> Case:
    """A workspace that a call needs is not to be had on one rank."""
    return Case(
        f"one-fails-{release}",
        release,
        "qwen3-moe",
        {"tp_size": 2, **EAGER},
        "workspace-on-some-ranks",
        f"qwen3-moe-tp1-{release}",
        {"GPU_DECLINE": "1"},
        seconds=120.0,
    )


def gpt_oss(release: str) -> Case:
    """DP attention, every expert on one rank."""
    return Case(
        f"gpt-oss-{release}",
        release,
        "gpt-oss",
        {"tp_size": 2, **DATA_PARALLEL, **own("gpt-oss")},
        "37199-gpt-oss-double-reduce",
        f"gpt-oss-tp1-{release}",
        {"GPU_EXPERTS": "1"},
    )


def groups_of_ranks(release: str) -> Case:
    """DP attention, two ranks in each of its groups."""
    return Case(
        f"groups-{release}",
        release,
        "deepseek-v3",
        {"tp_size": 4, **DATA_PARALLEL},
        "32663-reduce-scatterv-sizes",
        f"deepseek-v3-tp1-{release}",
    )


def healthy(release: str, model: str) -> Case:
    """What no entry helps: the same to the bit, and as many fused calls."""
    return Case(
        f"healthy-{model}-{release}",
        release,
        model,
        {"tp_size": 2},
        "none",
        f"{model}-tp1-{release}",
    )


def fleet(release: str, name: str, rank_1: dict[str, str], environ: dict[str, str]) -> Case:
    """Rank 1 finds other variables than rank 0, as if it ran on another node."""
    return Case(
        f"fleet-{name}-{release}",
        release,
        "qwen3-moe",
        {"tp_size": 2},
        "fleet",
        f"qwen3-moe-tp1-{release}",
        {"GPU_RANK_1": json.dumps(rank_1)},
        arms=("patched",),
        environ=environ,
    )


def fleets(release: str) -> list[Case]:
    """Ranks that run the same patches, that say nothing, and that run different ones."""
    on, mixed = {"SGLANG_COMMFIX": "1"}, {"SGLANG_COMMFIX_ALLOW_MIXED": "1"}
    other = {"SGLANG_COMMFIX": "1,-declined-fused-allreduce"}
    return [
        fleet(release, "same", on | STRICT, STRICT),
        fleet(release, "silent", {}, {}),
        fleet(release, "silent-strict", {}, STRICT),
        fleet(release, "other", other, {}),
        fleet(release, "other-strict", other | STRICT, STRICT),
        fleet(release, "other-allowed", other | mixed, mixed),
    ]


CASES: tuple[Case, ...] = (
    *captured("0.5.12.post1", "deepseek-v3"),
    *captured("0.5.12.post1", "gpt-oss"),
    *captured("0.5.17", "glm4-moe"),
    *(case for release in ("0.5.12.post1", "0.5.14", "0.5.17") for case in deepstack(release)),
    *(
        one_rank(release, "deepseek-v3")
        for release in ("0.5.10.post1", "0.5.11", "0.5.12.post1", "0.5.14", "0.5.17")
    ),
    *(one_rank(release, "qwen3-moe") for release in ("0.5.11", "0.5.12.post1", "0.5.17")),
    *(one_rank(release, "gpt-oss") for release in ("0.5.11", "0.5.12.post1", "0.5.17")),
    *(gpt_oss(release) for release in ("0.5.11", "0.5.12.post1", "0.5.17")),
    *(groups_of_ranks(release) for release in ("0.5.11", "0.5.12.post1")),
    stages("0.5.10.post1", "deepseek-v3"),
    stages("0.5.11", "deepseek-v3"),
    stages("0.5.12.post1", "deepseek-v3"),
    stages("0.5.14", "deepseek-v3"),
    stages("0.5.17", "deepseek-v3"),
    stages("0.5.12.post1", "qwen3-moe"),
    *(pool(release) for release in ("0.5.10.post1", "0.5.11", "0.5.12.post1", "0.5.14", "0.5.17")),
    pool_variant("0.5.12.post1", "eager", {**POOL, **EAGER}),
    pool_variant("0.5.12.post1", "groups", POOL_OF_GROUPS),
    hybrid("0.5.11", "qwen3-moe"),
    hybrid("0.5.17", "qwen3-moe"),
    declined("0.5.12.post1"),
    declined("0.5.17"),
    one_fails("0.5.12.post1"),
    one_fails("0.5.17"),
    healthy("0.5.12.post1", "qwen3-moe"),
    healthy("0.5.12.post1", "deepseek-v3"),
    healthy("0.5.17", "qwen3-moe"),
    healthy("0.5.17", "deepseek-v3"),
    *fleets("0.5.12.post1"),
    *fleets("0.5.17"),
)
