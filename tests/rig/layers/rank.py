"""One rank: process groups as the release makes them, a padded batch, the model, the comparison."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rig.layers import fused_kernel, reference, topology
from rig.layers.case import Case, LayerTrace, RankReport
from rig.layers.collectives import Recorder
from rig.layers.models import (
    FEATURES,
    capture,
    configure,
    make_model,
    make_weights,
    own_layers,
)


if TYPE_CHECKING:
    from collections.abc import Callable


torch: Any = importlib.import_module("torch")

Tensor = Any

_COMMUNICATION = {
    "prepare_attn": "_communicate_simple_fn",
    "prepare_mlp": "_communicate_with_all_reduce_and_layer_norm_fn",
    "postprocess_layer": "_communicate_summable_tensor_pair_fn",
}
_QUESTIONS = ("should_use_reduce_scatter", "should_fuse_mlp_allreduce_with_next_layer")


def run(case: Case, rank: int, rendezvous: str, checkpoint: str) -> RankReport:
    """Raises whatever sglang raises."""
    recorder = Recorder()
    server_args = _start_runtime(case, rank, rendezvous, checkpoint, recorder)
    group = topology.attention_dp_rank() * case.layout.attn_cp + topology.attention_cp_rank()

    config = configure(case.model, case.layers)
    weights = [make_weights(config, kind, seed) for seed, kind in enumerate(case.layers)]
    model = make_model(
        case.model,
        config,
        weights,
        with_features=case.deepstack,
        combined=case.all_to_all is not None,
    )
    if case.capture:
        capture(case.model, model, config, case.capture)
    if case.layout.attn_cp > 1:
        _leave_the_prompt_as_it_is(model)

    batch = _make_batch(case, group, server_args)
    tokens, padded = case.tokens[group], len(batch.input_ids)
    given = _hidden_states(tokens, config, seed=1000 + group)
    # What stands in padded rows is anybody's guess, and must not matter.
    garbage = _hidden_states(padded - tokens, config, seed=2000 + group)
    features = _features(padded, config, seed=3000 + group) if case.deepstack else []
    made, traces = _forward(model, torch.cat((given, garbage)), features, batch, recorder)

    found: dict[str, Any] = {"relative_error": 0.0, "shape": (padded, config["hidden_size"])}
    if made is not None:
        first = min(own_layers(model))
        found = _compare(case, made, given, weights, config, features, padded, first)
    return RankReport(
        **found,
        padding=batch.dp_padding_mode.name if batch.dp_padding_mode is not None else None,
        layers=tuple(traces),
    )


def _compare(
    case: Case,
    made: Any,
    given: Tensor,
    weights: list[dict[str, Tensor]],
    config: dict[str, Any],
    features: list[Tensor],
    padded: int,
    first: int,
) -> dict[str, Any]:
    """What the last stage has made with what it should be."""
    hidden_states, captured = made if isinstance(made, tuple) else (made, ())
    if torch.is_tensor(captured):
        # Side by side, from 0.5.20 on.
        captured = captured.split(config["hidden_size"], dim=-1)
    if len(hidden_states) != padded:
        raise AssertionError(f"{len(hidden_states)} tokens came out of the model, not {padded}")
    tokens = len(given)
    own = [feature[:tokens].double() for feature in features]
    expected = reference.forward(given.double(), weights, config, own)
    # A stage before the last keeps to itself what it captures.
    behind = [layer for layer in case.capture if layer + 1 >= first]
    if len(behind) != len(captured):
        raise AssertionError(f"{len(captured)} of {len(behind)} hidden states were captured")
    return {
        "relative_error": _relative_error(hidden_states[:tokens], expected[-1]),
        "shape": tuple(hidden_states.shape),
        "captured": tuple(
            _relative_error(states[:tokens], expected[layer])
            for layer, states in zip(behind, captured, strict=True)
        ),
    }


def _start_runtime(
    case: Case, rank: int, rendezvous: str, checkpoint: str, recorder: Recorder
) -> Any:
    """What a scheduler process does before it makes its model."""
    state: Any = importlib.import_module("sglang.srt.distributed.parallel_state")
    attention: Any = importlib.import_module("sglang.srt.layers.dp_attention")
    moe: Any = importlib.import_module("sglang.srt.layers.moe.utils")
    torch.set_num_threads(1)
    layout = case.layout
    server_args = _server_args(case, checkpoint)
    _publish(server_args)
    _call(moe.initialize_moe_config, server_args=server_args)
    _call(
        state.init_distributed_environment,
        world_size=layout.ranks,
        rank=rank,
        local_rank=rank,
        backend="gloo",
        distributed_init_method=rendezvous,
    )
    _call(
        state.initialize_model_parallel,
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        expert_model_parallel_size=layout.ep,
        attention_data_parallel_size=layout.dp,
        attention_context_model_parallel_size=layout.attn_cp,
        moe_data_model_parallel_size=layout.moe_dp,
    )
    hidden_size = configure(case.model, case.layers)["hidden_size"]
    attention.initialize_dp_attention(
        server_args,
        SimpleNamespace(hidden_size=hidden_size, dtype=torch.float32, hf_config=SimpleNamespace()),
    )
    if case.all_to_all is not None:
        # Every server has some; nothing of it is read where experts stay where they are.
        location: Any = importlib.import_module("sglang.srt.eplb.expert_location")
        location.set_global_expert_location_metadata(SimpleNamespace())
    recorder.instrument(state.GroupCoordinator)
    if case.fusion:
        fused_kernel.enable(recorder)
    return server_args


def _server_args(case: Case, checkpoint: str) -> Any:
    module: Any = importlib.import_module("sglang.srt.server_args")
    layout = case.layout
    wanted = {
        "tp_size": layout.tp,
        "dp_size": layout.dp,
        "ep_size": layout.ep,
        "enable_dp_attention": layout.dp > 1,
        "moe_dense_tp_size": layout.moe_dense_tp,
    }
    if layout.pp > 1:
        wanted["pp_size"] = layout.pp
    if (layout.attn_cp, layout.moe_dp) != (1, 1):
        wanted |= {"attn_cp_size": layout.attn_cp, "moe_dp_size": layout.moe_dp}
    server_args = module.ServerArgs(
        model_path=checkpoint,
        device="cpu",
        attention_backend="torch_native",
        dtype="float32",
        grammar_backend="none",
        mem_fraction_static=0.3,
        disable_cuda_graph=True,
        disable_shared_experts_fusion=True,
        **wanted,
    )
    if hasattr(server_args, "resolve_once"):
        server_args.resolve_once()
    for name, value in wanted.items():
        if (made := _decided(server_args, name)) != value:
            raise AssertionError(f"sglang made {name} {made}, not {value}")
    if case.all_to_all is not None:
        # Given at first, it would look for GPUs and for packages.
        _decide(server_args, "moe_a2a_backend", case.all_to_all)
        _decide(server_args, "ep_dispatch_algorithm", None)
    # It switches this off by itself where there is no GPU.
    if hasattr(server_args, "flashinfer_allreduce_fusion_backend"):
        backend = "trtllm" if case.fusion else None
        _decide(server_args, "flashinfer_allreduce_fusion_backend", backend)
    else:
        server_args.enable_flashinfer_allreduce_fusion = case.fusion
    return server_args


def _decided(server_args: Any, name: str) -> Any:
    """What the release has made of an argument."""
    if not hasattr(server_args, "resolve_once"):
        return getattr(server_args, name)
    return _decisions_beside_the_arguments().resolution_result(server_args, name)


def _decide(server_args: Any, name: str, value: Any) -> None:
    """In the release's stead; before the arguments are published, and read-only for good."""
    if not hasattr(server_args, "resolve_once"):
        object.__setattr__(server_args, name, value)
    else:
        _decisions_beside_the_arguments().declare_resolution(server_args, "rig", **{name: value})


def _decisions_beside_the_arguments() -> Any:
    """From 0.5.19 on the arguments themselves stay as they were given."""
    return importlib.import_module("sglang.srt.arg_groups.overrides")


def _publish(server_args: Any) -> None:
    module: Any = importlib.import_module("sglang.srt.server_args")
    if hasattr(module, "set_global_server_args_for_scheduler"):
        module.set_global_server_args_for_scheduler(server_args)
        return
    # 0.5.3.post1 and before.
    batch: Any = importlib.import_module("sglang.srt.managers.schedule_batch")
    speculative: Any = importlib.import_module("sglang.srt.speculative.spec_info")
    batch.global_server_args_dict.update(
        {name: getattr(server_args, name) for name in batch.GLOBAL_SERVER_ARGS_KEYS},
        speculative_algorithm=speculative.SpeculativeAlgorithm.from_string(None),
    )


def _make_batch(case: Case, group: int, server_args: Any) -> Any:
    """A real ForwardBatch, padded by the release's own rule."""
    info: Any = importlib.import_module("sglang.srt.model_executor.forward_batch_info")
    utils: Any = importlib.import_module("sglang.srt.utils")
    transformers: Any = importlib.import_module("transformers")
    tokens = case.tokens[group]
    decode = case.forward == "decode"
    requests = tokens if decode else min(tokens, 1)
    mode = info.ForwardMode.DECODE if decode else info.ForwardMode.EXTEND
    if tokens == 0:
        mode = info.ForwardMode.IDLE
    known = {
        "forward_mode": mode,
        "batch_size": requests,
        "input_ids": torch.zeros(tokens, dtype=torch.int64),
        "req_pool_indices": torch.zeros(requests, dtype=torch.int64),
        "seq_lens": torch.ones(requests, dtype=torch.int64),
        "seq_lens_cpu": torch.ones(requests, dtype=torch.int64),
        "orig_seq_lens": torch.ones(requests, dtype=torch.int32),
        "out_cache_loc": torch.zeros(tokens, dtype=torch.int64),
        "positions": torch.zeros(tokens, dtype=torch.int64),
        "seq_lens_sum": requests,
        "lora_ids": [None] * requests,
    }
    fields = {field.name for field in dataclasses.fields(info.ForwardBatch)}
    batch = info.ForwardBatch(**{k: v for k, v in known.items() if k in fields})
    batch.is_extend_in_batch = not decode
    if case.layout.attn_cp > 1:
        batch.attn_cp_metadata = SimpleNamespace(per_rank_actual_token=list(case.tokens))
    # These two read the published arguments from 0.5.19 on.
    is_gathered = bool(_call(utils.require_gathered_buffer, server_args=server_args))
    if case.layout.dp > 1 or is_gathered:
        gathers_from_all = _call(utils.require_mlp_tp_gather, server_args=server_args)
        counts = list(case.tokens) if gathers_from_all else [tokens]
        batch.global_num_tokens_cpu = counts
        batch.global_num_tokens_gpu = torch.tensor(counts)
        batch.global_num_tokens_for_logprob_cpu = list(counts)
        batch.global_num_tokens_for_logprob_gpu = torch.tensor(counts)
        if case.padding is not None:
            _force_padding(case.padding)
        batch.prepare_mlp_sync_batch(
            SimpleNamespace(
                attn_backend=SimpleNamespace(
                    get_cuda_graph_seq_len_fill_value=lambda: 1,
                    get_cpu_graph_seq_len_fill_value=lambda: 1,
                ),
                attn_tp_sequence_sharded=lambda _: is_gathered,
                is_draft_worker=False,
                mambaish_config=None,
                model_config=SimpleNamespace(
                    hf_config=transformers.PretrainedConfig(), linear_attn_registry_result=None
                ),
                server_args=server_args,
            )
        )
    return batch


def _force_padding(name: str) -> None:
    attention: Any = importlib.import_module("sglang.srt.layers.dp_attention")
    modes = attention.DpPaddingMode
    modes.get_dp_padding_mode = classmethod(lambda cls, *args, **kwargs: modes[name])


def _hidden_states(tokens: int, config: dict[str, Any], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, config["hidden_size"], generator=generator)


def _features(tokens: int, config: dict[str, Any], seed: int) -> list[Tensor]:
    return [_hidden_states(tokens, config, seed + 100 * number) for number in range(FEATURES)]


def _leave_the_prompt_as_it_is(model: Any) -> None:
    """Under context parallelism a case has a rank's share of the prompt to begin with."""
    stand_ins = {
        "cp_split_and_rebuild_data": lambda batch, tensor: tensor,
        "cp_split_and_rebuild_position": lambda batch, tensor: tensor,
        "cp_all_gather_rerange_output": lambda tensor, *_: tensor,
    }
    for parent in type(model).__mro__:
        module = importlib.import_module(parent.__module__)
        for name, stand_in in stand_ins.items():
            if hasattr(module, name):
                setattr(module, name, stand_in)


def _forward(
    model: Any,
    hidden_states: Tensor,
    features: list[Tensor],
    batch: Any,
    recorder: Recorder,
) -> tuple[Any, list[LayerTrace]]:
    """What the model returns, or None where that goes to the next stage."""
    traces: list[LayerTrace] = []
    for number, layer in own_layers(model).items():
        _observe(number, layer, recorder, traces)
    more = {"input_deepstack_embeds": torch.cat(features, dim=-1)} if features else {}
    with torch.no_grad():
        made = _call(
            model.forward,
            input_ids=batch.input_ids,
            positions=batch.positions,
            forward_batch=batch,
            input_embeds=hidden_states,
            pp_proxy_tensors=_receive(),
            **more,
        )
        if hasattr(made, "tensors"):
            _send(made)
            made = None
    return made, traces


def _receive() -> Any:
    """From the stage before, as the scheduler does it: tensors, and nothing that sticks to them."""
    state: Any = importlib.import_module("sglang.srt.distributed.parallel_state")
    group = state.get_pp_group()
    if group.is_first_rank:
        return None
    info: Any = importlib.import_module("sglang.srt.model_executor.forward_batch_info")
    return info.PPProxyTensors(group.recv_tensor_dict(all_gather_group=_attention_tp_group()))


def _send(proxy: Any) -> None:
    state: Any = importlib.import_module("sglang.srt.distributed.parallel_state")
    state.get_pp_group().send_tensor_dict(proxy.tensors, all_gather_group=_attention_tp_group())


def _attention_tp_group() -> Any:
    """Each of its ranks sends a part, and gathers the whole again."""
    for name in ("sglang.srt.layers.dp_attention", "sglang.srt.distributed.parallel_state"):
        module: Any = importlib.import_module(name)
        for function in ("get_attention_tp_group", "get_attn_tp_group"):
            if hasattr(module, function):
                return getattr(module, function)()
    raise AttributeError("where is the attention-TP group?")


def _observe(number: int, layer: Any, recorder: Recorder, traces: list[LayerTrace]) -> None:
    """On the instances, so that the classes stay what the release, or a patch, made them."""
    communicator = layer.layer_communicator
    answers: dict[str, bool] = {}
    collectives: dict[str, list[str]] = {}
    forward = layer.forward

    @functools.wraps(forward)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with recorder.into(collectives):
            made = forward(*args, **kwargs)
        traces.append(_trace(number, communicator, answers, collectives))
        return made

    layer.forward = traced

    def in_step(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with recorder.step(name):
                return function(*args, **kwargs)

        return wrapper

    def asked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            answers[name] = bool(answer := function(*args, **kwargs))
            return answer

        return wrapper

    for name in _COMMUNICATION:
        setattr(communicator, name, in_step(name, getattr(communicator, name)))
    for name in _QUESTIONS:
        setattr(communicator, name, asked(name, getattr(communicator, name)))
    layer.mlp.forward = in_step("mlp", layer.mlp.forward)


def _trace(
    number: int, communicator: Any, answers: dict[str, bool], collectives: dict[str, list[str]]
) -> LayerTrace:
    functions = {}
    for step, attribute in _COMMUNICATION.items():
        function = getattr(communicator, attribute)
        functions[step] = getattr(function, "func", function).__name__
    modes = communicator.layer_scatter_modes
    return LayerTrace(
        modes.mlp_mode.name,
        modes.layer_output_mode.name,
        functions,
        answers,
        collectives,
        number,
    )


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    if len(expected) == 0:
        return 0.0
    scale = expected.pow(2).mean().sqrt()
    return float((actual.double() - expected).abs().max() / scale)


def _call(function: Callable[..., Any], **kwargs: Any) -> Any:
    """With those of the arguments that this release's function has."""
    parameters = inspect.signature(function).parameters
    return function(**{name: value for name, value in kwargs.items() if name in parameters})
