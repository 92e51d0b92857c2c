def commfix_is_enable_moe_cp_allgather() -> bool:
    """Tell whether attention has more context-parallel ranks than there are copies of the experts.

    Mirrors sglang PR 22003 (0.5.11). The sizes are those asked for; the two process groups are
    one and the same then.
    """
    server_args = get_global_server_args()
    return server_args.attn_cp_size > server_args.moe_dp_size


def commfix_dense_mlp_needs_cp_allgather() -> bool:
    """Tell whether a dense MLP that is split over all ranks meets other tokens on each CP rank.

    Mirrors sglang PR 38078 (0.5.20), as far as the sizes are those of
    ``commfix_is_enable_moe_cp_allgather``.
    """
    from sglang.srt.layers.utils.cp_utils import is_prefill_context_parallel_enabled

    return commfix_is_enable_moe_cp_allgather() and is_prefill_context_parallel_enabled()


def commfix_get_moe_cp_group():
    """Return the group of ranks whose chunks of a prompt one MoE block computes.

    Mirrors ``get_moe_cp_group`` of sglang PR 22003 (0.5.11).
    """
    from sglang.srt.distributed import get_moe_dp_group

    return get_moe_dp_group()


def commfix_get_moe_cp_size() -> int:
    """Return the number of ranks in :func:`commfix_get_moe_cp_group`."""
    return commfix_get_moe_cp_group().world_size


def commfix_moe_cp_tokens(forward_batch: ForwardBatch) -> Optional[List[int]]:
    """Return how many tokens each CP rank holds, in the order of the group.

    ``None`` if every CP rank holds all tokens: in decode, and in the prefill of a prompt that is
    shorter than two tokens a rank.
    """
    if (
        forward_batch.attn_cp_metadata is None
        or not forward_batch.forward_mode.is_context_parallel_extend()
    ):
        return None
    return forward_batch.attn_cp_metadata.per_rank_actual_token


def commfix_refuse_moe_full_with_dp_attention(context: CommunicateContext) -> None:
    """Stop the start of a server that would die or answer wrongly later.

    sglang's gather over DP ranks writes one place for each of them; two CP ranks of one DP rank
    would write there both. No release of sglang refuses this.

    Raises:
        NotImplementedError: DP attention is on.

    """
    if context.attn_dp_size > 1:
        raise NotImplementedError(
            "--attn-cp-size above --moe-dp-size does not go with --enable-dp-attention: the gather "
            "over DP ranks does not tell CP ranks apart (sglang-commfix, 22003-moe-cp-decoupled)"
        )


def commfix_gather_hidden_states_and_residual_moe(
    hidden_states: torch.Tensor,
    residual: torch.Tensor,
    forward_batch: ForwardBatch,
    layernorm: torch.nn.Module,
    context: CommunicateContext,
    *,
    residual_input_mode: ScatterMode,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Bring hidden states from scatter mode TP_ATTN_FULL to MOE_FULL, in front of an MLP.

    Mirrors sglang PR 22003 (0.5.11): attention-TP all-reduce and layer norm, then an all-gather
    over the CP ranks, whose chunks are padded to the longest.

    Args:
        hidden_states: ``[tokens of this CP rank, hidden size]``, partial sums over attention-TP.
        residual: as ``hidden_states``, or this attention-TP rank's share of its tokens.
        forward_batch: the batch, with the lengths of the chunks if its tokens are split.
        layernorm: the norm in front of the MLP.
        context: sizes and ranks of the groups.
        residual_input_mode: the scatter mode of ``residual``.

    Returns:
        Hidden states ``[CP ranks * longest chunk, hidden size]``, or ``[tokens, hidden size]`` if
        the tokens are not split; and the residual ``[tokens of this CP rank, hidden size]``.

    """
    if hidden_states.shape[0] == 0:  # on every rank, since DP attention is refused
        return hidden_states, residual
    hidden_states, residual = (
        CommunicateWithAllReduceAndLayerNormFn._gather_hidden_states_and_residual(  # noqa: SLF001
            hidden_states,
            residual,
            forward_batch,
            layernorm,
            context,
            residual_input_mode=residual_input_mode,
        )
    )
    tokens = commfix_moe_cp_tokens(forward_batch)
    if tokens is None:
        return hidden_states, residual
    missing = max(tokens) - hidden_states.shape[0]
    if missing > 0:
        hidden_states = torch.nn.functional.pad(hidden_states, (0, 0, 0, missing))
    gathered = hidden_states.new_empty(max(tokens) * len(tokens), hidden_states.shape[1])
    commfix_get_moe_cp_group().all_gather_into_tensor(gathered, hidden_states)
    return gathered, residual


def commfix_scatter_hidden_states_moe(
    hidden_states: torch.Tensor,
    residual: torch.Tensor,
    forward_batch: ForwardBatch,
    context: CommunicateContext,
    **_: object,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Bring hidden states from scatter mode MOE_FULL to TP_ATTN_FULL, behind an MLP.

    Mirrors sglang PR 22003 (0.5.11). The MLP has reduced already: what is left is to take this
    rank's chunk out.

    Args:
        hidden_states: as :func:`commfix_gather_hidden_states_and_residual_moe` returns them.
        residual: ``[tokens of this CP rank, hidden size]``; returned as it is.
        forward_batch: the batch, with the lengths of the chunks if its tokens are split.
        context: sizes and ranks of the groups.

    Returns:
        Hidden states and residual, both ``[tokens of this CP rank, hidden size]``.

    """
    tokens = commfix_moe_cp_tokens(forward_batch)
    if tokens is None:
        return hidden_states, residual
    rank = context.attn_cp_rank
    chunk = hidden_states.narrow(0, rank * max(tokens), tokens[rank])
    return chunk.contiguous(), residual
