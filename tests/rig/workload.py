"""The prompts that servers are compared on, and the comparison of their answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Sequence

    from rig.server import Completion


# Several at once and of different lengths: under DP attention every rank gets some, and no two
# ranks the same number of tokens.
PROMPTS: tuple[tuple[int, ...], ...] = (
    (1, 2, 3, 4, 5),
    (7, 8, 9),
    tuple(range(10, 60)),
    tuple(range(100, 130)),
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

    @property
    def is_noise(self) -> bool:
        return self.same_tokens == self.prompts and self.max < NOISE


def compare(answers: Sequence[Completion], reference: Sequence[Completion]) -> Difference:
    """Compare the answers to the same prompts, in the same order."""
    deltas = [
        abs(here - there)
        for answer, expected in zip(answers, reference, strict=True)
        for here, there in zip(answer.prompt_logprobs, expected.prompt_logprobs, strict=True)
    ]
    return Difference(
        prompts=len(reference),
        same_tokens=sum(
            answer.tokens == expected.tokens
            for answer, expected in zip(answers, reference, strict=True)
        ),
        mean=sum(deltas) / len(deltas),
        max=max(deltas),
    )
