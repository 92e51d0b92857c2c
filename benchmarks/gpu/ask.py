"""One engine of one case: starts it, asks, and writes the answers. ``run.py`` calls this.

python benchmarks/gpu/ask.py CASE.json ANSWERS.json
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any


# What a release calls otherwise than those before it.
RENAMED = {
    "cuda_graph_max_bs": "cuda_graph_max_bs_decode",
    "disable_piecewise_cuda_graph": "disable_prefill_cuda_graph",
}


def prompt(tokens: int, vocabulary: int) -> list[int]:
    chance = random.Random(100 + tokens)
    return [chance.randrange(10, vocabulary) for _ in range(tokens)]


def flags_of(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags by this release's names."""
    server_args = importlib.import_module("sglang.srt.server_args").ServerArgs
    known = {field.name for field in dataclasses.fields(server_args)}
    named = {k if k in known else RENAMED.get(k, k): v for k, v in flags.items()}
    unknown = sorted(set(named) - known)
    if unknown:
        print(f"ASK: without {unknown}, which this release does not know", flush=True)
    return {name: value for name, value in named.items() if name in known}


def answers(engine: Any, prompts: list[list[int]], tokens: int) -> list[dict[str, Any]]:
    outputs = engine.generate(
        input_ids=prompts,
        sampling_params={"temperature": 0.0, "max_new_tokens": tokens, "ignore_eos": True},
        return_logprob=True,
        logprob_start_len=0,
    )
    return [
        {
            "tokens": output["output_ids"],
            "prompt": [entry[0] for entry in output["meta_info"]["input_token_logprobs"]],
        }
        for output in outputs
    ]


def main() -> None:
    case = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    file = Path(sys.argv[2])
    start = time.time()
    sglang = importlib.import_module("sglang")
    engine = sglang.Engine(**flags_of(case["flags"]))
    print(f"ASK: ready after {time.time() - start:.0f} s", flush=True)
    prompts = [prompt(tokens, case["vocabulary"]) for tokens in case["lengths"]]
    result: dict[str, Any] = {
        "sglang": sglang.__version__,
        "seconds_to_start": round(time.time() - start, 1),
        "one_by_one": [answers(engine, [ids], case["new_tokens"])[0] for ids in prompts],
    }
    if case["together"]:
        result["together"] = answers(engine, prompts, case["new_tokens"])
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result), encoding="utf-8")
    part.rename(file)
    print("ASK: done", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
