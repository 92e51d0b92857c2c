"""Which models leave their reduction to ``LayerCommunicator`` when it promises to reduce.

``LayerCommunicator.should_use_reduce_scatter`` answers yes for models that are built with
``allow_reduce_scatter=True``. Such a model's MLP and MoE blocks must then leave their all-reduce
out on every path. This reads the models of the published releases, says for each decoder layer
whether they do, and writes that to ``patches/22642-dp-reduce-scatterv/models.json``::

    python tools/reduction_contract.py
    python tools/reduction_contract.py --check    # change nothing, fail if it is not current

The decoder layer's ``forward`` is followed from ``prepare_mlp`` on, with
``should_use_reduce_scatter`` answering yes: into the blocks that its ``__init__`` can build, along
every branch that is not known to be dead, for reductions that are reached. Nothing of sglang is
imported.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import re
import sys
from dataclasses import dataclass, field
from itertools import groupby, product
from typing import TYPE_CHECKING, Any, ClassVar

from fingerprints import PATCHES, wanted_files
from generated import bring_up_to_date, read_register
from packaging.specifiers import SpecifierSet
from wheels import fetch

from sglang_commfix.engine.fingerprint import fingerprint, suites
from sglang_commfix.engine.source import Source


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

MODELS = "sglang/srt/models/"
OUTCOME = PATCHES / "22642-dp-reduce-scatterv" / "models.json"
RELEASES = SpecifierSet(">=0.5.1,<0.5.11")

Function = ast.FunctionDef | ast.AsyncFunctionDef

# What is so in every step that is concerned: DP attention on CUDA, MoE blocks that are split over
# the ranks by expert parallelism, no all-to-all back-end, hidden states of all ranks in one buffer.
_KNOWN: tuple[tuple[str, bool], ...] = (
    (r"_is_(npu|hip|xpu|hpu|musa|cpu)|_use_aiter|_is_cpu_amx_available", False),
    (r"_is_cuda", True),
    (r"use_intel_amx_backend\(.*\)", False),
    (r"get_moe_a2a_backend\(\)\.is_none\(\)", True),
    (r"get_moe_a2a_backend\(\)\.is_\w+\(\)", False),
    (r"should_use_flashinfer_cutlass_moe_fp4_allgather\(\)", False),
    (r"is_dp_attention_enabled\(\)", True),
    (r"enable_moe_dense_fully_dp\(\)", False),
)
_PROMISE = re.compile(r"[\w.]+\.should_use_reduce_scatter\([\w.]+\)")
_REDUCES = re.compile(r"\w*(all_?reduce|reduce_scatter)\w*")
_ASKS = re.compile(r"should_\w+|is_\w+|\w*_enabled")
_LINEAR = "RowParallelLinear"
_EXPERTS = "experts"
_EXPERT_LAYER = re.compile(r"get_moe_impl_class|\w*MoE")
_COMMUNICATOR = re.compile(r"\w*LayerCommunicator")
# Modules of sglang's layers, called between prepare_mlp and postprocess_layer, that reduce nothing.
_LOCAL = re.compile(
    r"LayerCommunicator|(Replicated|ColumnParallel|MergedColumnParallel|QKVParallel)Linear|\w*TopK|\w*RMSNorm"
    r"|(Silu|Gelu|ReLU2?|Quick\w+)\w*|get_act_fn|Linear|Sigmoid|MoEGate|\w*Gate|\w*Router"
)


class _Unknown:
    """A value that the source does not tell."""


UNKNOWN = _Unknown()


@dataclass(frozen=True)
class _Made:
    """An object that an ``__init__`` builds: a class that is known by name, and its arguments."""

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass
class _Object:
    """An instance of a class of a model file, and what its attributes may hold."""

    kind: _Class
    attributes: dict[str, list[object]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Class:
    module: _Module
    node: ast.ClassDef

    @property
    def name(self) -> str:
        return f"{self.module.name}.{self.node.name}"

    def bases(self) -> Iterator[_Class]:
        """Yield the class and those of model files that it inherits from, nearest first."""
        yield self
        for base in self.node.bases:
            # A class may carry the name of the one it inherits from, out of another file.
            found = self.module.find(ast.unparse(base), other_than=self.node)
            if isinstance(found, _Class):
                yield from found.bases()

    def method(self, name: str, *, behind: _Class | None = None) -> _Code | None:
        """Find a method; with ``behind``, what ``super()`` means in that class."""
        kinds = list(self.bases())
        if behind is not None:
            kinds = kinds[kinds.index(behind) + 1 :]
        for kind in kinds:
            for node in kind.node.body:
                if isinstance(node, Function) and node.name == name:
                    return _Code(kind.module, node, kind)
        return None


class _Module:
    """A file of ``sglang/srt/models``."""

    def __init__(self, release: Release, name: str, tree: ast.Module) -> None:
        self.release = release
        self.name = name
        self._names: dict[str, ast.ClassDef | Function | tuple[str, str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "sglang.srt.models."
            ):
                file = (node.module or "").removeprefix("sglang.srt.models.")
                for alias in node.names:
                    self._names[alias.asname or alias.name] = (file, alias.name)
        self.classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        self._imported = dict(self._names)
        for definition in tree.body:
            if isinstance(definition, ast.ClassDef | Function):
                self._names[definition.name] = definition

    def find(self, name: str, *, other_than: ast.ClassDef | None = None) -> _Class | _Code | None:
        """Find a class or function by name, in this file or where it is imported from."""
        node = self._names.get(name)
        if node is other_than:
            node = self._imported.get(name)
        if isinstance(node, ast.ClassDef):
            return _Class(self, node)
        if isinstance(node, Function):
            return _Code(self, node)
        if node is not None and (module := self.release.module(node[0])) is not None:
            return module.find(node[1])
        return None


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


class Release:
    """The models of one release."""

    def __init__(self, folder: Path, texts: Mapping[str, str]) -> None:
        self._folder = folder / MODELS
        self._texts = texts
        self._modules: dict[str, _Module | None] = {}

    def module(self, name: str) -> _Module | None:
        """Return a model file, by its name below ``sglang.srt.models``."""
        if name not in self._modules:
            file = self._folder / f"{name.replace('.', '/')}.py"
            text = self._texts.get(name)
            if text is None and file.is_file():
                text = Source.read(file).text
            self._modules[name] = None if text is None else _Module(self, name, _parsed(text))
        return self._modules[name]

    def layers(self) -> Iterator[_Class]:
        """Yield every class whose ``__init__``, or a base's, builds a LayerCommunicator."""
        names = [
            ".".join(file.relative_to(self._folder).with_suffix("").parts)
            for file in sorted(self._folder.rglob("*.py"))
            if _mentions_layer(file.read_text(encoding="utf-8"))
        ]
        for module in filter(None, map(self.module, names)):
            for node in module.classes:
                kind = _Class(module, node)
                init = kind.method("__init__")
                if init is not None and any(
                    isinstance(call, ast.Call) and _COMMUNICATOR.fullmatch(_name(call.func))
                    for base in kind.bases()
                    for call in ast.walk(base.node)
                ):
                    yield kind


def _mentions_layer(text: str) -> bool:
    return (
        "LayerCommunicator" in text or re.search(r"class \w+\(\w*DecoderLayer\)", text) is not None
    )


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


@dataclass
class Findings:
    """What following one decoder layer has met.

    Attributes:
        promised: what ``should_use_reduce_scatter`` answers on the way.
        asks: whether it is asked at all.
        reductions: ``Class.method: call`` of every reduction that is reached.
        unclear: calls of which the source does not tell whether they reduce.
        scopes: fingerprint of every function that was followed.

    """

    promised: bool = True
    asks: bool = False
    reductions: set[str] = field(default_factory=set)
    unclear: set[str] = field(default_factory=set)
    scopes: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """``honours``, ``ignores``, or ``unclear``."""
        if self.reductions:
            return "ignores"
        return "unclear" if self.unclear else "honours"


@dataclass(frozen=True)
class _Code:
    """A function, where it stands, and the class that it is a method of."""

    module: _Module
    function: Function
    kind: _Class | None = None

    @property
    def name(self) -> str:
        owner = self.module.name if self.kind is None else self.kind.name
        return f"{owner}.{self.function.name}"

    def bind(self, given: _Given) -> dict[str, object]:
        """Bind a call's arguments to names, with the defaults that the source tells."""
        own = self.function.args
        decorators = map(_name, self.function.decorator_list)
        bare = self.kind is None or "staticmethod" in decorators
        names = [argument.arg for argument in [*own.posonlyargs, *own.args]][0 if bare else 1 :]
        bound: dict[str, object] = dict.fromkeys(names, UNKNOWN)
        defaulted = names[len(names) - len(own.defaults) :]
        keyword_only = [argument.arg for argument in own.kwonlyargs]
        for name, default in zip(
            [*defaulted, *keyword_only], [*own.defaults, *own.kw_defaults], strict=True
        ):
            bound[name] = default.value if isinstance(default, ast.Constant) else UNKNOWN
        bound.update(zip(names, given.arguments, strict=False))
        bound.update({name: value for name, value in given.keywords.items() if name in bound})
        return bound

    def bind_unknown(self) -> dict[str, object]:
        """Bind every name to what is not known."""
        return dict.fromkeys(self.bind(_Given()), UNKNOWN)


@dataclass(frozen=True)
class _Given:
    """The arguments of a call."""

    arguments: Sequence[object] = ()
    keywords: Mapping[str, object] = field(default_factory=dict)


class _Run:
    """Follows one function, with ``own`` for ``self``; ``armed`` from ``prepare_mlp`` on."""

    def __init__(
        self,
        own: _Object | None,
        code: _Code,
        names: dict[str, object],
        findings: Findings,
        *,
        armed: bool = False,
        depth: int = 0,
    ) -> None:
        self.own = own
        self.code = code
        self.names = names
        self.findings = findings
        self.armed = armed
        self.depth = depth

    def follow(self) -> None:
        """Follow the function to its ends."""
        if self.armed or self.code.function.name == "forward":
            self.findings.scopes[self.code.name] = fingerprint(self.code.function)
        self.suite(self.code.function.body)

    # Statements. Each tells whether what stands behind it can be reached.

    def suite(self, body: Sequence[ast.stmt]) -> bool:
        return all(self.statement(node) for node in body)

    def statement(self, node: ast.stmt) -> bool:
        if isinstance(node, ast.If):
            return self.branch(node)
        if isinstance(node, Function):
            # A hook, called from wherever it is handed to.
            self.suite(node.body)
            return True
        if isinstance(node, ast.Assign | ast.AnnAssign):
            self.assign(node)
            return True
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child)
            elif isinstance(child, ast.withitem):
                self.value(child.context_expr)
        if isinstance(node, ast.With):
            return self.suite(node.body)
        for body in suites(node):
            self.suite(body)
        return not isinstance(node, ast.Return | ast.Raise)

    def branch(self, node: ast.If) -> bool:
        condition = self.value(node.test)
        if condition is not UNKNOWN:
            return self.suite(node.body if condition else node.orelse)
        before = dict(self.names)
        first = self.suite(node.body)
        after, self.names = self.names, before
        second = self.suite(node.orelse)
        if first and second:
            both = {**after, **self.names}
            self.names = {
                name: value if after.get(name, UNKNOWN) is self.names.get(name) else UNKNOWN
                for name, value in both.items()
            }
        elif first:
            self.names = after
        return first or second

    def assign(self, node: ast.Assign | ast.AnnAssign) -> None:
        if node.value is None:
            return
        value = self.value(node.value)
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            self.bind(target, value)

    def bind(self, target: ast.expr, value: object) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            for element in target.elts:
                self.bind(element, UNKNOWN)
        elif _is_own(target) and self.own is not None:
            self.own.attributes.setdefault(_name(target), []).append(value)

    # Expressions

    def value(self, node: ast.expr) -> object:
        """Evaluate, following the calls inside; UNKNOWN where the source does not tell."""
        text = ast.unparse(node)
        if _PROMISE.fullmatch(text):
            self.findings.asks = True
            return self.findings.promised
        for pattern, known in _KNOWN:
            if re.fullmatch(pattern, text):
                return known
        evaluate = self._evaluations.get(type(node))
        if evaluate is not None:
            return evaluate(self, node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child)
        return UNKNOWN

    def constant(self, node: ast.Constant) -> object:
        return node.value

    def local(self, node: ast.Name) -> object:
        return self.names.get(node.id, UNKNOWN)

    def boolean(self, node: ast.BoolOp) -> object:
        decisive = isinstance(node.op, ast.Or)
        values: list[object] = []
        for operand in node.values:
            value = self.value(operand)
            if value is not UNKNOWN and bool(value) == decisive:
                return decisive
            values.append(value)
        return UNKNOWN if UNKNOWN in values else not decisive

    def unary(self, node: ast.UnaryOp) -> object:
        operand = self.value(node.operand)
        return not operand if isinstance(node.op, ast.Not) and operand is not UNKNOWN else UNKNOWN

    def conditional(self, node: ast.IfExp) -> object:
        condition = self.value(node.test)
        if condition is UNKNOWN:
            self.value(node.body), self.value(node.orelse)
            return UNKNOWN
        return self.value(node.body if condition else node.orelse)

    def attribute(self, node: ast.Attribute) -> object:
        if not _is_own(node) or self.own is None:
            self.value(node.value)
            return UNKNOWN
        values = self.own.attributes.get(node.attr, [UNKNOWN])
        return values[0] if len(values) == 1 else UNKNOWN

    # Calls

    def call(self, node: ast.Call) -> object:
        given = _Given(
            [self.value(argument) for argument in node.args],
            {k.arg: self.value(k.value) for k in node.keywords if k.arg is not None},
        )
        name = _name(node.func)
        if name == "isinstance":
            return self.is_instance(node)
        self.armed |= name == "prepare_mlp"
        if _is_own(node.func):
            return self.own_call(name, given)
        if isinstance(node.func, ast.Attribute) and _is_super(node.func.value):
            return self.method(name, given, behind=self.code.kind)
        if (made := self.made(name, node, given)) is not None:
            return made
        if self.armed and _REDUCES.fullmatch(name) and not _ASKS.fullmatch(name):
            self.findings.reductions.add(f"{self.code.name}: {name}")
        # What an __init__ builds is kept by its name: it may be called later.
        return _Made(name) if self.code.function.name == "__init__" and name else UNKNOWN

    def made(self, name: str, node: ast.Call, given: _Given) -> object:
        """Build what is called, or follow it, if it is known."""
        callee = self.value(node.func)
        if isinstance(callee, _Made) and callee.name == _EXPERTS:
            return _Made(_EXPERTS, given.keywords)
        if _COMMUNICATOR.fullmatch(name):
            return _Made("LayerCommunicator", given.keywords)
        if name == _LINEAR:
            return _Made(_LINEAR, given.keywords)
        found = self.code.module.find(name) if isinstance(node.func, ast.Name) else None
        if isinstance(found, _Class):
            return self.build(found, given)
        if found is not None:
            return self.enter(None, found, given)
        return _Made(_EXPERTS, given.keywords) if _EXPERT_LAYER.fullmatch(name) else None

    def own_call(self, name: str, given: _Given) -> object:
        """Call an attribute: a method, or one of the modules that ``__init__`` may have built."""
        values = self.own.attributes.get(name, []) if self.own is not None else []
        if not values:
            return self.method(name, given)
        for value in values if self.armed else []:
            if value is None:
                continue
            if isinstance(value, _Object):
                if (code := value.kind.method("forward")) is not None:
                    self.enter(value, code, given)
            elif isinstance(value, _Made) and value.name in (_LINEAR, _EXPERTS):
                self.reduces(name, value, given)
            elif not isinstance(value, _Made) or not _LOCAL.fullmatch(value.name):
                what = f" ({value.name})" if isinstance(value, _Made) else ""
                self.findings.unclear.add(f"{self.code.name}: {name}{what}")
        return UNKNOWN

    def reduces(self, name: str, layer: _Made, given: _Given) -> None:
        by_itself = layer.arguments.get("reduce_results", layer.name == _LINEAR)
        skips = layer.name == _LINEAR and given.keywords.get("skip_all_reduce", False) is True
        if by_itself is not False and not skips:
            self.findings.reductions.add(f"{self.code.name}: {name}")

    def method(self, name: str, given: _Given, behind: _Class | None = None) -> object:
        """Follow a method of the object itself."""
        code = None if self.own is None else self.own.kind.method(name, behind=behind)
        return UNKNOWN if code is None else self.enter(self.own, code, given)

    def enter(self, own: _Object | None, code: _Code, given: _Given) -> object:
        if self.depth < 30:
            run = _Run(
                own, code, code.bind(given), self.findings, armed=self.armed, depth=self.depth + 1
            )
            run.follow()
            self.armed |= run.armed
        return UNKNOWN

    def build(self, kind: _Class, given: _Given) -> _Object:
        made = _Object(kind)
        if (code := kind.method("__init__")) is not None:
            # What is only built is not run: it has findings of its own.
            _Run(made, code, code.bind(given), Findings(), depth=self.depth + 1).follow()
        return made

    def is_instance(self, node: ast.Call) -> object:
        subject, wanted = map(self.value, node.args[:1]), node.args[1]
        value = next(subject)
        if not isinstance(value, _Object):
            return UNKNOWN
        kinds = [base.node.name for base in value.kind.bases()]
        choices = wanted.elts if isinstance(wanted, ast.Tuple) else [wanted]
        return any(ast.unparse(one) in kinds for one in choices)

    _evaluations: ClassVar[Mapping[type[ast.expr], Callable[[_Run, Any], object]]] = {
        ast.Constant: constant,
        ast.Name: local,
        ast.BoolOp: boolean,
        ast.UnaryOp: unary,
        ast.IfExp: conditional,
        ast.Attribute: attribute,
        ast.Call: call,
    }


def _is_own(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _name(node.func) == "super"


def examine(kind: _Class) -> tuple[object, Findings]:
    """Return the value of ``allow_reduce_scatter`` in ``kind``, and what following it has met."""
    findings = Findings()
    layer = _Object(kind)
    init, forward = kind.method("__init__"), kind.method("forward")
    if init is not None:
        # Which layer it is, and whether it is a draft model's, is open: every branch counts.
        _Run(layer, init, init.bind_unknown(), Findings()).follow()
    allowed = {
        value.arguments.get("allow_reduce_scatter", False)
        for values in layer.attributes.values()
        for value in values
        if isinstance(value, _Made) and value.name == "LayerCommunicator"
    }
    if forward is None or len(allowed) != 1:
        findings.unclear.add(f"{kind.name}: no forward, or LayerCommunicators that differ")
        return UNKNOWN, findings
    blocks = {
        name: values
        for name, values in layer.attributes.items()
        if sum(isinstance(value, _Object) for value in values) > 1
    }
    for choice in product(*blocks.values()):
        chosen = {name: [value] for name, value in zip(blocks, choice, strict=True)}
        built = _Object(kind, {**layer.attributes, **chosen})
        _Run(built, forward, forward.bind_unknown(), findings).follow()
        # Without the promise, the same way must lead to a reduction, else it was not the way.
        control = Findings(promised=False)
        _Run(built, forward, forward.bind_unknown(), control).follow()
        if not control.reductions:
            findings.unclear.add(f"{kind.name}: nothing is reduced without the promise either")
    return allowed.pop(), findings


def contract_of(
    folder: Path, texts: Mapping[str, str] | None = None
) -> dict[str, dict[str, object]]:
    """Return for each decoder layer of the release in ``folder`` what it makes of the promise.

    ``texts`` stand in for files, by the module's name below ``sglang.srt.models``.
    """
    table: dict[str, dict[str, object]] = {}
    for kind in Release(folder, texts or {}).layers():
        allowed, findings = examine(kind)
        if allowed is False:
            table[kind.name] = {"verdict": "not promised"}
            continue
        entry: dict[str, object] = {"verdict": findings.verdict, "asks": findings.asks}
        for name in ("reductions", "unclear"):
            if found := sorted(getattr(findings, name)):
                entry[name] = found
        entry["scopes"] = dict(sorted(findings.scopes.items()))
        table[kind.name] = entry
    return table


def render(table: Mapping[str, Mapping[str, Mapping[str, object]]]) -> str:
    """Write the releases' tables as runs of releases in which a decoder layer is the same."""
    layers = sorted({layer for found in table.values() for layer in found})
    outcome: dict[str, list[dict[str, object]]] = {}
    for layer in layers:
        runs = []
        for value, group in groupby(table, key=lambda release: table[release].get(layer)):
            members = list(group)
            if value is not None:
                runs.append({"releases": [members[0], members[-1]], **value})
        outcome[layer] = runs
    return json.dumps(outcome, indent=1) + "\n"


def main() -> int:
    """Bring ``models.json`` up to date, or check it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if not current")
    arguments = parser.parse_args()
    patches = read_register(PATCHES, complete=False).patches
    known = json.loads((PATCHES / "releases.json").read_text(encoding="utf-8"))
    files = [*wanted_files(patches), MODELS]
    table = {
        release: contract_of(fetch(release, files))
        for release in known
        if RELEASES.contains(release, prereleases=True)
    }
    return bring_up_to_date({OUTCOME: render(table)}, check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
