"""Mutants of real files: what the engine may never do to any of them.

    python tests/rig/sources/fuzz.py --count 100000 --jobs 4
    python tests/rig/sources/fuzz.py --case 1:731:12      # one that failed, again

Files of releases are changed in and around what an entry looks at: in ways that mean nothing, in
ways that mean something, by binding names anew, by damage. Then the engine decides, for the entry
alone or for all that look at the file. It may not raise. A change without a meaning leaves the
decision as it is. An edit of code that its name does not lead to is not made. What is spliced
compiles, and stands on the planned lines.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import multiprocessing
import os
import random
import sys
import time
import tokenize
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any


if __name__ == "__main__":
    ROOT = Path(__file__).parents[3]
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

from rig.sources import mutations
from rig.sources.published import RELEASES, tree, with_files

from sglang_commfix.engine.errors import SourceError
from sglang_commfix.engine.fingerprint import Definition, find_scope, normal_form
from sglang_commfix.engine.make_lock import entry_of, make_lock
from sglang_commfix.engine.register import Patch, Target, load
from sglang_commfix.engine.source import Source
from sglang_commfix.engine.tree import Tree
from sglang_commfix.files import splice
from sglang_commfix.lock import Decision


CHUNK = 40  # mutants of one release for one entry; its files are parsed once
_REDRAW = "\r\x1b[K"

# ---------------------------------------------------------------------------- what is changed

# Of a definition's own lines, and of the whole file.
LOCAL = [
    mutations.comments_and_blank_lines,
    mutations.comments_behind_statements,
    mutations.parenthesised_and_split,
    mutations.joined_statements,
    mutations.unparsed,
]


def lines_above(text: str, chance: random.Random) -> str:
    return "# of a vendor\n" * chance.randrange(1, 9) + text


def byte_order_mark(text: str, _chance: random.Random) -> str:
    return "\ufeff" + text


def lines_below(text: str, chance: random.Random) -> str:
    return text + chance.choice(["# the end", "\n\n\n", "\n_VENDOR = 1\n", "    # odd\n"])


WHOLE = [
    lines_above,
    lines_below,
    byte_order_mark,
    mutations.windows_line_ends,
    mutations.no_final_newline,
    mutations.tabs,
]
# Put behind the file's last line: the first lead the name elsewhere, the others call what it was.
LOST = [
    "{scope} = None",
    "del {scope}",
    "for {scope} in ():\n    pass",
    "from vendor import {name} as {root}",
    "def _vendor():\n    global {root}\n    {root} = None",
    "setattr({owner}, '{name}', print)",
    "{scope}.__code__ = (lambda: None).__code__",
]
KEPT = [
    "{scope} = print({scope})",
    "_old = {scope}\ndef _vendor(*args):\n    return _old(*args)\n{scope} = _vendor",
    "setattr({owner}, '{name}', print(getattr({owner}, '{name}')))",
]


What = Callable[..., Any] | str


@dataclass(frozen=True)
class Mutation:
    """One step; `seed` makes it the same again, whatever steps go before."""

    kind: str  # neutral, local, changed, lost, kept, damaged
    what: What
    seed: int

    def __str__(self) -> str:
        what = self.what if isinstance(self.what, str) else self.what.__name__
        return f"{self.kind}: {what}"


def drawn(chance: random.Random) -> list[Mutation]:
    """Draw what happens to one file."""

    def some(kind: str, of: Sequence[What], most: int) -> list[Mutation]:
        chosen = sorted(chance.sample(of, chance.randint(1, most)), key=of.index)
        return [Mutation(kind, what, chance.getrandbits(32)) for what in chosen]

    whole = partial(some, "neutral", WHOLE, 2)
    local = partial(some, "local", LOCAL, 2)
    changed = partial(some, "changed", mutations.MUTATORS, 3)
    which = chance.random()
    if which < 0.3:
        return [*local(), *(whole() if chance.random() < 0.3 else [])]
    if which < 0.38:
        return whole()
    if which < 0.8:
        return [*changed(), *(local() if chance.random() < 0.3 else [])]
    if which < 0.88:
        return some("lost", LOST, 1)
    if which < 0.94:
        return some("kept", KEPT, 1)
    return some("damaged", ["damaged"], 1)


def changed_text(source: Source, tree: ast.Module, scope: str, steps: list[Mutation]) -> str:
    """Make the steps in `scope` of `source`, whose tree is `tree`."""
    node = find_scope(tree, scope)
    assert node is not None
    lines = source.lines
    first, last = min(one.lineno for one in (node, *node.decorator_list)), node.end_lineno or 0
    own = "".join(lines[first - 1 : last])
    copied = copy.deepcopy(node)
    for step in steps:
        chance = random.Random(step.seed)
        if step.kind == "changed":
            step.what(copied, chance)  # type: ignore[operator]
            fresh = ast.unparse(ast.fix_missing_locations(copied)).splitlines()
            own = "".join(f"{' ' * node.col_offset}{line}\n" for line in fresh)
        elif step.kind == "local":
            own = formatted(own, node.col_offset, step.what, chance)  # type: ignore[arg-type]
    text = "".join([*lines[: first - 1], own, *lines[last:]])
    for step in steps:
        chance = random.Random(step.seed)
        if step.kind == "neutral":
            text = step.what(text, chance)  # type: ignore[operator]
        elif step.kind in {"lost", "kept"}:
            text = f"{text}\n{bound(str(step.what), scope)}\n"
        elif step.kind == "damaged":
            at = text.index(own) + chance.randrange(len(own))
            noise = "".join(
                chance.choices("()[]:;\\\"' \n\t\r#\x0cé\u2028x=@", k=chance.randrange(9))
            )
            text = text[:at] + noise + text[at + chance.randrange(40) :]
    return text


def formatted(
    own: str, indent: int, formatter: Callable[[str, random.Random], str], chance: random.Random
) -> str:
    """Format a definition's own lines."""
    if not indent:
        return formatter(own, chance)
    if formatter is mutations.unparsed and indent != 4:
        return own
    return formatter("if 1:\n" + own, chance).partition("if 1:")[2].partition("\n")[2]


def bound(template: str, scope: str) -> str:
    owner, _, name = scope.rpartition(".")
    owner = owner or "__import__('sys').modules[__name__]"
    return template.format(
        scope=scope, root=scope.split(".", maxsplit=1)[0], owner=owner, name=name
    )


# ------------------------------------------------------------------------------ what is checked


class Ground:
    """A release as one entry sees it, with what the engine decides about it as it is."""

    def __init__(self, patch: Patch, release: str) -> None:
        self.patch, self.release = patch, release
        self.tree = tree(release)
        targets = {one.target for one in patch.clauses if one.target.scope}
        self.targets = sorted(target for target in targets if self.scope(target) is not None)
        modules = {one.module for one in self.targets}
        self.near = [p for p in load().patches if modules & {c.target.module for c in p.clauses}]

    @cached_property
    def decisions(self) -> dict[str, Decision]:
        """What is decided about those that look at one of its files."""
        return {d["id"]: d for d in self.decided(self.tree, self.near)}

    def scope(self, target: Target) -> Definition | None:
        tree = self.tree.tree(target.module)
        return None if tree is None else find_scope(tree, target.scope)

    def beside(self, target: Target, chance: random.Random) -> Target:
        """Another function or class of the same file."""
        tree = self.tree.tree(target.module)
        assert tree is not None
        names = Counter(node.name for node in tree.body if isinstance(node, Definition))
        return Target(target.module, chance.choice([n for n, times in names.items() if times == 1]))

    @staticmethod
    def decided(tree: Tree, about: list[Patch]) -> list[Decision]:
        others = {p.id: entry_of(p) for p in load().patches if p not in about}
        decisions = make_lock(load(), tree, known=others)["decisions"]
        return [one for one in decisions if one["id"] not in others]


class WrongError(Exception):
    """What the engine may not do."""


@dataclass(frozen=True)
class Case:
    """One mutant."""

    name: str
    ground: Ground
    target: Target
    steps: list[Mutation]
    about: list[Patch]

    def text(self, steps: list[Mutation]) -> str | None:
        """The mutant; None if the steps cannot be made here."""
        source = self.ground.tree.source(self.target.module)
        tree = self.ground.tree.tree(self.target.module)
        assert source is not None
        assert tree is not None
        try:
            return changed_text(source, tree, self.target.scope, steps)
        except (SyntaxError, tokenize.TokenError):
            return None

    def run(self, steps: list[Mutation]) -> str:
        """Return what is decided; raise WrongError if that is wrong, or what comes of it."""
        text = self.text(steps)
        if text is None:
            return "impossible"
        edited = with_files(self.ground.tree, {self.target.module: text.encode()})
        decisions = self.ground.decided(edited, self.about)
        kinds = {step.kind for step in steps}
        # What binds a function's name anew, to whatever, is another thing for those who call it.
        anew = {"changed", "lost", "damaged"} | (
            {"kept"} if "." not in self.target.scope else set()
        )
        neutral = not kinds & anew and self._means_the_same(edited)
        lost = kinds == {"lost"}
        for one in decisions:
            before, now = self.ground.decisions[one["id"]]["decision"], one["decision"]
            said = f"{one['id']} was {before}, is {now}: {one['reason']}"
            if neutral and now != before:
                raise WrongError(f"the change has no meaning, but {said}")
            edits = load()[one["id"]].edits_for(self.ground.release)
            if lost and now == "apply" and self.target in {edit.target for edit in edits}:
                raise WrongError(f"the edit is without effect, but {said}")
            check_splices(edited, one)
        before = self.ground.decisions[self.ground.patch.id]["decision"]
        now = next(one["decision"] for one in decisions if one["id"] == self.ground.patch.id)
        return now if now in {before, "refused"} else f"turned to {now}"

    def _means_the_same(self, edited: Tree) -> bool:
        """Tell whether formatting has left the strings as they were, and the file whole."""
        try:
            tree = edited.tree(self.target.module)
            now = tree and find_scope(tree, self.target.scope)
        except SourceError:
            return False
        before = self.ground.scope(self.target)
        return bool(now and before and normal_form(now) == normal_form(before))

    def minimised(self) -> list[Mutation]:
        """Leave out every step that the failure does not need."""
        steps = list(self.steps)
        for step in self.steps:
            fewer = [one for one in steps if one is not step]
            if fewer and failure(self, fewer):
                steps = fewer
        return steps

    def __str__(self) -> str:
        steps = self.minimised()
        source = self.ground.tree.source(self.target.module)
        before = source.text.splitlines() if source else []
        after = (self.text(steps) or "").splitlines()
        diff = list(difflib.unified_diff(before, after, lineterm="", n=1))
        return "\n".join(
            [
                f"--case {self.name}: {self.ground.patch.id} in {self.ground.release}, {self.target}",
                *(f"  {step}" for step in steps),
                *diff[2:60],
                failure(self, steps),
            ]
        )


def failure(case: Case, steps: list[Mutation]) -> str:
    """What is wrong with a mutant; empty if nothing is."""
    try:
        case.run(steps)
    except WrongError as error:
        return str(error)
    except Exception:
        return traceback.format_exc()
    return ""


def check_splices(edited: Tree, decision: Decision) -> None:
    """Check that what is spliced compiles, and that only lines of the anchors have changed."""
    for module in {one["module"] for one in decision["splices"]}:
        source, tree = edited.source(module), edited.tree(module)
        assert source is not None
        assert tree is not None
        after = splice(source.raw, [s for s in decision["splices"] if s["module"] == module])
        if not compiles(after) and compiles(source.raw):
            raise WrongError(f"{decision['id']}: {module} does not compile any more")
        old, new = source.raw.splitlines(keepends=True), after.splitlines(keepends=True)
        for first, last in gone(old, new):
            if not any(a <= first and last <= b for a, b in planned(source.raw, decision, module)):
                raise WrongError(f"{decision['id']}: lines {first} to {last} of {module} changed")


def compiles(raw: bytes) -> bool:
    try:
        compile(raw, "f", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return True


def planned(raw: bytes, decision: Decision, module: str) -> Iterator[tuple[int, int]]:
    """Yield the lines, first and last, on which the anchors stand."""
    for one in decision["splices"]:
        if one["module"] == module:
            start, stop = (len(raw[:at].splitlines()) for at in one["anchor"])
            yield (max(start, 1) if one["operation"] == "append" else start), stop + 1


def gone(old: list[bytes], new: list[bytes]) -> Iterator[tuple[int, int]]:
    """Yield the lines, first and last, that are no more; as few as there can be."""
    begin = 0
    while begin < min(len(old), len(new)) and old[begin] == new[begin]:
        begin += 1
    end = 0
    while end < min(len(old), len(new)) - begin and old[-1 - end] == new[-1 - end]:
        end += 1
    inner = difflib.SequenceMatcher(
        None, old[begin : len(old) - end], new[begin : len(new) - end], autojunk=False
    )
    for kind, first, last, _, _ in inner.get_opcodes():
        if kind in {"replace", "delete"}:
            yield begin + first + 1, begin + last


# ------------------------------------------------------------------------------------ the run

Counts = Counter[tuple[str, str, str]]


def cases(seed: int, number: int, size: int = CHUNK) -> Iterator[Case]:
    """Yield the mutants of one chunk: of one entry, in a release that more often than not has it."""
    chance = random.Random(f"{seed}:{number}")
    patch = load().patches[number % len(load().patches)]
    affected = chance.random() < 0.6
    ground = Ground(patch, chance.choice(list(patch.affected_releases) if affected else RELEASES))
    while ground.targets == []:
        ground = Ground(patch, chance.choice(patch.affected_releases))
    for index in range(size):
        own = random.Random(f"{seed}:{number}:{index}")
        target = own.choice(ground.targets)
        if own.random() < 0.1:
            target = ground.beside(target, own)
        about = ground.near if own.random() < 0.25 else [patch]
        yield Case(f"{seed}:{number}:{index}", ground, target, drawn(own), about)


def chunk(seed: int, size: int, number: int) -> tuple[Counts, list[str]]:
    """Run one chunk; return what was decided, and what was wrong."""
    warnings.simplefilter("ignore", SyntaxWarning)
    counts: Counts = Counter()
    wrong = []
    for case in cases(seed, number, size):
        try:
            verdict = case.run(case.steps)
        except Exception:
            verdict = "WRONG"
            wrong.append(str(case))
        before = case.ground.decisions[case.ground.patch.id]["decision"]
        counts[case.ground.patch.id, before, verdict] += 1
        if os.environ.get("FUZZ_TURNED") and verdict.startswith("turned"):
            print(
                case.name,
                case.ground.patch.id,
                case.ground.release,
                case.target,
                verdict,
                *case.steps,
            )
    return counts, wrong


def table(counts: Counts) -> str:
    """What was decided, a line for each entry."""
    columns = sorted({(before, now) for _, before, now in counts})
    heads = [f"{before} > {now}" for before, now in columns]
    lines = ["  ".join([f"{'':36}", *heads])]
    for name in [*(patch.id for patch in load().patches), "all"]:
        numbers = [
            sum(
                n for (one, *how), n in counts.items() if name in {one, "all"} and (*how,) == column
            )
            for column in columns
        ]
        row = [f"{n:{len(head)}}" for n, head in zip(numbers, heads, strict=True)]
        lines.append("  ".join([f"{name:36}", *row]))
    return "\n".join(lines)


def main() -> int:
    """Run the mutants; exit status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="mutants")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--case", help="one that was printed, again: SEED:CHUNK:NUMBER")
    arguments = parser.parse_args()
    if arguments.case:
        seed, number, index = map(int, arguments.case.split(":"))
        case = list(cases(seed, number))[index]
        print(case)
        return bool(failure(case, case.steps))
    counts: Counts = Counter()
    wrong: list[str] = []
    started = time.monotonic()
    with multiprocessing.Pool(arguments.jobs, maxtasksperchild=20) as pool:
        numbers = range(-(-arguments.count // CHUNK))
        run = partial(chunk, arguments.seed, CHUNK)
        for own, bad in pool.imap_unordered(run, numbers):
            counts += own
            wrong += bad
            live = sys.stderr.isatty()
            for one in bad:
                print(f"{_REDRAW * live}{one}\n", flush=True)
            line = bar(sum(counts.values()), len(numbers) * CHUNK, len(wrong), started)
            print(line, end="" if live else "\n", file=sys.stderr, flush=True)
    print(f"\n{table(counts)}\n{len(wrong)} wrong, seed {arguments.seed}")
    return bool(wrong)


def bar(done: int, of: int, wrong: int, started: float) -> str:
    """A line that is written anew: how far it is, and how long it will take."""
    gone = time.monotonic() - started
    left = gone / done * (of - done) if done else 0
    filled = "#" * (30 * done // of)
    return (
        f"{_REDRAW * sys.stderr.isatty()}[{filled:30}] {done:,} of {of:,}, {wrong} wrong, "
        f"{done / gone:.0f} a second, {left / 60:.0f} min left"
    )


if __name__ == "__main__":
    sys.exit(main())
