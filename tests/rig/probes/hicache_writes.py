"""Plays the GPU's part in HiCache: one kernel that moves the KV cache, and the events of its copies.

Without it HiCache does not start on a CPU. Copies are made at once, in plain torch. On rank 0 no more
than `RIG_HICACHE_FREE` tokens of the host pool are free, as where others hold its memory. A rank says
where it stands, in the log, when it gets SIGUSR2. Reported is how many tokens each rank has written to
host memory, and how many writes found no room there.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import os
import signal
from types import SimpleNamespace
from typing import Any

import wrapt

from rig.probes import probe


def install() -> None:
    faulthandler.register(signal.SIGUSR2, all_threads=False)
    for name, instrument in (
        ("torch", _register_host_memory),
        ("sglang.srt.managers.cache_controller", _have_streams),
        ("sglang.srt.mem_cache.memory_pool_host", _copy),
        ("sglang.srt.mem_cache.hiradix_cache", _count),
    ):
        wrapt.register_post_import_hook(instrument, name)


def _register_host_memory(torch: Any) -> None:
    torch.cuda.cudart = lambda: SimpleNamespace(cudaHostRegister=lambda *_: 0)


class _Event:
    """Of a copy, which is done when it is recorded."""

    def record(self, stream: object = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def wait(self, stream: object = None) -> None:
        pass


class _Stream:
    def wait_event(self, event: _Event) -> None:
        event.synchronize()

    def synchronize(self) -> None:
        pass


def _have_streams(controller: Any) -> None:
    controller.device_module = SimpleNamespace(
        Event=_Event,
        Stream=_Stream,
        current_stream=_Stream,
        stream=contextlib.nullcontext,
    )


def _copy(memory_pool_host: Any) -> None:
    def transfer_kv_direct(
        src_layers: Any, dst_layers: Any, src_indices: Any, dst_indices: Any, page_size: int
    ) -> None:
        assert page_size == 1
        for source, destination in zip(src_layers, dst_layers, strict=True):
            destination[dst_indices] = source[src_indices]

    memory_pool_host.transfer_kv_direct = transfer_kv_direct
    # From 0.5.11 on so much of the machine's memory is to stay free beside the pool.
    memory_pool_host.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0


def _count(hiradix_cache: Any) -> None:
    cache = hiradix_cache.HiRadixCache
    initialise, write_backup = cache.__init__, cache.write_backup

    @functools.wraps(initialise)
    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self.rig_report = {"written": 0, "failed": 0}
        free = os.environ.get("RIG_HICACHE_FREE")
        if free is not None and _rank() == 0:
            pool = self.token_to_kv_pool_host
            pool.free_slots = pool.free_slots[: int(free)]

    @functools.wraps(write_backup)
    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        written = write_backup(self, *args, **kwargs)
        self.rig_report["written"] += written
        self.rig_report["failed"] += written == 0
        probe.report("hicache_writes", _rank(), self.rig_report)
        return written

    cache.__init__, cache.write_backup = start, count


def _rank() -> int:
    distributed: Any = importlib.import_module("torch.distributed")  # not before sglang has
    rank: int = distributed.get_rank()
    return rank
