"""How many draft tokens are accepted: `acceptance.py RELEASE FAMILY`, with the project's Python.

The target is one of the models of capture_ranks.py: its own loop, random weights, an embedding and a
head. Attention, which the rig replaces, gets a memory here: a fading sum over the tokens before, so
that the next token depends on all of them. One process lets it write text, and a draft is distilled
on the states captured there: like EAGLE-3's, one that takes three captured states of a token and the
token behind it, and goes on with what it has put out itself. Then two ranks read the text that the
target has written greedily, unpatched and patched; their captured states go to that draft, split over
the ranks as sglang splits it: each rank has half of its hidden units and of its vocabulary, and a
residual of its own.

The accepted tokens are counted as a server counts them: the target's own token, and as many of the
drafted ones as are the target's greedy choice.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1]

LAYERS = 5
CAPTURED = (1, 2, 3)
VOCABULARY = 32
STEPS = 3
"""Tokens that are drafted at once."""

SEQUENCES = 1024
LENGTH = 28
PROMPT = 8
MEMORY = float(os.environ.get("MEMORY", "0.5"))
SHARE = 0.6
"""Of what the MLPs of capture_ranks.py add: a target without any training is hard to foresee."""


# ---------------------------------------------------------------- in the rig's Python: the target


def speak(request: dict[str, Any], case: Any, number: int, rendezvous: str, _: str) -> Any:
    """Write text, or read what was written; save what the draft gets to see."""
    ranks: Any = importlib.import_module("capture_ranks")
    rank: Any = importlib.import_module("rig.layers.rank")
    torch: Any = importlib.import_module("torch")
    recorder: Any = importlib.import_module("rig.layers.collectives").Recorder()
    family = ranks.FAMILIES[request["family"]]
    config = {**family.config, "num_hidden_layers": LAYERS}
    config["layer_types"] = ["full_attention"] * LAYERS
    if "first_k_dense_replace" in config:
        config["first_k_dense_replace"] = 1 if request["family"] in ranks.DENSE_FIRST else 0
    rank.configure = lambda *_: config
    arguments = rank._start_runtime(case, number, rendezvous, request["checkpoint"], recorder)
    dense = config.get("first_k_dense_replace", 0)
    kinds = ["D" if layer < dense else "S" for layer in range(LAYERS)]
    weights = [ranks.layers.make_weights(config, kind, seed) for seed, kind in enumerate(kinds)]
    for own in weights:
        for name in [name for name in own if name.endswith("down")]:
            own[name] = own[name] * SHARE
    ranks.Attention.forward = attend_to_what_was_before
    model = ranks.build(family, config, weights)
    communicator: Any = importlib.import_module("sglang.srt.layers.communicator")
    if hasattr(communicator, "commfix_watch_captured_layers"):
        communicator.commfix_watch_captured_layers(model)
    ranks.set_layers_to_capture(family, model, list(CAPTURED))

    generator = torch.Generator().manual_seed(11)
    hidden = config["hidden_size"]
    embedding = torch.randn(VOCABULARY, hidden, generator=generator)
    head = torch.randn(VOCABULARY, hidden, generator=generator)
    given = torch.load(request["text"]) if request["text"] else None
    found: dict[str, Any] = {}
    for name, greedy in (("train", 0.8), ("test", 1.0)):
        if given is not None and name == "train":
            continue
        for layer in model.layers:
            attention = layer.self_attn if hasattr(layer, "self_attn") else layer.attention
            attention.before = 0.0
        text = torch.randint(VOCABULARY, (SEQUENCES, 1), generator=generator)
        states, choices = [], []
        for step in range(LENGTH):
            if given is not None:
                text = given[name]["text"][:, : step + 1]
            batch = rank._make_batch(case, 0, arguments)
            with torch.no_grad():
                output = rank._call(
                    model.forward,
                    input_ids=batch.input_ids,
                    positions=batch.positions,
                    forward_batch=batch,
                    input_embeds=embedding[text[:, -1]],
                )
            captured = output[-1]
            if not torch.is_tensor(captured):
                captured = torch.cat(list(captured), dim=-1)
            states.append(captured.clone())
            choices.append((output[0] @ head.T).argmax(-1))
            if given is None:
                other = torch.randint(VOCABULARY, (SEQUENCES,), generator=generator)
                sure = torch.rand(SEQUENCES, generator=generator) < greedy
                sure &= torch.tensor(step >= PROMPT)
                text = torch.cat((text, torch.where(sure, choices[-1], other)[:, None]), 1)
        found[name] = {
            "text": text,
            "states": torch.stack(states, 1),
            "choices": torch.stack(choices, 1),
        }
    torch.save(found, f"{request['out']}-{number}.pt")
    return importlib.import_module("rig.layers.case").RankReport()


def attend_to_what_was_before(self: Any, *_: Any, hidden_states: Any, **__: Any) -> Any:
    """As the rig's, of a fading sum over the tokens of each sequence."""
    topology: Any = importlib.import_module("rig.layers.topology")
    self.before = MEMORY * self.before + hidden_states
    size = hidden_states.shape[-1] // topology.attention_tp_size()
    own = slice(topology.attention_tp_rank() * size, (topology.attention_tp_rank() + 1) * size)
    return self.before[:, own] @ self.weight[own]


def speak_on_ranks(request: dict[str, Any]) -> None:
    sys.path[:0] = [str(HERE)]
    importlib.import_module("rig.shims.placeholders").register()
    forks: Any = importlib.import_module("rig.layers.forks")
    rank: Any = importlib.import_module("rig.layers.rank")
    case: Any = importlib.import_module("rig.layers.case")
    ranks: Any = importlib.import_module("capture_ranks")
    importlib.import_module(f"sglang.srt.models.{ranks.FAMILIES[request['family']].module}")
    rank.run = functools.partial(speak, request)
    forks._PATIENCE = 500.0
    reports = forks.run(
        case.Case(
            case.Layout(tp=request["tp"]), (SEQUENCES,), layers="S" * LAYERS, forward="decode",
            fusion=True,
        ),
        request["checkpoint"],
    )  # fmt: skip
    for report in reports:
        if report["error"]:
            raise SystemExit(report["error"])


# ---------------------------------------------------------------- in the rig's Python: the draft


def make_draft(torch: Any, hidden: int) -> Any:
    wide = 256

    class Draft(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.take = torch.nn.Linear(3 * hidden, hidden, bias=False)
            self.embedding = torch.nn.Embedding(VOCABULARY, hidden)
            self.up = torch.nn.ModuleList(torch.nn.Linear(2 * hidden, wide) for _ in range(2))
            self.down = torch.nn.ModuleList(
                torch.nn.Linear(wide, hidden, bias=False) for _ in range(2)
            )
            self.head = torch.nn.Linear(hidden, VOCABULARY, bias=False)

        def step(self, states: list[Any], token: Any) -> tuple[list[Any], Any]:
            """Of each rank: residual in, residual out; one rank or two."""
            given, share = self.embedding(token), wide // len(states)
            for up, down in zip(self.up, self.down, strict=True):
                total = 0
                for number, state in enumerate(states):
                    own = slice(number * share, (number + 1) * share)
                    pair = torch.cat((norm(state), given), -1)
                    inner = torch.nn.functional.silu(pair @ up.weight[own].T + up.bias[own])
                    total = total + inner @ down.weight[:, own].T
                states = [state + total for state in states]
            part = VOCABULARY // len(states)
            logits = [
                norm(state) @ self.head.weight[number * part : (number + 1) * part].T
                for number, state in enumerate(states)
            ]
            return states, torch.cat(logits, -1)

    def norm(x: Any) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    return Draft()


def distil(torch: Any, data: Any, updates: int) -> Any:
    """On what one process has captured; each step but the first takes the draft's own state."""
    torch.manual_seed(0)
    states, text, choices = data["states"], data["text"], data["choices"]
    draft = make_draft(torch, states.shape[-1] // 3)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=2e-3, weight_decay=0.01)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - update / updates)
        row = torch.randint(len(text), (512,))
        at = torch.randint(LENGTH - STEPS - 1, (512,))
        state, loss = [draft.take(states[row, at])], 0
        for step in range(1, STEPS + 1):
            state, logits = draft.step(state, text[row, at + step])
            loss = loss + torch.nn.functional.cross_entropy(logits, choices[row, at + step])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return draft


def accepted(torch: Any, draft: Any, by_rank: list[Any], text: Any) -> dict[str, float]:
    """Tokens for each pass of the target, and the share of first drafts that are accepted."""
    passes = tokens = first = 0
    at = torch.full((len(text),), PROMPT + 1)
    rows = torch.arange(len(text))
    with torch.no_grad():
        while bool((going := at + STEPS + 1 < LENGTH).any()):
            rows, at = rows[going], at[going]
            state = [draft.take(states[rows, at]) for states in by_rank]
            token, right = text[rows, at + 1], torch.ones(len(rows), dtype=torch.bool)
            count = torch.zeros(len(rows), dtype=torch.int64)
            for step in range(2, STEPS + 2):
                state, logits = draft.step(state, token)
                token = logits.argmax(-1)
                right = right & (token == text[rows, at + step])
                count += right
                if step == 2:
                    first += int(right.sum())
            passes, tokens = passes + len(rows), tokens + int(count.sum())
            at = at + count + 1
    return {"accept length": 1 + tokens / passes, "first accepted": first / passes}


def compare(request: dict[str, Any]) -> None:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(2)
    one = torch.load(request["one"])
    text = one["test"]["text"]
    draft = distil(torch, one["train"], request["updates"])
    say("one process", accepted(torch, draft, [one["test"]["states"]], text), 0.0, 1.0)
    for name, files in request["two"].items():
        ranks = [torch.load(file)["test"] for file in files]
        off = max(
            float((each["states"] - one["test"]["states"]).norm() / one["test"]["states"].norm())
            for each in ranks
        )
        same = float((ranks[0]["choices"] == one["test"]["choices"]).float().mean())
        say(name, accepted(torch, draft, [each["states"] for each in ranks], text), off, same)


def say(name: str, counts: dict[str, float], off: float, same: float) -> None:
    print(
        f"{name:24s} accept length {counts['accept length']:.2f}, first drafts accepted "
        f"{counts['first accepted']:.3f}; states off by {off:.2g}, same greedy tokens {same:.4f}",
        flush=True,
    )


# ---------------------------------------------------------------- outside


def main(release: str, family: str, updates: int) -> None:
    sys.path[:0] = [str(TESTS)]
    asking: Any = importlib.import_module("rig.asking")
    environments: Any = importlib.import_module("rig.environment")
    models: Any = importlib.import_module("rig.checkpoints")
    environment = environments.ensure([release])
    checkpoint = str(models.ensure_model("deepseek-v3", environment.models))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def inside(what: str, request: dict[str, Any], patches: str | None = None) -> None:
            (printed,) = asking.ask(
                release,
                Path(__file__),
                {"what": what, "request": request},
                environment=environment,
                patches=patches,
                variables={"OMP_NUM_THREADS": "2"},
                patience=3600,
            )
            print(printed, end="", flush=True)

        common = {"family": family, "checkpoint": checkpoint}
        inside("speak", {**common, "tp": 1, "text": None, "out": str(folder / "one")})
        text, two = str(folder / "one-0.pt"), {}
        for title, patches in (("two ranks, unpatched", None), ("two ranks, patched", "1")):
            out = str(folder / f"two-{patches}")
            inside("speak", {**common, "tp": 2, "text": text, "out": out}, patches)
            two[title] = [f"{out}-{rank}.pt" for rank in (0, 1)]
        print(f"sglang {release}, {family}: {STEPS} tokens drafted at once", flush=True)
        inside("compare", {"one": text, "two": two, "updates": updates})


def asked(question: dict[str, Any]) -> str:
    """Do what is asked for, in the rig's Python, and return what it has to say."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        {"speak": speak_on_ranks, "compare": compare}[question["what"]](question["request"])
    return printed.getvalue()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1], sys.argv[2], int(os.environ.get("UPDATES", "600")))
    else:
        importlib.import_module("rig.answering").answer(asked)
