"""The function that ``19918-dummy-run-alignment`` adds to sglang."""

from __future__ import annotations

import runpy
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_commfix.engine.register import patches_folder


FILE = patches_folder() / "19918-dummy-run-alignment" / "alignment.py"
align: Callable[[int, int, int, int], int] = runpy.run_path(str(FILE))["commfix_aligned_batch_size"]
sizes = st.integers(1, 64)


@given(sizes, sizes, sizes, sizes)
def test_a_warm_up_batch_is_shared_evenly_and_fits_the_request_pool(
    batch: int, tokens_per_request: int, attn_tp: int, pool: int
) -> None:
    aligned = align(batch, tokens_per_request, attn_tp, pool)
    tokens = aligned * tokens_per_request
    possible = [n for n in range(1, pool + 1) if n * tokens_per_request % attn_tp == 0]
    if attn_tp == 1:
        assert aligned == batch
    elif not possible:
        assert aligned == 0
    else:
        assert tokens % attn_tp == 0
        assert tokens >= attn_tp
        assert aligned <= pool
        assert aligned == min((n for n in possible if n >= batch), default=possible[-1])


@pytest.mark.parametrize(
    ("batch", "tokens_per_request", "attn_tp", "pool", "expected"),
    [
        (8, 1, 2, 8, 8),
        (1, 1, 2, 8, 2),
        (3, 1, 2, 3, 2),  # rounding up would overrun a pool of 3
        (3, 1, 4, 8, 4),
        (3, 4, 4, 3, 3),  # 12 tokens: every number of requests is even enough
        (3, 4, 8, 3, 2),
        (3, 6, 4, 8, 4),
    ],
)
def test_examples(
    batch: int, tokens_per_request: int, attn_tp: int, pool: int, expected: int
) -> None:
    assert align(batch, tokens_per_request, attn_tp, pool) == expected


def test_a_pool_that_no_batch_fits_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert align(1, 1, 2, 1) == 0
    assert "a request pool of 1 cannot hold a batch that 2 attention-TP ranks share" in caplog.text
