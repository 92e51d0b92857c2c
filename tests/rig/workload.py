"""The prompts that servers are compared on, and the comparison of their answers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rig.server import Completion


Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Round:
    """Prompts that a server gets at once, and how many tokens it is to add to each."""

    prompts: tuple[Prompt, ...]
    new_tokens: tuple[int, ...]


# Several at once and of different lengths: under DP attention every rank gets some, and no two
# ranks the same number of tokens.
PROMPTS: tuple[Prompt, ...] = (
    (1, 2, 3, 4, 5),
    (7, 8, 9),
    tuple(range(10, 60)),
    tuple(range(100, 130)),
)

# One server answers them in this order, each when it is done with the one before. What they are
# to reach is in `tests/servers/test_layouts.py`.
ROUNDS: tuple[Round, ...] = (
    Round(PROMPTS, (8, 8, 8, 8)),
    # One request: all DP ranks but one have no token, in prefill and in every decode step.
    Round(((200, 3, 77),), (6,)),
    # As many tokens for each of two or four DP ranks.
    Round(tuple(tuple(range(start, start + 16)) for start in (20, 140, 260, 380)), (6, 6, 6, 6)),
    # More requests than DP ranks, which end one by one: ranks run empty while others decode on.
    # The first ends late enough for all to have arrived: a slow machine spreads them over steps.
    Round(
        ((5, 6), tuple(range(300, 341)), (11, 12, 13, 14), (400,) * 9, tuple(range(60, 40, -1))),
        (16, 7, 9, 12, 8),
    ),
)

# The first round's prompts by themselves. From 0.5.11 on, context parallelism splits a batch of one
# over the CP ranks, but none of several.
ONE_BY_ONE: tuple[Round, ...] = tuple(
    Round((prompt,), (limit,))
    for prompt, limit in zip(ROUNDS[0].prompts, ROUNDS[0].new_tokens, strict=True)
)

# In float32 the layouts differ by the order of additions only: 1e-5 and less is seen. A hidden
# state reduced twice moves log-probabilities by 0.1 to 3.
NOISE = 1e-3


@dataclass(frozen=True)
class Difference:
    """How far one set of answers is from the reference."""

    prompts: int
    same_tokens: int
    """Prompts with the same greedy tokens."""

    mean: float
    """Of the absolute differences of the prompt tokens' log-probabilities."""

    max: float

    generated_max: float
    """Of the same differences of the generated tokens, up to the first that is another one."""

    @property
    def is_noise(self) -> bool:
        return self.same_tokens == self.prompts and max(self.max, self.generated_max) < NOISE


def compare(answers: Sequence[Completion], reference: Sequence[Completion]) -> Difference:
    """Compare the answers to the same prompts, in the same order."""
    pairs = list(zip(answers, reference, strict=True))
    deltas = [
        abs(here - there)
        for answer, expected in pairs
        for here, there in zip(answer.prompt_logprobs, expected.prompt_logprobs, strict=True)
    ]
    generated = [delta for pair in pairs for delta in _generated_deltas(*pair)]
    return Difference(
        prompts=len(reference),
        same_tokens=sum(answer.tokens == expected.tokens for answer, expected in pairs),
        mean=sum(deltas) / len(deltas),
        max=max(deltas),
        generated_max=max(generated, default=0.0),
    )


def _generated_deltas(answer: Completion, expected: Completion) -> Iterator[float]:
    # Behind the first other token the two continue different texts.
    tokens = zip(answer.tokens, expected.tokens, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], tokens))
    here, there = answer.token_logprobs[:same], expected.token_logprobs[:same]
    return (abs(one - other) for one, other in zip(here, there, strict=True))
