"""What the guard decides on every commit and branch tip of git clones of sglang, against the truth.

Run by a maintainer::

    python tools/census.py CLONE...                # prints the tables
    python tools/census.py CLONE... --out FILE     # writes them
    python tools/census.py CLONE... --entry ID     # about some entries only

A commit has a fault if it descends from one that brought it, and no descendant of that one which
mended it lies between: ``tests/patches/<id>/history.toml`` names these commits. Files come straight
from git. About an entry only its own files are looked at, and each distinct state of them once: the
modules that it has to do with, and what says the version. What was decided is kept in the cache
folder, so that a run that was ended goes on where it stopped, and an entry that was edited is alone
decided about anew.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache, lru_cache
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from fingerprints import PATCHES
from wheels import cache_folder

from sglang_commfix.engine.guard import decide
from sglang_commfix.engine.register import load_folder
from sglang_commfix.engine.tree import Tree
from sglang_commfix.files import Sglang


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    import ast
    from collections.abc import (
        Callable,
        Collection,
        Hashable,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )

    from sglang_commfix.engine.register import Clause, Patch, Target
    from sglang_commfix.engine.source import Source
    from sglang_commfix.engine.tree import Stands

HISTORIES = PATCHES.parent / "tests" / "patches"
ROOT = "python"  # the folder of a checkout that holds sglang/
# Commits of forks that put a whole tree from before 0.5.1 in the place of a later one.
WENT_BACK = ("b886f95442c00e366f406a576bc8df3ba7eeb4d1",)
VERSION_FILES = ("sglang/version.py", "sglang/_version.py")
# Where in a file is no reason of its own.
_LINES = re.compile(r"\blines? \d+(?:, \d+)*")

# A state: for each file that is looked at, the id of its blob; None: it is not there.
State = tuple[str | None, ...]
# What is worked out of one file, and what it takes for that beside the file.
Made = TypeVar("Made")
Given = TypeVar("Given")


class Decision(NamedTuple):
    """What the guard decides about one entry, and why."""

    verdict: str
    reason: str


class Job(NamedTuple):
    """An entry to decide about, in one state of its files."""

    entry: str
    files: tuple[str, ...]
    state: State


class Clone:
    """A git clone of sglang, with or without a work tree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def git(self, *arguments: str, given: str | None = None) -> str:
        """Return what ``git`` prints."""
        command = ["git", "-C", str(self.folder), *arguments]
        run = subprocess.run(command, check=True, input=given, stdout=subprocess.PIPE, text=True)
        return run.stdout

    def commits(self) -> dict[str, int]:
        """Return every commit that a ref leads to, newest first, and its time."""
        lines = self.git("log", "--all", "--format=%H %ct").splitlines()
        return {name: int(time) for name, time in (line.split() for line in lines)}

    def tips(self) -> set[str]:
        """Return the commits that branches end with."""
        refs = self.git("for-each-ref", "--format=%(objectname) %(refname)").splitlines()
        return {line.split()[0] for line in refs if "/tags/" not in line and "/pull/" not in line}

    def has(self, commit: str) -> bool:
        """Tell whether the clone knows a commit."""
        command = ["git", "-C", str(self.folder), "cat-file", "-e", f"{commit}^{{commit}}"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def descendants(self, commit: str) -> set[str]:
        """Return a commit and all that come from it; nothing if it is not known here."""
        if not self.has(commit):
            return set()
        listed = self.git("rev-list", "--all", "--ancestry-path", f"^{commit}")
        return {commit, *listed.split()}

    def states(self, commits: Iterable[str], files: Sequence[str]) -> Iterator[tuple[str, State]]:
        """Yield each commit with the blobs of ``files`` in it."""
        names = list(commits)
        asked = "".join(f"{name}:{ROOT}/{file}\n" for name in names for file in files)
        answers = iter(self.git("cat-file", "--batch-check", given=asked).splitlines())
        for name in names:
            yield name, tuple(_blob(next(answers)) for _ in files)

    @lru_cache(maxsize=64)  # noqa: B019 - a census is all that its process does
    def read(self, blob: str) -> bytes:
        """Return a blob."""
        command = ["git", "-C", str(self.folder), "cat-file", "blob", blob]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def _blob(answer: str) -> str | None:
    name, kind, *_ = answer.rsplit(" ", 2)
    return sys.intern(name) if kind == "blob" else None


class Committed(Sglang):
    """An sglang whose files are blobs of a clone."""

    def __init__(self, clone: Clone, blobs: Mapping[str, str | None]) -> None:
        super().__init__(Path("sglang"))
        self._clone = clone
        self._blobs = blobs

    def blob(self, module: str) -> str | None:
        """Return the id of a module's file; ``None``: no such module."""
        base = module.replace(".", "/")
        return self._blobs.get(f"{base}/__init__.py") or self._blobs.get(f"{base}.py")

    def raw(self, module: str) -> bytes | None:
        """Return the bytes of a module's file; ``None``: no such module."""
        blob = self.blob(module)
        return None if blob is None else self._clone.read(blob)


class Parsed:
    """What was read, parsed and worked out of single files: of those used last."""

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._files: OrderedDict[tuple[str, str | None], dict[Hashable, Any]] = OrderedDict()

    def of(self, module: str, blob: str | None) -> dict[Hashable, Any]:
        """Return what is known of a module's file, to be read and added to."""
        known = self._files.setdefault((module, blob), {})
        self._files.move_to_end((module, blob))
        if len(self._files) > self._size:
            self._files.popitem(last=False)
        return known


class SharedTree(Tree):
    """A tree that shares all that is worked out of one file with others that have the same file."""

    def __init__(self, files: Committed, parsed: Parsed) -> None:
        super().__init__(files)
        self._files = files
        self._parsed = parsed

    def source(self, module: str) -> Source | None:
        """Return a module's source; ``None`` if sglang has no such module."""
        return self._once(module, "source", super().source, module)

    def tree(self, module: str) -> ast.Module | None:
        """Parse a module; ``None`` if sglang has no such module. Not to be changed."""
        return self._once(module, "tree", super().tree, module)

    def fingerprint(self, target: Target) -> str | None:
        """Return the fingerprint of ``target``; ``None`` if it is absent."""
        return self._once(target.module, target, super().fingerprint, target)

    def stands(self, clause: Clause) -> Stands:
        """Find a clause, and work out its form."""
        return self._once(clause.target.module, clause.key, super().stands, clause)

    def _once(
        self, module: str, what: Hashable, make: Callable[[Given], Made], given: Given
    ) -> Made:
        known = self._parsed.of(module, self._files.blob(module))
        if what not in known:
            known[what] = make(given)
        made: Made = known[what]
        return made


class Guard:
    """The guard, on states of a clone."""

    def __init__(self, clone: Path, patches: Path) -> None:
        self._clone = Clone(clone)
        self._register = load_folder(patches)
        self._parsed = Parsed()

    def decide(self, job: Job) -> Decision:
        """Decide about one entry. Of the files, its own alone are there."""
        files = Committed(self._clone, dict(zip(job.files, job.state, strict=True)))
        others = {patch.id for patch in self._register.patches} - {job.entry}
        tree = SharedTree(files, self._parsed)
        (finding,) = decide(self._register, tree, known=others)
        return Decision(finding.verdict, finding.reason)


class Entry:
    """An entry of the register, and what was decided about it, kept from run to run.

    Attributes:
        id: its name.
        files: what it is decided by: the files of its modules, and last those with the version.
        decisions: what is decided in the states of these files that were met.

    """

    def __init__(self, patch: Patch, patches: Path) -> None:
        self.id = patch.id
        paths = [module.replace(".", "/") for module in sorted(patch.modules)]
        modules = (f"{path}{end}" for path in paths for end in (".py", "/__init__.py"))
        self.files = (*modules, *VERSION_FILES)
        self.decisions: dict[State, Decision] = {}
        engine = (PATCHES.parent / "sglang_commfix" / "engine").glob("*.py")
        own = (file for file in (patches / patch.id).glob("*.*") if file.name != "locks.json")
        data = [*sorted(engine), *sorted(own), patches / "releases.json"]
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in data)).hexdigest()[:16]
        self._kept = cache_folder().parent / "census" / f"{patch.id}-{digest}.jsonl"
        if self._kept.is_file():
            for line in self._kept.read_text(encoding="utf-8").splitlines():
                state, decision = json.loads(line)
                self.decisions[tuple(state)] = Decision(*decision)

    def keep(self, state: State, decision: Decision) -> None:
        """Remember what was decided in a state."""
        self.decisions[state] = decision
        self._kept.parent.mkdir(parents=True, exist_ok=True)
        with self._kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps([state, decision]) + "\n")


class Census:
    """The decisions about entries of a register: about all, or those with the ``ids`` given."""

    def __init__(self, patches: Path = PATCHES, ids: Collection[str] = ()) -> None:
        self.patches = patches
        register = load_folder(patches)
        wanted = [patch for patch in register.patches if not ids or patch.id in ids]
        self.entries = [Entry(patch, patches) for patch in wanted]
        files = {file for entry in self.entries for file in entry.files}
        self.files = (*sorted(files - {*VERSION_FILES}), *VERSION_FILES)

    def states(self, entry: Entry, states: Iterable[State]) -> Iterator[State]:
        """Yield what of each state of all files is that of the entry's own."""
        return map(itemgetter(*map(self.files.index, entry.files)), states)

    def decide(self, clone: Clone, states: Collection[State], jobs: int = 1) -> None:
        """Decide about every entry wherever that has not been done, in ``jobs`` processes."""
        wanted: dict[tuple[Entry, State], None] = {}
        own = [self.states(entry, states) for entry in self.entries]
        for row in zip(*own, strict=True):  # what is next to each other shares most files
            for entry, state in zip(self.entries, row, strict=True):
                if state not in entry.decisions:
                    wanted[entry, state] = None
        work = [Job(entry.id, entry.files, state) for entry, state in wanted]
        with _decisions(clone.folder, self.patches, work, jobs) as decisions:
            pairs = zip(wanted, decisions, strict=True)
            for number, ((entry, state), decision) in enumerate(pairs, 1):
                entry.keep(state, decision)
                print(f"\r{number}/{len(work)} decisions", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)


@contextmanager
def _decisions(
    clone: Path, patches: Path, work: Sequence[Job], jobs: int
) -> Iterator[Iterator[Decision]]:
    """Decide, without garbage collection: it walks every syntax tree, and they have no cycles."""
    if jobs > 1:
        given = ((clone, patches, job) for job in work)
        at_once = len(work) // (8 * jobs) + 1  # in a row: neighbours share what is parsed
        with multiprocessing.get_context("spawn").Pool(jobs, initializer=gc.disable) as pool:
            yield pool.imap(_decide, given, chunksize=at_once)
        return
    gc.disable()
    try:
        yield map(Guard(clone, patches).decide, work)
    finally:
        gc.enable()


def _decide(given: tuple[Path, Path, Job]) -> Decision:
    clone, patches, job = given
    return _guard(clone, patches).decide(job)


@cache
def _guard(clone: Path, patches: Path) -> Guard:
    """Return the one guard of a process."""
    return Guard(clone, patches)


@dataclass
class Count:
    """How often each decision was made about an entry, where the fault is and where it is not.

    And of each reason for a refusal how often it was given, and an example, the newest commit.
    """

    with_fault: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, commit: str, decision: Decision, fault: bool | None) -> None:
        """Count one commit."""
        verdict = decision.verdict
        {True: self.with_fault, False: self.without, None: self.unknown}[fault][verdict] += 1
        if verdict == "refused":
            reason = _LINES.sub("line …", decision.reason)[:160]
            self.reasons[reason] += 1
            self.examples.setdefault(reason, commit)
        elif fault is not None and (verdict == "apply") != fault:
            self.wrong.append(commit)

    @property
    def refused(self) -> str:
        """How much of all was refused."""
        return _percentage(self.with_fault + self.without + self.unknown)


def _percentage(counted: Counter[str]) -> str:
    total = sum(counted.values())
    return f"{100 * counted['refused'] / total:.1f}%" if total else ""


def faulty(clone: Clone, history: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the commits that descend from one which brought the fault, and are not mended."""
    found = set()
    for brought in history["brought"]:
        own = clone.descendants(brought)
        for mended in history["mended"]:
            if mended in own:
                own -= clone.descendants(mended)
        found |= own
    return found


def truth(clone: Clone, entry: str) -> set[str] | None:
    """Return the commits that have an entry's fault; ``None`` if that is not drawn up."""
    file = HISTORIES / entry / "history.toml"
    if not file.is_file():
        return None
    return faulty(clone, tomllib.loads(file.read_text(encoding="utf-8")))


def survey(clone: Clone, census: Census, since: str = "", jobs: int = 1) -> str:
    """Decide about every commit from ``since`` on; return the tables."""
    times = clone.commits()
    if since:
        wanted = clone.descendants(since).difference(*map(clone.descendants, WENT_BACK))
        times = {name: time for name, time in times.items() if name in wanted}
    tips = clone.tips() & times.keys()
    found = dict(clone.states(times, census.files))
    states = dict.fromkeys(found.values())
    census.decide(clone, states, jobs)
    months = {name: _month(time) for name, time in times.items()}
    of_commits, of_states, of_tips = (
        {entry.id: Count() for entry in census.entries} for _ in range(3)
    )
    by_month: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for entry in census.entries:
        fault_in = truth(clone, entry.id)
        met = set()
        for commit, state in zip(found, census.states(entry, found.values()), strict=True):
            decision = entry.decisions[state]
            fault = None if fault_in is None else commit in fault_in
            of_commits[entry.id].add(commit, decision, fault)
            if commit in tips:
                of_tips[entry.id].add(commit, decision, fault)
            what = (_without_version(state), decision.verdict, fault)
            if what not in met:
                met.add(what)
                of_states[entry.id].add(commit, decision, fault)
            by_month[months[commit]][entry.id][decision.verdict] += 1
    distinct = len(set(map(_without_version, states)))
    head = f"{len(times)} commits, {len(tips)} branch tips, {distinct} distinct states\n\n"
    return head + "\n".join(
        [
            "commits",
            _table(of_commits),
            "distinct states of an entry's own files",
            _table(of_states),
            "branch tips",
            _table(of_tips),
            "refused, by month",
            _by_month(by_month, list(of_commits)),
            *_details(of_commits),
        ]
    )


def _month(time: int) -> str:
    return datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m")


def _without_version(state: State) -> State:
    return state[: -len(VERSION_FILES)]


def _table(counts: Mapping[str, Count]) -> str:
    columns = [
        "entry",
        "fault: apply",
        "fault: refused",
        "none: not-needed",
        "none: refused",
        "wrong",
        "refused",
    ]
    head = f"| {' | '.join(columns)} |"
    rows = [head, "|---" * len(columns) + "|"]
    for name, count in counts.items():
        numbers = [
            count.with_fault["apply"],
            count.with_fault["refused"],
            count.without["not-needed"],
            count.without["refused"],
            len(count.wrong),
        ]
        cells = list(map(str, numbers))
        if count.unknown:
            decided = (f"{word} {number}" for word, number in sorted(count.unknown.items()))
            cells = [f"not known: {', '.join(decided)}", "", "", "", ""]
        rows.append(f"| {name} | {' | '.join(cells)} | {count.refused} |")
    return "\n".join(rows) + "\n"


def _by_month(months: Mapping[str, Mapping[str, Counter[str]]], names: Sequence[str]) -> str:
    rows = [f"| month | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for month in sorted(months):
        counted = [months[month][name] for name in names]
        cells = (f"{c['refused']} of {sum(c.values())}, {_percentage(c)}" for c in counted)
        rows.append(f"| {month} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _details(counts: Mapping[str, Count]) -> Iterator[str]:
    for name, count in counts.items():
        for reason, number in count.reasons.most_common():
            yield f"{name}: refused {number} times, as at {count.examples[reason]}: {reason}"
        for commit in count.wrong[:20]:
            yield f"{name}: WRONG at {commit}"


def main() -> int:
    """Survey each clone; exit status 1 if anything was decided wrongly."""
    entries = sorted(file.parent.name for file in PATCHES.glob("*/patch.toml"))
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clones", nargs="+", type=Path, metavar="CLONE")
    parser.add_argument("--since", default="", metavar="COMMIT", help="only what comes from it")
    parser.add_argument("--entry", action="append", choices=entries, metavar="ID", help="it alone")
    parser.add_argument("--jobs", type=int, default=cores, metavar="N", help="use N processes")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables there")
    arguments = parser.parse_args()
    census = Census(ids=arguments.entry or ())
    texts = []
    for folder in arguments.clones:
        text = survey(Clone(folder), census, arguments.since, arguments.jobs)
        texts.append(f"## {folder.name}\n\n{text}\n")
        print(texts[-1])
    if arguments.out:
        arguments.out.write_text("\n".join(texts), encoding="utf-8")
    return 1 if any("WRONG" in text for text in texts) else 0


if __name__ == "__main__":
    sys.exit(main())
