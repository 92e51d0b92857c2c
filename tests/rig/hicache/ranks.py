"""The ranks of a tensor-parallel group, each with a cache of the release, over gloo.

Started with the rig's Python: imports sglang once, then forks the ranks of each scenario. There are
three kinds. In `queues` only `writing_check` is the release's: a script says what each rank has begun
to write, and what has arrived. In `trees` the whole cache is: tree, allocator, device and host pools,
controller. `cost` times the first. What a GPU would do is replaced: a copy moves nothing, and its event
is done so many steps later as a rank's own generator says.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import random
import time
import zlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rig import forked
from rig.answering import answer
from rig.shims import placeholders


torch: Any = importlib.import_module("torch")
dist: Any = importlib.import_module("torch.distributed")

MODULES = {
    "HiRadixCache": "sglang.srt.mem_cache.hiradix_cache",
    "HiMambaRadixCache": "sglang.srt.mem_cache.hi_mamba_radix_cache",
    "UnifiedRadixCache": "sglang.srt.mem_cache.unified_radix_cache",
}

# What rank and group a fork is. Stages count only where a scenario has them.
RANK = WORLD = -1
ENTERED = {"all_reduce": 0}

_all_reduce = dist.all_reduce


def count_all_reduce(*args: Any, **kwargs: Any) -> Any:
    ENTERED["all_reduce"] += 1
    return _all_reduce(*args, **kwargs)


def recv_requests(group: Any) -> None:
    """Begin the next step as a scheduler does: rank 0 hands its requests to the others."""
    source = dist.get_global_rank(group, 0)
    dist.broadcast(torch.zeros(1, dtype=torch.int64), src=source, group=group)


class Groups:
    """The ranks that share a cache: all of them, or with `stages` those of one pipeline stage."""

    def __init__(self, stages: int) -> None:
        size = WORLD // stages
        self.pp_rank, self.pp_size = RANK // size, stages
        for stage in range(stages):
            ranks = list(range(stage * size, (stage + 1) * size))
            group = dist.new_group(ranks, backend="gloo")
            if RANK in ranks:
                self.tp = group
        self.pp = None
        for rank in range(size):
            ranks = list(range(rank, WORLD, size))
            group = dist.new_group(ranks, backend="gloo")
            if RANK in ranks:
                self.pp = group
        self.tp_size = size


# ---------------------------------------------------------------- queues


class Copy:
    """The event of one copy; the script says when it is done."""

    waited = 0

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        if not self.done:
            Copy.waited += 1


class Queue:
    """A cache that has no more than what `writing_check` looks at."""

    def __init__(self, name: str, groups: Groups) -> None:
        module = importlib.import_module(MODULES[name])
        controller = importlib.import_module("sglang.srt.managers.cache_controller")
        self.ack_type = controller.HiCacheAck
        self.name = name
        self.copies: dict[int, Copy] = {}
        self.acked: list[int] = []
        cache: Any = object.__new__(getattr(module, name))
        cache.cache_controller = SimpleNamespace(ack_write_queue=[])
        cache.ongoing_write_through = {}
        cache.enable_storage = False
        cache.tp_group, cache.tp_world_size = groups.tp, groups.tp_size
        cache.attn_tp_group, cache.attn_cp_group = groups.tp, None
        cache.pp_group, cache.pp_rank, cache.pp_size = groups.pp, groups.pp_rank, groups.pp_size
        cache.work_list = []
        cache.dec_lock_ref = lambda node, *_: self.acked.append(node.id)
        cache._record_store_event = lambda *_, **__: None
        cache._log_write_ack_metrics = lambda *_: None
        self.cache = cache

    def write(self, node_id: int) -> None:
        node = SimpleNamespace(id=node_id, write_through_pending_id=node_id)
        self.copies[node_id] = copy = Copy()
        self.cache.cache_controller.ack_write_queue.append(self._ack(copy, node_id))
        self.cache.ongoing_write_through[node_id] = self._ongoing(node)

    def _ack(self, copy: Copy, node_id: int) -> Any:
        known = {"start_event": None, "finish_event": copy, "node_ids": [node_id]}
        return self.ack_type(**known)

    def _ongoing(self, node: Any) -> Any:
        if hasattr(type(self.cache), "_finish_write_through_ack"):
            return (node, 0, [node])
        return (node, None) if self.name == "UnifiedRadixCache" else node


def queues(scenario: dict[str, Any], begin_step: Callable[[], None]) -> dict[str, Any]:
    """Run a script: in each step what a rank does first, then `writing_check` on all."""
    groups = Groups(scenario.get("stages", 1))
    queue = Queue(scenario["cache"], groups)
    script = scenario["script"] if "script" in scenario else drawn(**scenario["drawn"])
    acked, before = [], 0
    for step in script:
        begin_step()
        for operation, node_id in step[RANK]:
            if operation == "write":
                queue.write(node_id)
            else:
                queue.copies[node_id].done = True
        queue.cache.writing_check()
        if scenario.get("stages", 1) == 1:
            recv_requests(groups.tp)
        acked.append(queue.acked[before:])
        before = len(queue.acked)
    return {
        "acked": acked if scenario.get("tell_all", True) else hash_of(acked),
        "ongoing": sorted(queue.cache.ongoing_write_through),
        "waited": Copy.waited,
        "entered": ENTERED["all_reduce"],
        "written": len(queue.copies),
    }


def cost(scenario: dict[str, Any], begin_step: Callable[[], None]) -> dict[str, Any]:
    """Time `writing_check` where nothing is under way: microseconds a call, the fastest of batches."""
    queue = Queue(scenario["cache"], Groups(1))
    fastest = float("inf")
    for _ in range(50):
        begin_step()
        started = time.perf_counter()
        for _ in range(200):
            queue.cache.writing_check()
        fastest = min(fastest, (time.perf_counter() - started) / 200)
    return {"microseconds": round(fastest * 1e6, 2), "entered": ENTERED["all_reduce"]}


def hash_of(acked: list[list[int]]) -> str:
    return f"{zlib.crc32(json.dumps(acked).encode()):08x}"


def drawn(seed: int, steps: int, fails: float, rest: int) -> list[list[list[tuple[str, int]]]]:
    """Draw a script: all ranks try to write the same, each fails and is done by itself.

    Behind the steps come `rest` in which nothing is written, and all copies are done in the first.
    """
    common = random.Random(seed)
    own = [random.Random(seed * 1000 + rank) for rank in range(WORLD)]
    under_way: list[list[int]] = [[] for _ in range(WORLD)]
    script = []
    node_id = 0
    for step in range(steps + rest):
        tried = []
        if step < steps:
            for _ in range(common.choice((0, 0, 1, 1, 2, 3))):
                tried.append(node_id)
                node_id += 1
        operations: list[list[tuple[str, int]]] = []
        for rank in range(WORLD):
            mine: list[tuple[str, int]] = []
            for one in tried:
                if own[rank].random() >= fails:
                    mine.append(("write", one))
                    under_way[rank].append(one)
            # Copies of one stream are done in the order in which they were begun.
            done = len(under_way[rank]) if step >= steps else own[rank].randint(0, 2)
            mine += [("done", one) for one in under_way[rank][:done]]
            del under_way[rank][:done]
            operations.append(mine)
        script.append(operations)
    return script


# ---------------------------------------------------------------- trees


class Clock:
    now = 0
    own = random.Random(0)


class Event:
    """What a stream records; done up to three steps later."""

    def __init__(self) -> None:
        self.due = 0

    def record(self, stream: Any = None) -> None:
        self.due = Clock.now + Clock.own.randint(0, 3)

    def query(self) -> bool:
        return Clock.now >= self.due

    def synchronize(self) -> None:
        self.due = 0

    def wait(self, stream: Any = None) -> None:
        pass


class Device:
    """A device module with streams that do nothing."""

    Event = Event

    class Stream:
        def wait_event(self, event: Event) -> None:
            pass

        def synchronize(self) -> None:
            pass

    @staticmethod
    def current_stream() -> Device.Stream:
        return Device.Stream()

    @staticmethod
    @contextlib.contextmanager
    def stream(stream: Any) -> Any:
        yield


def tree(groups: Groups, size: int, host_ratio: float) -> Any:
    """A `HiRadixCache` with a device pool of so many tokens, and a host pool so many times as big."""
    cache_controller: Any = importlib.import_module("sglang.srt.managers.cache_controller")
    memory_pool: Any = importlib.import_module("sglang.srt.mem_cache.memory_pool")
    memory_pool_host: Any = importlib.import_module("sglang.srt.mem_cache.memory_pool_host")
    allocators: Any = importlib.import_module("sglang.srt.mem_cache.allocator")
    init_params: Any = importlib.import_module("sglang.srt.mem_cache.cache_init_params")
    hiradix: Any = importlib.import_module(MODULES["HiRadixCache"])

    cache_controller.device_module = Device
    torch.cuda.cudart = lambda: SimpleNamespace(cudaHostRegister=lambda *_: 0)
    host_pool: Any = memory_pool_host.MHATokenToKVPoolHost
    host_pool.backup_from_device_all_layer = lambda *_, **__: None
    host_pool.load_to_device_per_layer = lambda *_, **__: None
    pool = memory_pool.MHATokenToKVPool(
        size=size, page_size=1, dtype=torch.float16, head_num=1, head_dim=8, layer_num=1,
        device="cpu", enable_memory_saver=False,
    )  # fmt: skip
    requests = memory_pool.ReqToTokenPool(
        size=4, max_context_len=64, device="cpu", enable_memory_saver=False
    )
    allocator = allocators.TokenToKVPoolAllocator(
        size=size, dtype=torch.float16, device="cpu", kvcache=pool, need_sort=False
    )
    known = {
        "disable": False, "req_to_token_pool": requests, "page_size": 1,
        "token_to_kv_pool_allocator": allocator, "tp_cache_group": groups.tp,
        "attn_tp_cache_group": groups.tp, "pp_cache_group": groups.pp,
        "pp_rank": groups.pp_rank, "pp_size": groups.pp_size,
    }  # fmt: skip
    fields = init_params.CacheInitParams.__dataclass_fields__
    arguments = SimpleNamespace(
        hicache_ratio=host_ratio, hicache_size=0, hicache_mem_layout="layer_first",
        hicache_io_backend="direct", hicache_write_policy="write_through",
        hicache_storage_backend=None, hicache_storage_prefetch_policy="best_effort",
        hicache_storage_backend_extra_config=None, disable_hicache_numa_detect=True,
        served_model_name="tiny", extra_metric_labels=None,
    )  # fmt: skip
    params = init_params.CacheInitParams(**{name: known[name] for name in known if name in fields})
    return hiradix.HiRadixCache(params, arguments)


class Requests:
    """What the scheduler does with the tree for its requests; each lives for some steps.

    A rank's host memory may be taken by others: then a write fails, with the given probability.
    """

    def __init__(self, cache: Any, fails: float) -> None:
        self.cache = cache
        self.base: Any = importlib.import_module("sglang.srt.mem_cache.base_prefix_cache")
        self.key = importlib.import_module("sglang.srt.mem_cache.radix_cache").RadixKey
        self.running: list[tuple[int, Any, Any, Any, int]] = []
        self.failed = 0
        write = cache.cache_controller.write
        backup = cache.write_backup
        taken = False

        def write_if_free(*args: Any, **kwargs: Any) -> Any:
            return None if taken else write(*args, **kwargs)

        def backup_or_not(*args: Any, **kwargs: Any) -> Any:
            nonlocal taken
            taken = Clock.own.random() < fails
            self.failed += taken
            return backup(*args, **kwargs)

        cache.cache_controller.write = write_if_free
        cache.write_backup = backup_or_not

    def begin(self, tokens: list[int], ends: int) -> None:
        cache, base = self.cache, self.base
        allocator = cache.cache_controller.mem_pool_device_allocator
        key = self.key(tokens, None)
        match = cache.match_prefix(base.MatchPrefixParams(key=key))
        indices, node = match.device_indices, match.last_device_node
        cache.inc_lock_ref(node)
        if match.host_hit_length > 0:
            loaded, last = self.load(match)
            indices = torch.cat([indices, loaded])
            cache.inc_lock_ref(last)
            cache.dec_lock_ref(node)
            node = last
            counter = cache.cache_controller.layer_done_counter
            counter.events[(counter.producer_index + 1) % counter.num_counters].finish_event.due = 0
            cache.ready_to_load_host_cache()
        missing = len(tokens) - len(indices)
        short = missing - allocator.available_size()
        if short > 0:
            cache.evict(base.EvictParams(num_tokens=short))
        new = allocator.alloc(missing)
        if new is None:
            cache.dec_lock_ref(node)
        else:
            value = torch.cat([indices, new])
            self.running.append((ends, key, value, node, len(indices)))

    def load(self, match: Any) -> Any:
        cache, base = self.cache, self.base
        if hasattr(base, "InitLoadBackParams"):
            known = {
                "last_host_node": match.last_host_node,
                "best_match_node": match.last_host_node,
                "host_hit_length": match.host_hit_length,
            }
            fields = base.InitLoadBackParams.__dataclass_fields__
            given = {name: known[name] for name in known if name in fields}
            return cache.init_load_back(base.InitLoadBackParams(**given))
        return cache.init_load_back(match.last_host_node, match.host_hit_length)

    def end(self, now: int) -> None:
        cache = self.cache
        for request in [one for one in self.running if one[0] <= now]:
            self.running.remove(request)
            _, key, value, node, known = request
            result = cache.insert(self.base.InsertParams(key=key, value=value))
            cache.cache_controller.mem_pool_device_allocator.free(value[known : result.prefix_len])
            cache.dec_lock_ref(node)


def trees(scenario: dict[str, Any], begin_step: Callable[[], None]) -> dict[str, Any]:
    """Serve random requests, the same on all ranks, whose host pools may be of different sizes."""
    groups = Groups(1)

    def own(values: list[float]) -> float:
        return values[min(RANK, len(values) - 1)]

    cache = tree(groups, scenario["size"], own(scenario["ratios"]))
    requests = Requests(cache, own(scenario["fails"]))
    common = random.Random(scenario["seed"])
    Clock.own = random.Random(scenario["seed"] * 1000 + RANK)
    longest = 0
    for step in range(scenario["steps"]):
        begin_step()
        Clock.now += 1
        cache.check_hicache_events()
        recv_requests(groups.tp)
        requests.end(step)
        start = common.randrange(scenario["prompts"])
        length = common.randrange(4, 24)
        tokens = [start, *(start + 1000 * (1 + at // 6) for at in range(length))]
        # Behind its loads, which take up to three steps.
        requests.begin(tokens, step + common.randrange(4, 8))
        longest = max(longest, len(cache.ongoing_write_through))
    rest = 0
    requests.end(scenario["steps"] + 8)
    for step in range(200):
        begin_step()
        Clock.now += 10
        if cache.ongoing_write_through or cache.ongoing_load_back:
            rest = step + 1
        cache.check_hicache_events()
    return {
        "failed": requests.failed,
        "longest": longest,
        "rest": rest,
        "ongoing": len(cache.ongoing_write_through),
        "loading": len(cache.ongoing_load_back),
        "protected": cache.protected_size(),
        "entered": ENTERED["all_reduce"],
    }


# ---------------------------------------------------------------- ranks


KINDS = {"queues": queues, "cost": cost, "trees": trees}


def run(scenario: dict[str, Any]) -> list[Any]:
    """Return what each rank has found, or where it stands."""

    def body(rank: int, folder: Path, begin_step: Callable[[], None]) -> dict[str, Any]:
        global RANK, WORLD
        RANK, WORLD = rank, scenario["world"]
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=RANK, world_size=WORLD,
            timeout=timedelta(seconds=600),
        )  # fmt: skip
        dist.all_reduce = count_all_reduce
        return KINDS[scenario["kind"]](scenario, begin_step)

    return forked.run(scenario["world"], body, scenario["stall"])


def imported(scenarios: list[dict[str, Any]]) -> list[Any]:
    """Import the caches that are asked for, once, before any rank is forked."""
    for name in sorted({one.get("cache", "HiRadixCache") for one in scenarios}):
        importlib.import_module(MODULES[name])
    return [run(one) for one in scenarios]


if __name__ == "__main__":
    placeholders.register()
    answer(imported)
