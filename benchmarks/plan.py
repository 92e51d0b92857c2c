"""What this package costs a process that imports sglang, and ``sglang-commfix status``.

``python benchmarks/plan.py`` installs this version, and the same with a register of forty entries,
measures both by lock and by engine in turn, round after round, and writes ``results/plan.json``
(every single value), ``results/plan.md`` and ``results/plan.svg``.
Compare cases within one run only.
"""

from __future__ import annotations

import argparse
import importlib
import py_compile
import shutil
import statistics
import sys
import tempfile
import venv
from base64 import urlsafe_b64encode
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from measuring import (
    RELEASE,
    RESULTS,
    ROOT,
    Counter,
    Program,
    environment,
    in_rounds,
    place,
    site_packages,
    table,
    write,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from measuring import Seconds

# SGLANG_COMMFIX, and what is imported before: see `inside.py`.
GROUPS = {
    ("1", "warm"): "SGLANG_COMMFIX=1, beside what sglang imports anyway",
    ("all", "warm"): "SGLANG_COMMFIX=all, beside what sglang imports anyway",
    ("all", "cold"): "SGLANG_COMMFIX=all, in a Python that has imported nothing",
}
DRAWN = ("all", "warm")  # and whole: what is decided anew is slow to measure
INSIDE = str(Path(__file__).with_name("inside.py"))
LOADING = {
    "genuine": "the genuine text, compiled",
    "edited": "the edited text, compiled",
    "pyc": "the genuine module, from .pyc",
}
CALLING = {
    "disk": "the same edit in the file on disk",
    "patched": "patched by this package",
    "genuine": "the genuine method, without the fix",
}


class Version(NamedTuple):
    """An installation, and a tree that it is to plan for."""

    who: str  # engine, lock; wrapt: no plan, the import alone
    entries: int
    python: Path
    tree: Path

    def __str__(self) -> str:
        if self.who == "wrapt":
            return "the import of wrapt alone"
        return f"{self.who}, {self.entries} entries"

    def inside(self, task: str, *what: str, select: str = "all") -> Program:
        """Return a program that does a task of ``inside.py``."""
        arguments = [INSIDE, task, str(self.tree), *what]
        return Program(self.python, arguments, {"SGLANG_COMMFIX": select})

    def status(self) -> Program:
        """Return the command ``sglang-commfix status``."""
        arguments = ["-m", "sglang_commfix", "status", "--sglang-path", str(self.tree)]
        return Program(self.python, arguments)


def trees(scratch: Path) -> tuple[Path, Path]:
    """Copy the release twice: as it is, with byte code, and so that no lock knows it."""
    from fingerprints import wanted_files
    from wheels import fetch

    from sglang_commfix.engine.register import load_folder

    release = fetch(RELEASE, wanted_files(load_folder(ROOT / "patches").patches))
    known, unknown = scratch / "known", scratch / "unknown"
    for tree in (known, unknown):
        shutil.copytree(release / "sglang", tree / "sglang")
    for file in known.rglob("*.py"):
        py_compile.compile(str(file), doraise=True)
    for name in ("model_executor/model_runner.py", "layers/communicator.py"):
        with (unknown / "sglang" / "srt" / name).open("a", encoding="utf-8") as edited:
            edited.write("# not as published\n")
    return known, unknown


def _record(site: Path) -> None:
    """Write the RECORD of what is there now: a server compares with it."""
    lines = []
    for file in sorted((site / "sglang_commfix").rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            digest = urlsafe_b64encode(sha256(file.read_bytes()).digest()).decode().rstrip("=")
            name = file.relative_to(site).as_posix()
            lines.append(f"{name},sha256={digest},{file.stat().st_size}\n")
    (info,) = site.glob("sglang_commfix-*.dist-info")
    (info / "RECORD").write_text("".join(lines), encoding="utf-8")


def with_register(python: Path, folder: Path, register: Path) -> Path:
    """Create an environment with what another has, and another register; return its Python."""
    from made_up import install

    venv.create(folder)
    own = folder / "bin" / "python"
    shutil.copytree(site_packages(python), site_packages(own), dirs_exist_ok=True)
    install(register, site_packages(own) / "sglang_commfix")
    _record(site_packages(own))
    return own


def versions(scratch: Path) -> list[Version]:
    """Install everything that is compared."""
    from made_up import ENTRIES, make_up

    known, unknown = trees(scratch)
    few, register = len(list(ROOT.glob("patches/*/patch.toml"))), scratch / "register"
    make_up(ROOT / "patches", register, known, RELEASE)
    python = environment(scratch / "now", str(ROOT))
    many = with_register(python, scratch / "many", register)
    return [
        Version(who, entries, own, tree)
        for who, tree in (("engine", unknown), ("lock", known))
        for entries, own in ((few, python), (ENTRIES, many))
    ]


class Case(NamedTuple):
    """What is measured: in time together with others, in instructions by itself."""

    name: str
    base: str  # the case that its ratios are to
    program: Program
    empty: Program | None = None  # all of the program but what is measured


class Cases:
    """Everything that is measured, in groups."""

    def __init__(self, installed: list[Version]) -> None:
        few = installed[0].entries
        locks = [version for version in installed if version.who == "lock"]
        self.timed: list[Callable[[], Mapping[str, float]]] = []
        self.plans = [
            self._plan(version, installed[0], *group)
            for group in GROUPS
            for version in [*installed, locks[0]._replace(who="wrapt")]
            if group == DRAWN or version.entries == few or version.who == "lock"
        ]
        self.loading = [
            case
            for version in locks
            for case in self._inside("loading", LOADING, version, "genuine")
        ]
        self.calling = self._inside("calling", CALLING, locks[0], "disk")
        whole = [version for version in installed if version.entries == few]
        self.status = [self._status(version, whole[0]) for version in whole]

    @property
    def all(self) -> list[Case]:
        """All groups in one list."""
        return [*self.plans, *self.loading, *self.calling, *self.status]

    def _plan(self, version: Version, base: Version, select: str, imported: str) -> Case:
        group = GROUPS[select, imported]
        program = version.inside("plan", version.who, imported, select=select)
        case = Case(
            f"{group}: {version}",
            f"{group}: {base}",
            program,
            version.inside("plan", "nothing", imported),
        )
        self.timed.append(lambda: {case.name: float(program.output().split()[0])})
        return case

    def _inside(
        self, task: str, words: Mapping[str, str], version: Version, base: str
    ) -> list[Case]:
        names = {what: f"{task}, {version.entries} entries: {text}" for what, text in words.items()}
        program = version.inside(task, "times")

        def times() -> dict[str, float]:
            values = dict(line.split() for line in program.output().splitlines())
            return {name: float(values[what]) for what, name in names.items()}

        self.timed.append(times)
        empty = version.inside(task, "nothing")
        return [
            Case(name, names[base], version.inside(task, what), empty)
            for what, name in names.items()
        ]

    def _status(self, version: Version, base: Version) -> Case:
        name, program = f"status: {version}", version.status()
        self.timed.append(lambda: {name: program.wall()})
        return Case(name, f"status: {base}", program)

    def count(self, counter: Counter) -> dict[str, int]:
        """Count what every case takes beyond the program that lacks it."""
        programs = {case.name: case.program for case in self.all}
        programs |= {repr(case.empty): case.empty for case in self.all if case.empty}
        counts = counter(programs)
        wanted = {case.name: repr(case.empty) if case.empty else "" for case in self.all}
        counts[""] = 0
        return {
            name: counts[name] - counts[empty]
            for name, empty in wanted.items()
            if {name, empty} <= counts.keys()
        }


def report(cases: Cases, seconds: Seconds, counts: Mapping[str, int], how: str, same: str) -> str:
    """Write the results for people."""

    def rows(chosen: list[Case], unit: float = 1e3) -> str:
        parts = []
        for group, own in groupby(chosen, key=lambda case: case.name.rpartition(": ")[0]):
            bases = {case.name: case.base for case in own}
            parts += [f"{group}:", table(seconds, counts, bases, unit)]
        return "\n\n".join(parts if len(parts) > 2 else parts[1:])

    def median(case: Case) -> float:
        return statistics.median(seconds[case.name]) * 1e3

    rounds = len(next(iter(seconds.values())))
    base = cases.plans[0].base.rpartition(": ")[2]
    lock = next(case for case in cases.plans if ": lock" in case.name)
    wrapt = next(case for case in cases.plans if "wrapt" in case.name)
    _, edited, pyc = cases.loading[:3]
    total, equal, changed = same.split()
    extra = median(edited) - median(pyc)
    return f"""\
# What a process that imports sglang pays

`python benchmarks/plan.py`, {rounds} rounds, the cases in turn within each round. {place()}
Ratios are round by round. {how}
Each count is that of a whole process less that of the same process without what is measured.

## The plan

From before the import of this package's session until it is decided what runs; sglang is not
imported. *engine*: two of the files are such as no lock knows, so the process decides anew. *lock*:
the files are those of the release. Of the forty entries, all but the real ones are made up, and
apply (`benchmarks/made_up.py`); that register knows one release, so the engine has fewer forms to
compare with. Each begins with the import of wrapt. Ratios are to {base}.

![Time of a plan](plan.svg)

{rows(cases.plans)}

## Loading what is edited

All modules that the plan edits, made into code (`SGLANG_COMMFIX=all`). Python has byte code of the
genuine ones only. Ratios are to compiling the genuine text.

{rows(cases.loading)}

With the real register and `SGLANG_COMMFIX=1`, a process takes {median(lock):.1f} ms for the plan,
{median(wrapt):.1f} ms of which are the import of wrapt, and {extra:.1f} ms to compile what Python
would have loaded from byte code.

## Calling what is edited

`LayerCommunicator.should_use_reduce_scatter`, as the loaders make it, with stubs for what it calls
(decode, MAX_LEN padding); counts are for 100 000 calls. Ratios are to the same edit in the file.

{rows(cases.calling, 1e6)}

Of the {total} code objects of the edited modules, {changed} differ from the genuine ones.
{"All" if equal == "1" else "NOT all"} are, instruction for instruction, what Python makes of the
same edits in the files on disk: nothing is wrapped.

## `sglang-commfix status`

The whole command.

{rows(cases.status)}
"""


def draw(cases: list[Case], seconds: Seconds) -> None:
    """Draw the plans' times, if matplotlib is here."""
    try:
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        print("no picture: matplotlib is not installed", file=sys.stderr)
        return
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "plan", "font.size": 10})
    figure, axes = pyplot.subplots(figsize=(7.5, 0.45 * len(cases) + 1), layout="constrained")
    names = [case.name.rpartition(": ")[2] for case in cases]
    values = [[value * 1e3 for value in seconds[case.name]] for case in cases]
    middle = [statistics.median(own) for own in values]
    colours = {"engine": "#d0873a", "lock": "#2f7fb8", "the": "#cccccc"}
    shades = [colours[name.replace(",", " ").split()[0]] for name in names]
    bars = axes.barh(names, middle, color=shades)
    axes.bar_label(bars, labels=[f"{value:.1f} ms" for value in middle], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"time of a plan for sglang {RELEASE}, ms\n{cases[0].name.partition(':')[0]}")
    figure.savefig(RESULTS / "plan.svg", metadata={"Date": None})


def main() -> int:
    """Measure, and write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = max(parser.parse_args().rounds, 2)
    counter = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        installed = versions(Path(scratch))
        cases = Cases(installed)
        counts = cases.count(counter)
        seconds = in_rounds(rounds, cases.timed)
        lock = next(version for version in installed if version.who == "lock")
        same = lock.inside("calling", "equal").output()
    write("plan", report(cases, seconds, counts, counter.words, same), seconds, counts, rounds)
    draw([case for case in cases.plans if case.name.startswith(GROUPS[DRAWN])], seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
