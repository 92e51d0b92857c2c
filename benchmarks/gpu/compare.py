"""Compares a case's answers and captured states with those of one rank.

python benchmarks/gpu/compare.py FOLDER
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from cases import CASES, COMMON, LENGTHS, Case


Answers = list[dict[str, Any]]
STEPS = 3
WAYS = ("one_by_one", "together")


def read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def differences(mine: Answers, theirs: Answers, middle: bool = False) -> list[float]:
    """Return how far the prompt tokens' log-probabilities are apart."""
    found: list[float] = []
    for answer, other in zip(mine, theirs, strict=True):
        both = list(zip(answer["prompt"], other["prompt"], strict=True))
        count = len(both)
        chosen = both[count // 4 + 1 : count - count // 4] if middle else both
        found += [abs(a - b) for a, b in chosen if a is not None and b is not None]
    return found


def agreement(mine: Answers, theirs: Answers) -> str:
    """Return how many greedy tokens agree before the first that differs."""
    same = every = 0
    for answer, other in zip(mine, theirs, strict=True):
        pairs = list(zip(answer["tokens"], other["tokens"], strict=True))
        every += len(pairs)
        same += next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return f"{same} of {every}"


def compared(case: Case, mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for way in WAYS:
        if way not in mine or way not in theirs:
            continue
        apart = differences(mine[way], theirs[way])
        result[way] = {
            "mean": round(statistics.fmean(apart), 4),
            "median": round(statistics.median(apart), 4),
            "max": round(max(apart), 3),
            "prompt_tokens": len(apart),
            "greedy": agreement(mine[way], theirs[way]),
            "mean_by_prompt": [
                round(statistics.fmean(differences([a], [b])), 4)
                for a, b in zip(mine[way], theirs[way], strict=True)
            ],
        }
        if "GPU_DEEPSTACK" in case.hooks:
            fed = differences(mine[way], theirs[way], middle=True)
            result[way]["mean_of_fed"] = round(statistics.fmean(fed), 4)
    return result


def states(folder: Path, name: str, reference: str, ranks: int) -> dict[str, Any]:
    """Return the relative errors of captured states, by layer."""
    torch = importlib.import_module("torch")

    def error(mine: Any, theirs: Any) -> float:
        mine, theirs = mine.double(), theirs.double()
        return float((mine - theirs).norm() / theirs.norm())

    def load(case: str, rank: int, prompt: int, step: int) -> Any:
        file = folder / f"{case}.d" / f"rank{rank}-prompt{prompt}-step{step}.pt"
        return torch.load(file) if file.exists() else None

    result: dict[str, Any] = {}
    for phase, steps in (("prefill", [0]), ("decode", range(1, STEPS))):
        errors: list[list[float]] = []
        apart: list[list[float]] = []
        for length in LENGTHS:
            for step in steps:
                theirs = load(reference, 0, length, step)
                every = [load(name, rank, length, step) for rank in range(ranks)]
                if theirs is None or any(m is None or m["ids"] != theirs["ids"] for m in every):
                    continue
                for mine in every:
                    pairs = zip(mine["states"], theirs["states"], strict=True)
                    errors.append([error(a, b) for a, b in pairs])
                pairs = zip(every[-1]["states"], every[0]["states"], strict=True)
                apart.append([error(a, b) for a, b in pairs])
        layers = list(zip(*errors, strict=True))
        if layers:
            result[phase] = {
                "steps": len(apart),
                "median": [round(statistics.median(layer), 4) for layer in layers],
                "range": [[round(min(layer), 4), round(max(layer), 4)] for layer in layers],
                "between_ranks": [
                    round(statistics.median(layer), 4) for layer in zip(*apart, strict=True)
                ],
            }
    return result


def summary(folder: Path) -> dict[str, Any]:
    """Return every figure of the cases that were run."""
    found: list[dict[str, Any]] = []
    for case in CASES:
        reference = read(folder / f"{case.against}.json") if case.against else None
        for arm in case.arms if case.entry else ("",):
            name = f"{case.name}-{arm}" if arm else case.name
            outcome = read(folder / f"{name}.outcome")
            if outcome is None:
                continue
            mine = read(folder / f"{name}.json")
            line: dict[str, Any] = {"case": case.name, "entry": case.entry, "arm": arm}
            line |= {"release": case.release, "model": case.model, "flags": case.flags}
            line |= {"hooks": case.hooks, "against": case.against, **outcome}
            line["environ"] = case.environ if case.entry == "fleet" else {}
            counts = sorted((folder / f"{name}.d").glob("fused-*.json"))
            line["fused_calls"] = [(read(c)["calls"], read(c)["declined"]) for c in counts]
            other = read(folder / f"{case.name}-unpatched.json") if arm == "patched" else None
            if mine and other:
                same = all(mine[way] == other[way] for way in WAYS if way in mine)
                line["identical_to_unpatched"] = same
            text = read(folder / f"{case.model}-tp1-{case.release}.json")
            if mine and text and "GPU_DEEPSTACK" in case.hooks:
                line["mean_of_fed_against_text_alone"] = round(
                    statistics.fmean(differences(mine[WAYS[0]], text[WAYS[0]], middle=True)), 4
                )
            if mine and reference:
                line |= compared(case, mine, reference)
                if "GPU_CAPTURE" in case.hooks:
                    line["states"] = states(folder, name, case.against, case.ranks)
            found.append({key: value for key, value in line.items() if value not in ("", [], {})})
    return {"in_all": {**COMMON, "lengths": LENGTHS}, "cases": found}


if __name__ == "__main__":
    print(json.dumps(summary(Path(sys.argv[1])), indent=1))
