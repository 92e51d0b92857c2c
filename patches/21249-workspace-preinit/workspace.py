commfix_workspace_managers = {}  # by the ranks of the group, and whether the elements are float32
commfix_outgrown_workspaces = []  # never freed: captured CUDA graphs hold their addresses


class commfix_CommBackend:  # noqa: N801 - the prefix keeps it apart from sglang's own names
    """FlashInfer's communication backend, over the CPU group of one coordinator.

    Stands where sglang PR 21249 (0.5.11) has a subclass of FlashInfer's `TorchDistBackend`, whose
    `bcast` takes the rank in the group for a global rank. Here every operation is the same
    collective: an all-gather of whether the rank is well, and of its data. Ranks therefore meet
    wherever each of them is in FlashInfer's code, and one that has failed can say so, where the
    others would wait for it. The CPU group, because NCCL must not run while graphs are captured.

    Args:
        coordinator: the group's `GroupCoordinator`. Ranks are counted within the group.

    """

    def __init__(self, coordinator):
        self._group = coordinator.cpu_group
        self._rank = coordinator.rank_in_group
        self._size = coordinator.world_size
        self._failed = False

    def Get_rank(self):  # noqa: N802 - FlashInfer's name
        """Return this rank, counted within the group."""
        return self._rank

    def Get_size(self):  # noqa: N802 - FlashInfer's name
        """Return the number of ranks in the group."""
        return self._size

    def allgather(self, data):
        """Return every rank's `data`, in the order of the ranks in the group.

        Raises:
            RuntimeError: a rank has failed, now or before.

        """
        everything = None if self._failed else self._meet(True, data)
        if self._failed:
            raise RuntimeError("another rank has failed")
        return everything

    def bcast(self, data, root):
        """Return the `data` of the rank that is `root` within the group."""
        return self.allgather(data if self._rank == root else None)[root]

    def barrier(self):
        """Wait until every rank of the group is here."""
        self.allgather(None)

    def Split(self, color, key):  # noqa: N802 - FlashInfer's name
        """Not needed: the backend is made for the group that communicates."""
        raise NotImplementedError

    def agree(self, well):
        """End the exchange; return whether every rank is `well`. Each rank calls it once."""
        if not self._failed:
            self._meet(well, None)
        return not self._failed

    def _meet(self, well, data):
        import torch.distributed as dist

        met = [None] * self._size
        dist.all_gather_object(met, (well, data), group=self._group)
        self._failed = not all(others_well for others_well, _ in met)
        return [others_data for _, others_data in met]


def commfix_fusion_group(use_attn_tp_group):
    """Return the coordinator of the group over which a fused call reduces.

    Without context parallelism the attention-TP group holds all ranks, and reduces whatever is
    left to be reduced. With it, the groups of sglang PR 21249 (0.5.11): attention-TP for what
    attention leaves; for what an MLP leaves, expert parallelism's group, or the MoE-TP group where
    there is none.
    """
    from sglang.srt.distributed import get_attn_tp_group, get_moe_ep_group, get_moe_tp_group
    from sglang.srt.server_args import get_global_server_args

    if use_attn_tp_group or get_global_server_args().attn_cp_size == 1:
        return get_attn_tp_group()
    expert_parallel = get_moe_ep_group()
    return expert_parallel if expert_parallel.world_size > 1 else get_moe_tp_group()


def commfix_moe_group_fuses():
    """Tell whether one group reduces all that an MLP leaves to the next layer's fused call.

    Always without context parallelism. With it, no with expert and MoE tensor parallelism at once,
    whose reduction spans two groups (sglang PR 32963, 0.5.18), and no where the experts' group
    spans several context-parallel ranks, whose hidden states have to be scattered again (sglang
    PR 22003, 0.5.11).
    """
    from sglang.srt.distributed import get_moe_ep_group, get_moe_tp_group
    from sglang.srt.server_args import get_global_server_args

    server_args = get_global_server_args()
    if server_args.attn_cp_size == 1:
        return True
    spans_two_groups = get_moe_ep_group().world_size > 1 and get_moe_tp_group().world_size > 1
    return not spans_two_groups and server_args.attn_cp_size <= server_args.moe_dp_size


def commfix_workspace_key(use_attn_tp_group, dtype):
    """Return the key of a fused call's workspace: groups of the same ranks share one."""
    import torch

    return tuple(commfix_fusion_group(use_attn_tp_group).ranks), dtype == torch.float32


def commfix_workspace_manager(use_attn_tp_group, dtype):
    """Return the manager of a fused call's workspace, which `commfix_ensure_workspace` has made."""
    return commfix_workspace_managers[commfix_workspace_key(use_attn_tp_group, dtype)]


def commfix_ensure_workspace(
    *, max_token_num, hidden_dim, dtype, token_num, use_oneshot, use_attn_tp_group
):
    """Have a workspace for a fused call, on every rank of its group or on none.

    Mirrors `ensure_workspace_initialized` of sglang PR 21249 (0.5.11). A workspace that has become
    too small is kept beside the new one, and not freed, since captured CUDA graphs use it on.

    Args:
        max_token_num: tokens for which a new workspace is made.
        hidden_dim: hidden size of the call, for which a new workspace is made.
        dtype: element type of the hidden states.
        token_num: tokens of the call; the workspace must hold `token_num * hidden_dim` elements.
        use_oneshot: FlashInfer's choice of kernel; `None` leaves it to FlashInfer.
        use_attn_tp_group: see `commfix_fusion_group`.

    Returns:
        Whether there is one. If not, fusion is off from now on in every rank of the group.

    """
    key = commfix_workspace_key(use_attn_tp_group, dtype)
    existing = commfix_workspace_managers.get(key)
    if existing is not None and existing.is_buffer_size_sufficient(
        token_num=token_num, hidden_dim=hidden_dim, dtype=dtype, use_oneshot=use_oneshot
    ):
        return True
    made = commfix_create_workspace(
        commfix_fusion_group(use_attn_tp_group), max_token_num, hidden_dim, dtype, use_oneshot
    )
    if made is None:
        commfix_switch_fusion_off()
        return False
    if existing is not None:
        commfix_outgrown_workspaces.append(existing)
    commfix_workspace_managers[key] = made
    return True


def commfix_switch_fusion_off():
    """Have `is_flashinfer_allreduce_unavailable` say so, which every fused call asks."""
    global _flashinfer_allreduce_unavailable  # noqa: PLW0603 - sglang's own switch
    _flashinfer_allreduce_unavailable = True


def commfix_create_workspace(coordinator, max_token_num, hidden_dim, dtype, use_oneshot):
    """Create FlashInfer's workspace for one group, in every rank of it or in none.

    Every rank of the group has to call this at the same point. FlashInfer from 0.6.10 on takes the
    ranks from `group`, and falls back to all ranks there are (sglang PR 24452, 0.5.12); before, it
    takes them from `comm_backend`. Each is passed where FlashInfer's signature has it.

    Args:
        coordinator: the group's `GroupCoordinator`.
        max_token_num: tokens, see `commfix_ensure_workspace`.
        hidden_dim: hidden size.
        dtype: element type of the hidden states.
        use_oneshot: see `commfix_ensure_workspace`.

    Returns:
        Its `FlashInferWorkspaceManager`, or `None` if any rank could not create it.

    """
    import inspect

    backend = commfix_CommBackend(coordinator)
    manager = FlashInferWorkspaceManager()
    problem = None
    try:
        commfix_require_memory(coordinator.world_size, max_token_num, hidden_dim, dtype)
        # Whoever lacks memory has said so before the others wait for it inside FlashInfer.
        backend.barrier()
        create = _flashinfer_comm.create_allreduce_fusion_workspace
        accepted = inspect.signature(create).parameters
        ranks = {"comm_backend": backend, "group": coordinator.device_group}
        ranks = {name: value for name, value in ranks.items() if name in accepted}
        if not ranks:
            raise RuntimeError("this FlashInfer takes neither comm_backend nor group")  # noqa: TRY301
        with _flashinfer_posix_fd_transport_override_if_needed():
            manager.workspace = create(
                backend="trtllm",
                world_size=coordinator.world_size,
                rank=coordinator.rank_in_group,
                max_token_num=max_token_num,
                hidden_dim=hidden_dim,
                dtype=dtype,
                force_oneshot_support=bool(use_oneshot),
                **ranks,
            )
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks must learn of it
        problem = error
    if not backend.agree(problem is None):
        manager.cleanup()
        logger.warning(
            "No FlashInfer workspace for the ranks %s (%s): they all run without FlashInfer's "
            "all-reduce fusion.",
            coordinator.ranks,
            problem or "another rank has failed",
        )
        return None
    manager.world_size = coordinator.world_size
    manager.rank = coordinator.rank_in_group
    manager.max_token_num = max_token_num
    manager.hidden_dim = hidden_dim
    manager.dtype = dtype
    manager.initialized = True
    logger.info(
        "FlashInfer workspace initialized for the ranks %s: max_token_num %d, hidden_dim %d",
        coordinator.ranks,
        max_token_num,
        hidden_dim,
    )
    return manager


def commfix_require_memory(world_size, max_token_num, hidden_dim, dtype):
    """Refuse a workspace that this device cannot hold.

    On each rank, FlashInfer allocates `world_size * max_token_num * hidden_dim` elements of 2 bytes
    for its two-shot kernel, and three times as many for its one-shot kernel, of 2 bytes or, for
    float32, 4, and at most 2 GiB each time. That much may be free, and the allocation still fail;
    the ranks then learn of it where they next meet.

    Raises:
        RuntimeError: less memory is free.

    """
    import torch

    elements = world_size * max_token_num * hidden_dim
    one_shot = min(elements * (4 if dtype == torch.float32 else 2), 2**31 - 2**21)
    needed = elements * 2 + 3 * one_shot
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        raise RuntimeError(
            f"it takes {needed / 2**20:.0f} MiB of GPU memory, and {free / 2**20:.0f} are free"
        )


def commfix_pre_initialize_workspaces(hidden_dim, dtype):
    """Create the workspaces of all fused calls, before any forward pass and any graph capture.

    Mirrors `pre_initialize_workspaces` of sglang PR 21249 (0.5.11), which stands behind the warm-up
    passes; 0.5.18 has moved it before them. Where a model runner finds workspaces that are large
    enough, such as those of the target model in front of a draft model, they stay. Nothing is done
    where no call would be fused. If any rank of the tensor-parallel group lacks a workspace, all of
    them run without fusion.

    Args:
        hidden_dim: hidden size of the model.
        dtype: element type of its hidden states.

    """
    from sglang.srt.distributed import get_tp_group
    from sglang.srt.layers.communicator import (
        FUSE_ALLREDUCE_MAX_BATCH_SIZE,
        apply_flashinfer_allreduce_fusion,
    )

    tp_group = get_tp_group()
    if tp_group.world_size == 1 or not apply_flashinfer_allreduce_fusion(batch_size=1):
        return
    before = dict(commfix_workspace_managers)
    for use_attn_tp_group in (True, False):
        used = use_attn_tp_group or commfix_moe_group_fuses()
        if used and commfix_fusion_group(use_attn_tp_group).world_size > 1:
            ensure_workspace_initialized(
                max_token_num=FUSE_ALLREDUCE_MAX_BATCH_SIZE,
                hidden_dim=hidden_dim,
                dtype=dtype,
                use_attn_tp_group=use_attn_tp_group,
            )
    if commfix_CommBackend(tp_group).agree(not is_flashinfer_allreduce_unavailable()):
        return
    commfix_switch_fusion_off()
    for key, manager in commfix_workspace_managers.items():
        if manager is not before.get(key):
            manager.cleanup()
    commfix_workspace_managers.clear()
    commfix_workspace_managers.update(before)


def commfix_cleanup_workspaces():
    """Free every workspace."""
    for manager in [*commfix_workspace_managers.values(), *commfix_outgrown_workspaces]:
        manager.cleanup()
    commfix_workspace_managers.clear()
    commfix_outgrown_workspaces.clear()
