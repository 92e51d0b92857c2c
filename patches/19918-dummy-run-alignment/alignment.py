def commfix_aligned_batch_size(
    batch_size: int, tokens_per_request: int, attn_tp_size: int, request_pool_size: int
) -> int:
    """Align the number of requests of a warm-up batch to the attention-TP size.

    Mirrors sglang PR 19918 (0.5.13), which rounds tokens up, and keeps what that leaves out: the
    result never exceeds the request pool, by which attention back-ends size their buffers.

    Args:
        batch_size: requests asked for.
        tokens_per_request: tokens of one request; above 1 in speculative decoding.
        attn_tp_size: attention-TP size, the number of ranks that share the tokens evenly.
        request_pool_size: requests that ``req_to_token_pool`` holds.

    Returns:
        The number of requests to run with; its tokens are a multiple of the attention-TP size.
        0 if the request pool holds no such number, so that the warm-up cannot run.

    """
    import logging
    import math

    if attn_tp_size == 1:
        return batch_size
    step = attn_tp_size // math.gcd(attn_tp_size, tokens_per_request)
    wanted = -(-batch_size // step) * step
    possible = request_pool_size // step * step
    if possible == 0:
        logging.getLogger("sglang_commfix").warning(
            "the warm-up run is left out: a request pool of %d cannot hold a batch that %d "
            "attention-TP ranks share evenly (%d requests or more)",
            request_pool_size,
            attn_tp_size,
            step,
        )
    return min(wanted, possible)
