"""One real fault and its repair, on a machine without a GPU: `python3 tests/rig/demo.py`.

sglang 0.5.11 serves a tiny DeepSeek-V3-like model three times: on one rank, which is the
reference; on two ranks with DP attention and expert parallelism; and the same with
SGLANG_COMMFIX=1. Exit status 0 if the second is wrong and the third is right.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rig.checkpoints import ensure_model
from rig.environment import Environment, RigError, ensure
from rig.ledger import read_ledger
from rig.server import Completion, Server
from rig.workload import PROMPTS, Difference, compare


RELEASE = "0.5.11"
TWO_RANKS = ("--tp", "2", "--dp", "2", "--enable-dp-attention", "--ep", "2")


@dataclass(frozen=True)
class Configuration:
    """One row of the table."""

    name: str
    flags: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


REFERENCE = Configuration("--tp 1")
WITHOUT = Configuration(" ".join(TWO_RANKS), TWO_RANKS)
WITH = Configuration("the same, SGLANG_COMMFIX=1", TWO_RANKS, (("SGLANG_COMMFIX", "1"),))


def main() -> int:
    try:
        environment = ensure([RELEASE], say=_say)
        return _compare_servers(environment)
    except RigError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _compare_servers(environment: Environment) -> int:
    model = ensure_model("deepseek-v3", environment.models)
    reference, _ = _serve(environment, model, REFERENCE)
    without, _ = _serve(environment, model, WITHOUT)
    patched, log = _serve(environment, model, WITH)
    wrong, right = compare(without, reference), compare(patched, reference)

    print(f"\nsglang {RELEASE}, DeepSeek-V3-like model, float32, {len(PROMPTS)} prompts\n")
    _print_row("configuration", "tokens as tp 1", "mean |Δlogp|", "max |Δlogp|", "verdict")
    _print_row("-" * 47, "-" * 14, "-" * 12, "-" * 11, "-" * 9)
    _print_row(REFERENCE.name, "", "", "", "reference")
    for configuration, difference in ((WITHOUT, wrong), (WITH, right)):
        _print_difference(configuration.name, difference)
    _print_example(reference, without, patched)
    ledger = read_ledger(log)
    if ledger:
        print(f"\nEach process of the patched server has logged:\n  {ledger[0].message}\n")
    else:
        print("\nThe patched server has logged nothing about its patches.\n")
    return 0 if not wrong.is_noise and right.is_noise and ledger else 1


def _serve(
    environment: Environment, model: Path, configuration: Configuration
) -> tuple[list[Completion], str]:
    progress = _Progress(f"serving {configuration.name}")
    server = Server(
        RELEASE,
        model,
        configuration.flags,
        environment=environment,
        env=dict(configuration.env),
        waiting=progress.show,
    )
    with server:
        answers = server.generate(PROMPTS)
    progress.done()
    return answers, server.log


class _Progress:
    """A line that counts seconds on a terminal, and stays one plain line elsewhere."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._started = time.monotonic()
        self._live = sys.stderr.isatty()
        if not self._live:
            _say(f"{text} ...")

    def show(self) -> None:
        if self._live:
            print(f"\r[rig] {self._text} ... {self._seconds} s", end="", file=sys.stderr)

    def done(self) -> None:
        text = f"{self._text}: done in {self._seconds} s"
        if self._live:
            print(f"\r[rig] {text}", file=sys.stderr)
        else:
            _say(text)

    @property
    def _seconds(self) -> int:
        return int(time.monotonic() - self._started)


def _print_difference(name: str, difference: Difference) -> None:
    _print_row(
        name,
        f"{difference.same_tokens} of {difference.prompts}",
        _number(difference.mean),
        _number(difference.max),
        "right" if difference.is_noise else "WRONG",
    )


def _print_example(
    reference: list[Completion], without: list[Completion], patched: list[Completion]
) -> None:
    """Show the tokens of the first prompt whose answer is not the reference's."""
    rows = zip(PROMPTS, reference, without, patched, strict=True)
    for prompt, expected, wrong, right in rows:
        if wrong.tokens != expected.tokens:
            print(f"\ngreedy tokens after the prompt {list(prompt)}")
            for name, answer in (
                (REFERENCE.name, expected), (WITHOUT.name, wrong), (WITH.name, right)
            ):  # fmt: skip
                print(f"{name:<47}  {' '.join(f'{token:>3}' for token in answer.tokens)}")
            return


def _print_row(name: str, tokens: str, mean: str, largest: str, verdict: str) -> None:
    print(f"{name:<47}  {tokens:>14}  {mean:>12}  {largest:>11}  {verdict}")


def _number(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _say(line: str) -> None:
    print(f"[rig] {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
