"""What is run and what comes back, in terms that need neither torch nor sglang."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    """How the ranks share the work; names and meaning are those of sglang's launch flags."""

    tp: int
    dp: int = 1
    """Above 1: DP attention."""

    ep: int = 1
    attn_cp: int = 1
    moe_dp: int = 1
    moe_dense_tp: int | None = None
    """1: every rank has its dense MLPs whole, and works on its share of the tokens."""

    pp: int = 1
    """Pipeline stages, of `tp` ranks each."""

    @property
    def ranks(self) -> int:
        return self.tp * self.pp

    @property
    def attention_groups(self) -> int:
        """How many groups of ranks hold tokens that no other group holds."""
        return self.dp * self.attn_cp

    def __str__(self) -> str:
        parts = [f"tp{self.tp}"]
        for name, size in (
            ("dp", self.dp), ("ep", self.ep), ("cp", self.attn_cp), ("moedp", self.moe_dp),
            ("pp", self.pp),
        ):  # fmt: skip
            if size != 1:
                parts.append(f"{name}{size}")
        if self.moe_dense_tp is not None:
            parts.append(f"densetp{self.moe_dense_tp}")
        return "-".join(parts)


@dataclass(frozen=True)
class Case:
    """One forward pass of a model of a few decoder layers."""

    layout: Layout
    tokens: tuple[int, ...]
    """Of each attention group: by DP rank, then by context-parallel rank. Any may be 0."""

    model: str = "deepseek-v3"
    layers: str = "DSS"
    """D: a dense MLP, S: a sparse one (experts)."""

    forward: str = "extend"
    """Or "decode", with one token a request."""

    padding: str | None = None
    """Forces a DpPaddingMode, "MAX_LEN" or "SUM_LEN"; None leaves it to the release."""

    fusion: bool = False
    """Let the release believe that FlashInfer can fuse all-reduce and RMSNorm."""

    capture: tuple[int, ...] = ()
    """Behind which layers the hidden states are captured, as they are for an EAGLE-3 draft."""

    deepstack: bool = False
    """Vision features are added behind the first three layers; `qwen3-moe` only."""

    all_to_all: str | None = None
    """`--moe-a2a-backend`: what it would have combined stands in the experts' output."""

    def __post_init__(self) -> None:
        if len(self.tokens) != self.layout.attention_groups:
            raise ValueError(f"{self.layout} has {self.layout.attention_groups} attention groups")

    def __str__(self) -> str:
        parts = [str(self.layout), self.model, self.layers, self.forward]
        parts.append("tokens" + "_".join(map(str, self.tokens)))
        if self.padding:
            parts.append(self.padding)
        if self.fusion:
            parts.append("fusion")
        if self.capture:
            parts.append("capture" + "_".join(map(str, self.capture)))
        if self.deepstack:
            parts.append("deepstack")
        if self.all_to_all:
            parts.append(self.all_to_all)
        return "-".join(parts)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Case:
        layout = Layout(**data.pop("layout"))
        tokens, capture = tuple(data.pop("tokens")), tuple(data.pop("capture"))
        return cls(layout=layout, tokens=tokens, capture=capture, **data)


@dataclass(frozen=True)
class LayerTrace:
    """What one layer did on one rank."""

    mlp_mode: str
    """The scatter mode in which the MLP ran."""

    output_mode: str
    functions: dict[str, str]
    """The communication functions that LayerCommunicator had chosen, by what they are for."""

    answers: dict[str, bool]
    """What LayerCommunicator answered the MLP's producer, by the method asked."""

    collectives: dict[str, list[str]]
    """What went over the wire, as "operation group", by the step of the layer."""

    number: int = 0
    """Which of the model's layers this is."""

    @property
    def fused_calls(self) -> int:
        """How many all-reduces FlashInfer's kernel did, those left over by the layer before too."""
        sent = (operation for step in self.collectives.values() for operation in step)
        return sum(operation.startswith("fused_all_reduce ") for operation in sent)


@dataclass(frozen=True)
class RankReport:
    """What one rank found."""

    error: str | None = None
    """The traceback, if the rank did not come to an end."""

    relative_error: float = float("nan")
    """Largest deviation from the reference, in units of the reference's root mean square.

    0 on a pipeline stage that is not the last: what it hands on shows in what the last one makes.
    """

    shape: tuple[int, ...] = ()
    """Of the hidden states that left the stage's last layer, padding included."""

    padding: str | None = None
    layers: tuple[LayerTrace, ...] = ()
    captured: tuple[float, ...] = ()
    """The same deviation of the captured hidden states, in the order of `Case.capture`."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RankReport:
        layers = tuple(LayerTrace(**layer) for layer in data.pop("layers"))
        shape, captured = tuple(data.pop("shape")), tuple(data.pop("captured"))
        return cls(layers=layers, shape=shape, captured=captured, **data)


@dataclass(frozen=True)
class Outcome:
    """What all ranks found, by rank."""

    ranks: tuple[RankReport, ...]

    @property
    def errors(self) -> list[str]:
        return [report.error for report in self.ranks if report.error is not None]

    @property
    def relative_error(self) -> float:
        """The worst of all ranks; infinite if a rank did not come to an end."""
        if self.errors:
            return float("inf")
        return max(report.relative_error for report in self.ranks)

    @property
    def error(self) -> float:
        """The worst of what came out and of what was captured on the way."""
        captured = [error for report in self.ranks for error in report.captured]
        return max(self.relative_error, *captured) if captured else self.relative_error

    @property
    def captured_error(self) -> float:
        """The worst of all captured hidden states; infinite if there are none."""
        errors = [error for report in self.ranks for error in report.captured]
        return float("inf") if self.errors or not errors else max(errors)

    @property
    def layers(self) -> list[LayerTrace]:
        """In order, each of the first rank that has it."""
        found: dict[int, LayerTrace] = {}
        for report in self.ranks:
            for layer in report.layers:
                found.setdefault(layer.number, layer)
        return [found[number] for number in sorted(found)]

    @property
    def collectives(self) -> list[dict[str, list[str]]]:
        """Of the first rank, by layer."""
        return [layer.collectives for layer in self.layers]

    @property
    def fused_calls(self) -> list[int]:
        """How many all-reduces FlashInfer's kernel did on the first rank, by layer."""
        return [layer.fused_calls for layer in self.layers]

    def __str__(self) -> str:
        if self.errors:
            return self.errors[0]
        lines = [f"relative error {self.relative_error:.1e}, padding {self.ranks[0].padding}"]
        captured = max((report.captured for report in self.ranks), key=len)
        if captured:
            lines.append("  captured: " + ", ".join(f"{error:.1e}" for error in captured))
        for layer in self.layers:
            steps = "; ".join(
                f"{step}: {', '.join(ops)}" for step, ops in layer.collectives.items()
            )
            lines.append(f"  layer {layer.number}, {layer.mlp_mode}: {steps}")
        return "\n".join(lines)
