"""What the wheels say about launches: their defaults, and what switches itself on. Read, not run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from wheels import fetch


_ARGUMENTS = "sglang/srt/server_args.py"
_GROUPS = "sglang/srt/arg_groups"
# Where fields of ServerArgs, and what is made of them, have stood.
_PLACES = (
    _ARGUMENTS,
    f"{_GROUPS}/overrides.py",
    f"{_GROUPS}/model_hook.py",
    *(
        f"{_GROUPS}/fields/{name}.py"
        for name in (
            "device", "disagg", "exec_", "lora", "memory", "mm", "model", "observability", "parallel",
            "schedule", "serving", "spec",
        )
    ),
)  # fmt: skip
# Those with layers that fuse, and what they import from each other.
_MODELS = (
    "bailing_moe", "bailing_moe_linear", "bailing_moe_v3", "deepseek_v2", "glm4_moe", "glm4_moe_lite",
    "glm4v_moe", "glm5_next", "gpt_oss", "interns1pro", "interns2preview", "kimi_k25", "kimi_vl",
    "laguna", "mellum", "mimo_v2", "mimo_v2_flash", "minimax_m2", "mistral_large_3", "nemotron_h",
    "nemotron_h_utils", "qwen2_moe", "qwen3_5", "qwen3_moe", "qwen3_next", "qwen3_omni_moe",
    "qwen3_vl_moe", "sdar_moe", "step3p5",
)  # fmt: skip
# Others with an architecture that patches/launches.toml names.
_MORE_MODELS = (
    "deepseek_v4", "falcon_h1", "granitemoehybrid", "interns1", "internvl", "jet_nemotron", "jet_vlm",
    "kimi_linear", "lfm2", "lfm2_moe", "lfm2_vl", "nano_nemotron_vl", "pixtral", "qwen4_exp",
)  # fmt: skip
LEAVES_ALLREDUCE = "should_fuse_mlp_allreduce_with_next_layer"


@lru_cache(maxsize=200)
def _parsed(text: str) -> ast.Module:
    """What several functions look at, releases after each other."""
    return ast.parse(text)


@cache
def texts(release: str, names: tuple[str, ...] = _PLACES) -> dict[str, str]:
    """Those of the files that the release has, by their names."""
    folder = fetch(release, names)
    there = {name: folder / name for name in names if (folder / name).is_file()}
    return {name: file.read_text("utf-8-sig") for name, file in there.items()}


@cache
def defaults(release: str) -> dict[str, object]:
    """The fields of ServerArgs whose default is written out."""
    found: dict[str, object] = {}
    for text in texts(release).values():
        for node in ast.walk(_parsed(text)):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                value = node.value
                if isinstance(value, ast.Constant):
                    found.setdefault(node.target.id, value.value)
    return found


@dataclass(frozen=True)
class Automatic:
    """One place where fusion switches itself on: for which architectures, and asking for what."""

    architectures: frozenset[str]
    machines: frozenset[str]
    asks: frozenset[str]


# What stands in the tests around the switch, and what it is called in patches/launches.toml. Empty:
# that it is not on already, or what no architecture of the list has to do with.
_ASKS = {
    "not enable_dp_attention": "not enable_dp_attention",
    "not attn_dp_enabled_of(view)": "not enable_dp_attention",
    "tp_size > 1": "tp_size > 1",
    "nnodes == 1": "nnodes == 1",
    "nnodes == 1 or is_sm100_supported()": 'nnodes == 1 or machine == "Blackwell"',
    "nnodes == 1 or get_platform().is_sm100": 'nnodes == 1 or machine == "Blackwell"',
    "attn_cp_size <= 1": "attn_cp_size == 1",
    "moe_a2a_backend == 'none'": 'moe_a2a_backend == "none"',
    "not enable_flashinfer_allreduce_fusion": "",
    "flashinfer_allreduce_fusion_backend is None": "",
    "is_cuda()": "",
    "not is_deepseek_nsa(hf_config)": "",  # which are of another architecture
    "not prefer_custom_dsv41": "",  # no published release of that model, and one size of it
    "not is_h20_device": "",  # looked at below
}
_MACHINES = {
    "is_sm90": {"Hopper", "H20"},
    "is_sm100": {"Blackwell"},
    "is_blackwell": {"Blackwell", "sm120"},
}
_H20 = "not is_h20_device"


@cache
def automatic(release: str) -> tuple[Automatic, ...]:
    """Every place in the release that switches FlashInfer's fusion on by itself."""
    found = []
    for text in texts(release).values():
        tree = _parsed(text)
        names = {
            node.targets[0].id: _words(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for tests in _switches(tree, ()):
            atoms = [atom for test in tests for atom in _atoms(test)]
            listed = [atom for atom in atoms if "model_arch in" in ast.unparse(atom)]
            if listed:
                found.append(_automatic(atoms, listed, names))
    return tuple(found)


def _switches(node: ast.AST, tests: tuple[ast.expr, ...]) -> Iterator[tuple[ast.expr, ...]]:
    """Yield the tests around each statement that switches it on."""
    if isinstance(node, ast.If):
        for inside in node.body:
            yield from _switches(inside, (*tests, node.test))
        for beside in node.orelse:
            yield from _switches(beside, tests)
        return
    if isinstance(node, ast.Assign | ast.Return) and _switches_on(node):
        yield tests
    for child in ast.iter_child_nodes(node):
        yield from _switches(child, tests)


def _switches_on(node: ast.Assign | ast.Return) -> bool:
    if isinstance(node, ast.Assign):
        name, value = ast.unparse(node.targets[0]), ast.unparse(node.value)
        return name.startswith("self.") and (
            (name.endswith(".enable_flashinfer_allreduce_fusion") and value == "True")
            or (name.endswith(".flashinfer_allreduce_fusion_backend") and value == "'auto'")
        )
    if not isinstance(node.value, ast.Dict):
        return False
    pairs = zip(node.value.keys, node.value.values, strict=True)
    return any(
        key is not None
        and ast.unparse(key) == "'flashinfer_allreduce_fusion_backend'"
        and ast.unparse(value) != "None"
        for key, value in pairs
    )


def _atoms(test: ast.expr) -> list[ast.expr]:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return [atom for value in test.values for atom in _atoms(value)]
    return [test]


def _words(node: ast.AST) -> frozenset[str]:
    constants = (one for one in ast.walk(node) if isinstance(one, ast.Constant))
    return frozenset(one.value for one in constants if isinstance(one.value, str))


def _automatic(
    atoms: list[ast.expr], listed: list[ast.expr], names: dict[str, frozenset[str]]
) -> Automatic:
    architectures: set[str] = set()
    for atom in listed:
        inside = [one.id for one in ast.walk(atom) if isinstance(one, ast.Name)]
        named = [names[name] for name in inside if name in names]
        architectures |= _words(atom).union(*named)
    machines: set[str] = set()
    asks: set[str] = set()
    others = {
        ast.unparse(atom).replace("self.", "").replace("view.", "")
        for atom in atoms
        if atom not in listed
    }
    for text in others:
        platforms = {word for word in _MACHINES if word in text}
        if platforms and "nnodes" not in text:
            machines |= set().union(*(_MACHINES[word] for word in platforms))
        else:
            asks.add(_ASKS[text])
    if _H20 in others:
        machines.discard("H20")
    return Automatic(frozenset(architectures), frozenset(machines), frozenset(asks - {""}))


@cache
def leaving(release: str) -> frozenset[str]:
    """Architectures whose file, or one that it builds on, has layers that leave their all-reduce."""
    return built_with(release, LEAVES_ALLREDUCE)


@cache
def built_with(release: str, word: str) -> frozenset[str]:
    """Architectures whose file, or one that it builds on, has the word."""
    files = models(release)
    trees = {name: _parsed(text) for name, text in files.items() if name in _MODELS}
    having = {name for name, text in files.items() if word in text}

    def has(name: str, seen: frozenset[str]) -> bool:
        if name in having or name in seen or name not in trees:
            return name in having
        built_on = {
            (node.module or "").rpartition(".")[2]
            for node in ast.walk(trees[name])
            if isinstance(node, ast.ImportFrom)
        }
        return any(has(other, seen | {name}) for other in built_on)

    return frozenset(
        one.id
        for name, tree in trees.items()
        if has(name, frozenset())
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EntryClass"
        for one in ast.walk(node.value)
        if isinstance(one, ast.Name)
    )


@cache
def models(release: str) -> dict[str, str]:
    """The files of models that are looked at, as far as the release has them."""
    names = {f"sglang/srt/models/{name}.py": name for name in (*_MODELS, *_MORE_MODELS)}
    return {names[file]: text for file, text in texts(release, tuple(names)).items()}


@cache
def spanning(release: str) -> frozenset[str]:
    """The all-to-all back-ends that make the expert-parallel size the tensor-parallel size."""
    found: set[str] = set()
    for text in texts(release).values():
        for node in ast.walk(_parsed(text)):
            if isinstance(node, ast.Assign) and "EP_SPANNING" in ast.unparse(node.targets[0]):
                found |= _words(node.value)
            if (
                isinstance(node, ast.If)
                and "moe_a2a_backend ==" in ast.unparse(node.test)
                and "self.ep_size = self.tp_size" in [ast.unparse(one) for one in node.body]
            ):
                found |= _words(node.test)
    return frozenset(found)
