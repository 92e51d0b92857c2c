"""What the guard decides on every commit and branch tip of git clones of sglang, against the truth.

Run by a maintainer::

    python tools/census.py CLONE...                # prints the tables
    python tools/census.py CLONE... --out FILE     # writes them

A commit has a fault if it descends from one that brought it, and no descendant of that one which
mended it lies between: ``tests/patches/<id>/history.toml`` names these commits. Only the files that
the register has to do with are looked at, straight from git, and each distinct state of them once.
What was decided is kept in the cache folder, so that a run that was ended goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fingerprints import PATCHES, cache_folder

from sglang_commfix.engine.guard import decide
from sglang_commfix.engine.register import load_folder
from sglang_commfix.engine.tree import Tree
from sglang_commfix.files import Sglang


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sglang_commfix.engine.register import Register

HISTORIES = PATCHES.parent / "tests" / "patches"
ROOT = "python"  # the folder of a checkout that holds sglang/
VERSION_FILES = ("sglang/version.py", "sglang/_version.py")

# A state: for each file that is looked at, the id of its blob; None: it is not there.
State = tuple[str | None, ...]
# For each entry: what the guard decides, and the reason.
Outcome = dict[str, tuple[str, str]]


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

    @cache  # noqa: B019 - a census is all that its process does
    def read(self, blob: str) -> bytes:
        """Return a blob."""
        command = ["git", "-C", str(self.folder), "cat-file", "blob", blob]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def _blob(answer: str) -> str | None:
    name, kind, *_ = answer.rsplit(" ", 2)
    return name if kind == "blob" else None


class Committed(Sglang):
    """An sglang whose files are blobs."""

    def __init__(self, blobs: Mapping[str, bytes | None]) -> None:
        super().__init__(Path("sglang"))
        self._blobs = blobs

    def raw(self, module: str) -> bytes | None:
        """Return the bytes of a module's file; ``None``: no such module."""
        base = module.replace(".", "/")
        package = self._blobs.get(f"{base}/__init__.py")
        return self._blobs.get(f"{base}.py") if package is None else package


@dataclass
class Count:
    """How often each decision was made about an entry, where the fault is and where it is not."""

    with_fault: Counter[str] = field(default_factory=Counter)
    without: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, commit: str, decision: str, reason: str, fault: bool | None) -> None:
        """Count one commit."""
        {True: self.with_fault, False: self.without, None: self.unknown}[fault][decision] += 1
        if decision == "refused":
            self.reasons[reason[:160]] += 1
        elif fault is not None and (decision == "apply") != fault:
            self.wrong.append(commit)


class Census:
    """The decisions about the states of one register, kept from run to run."""

    def __init__(self, register: Register) -> None:
        self.register = register
        modules = sorted({module for patch in register.patches for module in patch.modules})
        paths = [module.replace(".", "/") for module in modules]
        self.files = [f"{p}{end}" for p in paths for end in (".py", "/__init__.py")]
        self.files += VERSION_FILES
        engine = sorted((PATCHES.parent / "sglang_commfix" / "engine").glob("*.py"))
        data = sorted(PATCHES.glob("*/*.*"))
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in (*engine, *data)))
        self._kept = cache_folder().parent / "census" / f"{digest.hexdigest()[:16]}.jsonl"
        self._outcomes: dict[State, Outcome] = {}
        if self._kept.is_file():
            for line in self._kept.read_text(encoding="utf-8").splitlines():
                state, outcome = json.loads(line)
                self._outcomes[tuple(state)] = {key: tuple(value) for key, value in outcome.items()}

    def outcome(self, clone: Clone, state: State) -> Outcome:
        """Return what the guard decides in a state."""
        if state not in self._outcomes:
            blobs = {
                file: None if blob is None else clone.read(blob)
                for file, blob in zip(self.files, state, strict=True)
            }
            findings = decide(self.register, Tree(Committed(blobs)))
            outcome: Outcome = {one.patch.id: (one.verdict, one.reason) for one in findings}
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            with self._kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps([state, outcome]) + "\n")
            self._outcomes[state] = outcome
        return self._outcomes[state]


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


def histories(register: Register) -> dict[str, dict[str, list[str]]]:
    """Read which commits brought and mended each entry's fault, as far as that is drawn up."""
    files = {patch.id: HISTORIES / patch.id / "history.toml" for patch in register.patches}
    return {
        name: tomllib.loads(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.is_file()
    }


def survey(clone: Clone, census: Census, since: str) -> str:
    """Decide about every commit from ``since`` on; return the tables."""
    times = clone.commits()
    if since:
        wanted = clone.descendants(since)
        times = {name: time for name, time in times.items() if name in wanted}
    tips = clone.tips() & times.keys()
    truth = {name: faulty(clone, history) for name, history in histories(census.register).items()}
    commits: dict[str, Count] = defaultdict(Count)
    of_tips: dict[str, Count] = defaultdict(Count)
    months: dict[str, Counter[str]] = defaultdict(Counter)
    states = set()
    for number, (commit, state) in enumerate(clone.states(times, census.files), 1):
        states.add(state[: -len(VERSION_FILES)])
        print(f"\r{number}/{len(times)}, {len(states)} states", end="", file=sys.stderr, flush=True)
        month = datetime.fromtimestamp(times[commit], timezone.utc).strftime("%Y-%m")
        for name, (decision, reason) in census.outcome(clone, state).items():
            fault = commit in truth[name] if name in truth else None
            commits[name].add(commit, decision, reason, fault)
            if commit in tips:
                of_tips[name].add(commit, decision, reason, fault)
            months[month][f"{name} {decision}"] += 1
    print(file=sys.stderr)
    head = f"{len(times)} commits, {len(tips)} branch tips, {len(states)} distinct states\n\n"
    return head + "\n".join(
        [
            "commits",
            _table(commits),
            "branch tips",
            _table(of_tips),
            "refused, by month",
            _by_month(months, [patch.id for patch in census.register.patches]),
            *_details(commits),
        ]
    )


def _table(counts: Mapping[str, Count]) -> str:
    columns = [
        "entry",
        "fault: apply",
        "fault: refused",
        "none: not-needed",
        "none: refused",
        "wrong",
    ]
    head = f"| {' | '.join(columns)} |"
    rows = [head, "|---|---|---|---|---|---|"]
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
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _by_month(months: Mapping[str, Counter[str]], names: Sequence[str]) -> str:
    rows = [f"| month | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for month in sorted(months):
        cells = []
        for name in names:
            total = sum(months[month][f"{name} {d}"] for d in ("apply", "not-needed", "refused"))
            cells.append(f"{months[month][f'{name} refused']} of {total}")
        rows.append(f"| {month} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _details(counts: Mapping[str, Count]) -> Iterator[str]:
    for name, count in counts.items():
        for reason, number in count.reasons.most_common(5):
            yield f"{name}: refused {number} times: {reason}"
        for commit in count.wrong[:20]:
            yield f"{name}: WRONG at {commit}"


def main() -> int:
    """Survey each clone; exit status 1 if anything was decided wrongly."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clones", nargs="+", type=Path, metavar="CLONE")
    parser.add_argument("--since", default="", metavar="COMMIT", help="only what comes from it")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables there")
    arguments = parser.parse_args()
    census = Census(load_folder(PATCHES))
    texts = []
    for folder in arguments.clones:
        texts.append(f"## {folder.name}\n\n{survey(Clone(folder), census, arguments.since)}\n")
        print(texts[-1])
    if arguments.out:
        arguments.out.write_text("\n".join(texts), encoding="utf-8")
    return 1 if any("WRONG" in text for text in texts) else 0


if __name__ == "__main__":
    sys.exit(main())
