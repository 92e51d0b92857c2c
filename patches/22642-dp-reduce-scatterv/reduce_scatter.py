import os as commfix_os

from sglang.srt.distributed import (
    get_moe_expert_parallel_world_size as commfix_expert_parallel_size,
)
from sglang.srt.distributed import get_tp_group as commfix_get_tp_group
from sglang.srt.distributed.device_communicators.pynccl_allocator import (
    is_symmetric_memory_enabled as commfix_is_symmetric_memory_enabled,
)
from sglang.srt.layers.dp_attention import (
    get_dp_global_num_tokens as commfix_get_dp_global_num_tokens,
)
from sglang.srt.layers.moe import is_tbo_enabled as commfix_is_tbo_enabled
from sglang.srt.utils import cpu_has_amx_support as commfix_cpu_has_amx_support
from sglang.srt.utils import get_bool_env_var as commfix_get_bool_env_var
from sglang.srt.utils import is_cpu as commfix_is_cpu


COMMFIX_KNOWN_PLATFORM = is_cuda() or (commfix_is_cpu() and not commfix_cpu_has_amx_support())

# Times below are shares of what is replaced, an all-reduce of all rows followed by dp_scatter, for
# bfloat16 rows of 2048 and 7168 elements.

# A reduce-scatter of equal chunks. Measured on 2 x H200 with NCCL: 0.59 to 0.67, from 16 to 32768
# rows. A ring moves half the bytes of an all-reduce, whatever the number of ranks.
COMMFIX_EQUAL_CHUNKS = 0.67
COMMFIX_MEASURED_FROM = 16

# NCCL's grouped reduces, one for each chunk. Measured there from 8192 rows on: 0.58 to 0.66; below
# 1000 rows they take 1.2 to 1.3 times as long as what is replaced.
COMMFIX_UNEVEN_CHUNKS = 0.66
COMMFIX_UNEVEN_FROM = 8192

# Copying all rows into chunks of one size. A bound, for 2048 rows and more: measured on one H200
# (benchmarks/results/padding.json), the copy takes at most 0.22 of what is replaced, if an
# all-reduce over two ranks ran at the full rate of one direction of NVLink, 450 GB/s, which it
# cannot; 0.28 at an H100's memory rate. Over more ranks an all-reduce takes longer.
COMMFIX_COPY = 0.28
COMMFIX_PADDED_FROM = 2048


def commfix_reduce_scatter_way(num_tokens, grouped_reduces):
    """Choose how partial sums are added up and distributed to the ranks, by expected time.

    A choice is made only where it takes less time than what it replaces, by the constants above.
    Every rank knows the same numbers, and so makes the same choice.

    Args:
        num_tokens: rows that each rank is to get, in the order of ranks. They may be 0.
        grouped_reduces: whether the group can reduce-scatter chunks of different sizes.

    Returns:
        ``equal``: one reduce-scatter. ``padded``: the same, with every chunk copied to the size of
        the largest. ``uneven``: grouped reduces. ``all_reduce``: all-reduce, then dp_scatter.

    """
    ranks, total, longest = len(num_tokens), sum(num_tokens), max(num_tokens)
    if ranks < 2 or total < COMMFIX_MEASURED_FROM:
        return "all_reduce"
    if ranks * longest == total:
        return "equal"
    times = {"all_reduce": 1.0}
    if total >= COMMFIX_PADDED_FROM:
        # The time grows with the rows that are moved, or less, where latency has a share in it.
        times["padded"] = (COMMFIX_EQUAL_CHUNKS + COMMFIX_COPY) * ranks * longest / total
    if grouped_reduces and total >= COMMFIX_UNEVEN_FROM:
        # Each reduce is a chain that ends at its root: the busiest link carries all rows but those
        # of the smallest chunk. With equal chunks that is (ranks - 1) / ranks of them.
        busiest = (total - min(num_tokens)) / total
        times["uneven"] = COMMFIX_UNEVEN_CHUNKS * busiest * ranks / (ranks - 1)
    return min(times, key=times.get)


def commfix_adds_up_in_sum_len(context):
    """Tell whether dp_scatter gives way to a reduction in steps that are padded to SUM_LEN.

    Producer and consumer both ask this, so that partial sums are added up exactly once. It holds
    for a process and a ``CommunicateContext`` once and for all. Mirrors
    ``should_use_dp_reduce_scatterv`` of sglang 0.5.11 (PR 22642) with the condition that PR 32663
    added in 0.5.17 (tensor-parallel size equal to attention-DP size), and leaves out what has not
    been measured (HIP, NPU, XPU, symmetric memory) or must keep its order of additions
    (deterministic inference, from 0.5.3 on), the CPU's AMX kernels, whose MoE blocks reduce
    unasked, and two-batch overlap, whose MLPs are not told.
    """
    return (
        1 < context.tp_size == context.attn_dp_size == commfix_expert_parallel_size()
        and is_dp_attention_enabled()
        and get_moe_a2a_backend().is_none()
        and not should_use_flashinfer_cutlass_moe_fp4_allgather()
        and not commfix_is_tbo_enabled()
        and not commfix_is_symmetric_memory_enabled()
        and not commfix_get_bool_env_var("SGLANG_ENABLE_DETERMINISTIC_INFERENCE")
        and COMMFIX_KNOWN_PLATFORM
    )


def commfix_all_reduce_is_plain(group, tensor):
    """Tell whether ``group.all_reduce(tensor)`` would be NCCL's ring (on a CPU: gloo's).

    sglang's custom all-reduce (small tensors on one node), mscclpp and torch's symmetric memory
    are faster, as NCCL's own is with NVLS; a reduce-scatter has not been measured against those.
    """
    if tensor.is_cuda and commfix_os.environ.get("NCCL_NVLS_ENABLE") != "0":
        return False
    for name, asks in (
        ("ca_comm", "should_custom_ar"),
        ("qr_comm", "should_quick_allreduce"),
        ("pymscclpp_comm", "should_mscclpp_allreduce"),
        # Named symm_mem_comm from 0.5.3 to 0.5.4.post2; asked or not, it may be used.
        ("symm_mem_comm", None),
        ("torch_symm_mem_comm", None),
    ):
        other = getattr(group, name, None)
        if other is None or other.disabled:
            continue
        if asks is None or getattr(other, asks)(tensor):
            return False
    return True


def commfix_padded(rows, num_tokens):
    """Copy chunks of ``num_tokens`` rows to chunks of one size, that of the largest.

    What fills a chunk up are rows that exist: the result is not read there, and nothing has to be
    zeroed for it.

    Args:
        rows: tensor of shape [sum(num_tokens), ...].
        num_tokens: rows of each chunk.

    Returns:
        A tensor of shape [len(num_tokens) * max(num_tokens), ...].

    """
    longest = max(num_tokens)
    parts = []
    start = 0
    for count in num_tokens:
        parts.append(rows[start : start + count])
        if count < longest:
            parts.append(rows[: longest - count])
        start += count
    return torch.cat(parts)


def commfix_reduce_and_scatter(local, partial, forward_batch):
    """Add the ranks' partial sums up and return this rank's own rows.

    Takes the place of a TP all-reduce in the MLP and of dp_scatter behind it, where
    :func:`commfix_adds_up_in_sum_len`.

    Args:
        local: the local DP buffer, of shape [own tokens, hidden size]. Its content is lost.
        partial: partial sums of all ranks' tokens, of shape [all tokens, hidden size].
        forward_batch: for dp_scatter.

    Returns:
        A contiguous tensor of ``local``'s shape and type, ``local`` itself except where chunks
        were padded.

    """
    group = commfix_get_tp_group()
    num_tokens = commfix_get_dp_global_num_tokens()
    way = "all_reduce"
    if (
        num_tokens is not None
        and len(num_tokens) == group.world_size
        and sum(num_tokens) == partial.shape[0]
        and partial.dtype == local.dtype
        and commfix_all_reduce_is_plain(group, partial)
    ):
        pynccl = group.pynccl_comm
        way = commfix_reduce_scatter_way(num_tokens, pynccl is not None and pynccl.available)
    if way == "equal":
        group.reduce_scatter_tensor(local, partial)
    elif way == "uneven":
        group.reduce_scatterv(partial, output=local, sizes=num_tokens)
    elif way == "padded":
        chunk = partial.new_empty((max(num_tokens), *partial.shape[1:]))
        group.reduce_scatter_tensor(chunk, commfix_padded(partial, num_tokens))
        local = chunk[: num_tokens[group.rank_in_group]]
    else:
        dp_scatter(local, group.all_reduce(partial), forward_batch)
    return local
