"""What the benchmarks share: environments, rounds, instruction counts, tables."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
RELEASE = "0.5.11"
# Behind what is installed, so that `python benchmarks/plan.py` finds the rest.
sys.path += [str(ROOT / "tools"), str(ROOT)]

Seconds = dict[str, list[float]]


class Program(NamedTuple):
    """A Python, what it is to run, and variables for it."""

    python: Path
    arguments: list[str]
    variables: Mapping[str, str] = MappingProxyType({})

    @property
    def command(self) -> list[str]:
        """Python and arguments."""
        return [str(self.python), *self.arguments]

    @property
    def environ(self) -> dict[str, str]:
        """The variables of this process, but those that change what is measured."""
        hidden = ("SGLANG_COMMFIX", "PYTHON")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        return {**clean, **self.variables}

    def output(self) -> str:
        """Run it and return what it prints."""
        return subprocess.run(
            self.command, check=True, env=self.environ, stdout=subprocess.PIPE, text=True
        ).stdout

    def wall(self) -> float:
        """Return the seconds from its start to its end."""
        environ = self.environ
        start = time.perf_counter()
        subprocess.run(self.command, check=True, env=environ, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start


def environment(folder: Path, *packages: str) -> Path:
    """Create a virtual environment with ``packages``; return its Python."""
    print(f"installing {folder.name}", file=sys.stderr)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if packages:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, *packages], check=True)
    return python


def site_packages(python: Path) -> Path:
    """Return the folder in which ``python`` looks for ``.pth`` files."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(Program(python, ["-c", code]).output().strip())


def in_rounds(rounds: int, cases: Iterable[Callable[[], Mapping[str, float]]]) -> Seconds:
    """Run every case once in each round, in turn, after one round that does not count."""
    cases = list(cases)
    seconds: Seconds = {}
    for number in range(rounds + 1):
        print(f"\rround {number}/{rounds}", end="", file=sys.stderr, flush=True)
        for case in cases:
            for name, value in case().items():
                seconds.setdefault(name, [])
                if number:
                    seconds[name].append(value)
    print(file=sys.stderr)
    return seconds


class Counter:
    """Counts the instructions of a program: ``perf`` where the machine lets it, or ``valgrind``."""

    def __init__(self) -> None:
        self.tool = next((tool for tool in ("perf", "valgrind") if self._works(tool)), None)
        if self.tool is None:
            print("no instruction counts: neither perf nor valgrind works here", file=sys.stderr)

    def _works(self, tool: str) -> bool:
        program = Program(Path(sys.executable), ["-c", "pass"])
        return shutil.which(tool) is not None and self._count(tool, program) is not None

    @staticmethod
    def _count(tool: str, program: Program) -> int | None:
        if tool == "perf":
            prefix, pattern = ["perf", "stat", "-x,", "-e", "instructions:u"], r"(?m)^(\d+),"
        else:
            options = ["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
            prefix, pattern = ["valgrind", *options], r"I\s+refs:\s+([\d,]+)"
        # Sets and dicts of strings are laid out in the same way every time.
        environ = program.environ | {"PYTHONHASHSEED": "0", "LC_ALL": "C"}
        result = subprocess.run(
            [*prefix, *program.command], check=False, env=environ, capture_output=True, text=True
        )
        found = re.search(pattern, result.stderr)
        return int(found[1].replace(",", "")) if found and result.returncode == 0 else None

    def __call__(self, programs: Mapping[str, Program]) -> dict[str, int]:
        """Count each program once: the next count would be the same, and so on a busy machine."""
        tool = self.tool
        if tool is None:
            return {}
        print(f"counting the instructions of {len(programs)} programs", file=sys.stderr)
        for program in programs.values():
            program.output()  # what is imported for the first time leaves byte code behind
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            counts = pool.map(lambda program: self._count(tool, program), programs.values())
            return {name: n for name, n in zip(programs, counts, strict=True) if n is not None}

    @property
    def words(self) -> str:
        """Say how they were counted."""
        if self.tool == "perf":
            return "Instructions in user space by `perf stat`."
        if self.tool == "valgrind":
            return (
                "Instructions by `valgrind --tool=cachegrind`,\nwhose processor has none for "
                "SHA-256: digests count for more there than they take."
            )
        return "Instructions were not counted: neither perf nor valgrind works on this machine."


def ratios(values: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Return the quartiles of the ratios, round by round."""
    low, middle, high = statistics.quantiles(
        [one / other for one, other in zip(values, base, strict=True)], n=4
    )
    return low, middle, high


def share(ratio: float) -> str:
    """Write a ratio with two digits that say something."""
    return f"{ratio:.3f}" if ratio < 0.1 else f"{ratio:.2f}"


def table(
    seconds: Seconds, counts: Mapping[str, int], bases: Mapping[str, str], unit: float = 1e3
) -> str:
    """Write a row for each case of ``bases``, its ratios to the case that is named there.

    A name may begin with that of a group, up to a colon. With a ``unit`` of 1e3, times come in
    milliseconds. The ratio is the median of the ratios of all rounds.
    """
    scale = {1e3: "ms", 1e6: "µs"}[unit]
    titles = ["case", f"median, {scale}", f"quartiles, {scale}", "ratio", "its quartiles"]
    titles += ["instructions, millions", "ratio"]
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, base in bases.items():
        low, middle, high = (value * unit for value in statistics.quantiles(seconds[name], n=4))
        first, ratio, third = ratios(seconds[name], seconds[base])
        count, other = counts.get(name), counts.get(base)
        cells = [
            name.rpartition(": ")[2],
            f"{middle:.3g}",
            f"{low:.3g} to {high:.3g}",
            share(ratio),
            f"{share(first)} to {share(third)}",
            f"{count / 1e6:.1f}" if count is not None else "",
            share(count / other) if count is not None and other else "",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def machine() -> dict[str, str | int | None]:
    """Say where the figures come from."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version()}


def place() -> str:
    """Write :func:`machine` as a sentence."""
    where = machine()
    return f"{where['cpu']}, {where['cores']} cores, CPython {where['python']}, sglang {RELEASE}."


def write(name: str, text: str, seconds: Seconds, counts: Mapping[str, int], rounds: int) -> None:
    """Write ``results/<name>.md``, and every single value to ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    data = {
        "machine": machine(),
        "release": RELEASE,
        "rounds": rounds,
        "seconds": {n: [float(f"{value:.5g}") for value in own] for n, own in seconds.items()},
        "instructions": counts,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(data) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
