"""The patched release decides as the first upstream release with the fix, in the real modules.

Every case of the product is compared; where the answers differ, the register says so and why. What
is compared for an entry stands in `tests/patches/<id>/decisions.py`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from rig.decisions import Answers, decide
from rig.entries import declared
from rig.environment import ensure

from sglang_commfix.engine.register import Difference, load


pytestmark = pytest.mark.servers


@dataclass(frozen=True)
class Compared:
    patch: str
    suite: str
    upstream: str
    """The first release that decides so, later repairs of the same pull request included."""


COMPARED = [
    Compared(patch, suite, upstream)
    for patch, suites in declared("decisions.py", "UPSTREAM")
    for suite, upstream in suites.items()
]


def cases() -> Iterator[object]:
    """The last affected release by default, of the whole all."""
    for compared in COMPARED:
        *others, last = load()[compared.patch].affected_releases
        for release in (*others, last):
            yield pytest.param(
                compared,
                release,
                marks=() if release == last else pytest.mark.servers_full,
                id=f"{compared.patch}-{compared.suite}-{release}",
            )


@dataclass(frozen=True)
class Process:
    """One release, imported once, asked for all that the tests want of it."""

    release: str
    patches: str = "0"


Ask = Callable[[Process, str], Answers]


@pytest.fixture(scope="module")
def ask(request: pytest.FixtureRequest) -> Iterator[Ask]:
    """Ask as many releases at a time as there are cores, before the first test needs an answer."""
    wanted: dict[Process, dict[str, None]] = {}
    for item in request.session.items:
        if item.path == request.path:
            for process, suite in questions_of(item):
                wanted.setdefault(process, {})[suite] = None
    environment = ensure(dict.fromkeys(process.release for process in wanted))
    largest = 8 if "servers_full" in request.config.option.markexpr else 4
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        answers = {
            process: pool.submit(
                decide,
                process.release,
                *suites,
                environment=environment,
                patches=process.patches,
                largest=largest,
            )
            for process, suites in wanted.items()
        }
        yield lambda process, suite: answers[process].result()[suite]
        pool.shutdown(cancel_futures=True)


def questions_of(item: pytest.Item) -> list[tuple[Process, str]]:
    call = getattr(item, "callspec", None)
    if call is None:
        return []
    compared: Compared = call.params["compared"]
    release = call.params.get("release", load()[compared.patch].affected_releases[-1])
    patches = "0" if "unpatched" in item.name else compared.patch
    return [
        (Process(release, patches), compared.suite),
        (Process(compared.upstream), compared.suite),
    ]


def compare(
    answers: Answers, expected: Answers, differences: list[Difference]
) -> tuple[list[str], Counter[str]]:
    """Return the cases that differ without a name, and how many each name covers."""
    both = answers.keys() & expected.keys()
    assert len(both) > 40, "the releases have no cases in common"
    unnamed = []
    named: Counter[str] = Counter()
    for case in sorted(both):
        if answers[case] == expected[case]:
            continue
        axes = json.loads(case) | {"answer": answers[case], "upstream": expected[case]}
        names = [d.when for d in differences if eval(d.when, {}, axes)]
        named.update(names)
        if not names:
            unnamed.append(f"{case}: {answers[case]}, upstream {expected[case]}")
    return unnamed, named


@pytest.mark.parametrize(("compared", "release"), list(cases()))
def test_a_patched_release_decides_as_upstream_does_but_for_what_the_register_names(
    ask: Ask, compared: Compared, release: str
) -> None:
    patch = load()[compared.patch]
    differences = [
        d
        for d in patch.differences
        if d.decision == compared.suite and d.releases.contains(release, True)
    ]
    unnamed, named = compare(
        ask(Process(release, compared.patch), compared.suite),
        ask(Process(compared.upstream), compared.suite),
        differences,
    )
    assert not unnamed
    assert set(named) == {d.when for d in differences}


@pytest.mark.servers_full
@pytest.mark.parametrize("compared", COMPARED, ids=lambda one: f"{one.patch}-{one.suite}")
def test_the_last_affected_release_unpatched_does_not(ask: Ask, compared: Compared) -> None:
    patch = load()[compared.patch]
    last = patch.affected_releases[-1]
    unnamed, _ = compare(
        ask(Process(last), compared.suite),
        ask(Process(compared.upstream), compared.suite),
        [d for d in patch.differences if d.releases.contains(last, True)],
    )
    assert unnamed
