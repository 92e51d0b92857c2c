"""What the installed sglang's layer communicators decide, for many sizes of the groups.

Runs in the rig's Python, and is asked by `test_servers.py`. Real are `communicator` and
`communicator_nsa_cp`. What they ask of the rest of sglang is answered by a `Case`: no process
group is made, and nothing is communicated.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from rig.answering import answer
from sglang.srt import server_args
from sglang.srt.distributed import parallel_state
from sglang.srt.layers import communicator, communicator_nsa_cp
from sglang.srt.layers.utils import cp_utils


SPARSE = (False, True, True)


@dataclass(frozen=True)
class Case:
    tp: int
    dp: int
    cp: int
    moe_dp: int
    a2a: bool
    """An all-to-all back-end brings the tokens to the experts, and the results back."""
    dense_tp_1: bool
    nsa: bool
    """Context parallelism is that of DeepSeek V3.2's sparse attention."""

    @property
    def server_args(self) -> SimpleNamespace:
        return SimpleNamespace(
            attn_cp_size=self.cp,
            moe_dp_size=self.moe_dp,
            moe_dense_tp_size=1 if self.dense_tp_1 else None,
            enable_prefill_context_parallel=self.cp > 1 and not self.nsa,
            enable_two_batch_overlap=False,
            enable_aiter_allreduce_fusion=False,
            speculative_algorithm=None,
        )

    def answer(self) -> None:
        """Stand in for what the communicators ask."""
        answers: dict[str, Any] = {
            "get_attention_tp_size": self.tp // self.dp // self.cp,
            "get_attention_tp_rank": 0,
            "get_attention_dp_size": self.dp,
            "get_attention_cp_size": self.cp,
            "get_attention_cp_rank": 0,
            "get_tensor_model_parallel_world_size": self.tp,
            "get_tensor_model_parallel_rank": 0,
            "is_dp_attention_enabled": self.dp > 1,
            "get_moe_a2a_backend": SimpleNamespace(is_none=lambda: not self.a2a),
            "should_use_flashinfer_cutlass_moe_fp4_allgather": False,
            "is_nsa_enable_prefill_cp": self.nsa,
            "nsa_use_prefill_cp": self.nsa,
            "apply_flashinfer_allreduce_fusion": True,
            "get_global_server_args": self.server_args,
        }
        for name, value in answers.items():
            assert hasattr(communicator, name), name
            setattr(communicator, name, lambda *_, value=value: value)
        for module in (server_args, cp_utils):
            module.get_global_server_args = lambda: self.server_args
        # As `initialize_model_parallel` leaves it, whose text is compared with upstream's.
        size = max(self.cp, self.moe_dp)
        parallel_state._MOE_DP = SimpleNamespace(world_size=size, rank_in_group=0)


def cases() -> list[Case]:
    bools = (False, True)
    product = itertools.product((1, 2, 4, 8), (1, 2, 4), (1, 2, 4, 8), (1, 2, 4, 8), *[bools] * 3)
    return [
        case
        for case in itertools.starmap(Case, product)
        if case.tp % (case.dp * case.cp) == 0
        and case.moe_dp in (1, case.cp)
        and not (case.nsa and case.cp == 1)
    ]


def decide(case: Case, layer: int) -> dict[str, object]:
    modes = communicator.LayerScatterModes.init_new(
        num_layers=len(SPARSE),
        layer_id=layer,
        is_layer_sparse=SPARSE[layer],
        is_previous_layer_sparse=SPARSE[layer - 1] if layer else False,
        is_next_layer_sparse=SPARSE[layer + 1] if layer + 1 < len(SPARSE) else False,
    )
    chosen = {field.name: getattr(modes, field.name).name for field in dataclasses.fields(modes)}
    kind = (
        communicator_nsa_cp.NSACPLayerCommunicator if case.nsa else communicator.LayerCommunicator
    )
    try:
        made = kind(modes, None, None, allow_reduce_scatter=True, is_last_layer=layer == 2)
    except (AssertionError, NotImplementedError) as error:
        return {**chosen, "error": f"{type(error).__name__}: {error}"}
    return {
        **chosen,
        "before_attention": name_of(made._communicate_simple_fn),
        "before_mlp": name_of(made._communicate_with_all_reduce_and_layer_norm_fn),
        "behind_mlp": name_of(made._communicate_summable_tensor_pair_fn),
        "reduce_scatters": [made.should_use_reduce_scatter(batch(padding)) for padding in (0, 1)],
        "fuses": made.should_fuse_mlp_allreduce_with_next_layer(batch(0)),
    }


def batch(is_max_len: int) -> SimpleNamespace:
    return SimpleNamespace(
        input_ids=SimpleNamespace(shape=(8,)),
        dp_padding_mode=SimpleNamespace(is_max_len=lambda: bool(is_max_len)),
    )


def name_of(function: Any) -> str:
    """The function's name, and what it is bound to."""
    plain = getattr(function, "func", function)
    bound = {key: mode.name for key, mode in getattr(function, "keywords", {}).items()}
    return f"{plain.__name__.removeprefix('commfix').lstrip('_')} {bound}"


def decisions_of_all(_: Any) -> list[dict[str, Any]]:
    decisions = []
    for case in cases():
        case.answer()
        layers = [decide(case, layer) for layer in range(len(SPARSE))]
        decisions.append({"case": dataclasses.asdict(case), "layers": layers})
    return decisions


if __name__ == "__main__":
    answer(decisions_of_all)
