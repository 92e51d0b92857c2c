"""What this package costs every start of a Python that does not import sglang.

``python benchmarks/startup.py`` builds one environment for each case, starts them in turn, round
after round, and writes ``results/startup.json`` (every single time) and ``results/startup.md``.
Compare cases within one run only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from measuring import (
    ROOT,
    Counter,
    Program,
    environment,
    in_rounds,
    place,
    ratios,
    site_packages,
    table,
    write,
)


# What any package pays that wants to be called at start: one line, one module, one function.
BARE_LINE = "import bare_hook; bare_hook.init()\n"
BARE_MODULE = '"""Does nothing."""\n\n\ndef init() -> None:\n    """Do nothing."""\n'
BARE = "a bare `.pth` line"
UNSET = "sglang-commfix, variable unset"


def programs(scratch: Path) -> dict[str, Program]:
    """Build the environments; return what is to be started in each."""
    bare = environment(scratch / "bare")
    (site_packages(bare) / "bare_hook.py").write_text(BARE_MODULE)
    (site_packages(bare) / "bare_hook.pth").write_text(BARE_LINE)
    ours = environment(scratch / "now", str(ROOT))
    nothing = ["-c", "pass"]
    return {
        "no `.pth` file": Program(environment(scratch / "plain"), nothing),
        BARE: Program(bare, nothing),
        UNSET: Program(ours, nothing),
        "sglang-commfix, SGLANG_COMMFIX=1, no sglang": Program(
            ours, nothing, {"SGLANG_COMMFIX": "1"}
        ),
    }


def timed(name: str, program: Program) -> dict[str, float]:
    """Time one process."""
    return {name: program.wall()}


def main() -> int:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = max(parser.parse_args().rounds, 2)
    counter = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        cases = programs(Path(scratch))
        counts = counter(cases)
        seconds = in_rounds(rounds, [partial(timed, *case) for case in cases.items()])
    low, middle, high = ratios(seconds[UNSET], seconds[BARE])
    text = f"""\
# What a start costs

`python benchmarks/startup.py`, {rounds} rounds, the cases in turn within each round; whole
processes, `python -c pass`. {place()}
Ratios are to a bare `.pth` line, round by round. {counter.words}

{table(seconds, counts, dict.fromkeys(cases, BARE))}

A start with the variable unset takes {middle:.3f} times as long as one with a bare `.pth` line
(median of {rounds} ratios; quartiles {low:.3f} and {high:.3f}).
"""
    write("startup", text, seconds, counts, rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
