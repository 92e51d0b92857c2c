"""Write what real servers have shown, ``benchmarks/results/servers.json``, as ``docs/servers.md``.

``python tools/server_table.py`` writes it, ``--check`` fails if it is not current.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from generated import bring_up_to_date, wrapped


ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "servers.json"
PAGE = ROOT / "docs" / "servers.md"

_HEAD = """\
# Layouts in real servers

Made by `python tools/server_table.py` from `benchmarks/results/servers.json`, which `make
test-servers` writes; a test keeps it current.

Each row is one server of the published release, on the CPU ([the rig](../tests/rig/README.md)),
with a tiny model of random weights, in float32. All answer the same {prompts} prompts, in rounds
that reach every kind of step under DP attention, and are compared with one rank of the same release
and model, without patches:

- right: the same greedy tokens, and every log-probability within {noise:g};
- **WRONG**: anything else;
- rejected: it does not start;
- dies: it starts, and ends with its first work, which is the health check.

`Δ` is the absolute difference of a token's log-probability: mean and maximum over the tokens of
the prompts, and maximum over the generated tokens, of each text up to the first that is another.
The seconds are those from the start of the server to its last answer.

A layout called fused leaves its all-reduces to FlashInfer's kernel, which is played by the same sum
in plain torch. GPT-OSS has attention sinks, which torch's own attention does not know: it has
`--attention-backend triton`, in Triton's interpreter; and each rank is given its share of experts.

Shown are {shown} of the {matrix} servers of the matrix.

Run on {date}: {machine}; torch {torch} on CPython {python}; sglang-commfix {version}.

| layout | launch flags |
|---|---|
"""

_COLUMNS = (
    "model", "layout", "`SGLANG_COMMFIX`", "server", "tokens equal", "mean Δ", "max Δ",
    "max Δ, generated", "s",
)  # fmt: skip
_TABLE = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}\n"


def render(content: dict[str, Any]) -> str:
    """Return the text of ``docs/servers.md``."""
    rows = content["cells"]
    prompts = {row["found"]["prompts"] for row in rows} - {None}
    head = _HEAD.format(
        prompts=max(prompts, default=0),
        shown=len(rows),
        matrix=content["matrix"],
        noise=content["noise"],
        date=content["date"],
        machine=content["machine"],
        torch=content["versions"]["torch"],
        python=content["versions"]["python"],
        version=content["versions"]["sglang-commfix"],
    )
    layouts = dict.fromkeys((row["layout"], row["flags"]) for row in rows)
    head += "".join(f"| {name} | `{flags}` |\n" for name, flags in layouts)
    return head + "".join(
        _release(release, list(its)) for release, its in groupby(rows, lambda row: row["release"])
    )


def _release(release: str, rows: list[dict[str, Any]]) -> str:
    applied = dict.fromkeys(
        patch for row in rows if row["patches"] == "all" for patch in row["found"]["applied"]
    )
    patches = ", ".join(f"`{patch}`" for patch in sorted(applied)) or "nothing"
    table = "".join(map(_row, rows))
    return f"\n## {release}\n\n`SGLANG_COMMFIX=all` applies {patches}.\n\n{_TABLE}{table}"


def _row(row: dict[str, Any]) -> str:
    found = row["found"]
    compared = found["prompts"] is not None
    cells = [
        row["model"],
        row["layout"],
        f"`{row['patches']}`" if row["patches"] else "unset",
        _verdict(found),
        f"{found['same_tokens']} of {found['prompts']}" if compared else "",
        *(_number(found[name]) for name in ("mean", "max", "generated_max")),
        f"{found['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |\n"


def _verdict(found: dict[str, Any]) -> str:
    outcome: str = found["outcome"]
    if found["message"]:
        message = found["message"].replace("|", "\\|")
        return f"{outcome}: `{message}`"
    return f"**{outcome.upper()}**" if outcome == "wrong" else outcome


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if not current")
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    return bring_up_to_date({PAGE: wrapped(render(content))}, check=parser.parse_args().check)


if __name__ == "__main__":
    sys.exit(main())
