"""Whether the statements that show a fault are enough to mend it, found out by running functions.

Functions of releases are edited at random, beside the statements that an entry names. Wherever the
guard lets the entry be applied all the same, the edited function is run over all inputs, with the
entry and without, and has to decide as the release does.
"""

from __future__ import annotations

import ast
import copy
import difflib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import pytest
from rig.sources.mutations import MUTATORS
from rig.sources.published import tree, with_files
from rig.sources.shrunk import Names, Stub, executed, instance, shrunk, source_of

from sglang_commfix.engine.errors import SourceError
from sglang_commfix.engine.fingerprint import Definition, find_scope, normal_form, suites
from sglang_commfix.engine.flow import collect
from sglang_commfix.engine.guard import decide
from sglang_commfix.engine.register import Edit, Patch, load
from sglang_commfix.engine.rewrite import placed, rewrite
from sglang_commfix.engine.tree import Tree
from sglang_commfix.errors import CommfixError


pytestmark = [
    pytest.mark.releases,
    pytest.mark.one_python,
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]

COMMUNICATOR = "sglang.srt.layers.communicator"
RUNNER = "sglang.srt.model_executor.model_runner"
FUSION = "LayerCommunicator.should_fuse_mlp_allreduce_with_next_layer"
SCATTER = "LayerCommunicator.should_use_reduce_scatter"
CONTEXT = ("get_attn_tp_context", "AttnTpContext.__init__", "AttnTpContext.input_scattered")
EDITS = 40  # of each function, beside those of mutations.py

# ------------------------------------------------------------------------------ what is run

Input = Mapping[str, Any]
# The input of the run that goes on, for the stand-ins.
now: dict[str, Any] = {}


class Seen(NamedTuple):
    """What a run decided, what else it did, and what it took as given, as inputs."""

    decision: Any
    rest: Any = None
    given: tuple[tuple[str, Any], ...] = ()


class Started(BaseException):
    """Ends a warm-up where its buffers are made. Nothing that an edit puts around it catches it."""


def asks(name: str) -> Callable[..., Any]:
    return lambda *args, **kwargs: now[name]


def yes(*args: object) -> bool:
    return True


def no(*args: object) -> bool:
    return False


def option(name: str, *other: Any) -> Any:
    return now["args"].get(name, *other)


def every(**axes: Iterable[Any]) -> tuple[Input, ...]:
    return tuple(dict(zip(axes, values, strict=True)) for values in product(*axes.values()))


@dataclass(frozen=True)
class Case:
    """A function that an entry edits, and how to see what it decides.

    ``concerned`` are the inputs that the entry is for. In those, ``sound`` tells of a decision other
    than that of the release whether it is right, too.
    """

    entry: str
    release: str
    module: str
    scope: str
    inputs: tuple[Input, ...]
    names: Callable[[], Names]
    see: Callable[[Names], Seen]
    concerned: Callable[[Input], bool]
    sound: Callable[[Any, Input], bool] = no
    beside: tuple[str, ...] = ()
    stubbed: Names = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.entry}-{self.release}"

    @property
    def patch(self) -> Patch:
        return load()[self.entry]

    @cached_property
    def text(self) -> str:
        own = [c.target.scope for c in self.patch.clauses if c.target.module == self.module]
        return shrunk(self.release, self.module, (self.scope, *own, *self.beside))

    @cached_property
    def function(self) -> Definition:
        found = find_scope(ast.parse(self.text), self.scope)
        assert found is not None
        return found

    def run(self, space: Names | None, given: Input) -> Seen | None:
        """What the function does with an input; ``None`` if it raises."""
        now.clear()
        now.update(given)
        try:
            return None if space is None else self.see(space)
        except Exception:
            return None

    def space(self, text: str) -> Names | None:
        now.clear()
        now.update(self.inputs[0])
        try:
            space = executed(text, self.names())
        except Exception:
            return None
        space.update(self.stubbed)
        return space

    @cached_property
    def release_does(self) -> Callable[[Input], tuple[Seen | None, Seen | None]]:
        """What the function of the release does, without the entry and with it."""
        made = with_files(tree(self.release), {self.module: self.text.encode()})
        without = self.space(self.text)
        with_it = self.space(patched(made, self, self.patch.edits_for(self.release)))
        known: dict[tuple[Any, ...], tuple[Seen | None, Seen | None]] = {}

        def does(given: Input) -> tuple[Seen | None, Seen | None]:
            key = tuple(given.values())
            if key not in known:
                known[key] = (self.run(without, given), self.run(with_it, given))
            return known[key]

        return does


def patched(made: Tree, case: Case, edits: Iterable[Edit]) -> str:
    """The module with the edits of an entry.

    Raises:
        CommfixError: they cannot be made.

    """
    syntax = made.tree(case.module)
    assert syntax is not None
    own = [edit for edit in edits if edit.target.module == case.module]
    changes = [placed(syntax, case.entry, edit) for edit in own]
    return rewrite(source_of(made, case.module), syntax, changes, compiled=True).text


def fails(case: Case, before: str, after: str) -> str | None:
    """Say for which input the entry does not do what it does on the release.

    Returns:
        ``None`` if it does for all; an empty string if the function raises whatever it is given.

    """
    old, new = case.space(before), case.space(after)
    runs = [case.run(old, given) for given in case.inputs]
    if not any(runs):
        return ""
    for given, ran in zip(case.inputs, runs, strict=True):
        if ran and fails_for(case, given, ran, case.run(new, given)):
            # What an earlier run has left behind in the module does not count.
            was, is_ = (case.run(case.space(text), given) for text in (before, after))
            if why := fails_for(case, given, was, is_):
                return why
    return None


def fails_for(case: Case, given: Input, was: Seen | None, is_: Seen | None) -> str | None:
    """Say how the entry fails for one input, from what is seen without it and with it."""
    if was is None:
        return None
    if is_ is None:
        return f"{given}: {was.decision}, and with the entry an exception"
    there = {**given, **dict(is_.given)}
    faulty, mended = case.release_does(there)
    if faulty is None or mended is None:  # what is given is beyond the release
        return None
    allowed = [was.decision]
    if case.concerned(there):
        right = faulty.decision == mended.decision
        right |= faulty.decision != was.decision and case.sound(was.decision, there)
        allowed = [mended.decision, *(allowed if right else [])]
    if is_.decision in allowed and is_.rest == was.rest:
        return None
    return f"{there}: {was[:2]}, with the entry {is_[:2]}, but {mended.decision} is right"


def shows_the_fault(case: Case, text: str) -> bool:
    space = case.space(text)
    for given in case.inputs:
        faulty, mended = case.release_does(given)
        was = case.run(space, given)
        if was and faulty and mended and faulty.decision != mended.decision == was.decision:
            return False
        if was and faulty and mended and was.decision == faulty.decision != mended.decision:
            return True
    return False


# ------------------------------------------------------------------------------ the functions


def see_fusion(space: Names) -> Seen:
    eagle = Stub(is_eagle=lambda: True) if now["eagle"] else None
    if "ATTN_TP_CONTEXT" in space:
        space["ATTN_TP_CONTEXT"].input_scattered_ = now["scattered"]
    now["args"] = {
        "speculative_algorithm": eagle,
        "enable_flashinfer_allreduce_fusion": now["fusion"],
    }
    modes = space["ScatterMode"]
    layer = instance(
        space,
        "LayerCommunicator",
        layer_scatter_modes=Stub(mlp_mode=getattr(modes, now["mode"])),
        is_last_layer=now["last"],
        _context=Stub(tp_size=now["tp"]),
        _speculative_algo=eagle,
    )
    batch = Stub(input_ids=Stub(shape=(now["tokens"],)))
    return Seen(bool(layer.should_fuse_mlp_allreduce_with_next_layer(batch)))


PLATFORM: Names = {
    "is_cuda": yes,
    "is_sm90_supported": yes,
    "is_sm100_supported": no,
    "is_flashinfer_available": yes,
    "get_bool_env_var": no,
    "is_hip": no,
    "is_npu": no,
    "is_gfx95_supported": no,
}


def fusion(release: str, *, scattered: tuple[bool, ...]) -> Case:
    return Case(
        "19918-scattered-mlp-fusion",
        release,
        COMMUNICATOR,
        FUSION,
        every(
            mode=("SCATTERED", "FULL"),
            tokens=(1, 0, 2048, 4096),
            fusion=(True, False),
            tp=(2, 1),
            last=(False, True),
            eagle=(False, True),
            dp=(False, True),
            scattered=scattered,
        ),
        lambda: {
            **PLATFORM,
            "is_dp_attention_enabled": asks("dp"),
            "is_enable_moe_cp_allgather": no,
            "is_flashinfer_allreduce_unavailable": no,
            "get_tensor_model_parallel_world_size": asks("tp"),
            "global_server_args_dict": Stub(get=option),
            "get_global_server_args": lambda: Stub(**now["args"]),
        },
        see_fusion,
        lambda given: given["mode"] == "SCATTERED",
        beside=("apply_flashinfer_allreduce_fusion", *CONTEXT),
    )


def see_scatter(space: Names) -> Seen:
    if "ATTN_TP_CONTEXT" in space:
        space["ATTN_TP_CONTEXT"].input_scattered_ = now["scattered"]
    pair = space["CommunicateSummableTensorPairFn"]
    layer = instance(
        space,
        "LayerCommunicator",
        allow_reduce_scatter=now["allow"],
        _communicate_summable_tensor_pair_fn=pair._scatter_hidden_states if now["fn"] else pair,
        is_last_layer=now["last"],
        _context=Stub(),
    )
    padding = Stub(is_max_len=lambda: now["max_len"])
    return Seen(bool(layer.should_use_reduce_scatter(Stub(dp_padding_mode=padding))))


def scatter(entry: str, release: str) -> Case:
    both = (True, False)
    return Case(
        entry,
        release,
        COMMUNICATOR,
        SCATTER,
        every(
            max_len=(False, True),
            more=both,
            allow=both,
            fn=both,
            nsa=both,
            scattered=both,
            last=both,
        ),
        lambda: {
            **PLATFORM,
            "should_use_dp_reduce_scatterv": asks("more"),
            "nsa_use_prefill_cp": asks("nsa"),
        },
        see_scatter,
        lambda given: given["allow"] and given["fn"] and given["more"],
        beside=CONTEXT,
        stubbed={"commfix_adds_up_in_sum_len": asks("more")},
    )


def created(**sizes: Any) -> None:
    now["seen"] = (sizes["max_bs"], sizes["max_num_token"])
    raise Started


def see_warm_up(space: Names) -> Seen:
    given: list[tuple[str, Any]] = []
    aligned = space.get("commfix_aligned_batch_size")

    def watched(requests: int, per_request: int, tp: int, pool: int) -> Any:
        if per_request != now["per_request"]:
            given.append(("per_request", per_request))
        return aligned(requests, per_request, tp, pool)  # type: ignore[misc]

    runner = instance(
        space,
        "ModelRunner",
        is_generation=True,
        is_draft_worker=False,
        spec_algorithm=Stub(
            **{
                name: (lambda: now["per_request"] > 1)
                for name in ("is_speculative", "is_eagle", "is_standalone", "is_ngram", "is_dflash")
            }
        ),
        server_args=Stub(speculative_num_draft_tokens=now["per_request"], dp_size=1, pp_size=1),
        req_to_token_pool=Stub(size=now["pool"]),
    )
    now["seen"] = "left out"
    if aligned:
        space["commfix_aligned_batch_size"] = watched
    try:
        runner._dummy_run(now["requests"])
    except Started:
        pass
    finally:
        if aligned:
            space["commfix_aligned_batch_size"] = aligned
    if any(type(value) is not int or not 0 < value < 100_000 for _, value in given):
        raise ValueError("no number of tokens")
    return Seen(now["seen"], None, tuple(given))


def warm_up_is_sound(seen: Any, given: Input) -> bool:
    if seen == "left out":
        return True
    requests, tokens = seen
    whole = tokens == requests * given["per_request"] and tokens % given["tp"] == 0
    return bool(whole and 0 < requests <= given["pool"])


def warm_up(release: str) -> Case:
    sizes: dict[str, Iterable[int]] = {"requests": range(1, 6), "per_request": (1, 2, 3)}
    return Case(
        "19918-dummy-run-alignment",
        release,
        RUNNER,
        "ModelRunner._dummy_run",
        (
            *every(gathered=(True,), tp=(2, 1, 4), **sizes, pool=range(1, 7)),
            *every(gathered=(False,), tp=(2,), **sizes, pool=(4,)),
        ),
        lambda: {
            **PLATFORM,
            "require_gathered_buffer": asks("gathered"),
            "require_mlp_tp_gather": asks("gathered"),
            "require_attn_tp_gather": asks("gathered"),
            "get_attention_tp_size": asks("tp"),
            "GraphInputBuffers": Stub(create=created),
            "DecodeInputBuffers": Stub(create=created),
        },
        see_warm_up,
        lambda given: given["gathered"] and given["tp"] > 1,
        warm_up_is_sound,
    )


def see_experts(space: Names) -> Seen:
    now["reduced"] = []
    block = instance(space, "Qwen3MoeSparseMoeBlock", ep_size=now["ep"], tp_size=now["tp"])
    block.forward_normal(Stub(), now["fused"], now["scattered"])
    reduced: list[str] = now["reduced"]
    return Seen(reduced.count("ep"), reduced.count("tp"))


def reduces(over: str) -> Callable[..., Any]:
    def reduce(states: Any, *args: Any) -> Any:
        now["reduced"].append(over)
        return states

    return reduce


def experts(release: str) -> Case:
    return Case(
        "qwen3-moe-ep-double-reduce",
        release,
        "sglang.srt.models.qwen3_moe",
        "Qwen3MoeSparseMoeBlock.forward_normal",
        every(
            scattered=(True, False), ep=(2, 1), tp=(1, 2), fused=(False, True), fp4=(False, True)
        ),
        lambda: {
            **PLATFORM,
            "moe_expert_parallel_all_reduce": reduces("ep"),
            "moe_tensor_model_parallel_all_reduce": reduces("tp"),
            "should_use_flashinfer_cutlass_moe_fp4_allgather": asks("fp4"),
        },
        see_experts,
        lambda given: given["ep"] > 1 and given["scattered"] and not given["fused"],
    )


def see_layer(space: Names) -> Seen:
    layer = instance(space, "Glm4MoeDecoderLayer", _is_layer_sparse=asks("sparse"))
    config = Stub(num_hidden_layers=4, hidden_size=64, num_attention_heads=8)
    layer.__init__(config, now["layer"], None, now["nextn"])
    made = layer.__dict__.get("layer_communicator")
    return Seen(getattr(made, "allow_reduce_scatter", "none"))


def layer(release: str) -> Case:
    return Case(
        "11665-glm4-moe-double-reduce",
        release,
        "sglang.srt.models.glm4_moe",
        "Glm4MoeDecoderLayer.__init__",
        every(sparse=(True, False), layer=(0, 1, 3), nextn=(False, True), dense_dp=(False, True)),
        lambda: {
            **PLATFORM,
            "LayerCommunicator": Stub,
            "enable_moe_dense_fully_dp": asks("dense_dp"),
        },
        see_layer,
        yes,
        lambda seen, given: seen in {False, "none"},
    )


def see_start(space: Names) -> Seen:
    now["order"] = []
    args = Stub(
        enable_flashinfer_allreduce_fusion=now["fusion"],
        nnodes=now["nodes"],
        enable_lora=now["more"],
        enable_eplb=now["more"],
        enable_double_sparsity=now["more"],
        enable_deterministic_inference=now["more"],
        forward_hooks=now["more"],
        speculative_algorithm=None,
    )
    runner = instance(
        space,
        "ModelRunner",
        server_args=args,
        device=now["device"],
        is_draft_worker=now["draft"],
        enable_hisparse=now["more"],
        eagle_use_aux_hidden_state=now["more"],
        tp_rank=0,
        tp_size=2,
        kernel_warmup=lambda: now["order"].append("warm-up"),
    )
    runner.initialize(1.0)
    return Seen(now["order"])


def start(release: str) -> Case:
    both = (False, True)
    return Case(
        "21249-workspace-preinit",
        release,
        RUNNER,
        "ModelRunner.initialize",
        every(
            fusion=(True, False),
            nodes=(1, 2),
            device=("cuda", "musa", "cpu", "xpu"),
            draft=both,
            more=both,
        ),
        lambda: {
            **PLATFORM,
            "get_global_server_args": Stub,
            "commfix_pre_initialize_workspaces": lambda *args: now["order"].append("workspaces"),
        },
        see_start,
        lambda given: (
            given["fusion"] and given["nodes"] == 1 and given["device"] in {"cuda", "musa"}
        ),
        lambda seen, given: "warm-up" not in seen,
    )


def see_next_layer(space: Names) -> Seen:
    space["get_attn_tp_context"] = lambda: Stub(input_scattered=now["scattered"])
    layer = instance(
        space,
        "LayerCommunicator",
        layer_scatter_modes=Stub(mlp_mode=space["ScatterMode"].FULL),
        is_last_layer=now["last"],
        commfix_is_last_of_stage=now["stage"],
        _context=Stub(tp_size=now["tp"], attn_tp_size=now["tp"]),
        _speculative_algo=None,
    )
    batch = Stub(input_ids=Stub(shape=(now["tokens"],)))
    return Seen(bool(layer.should_fuse_mlp_allreduce_with_next_layer(batch)))


# What the experts' ranks are split into: all by experts or by weights, or by both, here or elsewhere.
SPLITS = ((1, 2), (2, 1), (2, 2), (2, 4))


def next_layer(
    entry: str, release: str, concerned: Callable[[Input], bool], **axes: Iterable[Any]
) -> Case:
    both = (False, True)
    known: dict[str, Iterable[Any]] = {
        "stage": (False,), "captured": (False,), "split": SPLITS[:1], "tp": (2, 1), "last": both,
        "scattered": both, "fused": (True, False), "tokens": (1, 0, 2048),
    }  # fmt: skip
    parallel = {"moe_ep_size": 0, "moe_tp_size": 1}

    def backend() -> Any:
        return Stub(
            enable_flashinfer_allreduce_fusion=now["fused"],
            flashinfer_allreduce_fusion_backend="auto" if now["fused"] else None,
        )

    return Case(
        entry,
        release,
        COMMUNICATOR,
        FUSION,
        every(**(known | axes)),
        lambda: {
            **PLATFORM,
            "is_dp_attention_enabled": no,
            "is_enable_moe_cp_allgather": no,
            "is_flashinfer_allreduce_unavailable": no,
            "get_moe_expert_parallel_world_size": lambda: now["split"][0],
            "get_moe_tensor_parallel_world_size": lambda: now["split"][1],
            "get_parallel": lambda: Stub(**{n: now["split"][at] for n, at in parallel.items()}),
            "get_global_server_args": backend,
            "get_exec": lambda: Stub(comm=backend()),
        },
        see_next_layer,
        concerned,
        beside=("apply_flashinfer_allreduce_fusion", *CONTEXT),
        stubbed={"commfix_output_is_captured": asks("captured")},
    )


def see_answer(space: Names) -> Seen:
    return Seen(bool(space["should_use_dp_reduce_scatterv"]()))


def sizes(release: str) -> Case:
    names = {"attn_dp_size": "dp", "moe_ep_size": "ep", "tp_size": "tp"}
    return Case(
        "32663-reduce-scatterv-sizes",
        release,
        "sglang.srt.layers.moe.utils",
        "should_use_dp_reduce_scatterv",
        every(
            dp=(2, 1, 4), ep=(2, 1, 4), tp=(4, 2), on=(True, False), fp4=(False, True),
            plain=(True, False),
        ),
        lambda: {
            **PLATFORM,
            "is_dp_attention_enabled": asks("on"),
            "get_attention_dp_size": asks("dp"),
            "get_moe_expert_parallel_world_size": asks("ep"),
            "get_tensor_model_parallel_world_size": asks("tp"),
            "get_parallel": lambda: Stub(**{name: now[of] for name, of in names.items()}),
        },
        see_answer,
        lambda given: given["dp"] == given["ep"] != given["tp"],
        stubbed={
            "should_use_flashinfer_cutlass_moe_fp4_allgather": asks("fp4"),
            "get_moe_a2a_backend": lambda: Stub(is_none=asks("plain")),
        },
    )  # fmt: skip


def see_skipped(space: Names) -> Seen:
    words = {"is_tp_path": now["tp_path"]}
    if now["told"] is not None:
        words |= {"use_reduce_scatter": now["told"], "should_allreduce_fusion": False}
    return Seen(bool(space["should_skip_post_experts_all_reduce"](**words)))


def all_to_all(release: str, *, told: tuple[bool | None, ...]) -> Case:
    backends = ("none", "mooncake", "mori", "nixl", "flashinfer", "deepep", "pplx")

    def backend() -> Any:
        value = now["backend"]
        return Stub(value=value, **{f"is_{one}": lambda one=one: value == one for one in backends})

    return Case(
        "34006-moe-all-to-all-double-reduce",
        release,
        "sglang.srt.layers.moe.utils",
        "should_skip_post_experts_all_reduce",
        every(
            backend=backends, told=told, tp_path=(True, False), fused=(False, True),
            more=(False, True), fp4=(False, True),
        ),
        lambda: {
            **PLATFORM,
            "get_parallel": lambda: Stub(dwdp_size=1),
        },
        see_skipped,
        lambda given: given["backend"] in backends[1:5],
        stubbed={
            "should_skip_mlp_all_reduce": asks("fused"),
            "get_moe_a2a_backend": backend,
            "should_use_dp_reduce_scatterv": asks("more"),
            "should_use_flashinfer_cutlass_moe_fp4_allgather": asks("fp4"),
        },
    )  # fmt: skip


def see_gpt_oss(space: Names) -> Seen:
    now["reduced"] = []
    block = instance(space, "GptOssSparseMoeBlock", tp_size=now["tp"], layer_id=1, hidden_size=8)
    states = Stub(shape=(4, 8))
    block.forward_normal(states, *([now["fused"]] if now["is_told"] else []))
    return Seen(now["reduced"].count("tp"))


def gpt_oss(release: str, *, is_told: bool) -> Case:
    both = (False, True)
    return Case(
        "37199-gpt-oss-double-reduce",
        release,
        "sglang.srt.models.gpt_oss",
        "GptOssSparseMoeBlock.forward_normal",
        every(scattered=(True, False), tp=(2, 1), fused=both, piecewise=both, is_told=(is_told,)),
        lambda: {
            **PLATFORM,
            "tensor_model_parallel_all_reduce": reduces("tp"),
            "should_use_dp_reduce_scatterv": asks("scattered"),
            "is_in_piecewise_cuda_graph": asks("piecewise"),
            "is_in_tc_piecewise_cuda_graph": asks("piecewise"),
            "get_forward": lambda: Stub(fuse_mlp_allreduce=now["fused"]),
        },
        see_gpt_oss,
        lambda given: given["scattered"] and given["tp"] > 1 and not given["fused"],
        stubbed={"moe_impl": lambda *args: Stub()},
    )


CASES = [
    fusion("0.5.11", scattered=(False, True)),
    fusion("0.5.1", scattered=(False,)),
    scatter("24785-sum-len-contract", "0.5.11"),
    scatter("22642-dp-reduce-scatterv", "0.5.5"),
    scatter("22642-dp-reduce-scatterv", "0.5.10"),
    warm_up("0.5.9"),
    warm_up("0.5.11"),
    experts("0.5.10"),
    layer("0.5.3"),
    layer("0.5.4.post1"),
    start("0.5.10"),
    next_layer(
        "28619-pipeline-stage-fusion",
        "0.5.12.post1",
        lambda given: given["stage"],
        stage=(True, False),
    ),
    next_layer(
        "28619-pipeline-stage-fusion", "0.5.17", lambda given: given["stage"], stage=(True, False)
    ),
    next_layer(
        "eagle3-partial-sums", "0.5.17", lambda given: given["captured"], captured=(True, False)
    ),
    next_layer(
        "32963-hybrid-ep-tp-fusion", "0.5.17", lambda given: min(given["split"]) > 1, split=SPLITS
    ),
    sizes("0.5.12.post1"),
    sizes("0.5.16"),
    all_to_all("0.5.12.post1", told=(False, True)),
    all_to_all("0.5.17", told=(None,)),
    gpt_oss("0.5.12.post1", is_told=True),
    gpt_oss("0.5.17", is_told=False),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
# No edit that is made here takes these their effect, and leaves their anchors and a run.
ALL_WORK = {
    "11665-glm4-moe-double-reduce-0.5.3",
    "11665-glm4-moe-double-reduce-0.5.4.post1",
    "37199-gpt-oss-double-reduce-0.5.17",
}

# ------------------------------------------------------------------------------ random edits


class Scope:
    """A function that is edited at random, most often near the statements of the entry."""

    def __init__(self, function: Definition, near: int, chance: random.Random) -> None:
        self.function = function
        self.chance = chance
        self.near = near
        reads: set[tuple[str, ...]] = set()
        binds: set[tuple[str, ...]] = set()
        for node in function.body:
            collect(node, reads, binds)
        self.parameters = [arg.arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)]  # type: ignore[union-attr]
        self.bound = sorted(".".join(path) for path in binds)
        self.read = sorted(".".join(path) for path in reads) or ["self"]
        own = {*self.bound, *self.parameters}
        self.free = sorted({name.partition(".")[0] for name in self.read} - own)

    def places(self) -> list[tuple[list[ast.stmt], int]]:
        """Every statement, by its suite and its place in it, in the order of the lines."""
        found = [
            (suite, index)
            for node in ast.walk(self.function)
            for suite in suites(node)
            for index in range(len(suite))
        ]
        return sorted(found, key=lambda place: getattr(place[0][place[1]], "lineno", 0))

    def pick(self) -> tuple[list[ast.stmt], int]:
        places = self.places()
        if self.chance.random() < 0.5:
            return self.chance.choice(places)
        lines = [getattr(suite[index], "lineno", 0) for suite, index in places]
        middle = next((i for i, line in enumerate(lines) if line >= self.near), 0)
        at = round(self.chance.gauss(middle, 3))
        return places[min(max(at, 0), len(places) - 1)]

    def name(self) -> str:
        """Something to write to: a local name, a parameter or an attribute."""
        attributes = [name for name in self.read if "." in name]
        names = self.chance.choice([self.bound, self.parameters, attributes, self.read])
        return self.chance.choice(names or self.read)

    def value(self) -> str:
        constants = ["None", "True", "False", "0", "1", "3", "'x'"]
        return self.chance.choice([*constants, *self.chance.sample(self.read, 1)])

    def condition(self) -> str:
        tests = [n.test for n in ast.walk(self.function) if isinstance(n, ast.If | ast.IfExp)]
        own = [ast.unparse(self.chance.choice(tests))] if tests else []
        name = self.chance.choice(self.read)
        return self.chance.choice(
            ["True", "False", name, f"not {name}", f"{name} == {self.value()}", *own]
        )

    def put(self, text: str) -> None:
        suite, index = self.pick()
        index += self.chance.randrange(2)
        suite[index:index] = ast.parse(text).body


def returns(scope: Scope) -> None:
    text = f"return {scope.value()}"
    scope.put(f"if {scope.condition()}:\n    {text}" if scope.chance.random() < 0.7 else text)


def raises(scope: Scope) -> None:
    scope.put(f"if {scope.condition()}:\n    raise ValueError('no')")


def reassigns(scope: Scope) -> None:
    """Write to a name in any of the ways in which Python does."""
    name, value = scope.name(), scope.value()
    plain = [f"{name} = {value}", f"if {scope.condition()}:\n    {name} = {value}"]
    scope.put(scope.chance.choice([*plain * 6, *ways_to_bind(scope, name, value)]))


def ways_to_bind(scope: Scope, name: str, value: str) -> list[str]:
    ways = [
        f"{name} += 1",
        f"{name}: object = {value}",
        f"{name}, fresh = {value}, 1",
        f"fresh = {name} = {value}",
        f"for {name} in [{value}]:\n    pass",
        f"with logging.nullcontext() as {name}:\n    pass",
        f"[*{name}] = [{value}]",
        f"del {name}",
    ]
    if "." in name:
        return ways
    ways += [
        f"if ({name} := {value}):\n    pass",
        f"fresh = [{name} := each for each in [{value}]]",
        f"import os as {name}",
        f"def {name}(*args):\n    return {value}",
        f"class {name}:\n    pass",
        f"try:\n    raise ValueError\nexcept ValueError as {name}:\n    pass",
        f"match [{value}]:\n    case [{name}]:\n        pass",
        f"match [{value}]:\n    case [*{name}]:\n        pass",
        f"match {{1: 2}}:\n    case {{**{name}}}:\n        pass",
    ]
    if name in {*scope.bound, *scope.parameters}:
        inner = f"    nonlocal {name}\n    {name} = {value}\n"
        ways += [f"def fresh():\n{inner}fresh()", f"class Fresh:\n{inner}"]
    return ways


def begins_with(text: str) -> Callable[[Scope], None]:
    def begins(scope: Scope) -> None:
        scope.function.body[:0] = ast.parse(text).body

    return begins


def writes(scope: Scope) -> None:
    """Write to an attribute, or to what it holds."""
    names = [
        name for name in scope.read if "." in name and name.partition(".")[0] not in scope.free
    ]
    if names:
        owner, _, attribute = scope.chance.choice(names).rpartition(".")
        value = scope.value()
        ways = [f"{owner}.{attribute} = {value}", f"{owner}.{attribute}[0] = {value}"]
        ways += [f"if {scope.condition()}:\n    {way}" for way in ways]
        scope.put(scope.chance.choice(ways))


def deletes(scope: Scope) -> None:
    suite, index = scope.pick()
    suite[index : index + 1] = [ast.Pass()] if len(suite) == 1 else []


def duplicates(scope: Scope) -> None:
    suite, index = scope.pick()
    suite.insert(index, copy.deepcopy(suite[index]))


def moves(scope: Scope) -> None:
    suite, index = scope.pick()
    taken = suite[index]
    suite[index : index + 1] = [ast.Pass()]
    there, at = scope.pick()
    if any(there is inner for node in ast.walk(taken) for inner in suites(node)):
        there, at = suite, index
    there.insert(at, taken)


def swaps(scope: Scope) -> None:
    suite, index = scope.pick()
    if index + 1 < len(suite):
        suite[index : index + 2] = [suite[index + 1], suite[index]]


def wraps(scope: Scope) -> None:
    """Put one or more statements into another one."""
    suite, index = scope.pick()
    stop = index + scope.chance.choice([1, 1, 2, 4])
    headers = [f"if {scope.condition()}:\n    pass"] * 4
    headers += [
        f"if {scope.condition()}:\n    pass\nelse:\n    pass",
        "for fresh in range(2):\n    pass",
        "for fresh in range(0):\n    pass",
        "while True:\n    pass\n    break",
        "with logging.nullcontext():\n    pass",
        "try:\n    pass\nexcept Exception:\n    pass",
        "try:\n    pass\nfinally:\n    fresh = 1",
        f"try:\n    {scope.value()}\nfinally:\n    pass",
    ]
    (outer,) = ast.parse(scope.chance.choice(headers)).body
    inner = scope.chance.choice(list(suites(outer)))
    inner[:1] = suite[index:stop]
    suite[index:stop] = [outer]


def negates(scope: Scope) -> None:
    """Turn a part of a condition round, or put another one in its place."""
    tests = [n for n in ast.walk(scope.function) if isinstance(n, ast.If | ast.IfExp | ast.BoolOp)]
    if not tests:
        return
    node = scope.chance.choice(tests)
    if isinstance(node, ast.BoolOp):
        if scope.chance.random() < 0.3:
            node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
            return
        index = scope.chance.randrange(len(node.values))
        node.values[index] = ast.UnaryOp(ast.Not(), node.values[index])
        return
    other = ast.parse(scope.condition(), mode="eval").body
    ways = [ast.UnaryOp(ast.Not(), node.test), ast.BoolOp(ast.And(), [node.test, other])]
    node.test = scope.chance.choice([*ways, ast.BoolOp(ast.Or(), [node.test, other])])


def does_no_harm(scope: Scope) -> None:
    name = scope.chance.choice(scope.read)
    harmless = ["fresh = 1", f"fresh = {name}", "print", f"fresh = [each for each in [{name}]]"]
    harmless += [f"assert {name} is not None or True", f"if {name}:\n    fresh = 2", "import os"]
    harmless += ["logging.debug('here')", f"fresh = lambda: {name}", "def fresh():\n    return 1"]
    scope.put(scope.chance.choice(harmless))


def shadows(scope: Scope) -> None:
    if scope.free:
        name = scope.chance.choice(scope.free)
        ways = [f"{name} = lambda *args, **kwargs: {scope.value()}", f"{name} = {name}"]
        ways += [f"from elsewhere import {name}", f"global {name}\n{name} = {scope.value()}"]
        scope.put(scope.chance.choice(ways))


def decorates(scope: Scope) -> None:
    names = ["staticmethod", "property", "elsewhere", "torch.no_grad()", "logging.getLogger"]
    decorator = ast.parse(scope.chance.choice(names), mode="eval").body
    scope.function.decorator_list.insert(0, decorator)


def has_other_defaults(scope: Scope) -> None:
    arguments = scope.function.args  # type: ignore[union-attr]
    value = ast.parse(scope.value() if not scope.free else "None", mode="eval").body
    if arguments.defaults and scope.chance.random() < 0.7:
        arguments.defaults[scope.chance.randrange(len(arguments.defaults))] = value
    else:
        arguments.kwonlyargs.append(ast.arg(scope.chance.choice([*scope.free, "fresh"])))
        arguments.kw_defaults.append(value)


def the_fix(edits: Iterable[Edit]) -> Callable[[Scope], None]:
    """Put in what the entry puts in, anywhere."""
    texts = [edit.text for edit in edits if edit.operation != "append"]

    def puts_the_fix(scope: Scope) -> None:
        scope.put(scope.chance.choice(texts))

    return puts_the_fix


OWN: list[Callable[[Scope], None]] = [
    *(returns, raises, reassigns, reassigns, reassigns, writes, deletes, duplicates, moves, swaps),
    *(wraps, wraps, negates, does_no_harm, does_no_harm, shadows, decorates, has_other_defaults),
]


def rebound(text: str, name: str, chance: random.Random) -> str:
    """Bind a name of the module to something else: by its import, or behind everything."""
    syntax = ast.parse(text)
    imports = [
        (suite, node)
        for owner in ast.walk(syntax)
        for suite in suites(owner)
        for node in suite
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names)
    ]
    if imports and chance.random() < 0.6:
        suite, node = imports[0]
        rest = [alias for alias in node.names if alias.name != name]
        other = ast.parse(f"from elsewhere import {name}").body
        index = suite.index(node)
        suite[index : index + 1] = [ast.ImportFrom(node.module, rest, node.level)] if rest else []
        suite[index:index] = other
        return ast.unparse(ast.fix_missing_locations(syntax)) + "\n"
    ways = [f"{name} = lambda *args, **kwargs: None", f"{name} = None", f"{name} = {name}"]
    ways += [f"def {name}(*args):\n    return True", f"if True:\n    {name} = False"]
    ways += [f"for {name} in [0, 1]:\n    pass", f"({name} := 0)", f"globals()['fresh'] = {name}"]
    ways += [f"def fresh():\n    global {name}\n    {name} = None\nfresh()"]
    ways += [f"class Fresh:\n    global {name}\n    {name} = None", "from elsewhere import *"]
    return f"{text}\n{chance.choice(ways)}\n"


def mutants(case: Case) -> Iterator[tuple[str, str]]:
    """Yield each way to edit the function, and the module with it edited so."""
    lines = case.text.splitlines(keepends=True)
    begin = min([case.function.lineno, *(d.lineno for d in case.function.decorator_list)])
    around, behind = "".join(lines[: begin - 1]), "".join(lines[case.function.end_lineno :])
    indent = " " * case.function.col_offset
    edits = case.patch.edits_for(case.release)
    near = anchor_line(case, edits)
    own = [*OWN, the_fix(edits)]
    ways: list[tuple[str, random.Random, list[Any]]] = []
    for number in range(EDITS):
        chance = random.Random(f"{case} {number}")
        # Every way in its turn; every third function is edited more than once.
        some = [own[number % len(own)], *chance.sample(own, k=2 if number % 3 == 0 else 0)]
        ways.append((f"{number}", chance, some))
    ways += [("", random.Random(f"{case} {one.__name__}"), [one]) for one in MUTATORS]
    scope = Scope(case.function, near, random.Random(f"{case}"))
    texts = ["if False:\n    yield"]
    for name in scope.parameters[-1:]:
        texts += ways_to_bind(scope, name, "None")
    ways += [(text, scope.chance, [begins_with(text)]) for text in texts]
    for label, chance, some in ways:
        function = copy.deepcopy(case.function)
        for way in some:
            way(function, chance) if way in MUTATORS else way(Scope(function, near, chance))
        fresh = ast.unparse(ast.fix_missing_locations(function)).splitlines()
        text = around + "".join(f"{indent}{line}\n" for line in fresh) + behind
        yield f"{'+'.join(w.__name__ for w in some)} {label}", text
    for name in [*scope.free, *scope.free]:
        yield f"rebound {name}", rebound(case.text, name, scope.chance)


def anchor_line(case: Case, edits: Iterable[Edit]) -> int:
    wanted = {normal_form(e.anchor[0]) for e in edits if e.target.scope == case.scope}
    return next(
        node.lineno
        for node in ast.walk(case.function)
        if isinstance(node, ast.stmt) and normal_form(node) in wanted
    )


# ------------------------------------------------------------------------------ the tests


@dataclass
class Counts:
    """What the guard said about the edited functions, and what is true of them."""

    verdicts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    overlooked: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join(f"{number} {what}" for what, number in sorted(self.verdicts.items()))


def counts_of(case: Case) -> Counts:
    counts = Counts()
    others = [patch.id for patch in load().patches if patch.id != case.entry]
    for clause in case.patch.clauses:
        tree(case.release).stands(clause)  # those in other modules stay as they are
    for way, text in mutants(case):
        made = with_files(tree(case.release), {case.module: text.encode()})
        try:
            compile(text, "m", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            counts.verdicts["no code"] += 1
            continue
        (finding,) = decide(load(), made, known=others)
        what, wrong = finding.verdict, None
        if what == "not-needed":
            wrong = "the fault is there" if shows_the_fault(case, text) else None
        else:
            variants = [finding.edits, *(one.edits for one in case.patch.variants)]
            how, wrong = truth(case, made, text, variants[: 1 if finding.edits else None])
            what += f", {how}"  # type: ignore[assignment]
            wrong = wrong if finding.verdict == "apply" else None
        counts.verdicts[what] += 1
        if wrong:
            change = "\n".join(
                difflib.unified_diff(
                    case.text.splitlines(), text.splitlines(), "release", way, lineterm="", n=2
                )
            )
            kept = counts.failures if finding.verdict == "apply" else counts.overlooked
            kept.append(f"{case}: {way}: {finding.reason}\n{wrong}\n{change}")
    return counts


def truth(
    case: Case, made: Tree, text: str, variants: Iterable[tuple[Edit, ...]]
) -> tuple[str, str | None]:
    """What becomes of a tree if the first of ``variants`` that has its anchors there is applied."""
    for edits in filter(None, variants):
        try:
            after = patched(made, case, edits)
        except (CommfixError, SourceError):
            continue
        why = fails(case, text, after)
        return ("works" if why is None else "fails" if why else "never runs"), why
    return "no place for it", None


@each_case
def test_a_shrunk_module_has_the_forms_of_the_whole(case: Case) -> None:
    made = with_files(tree(case.release), {case.module: case.text.encode()})
    for clause in case.patch.clauses:
        assert made.stands(clause).form == tree(case.release).stands(clause).form, clause.key


@each_case
def test_the_entry_changes_what_the_release_decides_and_only_where_it_is_meant_to(
    case: Case,
) -> None:
    changed = 0
    for given in case.inputs:
        faulty, mended = case.release_does(given)
        assert faulty is not None, given
        assert mended is not None, given
        assert faulty.rest == mended.rest, given
        if faulty.decision != mended.decision:
            changed += 1
            assert case.concerned(given), given
    assert changed


@each_case
def test_where_the_guard_applies_an_entry_it_does_what_it_does_on_the_release(case: Case) -> None:
    """And where it says that an entry is not needed, the fault is not there."""
    counts = counts_of(case)
    print(f"{case}: {counts}")
    assert not counts.failures, "\n\n".join(counts.failures)
    assert not counts.overlooked, "\n\n".join(counts.overlooked)
    # Some edits leave an entry its effect, and some take it: both are told apart.
    assert counts.verdicts["apply, works"] > 0
    assert counts.verdicts["refused, fails"] > 0 or str(case) in ALL_WORK
    assert (counts.verdicts.total() - counts.verdicts["no code"]) * len(CASES) >= 1000
