"""What the two entries of #21249 have in common: the modules, and the decision that both edit."""

from __future__ import annotations

import ast
import builtins
import copy
import itertools
import textwrap
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

from rig.sources import published

from sglang_commfix.engine.fingerprint import find_scope, parse


FUSION, PREINIT = "21249-cp-allreduce-fusion", "21249-workspace-preinit"
AFFECTED = ["0.5.10", "0.5.10.post1"]
COMMUNICATOR = "sglang.srt.layers.communicator"
FLASHINFER = "sglang.srt.layers.flashinfer_comm_fusion"
DECIDE = "LayerCommunicator.should_fuse_mlp_allreduce_with_next_layer"


def before(release: str, module: str, scope: str) -> Any:
    syntax = published.tree(release).tree(module)
    assert syntax is not None
    return copy.deepcopy(find_scope(syntax, scope))  # tests change it


@cache
def syntax_after(release: str, module: str, select: str) -> ast.Module:
    return parse(published.after(published.plan_for(release, select).modules[module]))


def after(release: str, module: str, scope: str, select: str) -> Any:
    return copy.deepcopy(find_scope(syntax_after(release, module, select), scope))


def decision(function: ast.FunctionDef) -> Callable[..., bool]:
    """The method as a function of the modes that it asks for."""
    function.name = "decide"
    text = ast.unparse(function).replace("forward_batch: ForwardBatch", "forward_batch")
    group_fuses = ast.unparse(after("0.5.10", FLASHINFER, "commfix_moe_group_fuses", PREINIT))

    def decide(
        *, ep: int, moe_tp: int, cp: int, moe_dp: int, pp: int, mode: str, last: bool
    ) -> bool:
        server_args = SimpleNamespace(pp_size=pp, attn_cp_size=cp, moe_dp_size=moe_dp)
        module = SimpleNamespace(
            get_moe_ep_group=lambda: SimpleNamespace(world_size=ep),
            get_moe_tp_group=lambda: SimpleNamespace(world_size=moe_tp),
            get_global_server_args=lambda: server_args,
        )
        builtin = vars(builtins) | {"__import__": lambda *_: module}
        appended: dict[str, Any] = {"__builtins__": builtin}
        exec(group_fuses, appended)
        module.commfix_moe_group_fuses = appended["commfix_moe_group_fuses"]
        namespace: dict[str, Any] = {
            "__builtins__": builtin,
            "_use_aiter": False,
            "ScatterMode": SimpleNamespace(SCATTERED="SCATTERED", FULL="FULL"),
            "get_global_server_args": lambda: server_args,
            "get_parallel": lambda: SimpleNamespace(moe_ep_size=ep, moe_tp_size=moe_tp),
            "is_enable_moe_cp_allgather": lambda: cp > moe_dp,
            "is_dp_attention_enabled": lambda: False,
            "get_attn_tp_context": lambda: SimpleNamespace(input_scattered=False),
            "apply_flashinfer_allreduce_fusion": lambda _: True,
        }
        exec(textwrap.dedent(text), namespace)
        layer = SimpleNamespace(
            layer_scatter_modes=SimpleNamespace(mlp_mode=mode),
            is_last_layer=last,
            _speculative_algo=None,
            _context=SimpleNamespace(tp_size=4),
        )
        batch = SimpleNamespace(input_ids=SimpleNamespace(shape=(4,)))
        result: bool = namespace["decide"](layer, batch)
        return result

    return decide


MODES = [
    dict(zip(("ep", "moe_tp", "cp", "moe_dp", "pp", "mode", "last"), values, strict=True))
    for values in itertools.product(
        (1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 2), ("FULL", "SCATTERED"), (False, True)
    )
]
