"""Asks the real modules of one release for their decisions, over whole products of modes.

Runs in the rig's Python, and is asked by `decide`. The process groups are sglang's own, made by
sglang's own code on torch's `fake` back-end, which lets one process take part in a world of any size. Nothing here says what a decision should be.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import itertools
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rig.answering import answer
from rig.shims import placeholders


if TYPE_CHECKING:
    from collections.abc import Iterator


Case = dict[str, Any]

_LIMIT = "FUSE_ALLREDUCE_MAX_BATCH_SIZE"
_DETERMINISTIC = "SGLANG_ENABLE_DETERMINISTIC_INFERENCE"
_FP4_ALLGATHER = "fp4-allgather"


def layouts(largest: int) -> Iterator[Case]:
    """Every way of dividing 1, 2, 4 ... ranks that a command line can ask for."""
    sizes = [size for size in (1, 2, 4, 8) if size <= largest]
    for tp in sizes:
        divisors = [size for size in sizes if size <= tp]
        for dp, ep, cp in itertools.product(divisors, repeat=3):
            if dp * cp > tp:
                continue
            for moe_dp in sorted({1, cp}):
                yield {"tp": tp, "dp": dp, "ep": ep, "attn_cp": cp, "moe_dp": moe_dp}
    # What no release takes.
    yield {"tp": 4, "dp": 1, "ep": 1, "attn_cp": 3, "moe_dp": 3}
    yield {"tp": 4, "dp": 1, "ep": 1, "attn_cp": 1, "moe_dp": 2}
    yield {"tp": 8, "dp": 1, "ep": 1, "attn_cp": 4, "moe_dp": 2}
    yield {"tp": 8, "dp": 1, "ep": 2, "attn_cp": 2, "moe_dp": 2}
    yield {"tp": 4, "dp": 4, "ep": 1, "attn_cp": 2, "moe_dp": 1}


def _variants(layout: Case) -> Iterator[Case]:
    """What else decides about the communication: how dense and sparse layers are laid out."""
    for dense_tp, a2a in itertools.product((None, 1), ("none", "deepep", _FP4_ALLGATHER)):
        if a2a == _FP4_ALLGATHER and (layout["dp"] == 1 or layout["ep"] != layout["dp"]):
            continue
        yield {**layout, "moe_dense_tp": dense_tp, "a2a": a2a}


class World:
    """The release's modules, and one layout at a time in them."""

    def __init__(self, model: str, largest: int) -> None:
        self.model = model
        self.layouts = list(layouts(largest))
        self.torch: Any = importlib.import_module("torch")
        self.distributed: Any = importlib.import_module("torch.distributed")
        self.fake: Any = importlib.import_module("torch.testing._internal.distributed.fake_pg")
        self.server_args: Any = _sglang("server_args")
        self.groups: Any = _sglang("distributed.parallel_state")
        self.attention: Any = _sglang("layers.dp_attention")
        self.communicator: Any = _sglang("layers.communicator")
        self.moe: Any = _sglang("layers.moe.utils")
        self.batch: Any = _sglang("model_executor.forward_batch_info")
        distributed: Any = self.distributed
        new_group = distributed.new_group
        distributed.new_group = lambda ranks=None, *_, **__: new_group(ranks, backend="fake")
        self.groups.set_custom_all_reduce(False)

    def arguments(self, layout: Case, **others: Any) -> Any:
        """Let the release's own command-line checks see a layout."""
        sizes = (layout["attn_cp"], layout["moe_dp"])
        context = {"attn_cp_size": sizes[0], "moe_dp_size": sizes[1]} if sizes != (1, 1) else {}
        a2a = layout.get("a2a", "none")
        values = {
            "model_path": self.model,
            "device": "cpu",
            "attention_backend": "torch_native",
            "dtype": "float32",
            "grammar_backend": "none",
            "disable_cuda_graph": True,
            "mem_fraction_static": 0.3,
            "tp_size": layout["tp"],
            "dp_size": layout["dp"],
            "ep_size": layout["ep"],
            "enable_dp_attention": layout["dp"] > 1,
            "moe_dense_tp_size": layout.get("moe_dense_tp"),
            "moe_a2a_backend": "none" if a2a == _FP4_ALLGATHER else a2a,
            **context,
            **others,
        }
        result = self.server_args.ServerArgs(**values)
        if a2a == _FP4_ALLGATHER:
            # The checks want a quantized checkpoint; from 0.5.17 on, the object is sealed.
            object.__setattr__(result, "moe_runner_backend", "flashinfer_cutlass")
            object.__setattr__(result, "quantization", "modelopt_fp4")
        return result

    @contextlib.contextmanager
    def laid_out(self, arguments: Any) -> Iterator[None]:
        """Make the release's process groups for these arguments, and take them down again."""
        rank = arguments.tp_size - 1
        self._publish(arguments)
        excepthook = sys.excepthook  # each init_process_group puts one more around it
        self.distributed.init_process_group(
            "fake", store=self.fake.FakeStore(), rank=rank, world_size=arguments.tp_size
        )
        sys.excepthook = excepthook
        dp_size = arguments.dp_size if arguments.enable_dp_attention else 1
        try:
            _call(
                self.groups.init_distributed_environment,
                world_size=arguments.tp_size, rank=rank, local_rank=rank, backend="fake",
            )  # fmt: skip
            _call(
                self.groups.initialize_model_parallel,
                tensor_model_parallel_size=arguments.tp_size,
                expert_model_parallel_size=arguments.ep_size,
                attention_data_parallel_size=dp_size,
                attention_context_model_parallel_size=getattr(arguments, "attn_cp_size", 1),
                moe_data_model_parallel_size=getattr(arguments, "moe_dp_size", 1),
                backend="fake",
            )
            _call(
                self.attention.initialize_dp_attention,
                server_args=arguments,
                model_config=SimpleNamespace(
                    hidden_size=64, dtype=self.torch.float32, hf_config=SimpleNamespace()
                ),
                enable_dp_attention=arguments.enable_dp_attention,
                tp_rank=rank,
                tp_size=arguments.tp_size,
                dp_size=arguments.dp_size,
                moe_dense_tp_size=arguments.moe_dense_tp_size,
                pp_size=1,
            )
            yield
        finally:
            self.groups.destroy_model_parallel()
            self.groups.destroy_distributed_environment()
            for name, value in list(vars(self.groups).items()):  # 0.5.9 leaves some behind
                if isinstance(value, self.groups.GroupCoordinator):
                    setattr(self.groups, name, None)

    def _publish(self, arguments: Any) -> None:
        publish = getattr(self.server_args, "set_global_server_args_for_scheduler", None)
        if publish is not None:
            publish(arguments)
        else:  # up to 0.5.3.post1
            batch: Any = _sglang("managers.schedule_batch")
            values = {key: getattr(arguments, key) for key in batch.GLOBAL_SERVER_ARGS_KEYS}
            batch.global_server_args_dict.update(values)
        _call(self.moe.initialize_moe_config, server_args=arguments)
        with contextlib.suppress(AttributeError):
            self.moe.should_use_flashinfer_cutlass_moe_fp4_allgather.cache_clear()

    def layer(self, *, sparse: bool, last: bool, **others: Any) -> tuple[Any, Any]:
        """Build a layer's scatter modes and its communicator, the second of three or the last."""
        modes = _init_new(
            self.communicator,
            num_layers=3,
            layer_id=2 if last else 1,
            is_layer_sparse=sparse,
            is_previous_layer_sparse=others.get("previous_sparse", sparse),
            is_next_layer_sparse=others.get("next_sparse", sparse),
        )
        communicator = _call(
            self.communicator.LayerCommunicator,
            layer_scatter_modes=modes,
            input_layernorm=None,
            post_attention_layernorm=None,
            allow_reduce_scatter=others.get("allow_reduce_scatter", True),
            is_last_layer=last,
        )
        return modes, communicator

    def refuses_layers(self) -> bool:
        """Tell whether a layout that the command line takes ends when layers are built."""
        try:
            self.layer(sparse=True, last=False)
        except NotImplementedError:
            return True
        return False

    def forward_batch(self, tokens: int, *, padding: str = "MAX_LEN", mode: str = "EXTEND") -> Any:
        return SimpleNamespace(
            input_ids=self.torch.empty(tokens),
            dp_padding_mode=self.attention.DpPaddingMode[padding],
            forward_mode=self.batch.ForwardMode[mode],
            attn_cp_metadata=None,
            nsa_cp_metadata=None,
            can_run_tbo=False,
        )

    @contextlib.contextmanager
    def scattered_input(self, scattered: bool) -> Iterator[bool]:
        """Enter a forward pass with scattered input or without; yields whether there is such."""
        context = getattr(self.communicator, "get_attn_tp_context", lambda: None)()
        if context is None:
            yield not scattered
            return
        before, context.allow_input_scattered = context.allow_input_scattered, scattered
        try:
            with context.maybe_input_scattered(self.forward_batch(1)):
                yield True
        finally:
            context.allow_input_scattered = before


def command_lines(world: World) -> Iterator[tuple[Case, Any]]:
    """Decide which layouts are taken, and with which words the others are refused."""
    for layout in world.layouts:
        yield layout, _refusal(world, layout) or "taken"


def scatter_modes(world: World) -> Iterator[tuple[Case, Any]]:
    """Decide on scatter modes, group sizes, and the communication functions that follow."""
    for layout, _ in _layouts_taken(world):
        sizes = {
            mode.name: size
            for mode, size in world.communicator.CommunicateContext.init_new()
            .process_group_sizes.items()
        }  # fmt: skip
        yield {**layout, "of": "process group sizes"}, sizes
        kinds = itertools.product((False, True), repeat=4)
        for sparse, previous_sparse, next_sparse, last in kinds:
            neighbours = {"previous_sparse": previous_sparse, "next_sparse": next_sparse}
            case = {**layout, "of": "a layer", "sparse": sparse, "last": last, **neighbours}
            try:
                modes, layer = world.layer(sparse=sparse, last=last, **neighbours)
            except NotImplementedError as error:
                yield case, f"refused: {error}"
                continue
            yield (
                case,
                {
                    "modes": {name: mode.name for name, mode in vars(modes).items()},
                    "into MLP": _function(layer._communicate_with_all_reduce_and_layer_norm_fn),
                    "out of layer": _function(layer._communicate_summable_tensor_pair_fn),
                },
            )


def fusion(world: World) -> Iterator[tuple[Case, Any]]:
    """Decide whether an MLP leaves its all-reduce to the next layer's fused kernel."""
    communicator = world.communicator
    for name in ("_is_sm90_supported", "_is_sm100_supported"):
        if hasattr(communicator, name):
            setattr(communicator, name, True)
    communicator._is_flashinfer_available = True
    limit = getattr(communicator, _LIMIT)
    batches = {
        "none": 0, "one": 1, "below limit": limit - 1, "limit": limit, "above limit": limit + 1,
    }  # fmt: skip
    algorithms = (None, "EAGLE")
    for layout, arguments in _layouts_taken(world):
        if world.refuses_layers():
            continue
        for enabled, algorithm in itertools.product((False, True), algorithms):
            arguments.enable_flashinfer_allreduce_fusion = enabled
            arguments.speculative_algorithm = algorithm
            world._publish(arguments)
            for sparse, last in itertools.product((False, True), repeat=2):
                _, layer = world.layer(sparse=sparse, last=last)
                for scattered in (False, True):
                    with world.scattered_input(scattered) as known:
                        for batch, tokens in batches.items() if known else ():
                            yield {
                                **layout, "fusion": enabled, "speculative": algorithm,
                                "sparse": sparse, "last": last,
                                "input_scattered": scattered, "batch": batch,
                            }, layer.should_fuse_mlp_allreduce_with_next_layer(
                                world.forward_batch(tokens)
                            )  # fmt: skip


def reduce_scatter(world: World) -> Iterator[tuple[Case, Any]]:
    """Decide whether a layer's MLP leaves its reduction to the reduce-scatter behind it."""
    flags = (False, True)
    for layout, arguments in _layouts_taken(world):
        if world.refuses_layers():
            continue
        for deterministic in flags:
            if not hasattr(arguments, "enable_deterministic_inference") and deterministic:
                continue
            os.environ[_DETERMINISTIC] = str(int(deterministic))
            for allowed, sparse, last in itertools.product(flags, repeat=3):
                _, layer = world.layer(sparse=sparse, last=last, allow_reduce_scatter=allowed)
                for scattered, padding in itertools.product(flags, ("MAX_LEN", "SUM_LEN")):
                    with world.scattered_input(scattered) as known:
                        if known:
                            batch = world.forward_batch(7, padding=padding)
                            yield {
                                **layout, "deterministic": deterministic, "allowed": allowed,
                                "sparse": sparse, "last": last, "input_scattered": scattered,
                                "padding": padding,
                            }, bool(layer.should_use_reduce_scatter(batch))  # fmt: skip


def expert_reduction(world: World) -> Iterator[tuple[Case, Any]]:
    """Decide which reductions Qwen3-MoE's experts make themselves."""
    model: Any = _sglang("models.qwen3_moe")
    parallel: Any = _sglang("distributed")
    made: list[str] = []

    def reduce(name: str, states: Any) -> Any:
        made.append(name)
        return states

    for name in ("moe_expert_parallel_all_reduce", "moe_tensor_model_parallel_all_reduce"):
        setattr(model, name, functools.partial(reduce, name))
    states = world.torch.zeros(2, 4)
    for layout, _ in _layouts_taken(world):
        block = SimpleNamespace(
            ep_size=parallel.get_moe_expert_parallel_world_size(),
            tp_size=parallel.get_moe_tensor_parallel_world_size(),
            gate=lambda states: (None, None),
            topk=lambda states, logits: None,
            experts=lambda states, topk: states,
        )
        for fused, scattered in ((False, False), (True, False), (False, True)):
            made.clear()
            model.Qwen3MoeSparseMoeBlock.forward_normal(block, states, fused, scattered)
            case = {**layout, "should_allreduce_fusion": fused, "use_reduce_scatter": scattered}
            yield case, list(made)


def warm_up(world: World) -> Iterator[tuple[Case, Any]]:
    """Decide how many requests and tokens the warm-up batch has."""
    runner: Any = _sglang("model_executor.model_runner")
    if not hasattr(runner.ModelRunner, "_dummy_run"):
        return
    attention_tp = [
        {"tp": 4, "dp": dp, "ep": 1, "attn_cp": 1, "moe_dp": 1, "moe_dense_tp": dense_tp}
        for dp, dense_tp in itertools.product((1, 2, 4), (None, 1))
    ]
    for layout in attention_tp:
        arguments = world.arguments(layout)
        with world.laid_out(arguments):
            sizes = itertools.product(range(1, 10), (1, 2, 3, 4), range(1, 10))
            for asked_for, tokens_per_request, pool in sizes:
                if asked_for <= pool:
                    yield {
                        **layout, "asked_for": asked_for, "pool": pool,
                        "tokens_per_request": tokens_per_request,
                        "attn_tp": world.attention.get_attention_tp_size(),
                    }, _warm_up_batch(runner, arguments, asked_for, tokens_per_request, pool)  # fmt: skip


class _Reached(Exception):  # noqa: N818
    """The warm-up has made up its mind."""


def _warm_up_batch(
    runner: Any, arguments: Any, asked_for: int, tokens_per_request: int, pool: int
) -> Any:
    """Run `_dummy_run` to where the attention back-end would prepare the batch."""
    seen: dict[str, int] = {}

    def prepare(batch: Any) -> Any:
        seen.update(requests=batch.batch_size, tokens=len(batch.input_ids))
        raise _Reached

    arguments.speculative_num_draft_tokens = tokens_per_request
    algorithm = runner.SpeculativeAlgorithm.from_string("EAGLE" if tokens_per_request > 1 else None)
    torch = importlib.import_module("torch")
    model_runner = _Standby(
        is_generation=True,
        spec_algorithm=algorithm,
        server_args=arguments,
        device="cpu",
        attn_backend=SimpleNamespace(
            get_cuda_graph_seq_len_fill_value=lambda: 1, init_forward_metadata=prepare
        ),
        req_to_token_pool=SimpleNamespace(size=pool),
        model_config=_Standby(
            hidden_size=64, vocab_size=512, dtype=torch.float32, hf_config=_Standby()
        ),
    )
    try:
        runner.ModelRunner._dummy_run(model_runner, asked_for)
    except _Reached:
        return seen
    except (AssertionError, ZeroDivisionError) as error:
        return type(error).__name__
    return "left out"


class _Standby(SimpleNamespace):
    """Has the attributes that are given; every other switch is off, every other object absent."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def _layouts_taken(world: World) -> Iterator[tuple[Case, Any]]:
    for layout in world.layouts:
        if _refusal(world, layout) is not None:
            continue
        for variant in _variants(layout):
            arguments = world.arguments(variant)
            asked_for = (layout["tp"], layout["dp"], layout["ep"])
            # DeepEP sets the EP size to the TP size: what is then the same layout comes up once.
            if (arguments.tp_size, arguments.dp_size, arguments.ep_size) == asked_for:
                with world.laid_out(arguments):
                    yield variant, arguments


def _refusal(world: World, layout: Case) -> str | None:
    try:
        with world.laid_out(world.arguments(layout)):
            return None
    except TypeError:
        return "unknown to this release"
    except (AssertionError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _init_new(communicator: Any, **values: Any) -> Any:
    known = communicator._LayerModeComputationContext.__dataclass_fields__
    return communicator.LayerScatterModes.init_new(
        **{name: value for name, value in values.items() if name in known}
    )


def _function(chosen: Any) -> str:
    """Name a communication function, and what is bound to it."""
    bound = getattr(chosen, "keywords", {})
    values = {name: getattr(value, "name", value) for name, value in bound.items()}
    name: str = getattr(chosen, "func", chosen).__name__
    if name.startswith("commfix_"):  # one that the register brings, under upstream's name
        name = name.removeprefix("commfix")
    return name if not values else f"{name}({values})"


def _call(function: Any, **values: Any) -> Any:
    """Call a function with those of the values that it takes in this release."""
    known = inspect.signature(function).parameters
    return function(**{name: value for name, value in values.items() if name in known})


def _sglang(module: str) -> Any:
    return importlib.import_module(f"sglang.srt.{module}")


SUITES = {
    suite.__name__: suite
    for suite in (
        command_lines,
        scatter_modes,
        fusion,
        reduce_scatter,
        expert_reduction,
        warm_up,
    )
}


def decided(model: str, largest: int, suites: list[str]) -> dict[str, list[Any]]:
    """Return the decisions of the named suites: for each, pairs of case and decision."""
    world = World(model, largest)
    return {name: list(SUITES[name](world)) for name in suites or SUITES}


if __name__ == "__main__":
    os.environ["SGLANG_USE_MESSAGE_QUEUE_BROADCASTER"] = "false"
    placeholders.register()
    answer(lambda asked: decided(**asked))
