"""What this package costs: every Python start, `status`, and the import of sglang's runtime.

``python benchmarks/startup.py`` builds one environment for each case, starts them in turn, round
after round, and writes ``results/startup.json`` (every single time) and ``results/startup.md``.
Compare cases within one run only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING

from fingerprints import fetch, wanted_files

from sglang_commfix.engine.register import load


if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
RELEASE = "0.5.11"
# What any package pays that wants to be called at start: one line, one module, one function.
BARE_LINE = "import bare_hook; bare_hook.init()\n"
BARE_MODULE = '"""Does nothing."""\n\n\ndef init() -> None:\n    """Do nothing."""\n'
PLAN = """
import time; start = time.perf_counter()
from sglang_commfix.embed import current_plan
plan = current_plan({folder!r}, "all")
print(time.perf_counter() - start)
"""


def environment(folder: Path, *packages: str) -> Path:
    """Create a virtual environment with ``packages``; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if packages:
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, *packages], check=True)
    return python


def site_packages(python: Path) -> Path:
    """Return the folder in which ``python`` looks for ``.pth`` files."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(
        subprocess.run(
            [python, "-c", code], check=True, capture_output=True, text=True
        ).stdout.strip()
    )


def wall(command: list[str], **environ: str) -> float:
    """Return the seconds that ``command`` takes from its start to its end."""
    hidden = ("SGLANG_COMMFIX", "PYTHON")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=clean | environ, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def inside(command: list[str]) -> float:
    """Return the seconds that a program prints."""
    hidden = ("SGLANG_COMMFIX", "PYTHON")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    result = subprocess.run(command, check=True, env=clean, capture_output=True, text=True)
    return float(result.stdout)


def measure(rounds: int, scratch: Path) -> dict[str, list[float]]:
    """Run every case once in each round, after one that does not count."""
    plain = str(environment(scratch / "plain"))
    bare = environment(scratch / "bare")
    (site_packages(bare) / "bare_hook.py").write_text(BARE_MODULE)
    (site_packages(bare) / "bare_hook.pth").write_text(BARE_LINE)
    ours = str(environment(scratch / "ours", str(ROOT)))
    tree = str(fetch(RELEASE, wanted_files(load().patches)))
    nothing = ["-c", "pass"]
    status = ["-m", "sglang_commfix", "status", "--sglang-path", tree]
    cases: dict[str, Callable[[], float]] = {
        "no .pth file": lambda: wall([plain, *nothing]),
        "a bare .pth line": lambda: wall([str(bare), *nothing]),
        "sglang-commfix, variable unset": lambda: wall([ours, *nothing]),
        "sglang-commfix, SGLANG_COMMFIX=1, no sglang": lambda: wall(
            [ours, *nothing], SGLANG_COMMFIX="1"
        ),
        "sglang-commfix status": lambda: wall([ours, *status]),
        "planning, inside a process that imports sglang": lambda: inside(
            [ours, "-c", PLAN.format(folder=tree)]
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        print(f"\rround {number}/{rounds}", end="", file=sys.stderr, flush=True)
        for name, case in cases.items():
            seconds = case()
            if number:
                times[name].append(seconds)
    print(file=sys.stderr)
    return times


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
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def render(times: dict[str, list[float]], where: dict[str, str | int | None]) -> str:
    """Write the table."""
    base = statistics.median(times["a bare .pth line"])
    rows = []
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        rows.append(
            f"| {name} | {middle * 1e3:.1f} | {low * 1e3:.1f} to {high * 1e3:.1f} "
            f"| {statistics.median(values) / base:.2f} |"
        )
    paired = [
        ours / bare
        for ours, bare in zip(
            times["sglang-commfix, variable unset"], times["a bare .pth line"], strict=True
        )
    ]
    low, middle, high = statistics.quantiles(paired, n=4)
    head = f"""\
# What a start costs

`python benchmarks/startup.py`, {len(paired)} rounds, the cases in turn within each round.
{where["cpu"]}, {where["cores"]} cores, CPython {where["python"]}, sglang {RELEASE}.

| case | median, ms | quartiles, ms | ratio to a bare .pth line |
|---|---|---|---|
"""
    tail = f"""

Round by round, a start with the variable unset takes {middle:.3f} times as long as one with a bare
`.pth` line (median of {len(paired)} ratios; quartiles {low:.3f} and {high:.3f}).
"""
    return head + "\n".join(rows) + tail


def main() -> int:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        times = measure(arguments.rounds, Path(scratch))
    where = machine()
    RESULTS.mkdir(exist_ok=True)
    rounded = {name: [round(value, 6) for value in values] for name, values in times.items()}
    data = {"machine": where, "release": RELEASE, "seconds": rounded}
    (RESULTS / "startup.json").write_text(json.dumps(data) + "\n", encoding="utf-8")
    text = render(times, where)
    (RESULTS / "startup.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
