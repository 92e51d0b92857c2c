"""What a run of the matrix has shown, as the JSON that `tools/server_table.py` makes a page of."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rig.environment import REPOSITORY, TORCH
from rig.expected import Outcome, Result
from rig.matrix import CELLS, Cell
from rig.workload import NOISE


FILE = REPOSITORY / "benchmarks" / "results" / "servers.json"

Results = dict[Cell, Result]


def to_json(results: Results) -> dict[str, Any]:
    """In the order of the matrix, with where and when it was run."""
    return {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "machine": _machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": TORCH.partition("==")[2],
            "sglang-commfix": importlib.metadata.version("sglang-commfix"),
        },
        "noise": NOISE,
        "matrix": len(CELLS),
        "cells": [_row(cell, results[cell]) for cell in CELLS if cell in results],
    }


def write(results: Results, file: Path = FILE) -> None:
    file.write_text(json.dumps(to_json(results), indent=1) + "\n", encoding="utf-8")


def not_shown(content: dict[str, Any]) -> list[str]:
    """What the matrix has and the results have not, or have otherwise than the matrix expects."""
    rows = {_key(row): row for row in content["cells"]}
    return [
        str(cell)
        for cell in CELLS
        if (row := rows.get(_key(_identity(cell)))) is None
        or row["expected"] != _expected(cell)
        or not cell.expected.is_met_by(_result(row))
    ]


def read(file: Path = FILE) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _row(cell: Cell, result: Result) -> dict[str, Any]:
    found = asdict(result)
    found["outcome"] = result.outcome.value
    for name in ("mean", "max", "generated_max"):
        if found[name] is not None:
            found[name] = float(f"{found[name]:.3g}")
    found["seconds"] = round(result.seconds, 1)
    return {**_identity(cell), "expected": _expected(cell), "found": found}


def _result(row: dict[str, Any]) -> Result:
    return Result(**{**row["found"], "outcome": Outcome(row["found"]["outcome"])})


def _identity(cell: Cell) -> dict[str, Any]:
    return {
        "release": cell.release,
        "model": cell.model,
        "layout": cell.layout.name,
        "flags": " ".join(cell.layout.flags),
        "patches": cell.patches,
    }


def _expected(cell: Cell) -> dict[str, str]:
    return {"outcome": cell.expected.outcome.value, "message": cell.expected.message}


def _key(row: dict[str, Any]) -> tuple[str | None, ...]:
    return tuple(row[name] for name in ("release", "model", "layout", "flags", "patches"))


def _machine() -> str:
    """The machine in words; nothing that names it."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return f"{found[1] if found else platform.machine()}, {len(os.sched_getaffinity(0))} cores"
