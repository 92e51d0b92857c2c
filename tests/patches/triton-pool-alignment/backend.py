"""Triton's attention back-end of a release, given more requests than its pool holds.

Runs in the rig's Python, and is asked by test_backend.py. The classes are taken as
text from a release's `triton_backend.py`, so that any release can be asked; every name that they do
not define themselves, and that is not torch's, is a mock. Kernels therefore do nothing: what is shown
is whether the index buffers hold the batch.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import importlib.abc
import importlib.machinery
import sys
import typing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
from rig.answering import answer


# What functions that are mocks return, where it is taken apart.
TUPLES = {
    "_lean_decode_launch_params": (1, 1, 1),
    "_get_block_sizes_for_extend_attention": (16,) * 6,
}

CLASSES = ("TritonAttnBackend", "TritonMultiStepDraftBackend", "ForwardMetadata")


class Names(dict):  # type: ignore[type-arg]
    """The globals of the module: what is not known is a mock."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        self[name] = MagicMock(name=name)
        return self[name]


class Mocked(ModuleType):
    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        made = MagicMock(name=name)
        if name in TUPLES:
            made.return_value = TUPLES[name]
        return made


class Base:
    """What `AttentionBackend` has, where it is read."""

    dllm_attention = None


class Unused:
    """A class of which nothing here is an instance."""


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Whatever is imported of sglang inside a function."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] in {"sglang", "triton"}:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        return Mocked(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def load(file: str) -> Names:
    names = Names(
        torch=torch, Optional=typing.Optional, Union=typing.Union, List=list, TYPE_CHECKING=False,
        AttentionBackend=Base, dataclass=dataclasses.dataclass, contextlib=__import__("contextlib"),
        get_attention_tp_size=lambda: 2, get_device_core_count=lambda _: 0,
        get_bool_env_var=lambda *_: True, _is_cuda=False, _is_hip=False, _is_gfx942=False,
        _is_xpu=False, is_gfx95_supported=lambda: False, mambaish_config=lambda _: None,
        uses_fa4_dllm_prefill=lambda *_: False, dllm_fa4=False, SWAKVPool=Unused,
        BaseSWAKVPool=Unused, __name__=__name__,
    )  # fmt: skip
    parallel = SimpleNamespace(attn_tp_size=2, attn_dcp_size=1, attn_dcp_rank=0)
    names["get_parallel"] = lambda: parallel
    names["get_attention_dcp_world_size"] = names["get_attn_dcp_size"] = lambda: 1
    names["resolve_draft_decode_window"] = lambda _: (None, None)
    for scope in ("get_exec", "get_spec", "get_schedule"):
        names[scope] = MagicMock(name=scope)
    names["get_exec"].return_value.kernel.triton_attention_num_kv_splits = 8
    names["get_exec"].return_value.kernel.triton_attention_split_tile_size = None
    names["get_exec"].return_value.kernel.enable_lean_attention = False
    names["get_exec"].return_value.deterministic.enable_deterministic_inference = False
    names["get_exec"].return_value.dllm.dllm_algorithm = None
    names["get_spec"].return_value.speculative_num_draft_tokens = None
    names["get_spec"].return_value.speculative_eagle_topk = None
    names["get_schedule"].return_value.page_size = 1
    taken: list[ast.stmt] = [
        node
        for node in ast.parse(Path(file).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name in CLASSES
    ]
    future = __import__("__future__").annotations.compiler_flag
    exec(compile(ast.Module(taken, []), file, "exec", flags=future), names)
    return names


def runner(pool: int) -> Any:
    made = MagicMock(name="model_runner")
    made.req_to_token_pool = SimpleNamespace(
        size=pool, req_to_token=torch.zeros(pool + 1, 64, dtype=torch.int32)
    )
    made.sliding_window_size = None
    made.device = "cpu"
    made.page_size = made.dcp_size = 1
    made.is_draft_worker = False
    made.hybrid_gdn_config = made.kimi_linear_config = made.linear_attn_model_spec = None
    made.mambaish_config = made.hybrid_lightning_config = made.is_hybrid_gdn = None
    model = made.model_config
    model.num_attention_heads = 4
    model.get_max_num_attention_heads.return_value = 4
    model.get_num_kv_heads.return_value = 1
    model.is_encoder_decoder = False
    model.context_len = 64
    model.v_head_dim = model.swa_v_head_dim = model.head_dim = 8
    values = torch.zeros(8, 1, 8)
    for pools in (made, made.token_to_kv_pool_allocator.get_kvcache.return_value):
        pools.token_to_kv_pool.get_value_buffer.return_value = values
        pools.get_value_buffer.return_value = values
    arguments = made.server_args
    arguments.speculative_num_draft_tokens = None
    arguments.speculative_eagle_topk = None
    arguments.triton_attention_num_kv_splits = 8
    arguments.triton_attention_split_tile_size = None
    arguments.enable_deterministic_inference = False
    arguments.enable_lean_attention = False
    return made


def batch(requests: int) -> Any:
    made = MagicMock(name="forward_batch")
    made.batch_size = requests
    made.seq_lens = torch.arange(1, requests + 1, dtype=torch.int64)
    made.seq_lens_cpu = made.seq_lens
    made.seq_lens_sum = int(made.seq_lens.sum())
    made.req_pool_indices = torch.zeros(requests, dtype=torch.int64)
    made.spec_info = None
    made.out_cache_loc = torch.zeros(requests, dtype=torch.int64)
    for mode in ("is_decode_or_idle", "is_decode"):
        getattr(made.forward_mode, mode).return_value = True
    return made


def decode(names: Names, pool: int, requests: int) -> str | None:
    """Return what is raised for a decode batch of `requests`, if anything is."""
    backend = names["TritonAttnBackend"](runner(pool))
    backend.kv_index_translator = MagicMock()
    try:
        backend.init_forward_metadata(batch(requests))
    except RuntimeError as error:
        return str(error)
    metadata = backend.forward_metadata
    indptr = metadata.kv_indptr if hasattr(metadata, "kv_indptr") else backend.kv_indptr
    lengths = backend.kv_indptr[1 : requests + 1].diff().tolist()
    assert lengths == list(range(2, requests + 1)), indptr
    return None


def rows(names: Names, pool: int, topk: int) -> list[int]:
    """Return how many requests each buffer of the back-ends has room for."""
    backend = names["TritonAttnBackend"](runner(pool))
    draft = names["TritonMultiStepDraftBackend"](runner(pool), topk, 3)
    buffers = [backend.kv_indptr, backend.qo_indptr, backend.mask_indptr]
    return [
        *(len(one) - 1 for one in buffers),
        (draft.kv_indptr.shape[1] - 1) // topk,
        (len(draft.attn_backends[0].kv_indptr) - 1) // topk,
    ]


def found(file: str, world: int, pool: int, requests: int, topk: int) -> list[Any]:
    """Return what a decode step raises, and the room that each buffer has."""
    torch.distributed.get_world_size = lambda *_: world
    names = load(file)
    return [decode(names, pool, requests), rows(names, pool, topk)]


if __name__ == "__main__":
    sys.meta_path.insert(0, Finder())
    torch.distributed.is_initialized = lambda: True
    torch.compiler.disable = lambda function: function
    answer(lambda asked: found(*asked))
