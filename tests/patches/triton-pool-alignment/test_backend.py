"""A decode batch that is padded beyond the request pool, by the back-ends of every release."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig.asking import ask
from rig.environment import Environment
from rig.releases import INSTALLED
from rig.sources.published import RELEASES, plan_for, tree


pytestmark = pytest.mark.servers

ENTRY = "triton-pool-alignment"
MODULE = "sglang.srt.layers.attention.triton_backend"
PROGRAM = Path(__file__).with_name("backend.py")
TOO_SMALL = "The expanded size of the tensor (3) must match the existing size (4)"

# Ranks, requests in the pool, requests of the batch as it is padded, top-k of the draft.
PADDED, FITTING, ALL_RANKS = [2, 3, 4, 2], [2, 3, 3, 1], [8, 5, 16, 4]
CASES = [PADDED, FITTING, ALL_RANKS]


# In the default run; the statement is the same in all.
REPRESENTATIVE = {"0.5.23"}
each_release = pytest.mark.parametrize(
    "release",
    [
        pytest.param(one, marks=[] if one in REPRESENTATIVE else [pytest.mark.servers_full])
        for one in RELEASES
    ],
)

Found = Callable[[str], tuple[list[Any], list[Any]]]


@pytest.fixture(scope="module")
def found(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Returns what each case gave in a release: as it is, and patched."""
    folder = tmp_path_factory.mktemp("triton")

    @cache
    def find(release: str) -> tuple[list[Any], list[Any]]:
        texts = (tree(release).sglang.raw(MODULE), plan_for(release, ENTRY).modules[MODULE].after)
        asked = []
        for number, text in enumerate(texts):
            file = folder / f"{release}-{number}.py"
            file.write_bytes(text or b"")
            asked += [[str(file), *case] for case in CASES]
        results = ask(INSTALLED, PROGRAM, *asked, environment=environment)
        return results[: len(CASES)], results[len(CASES) :]

    return find


@each_release
class TestBackend:
    def test_unpatched_a_padded_batch_does_not_fit(self, found: Found, release: str) -> None:
        (padded, rows), (fitting, _), (on_all_ranks, _) = found(release)[0]

        assert padded.startswith(TOO_SMALL)
        assert on_all_ranks
        assert set(rows) == {3}
        assert fitting is None

    def test_patched_it_fits_and_its_table_is_right(self, found: Found, release: str) -> None:
        assert [error for error, _ in found(release)[1]] == [None] * len(CASES)

    def test_patched_each_buffer_has_room_for_two_requests_more_per_rank(
        self, found: Found, release: str
    ) -> None:
        for (ranks, pool, _, _), (_, rows) in zip(CASES, found(release)[1], strict=True):
            assert set(rows) == {pool + 2 * ranks}


@given(
    pool=st.integers(1, 4096),
    attn_tp=st.sampled_from([1, 2, 4, 8, 16]),
    cp=st.sampled_from([1, 2, 4, 8]),
    dp=st.sampled_from([1, 2, 4]),
    two_batches=st.booleans(),
    tokens=st.integers(1, 8),
)
def test_no_padding_takes_more_than_two_requests_per_rank(
    pool: int, attn_tp: int, cp: int, dp: int, two_batches: bool, tokens: int
) -> None:
    """Of a captured batch, and of one that is not: to attention-TP, then to twice CP's size."""
    room = pool + 2 * attn_tp * cp * dp

    def aligned(size: int, multiple: int) -> int:
        return -(-size // multiple) * multiple

    captured = (2 if two_batches else 1) * attn_tp
    captured *= 1 if captured % cp == 0 else cp
    assert aligned(pool, captured) <= room
    assert aligned(aligned(pool * tokens, attn_tp), 2 * cp) // tokens <= room
