"""When a launch meets a fault: conditions as data, and what they answer.

An entry's ``[[meets]]`` tables, and the facts of ``patches/launches.toml`` that they share. Nothing
here looks at an installed sglang, a model or a GPU: a :class:`Launch` says what is known of them,
and what is not said is not known.
"""

from __future__ import annotations

import ast
import enum
import operator
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from packaging.specifiers import SpecifierSet

from sglang_commfix.check import misshapen


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

Value: TypeAlias = bool | int | str | None


class Unknown(enum.Enum):
    """What stands for a value that is not known."""

    UNKNOWN = "unknown"


UNKNOWN: Literal[Unknown.UNKNOWN] = Unknown.UNKNOWN


class Answer(enum.IntEnum):
    """What is known of a condition, or of several: all of them have the least, any the greatest.

    Knowing more changes ``UNKNOWN`` into anything, ``MAY`` into ``MEETS`` alone, and the two ends
    into nothing else.
    """

    NOT = 0
    UNKNOWN = 1
    MAY = 2
    """All that a launch can tell holds, and the rest is seen in the running server alone."""

    MEETS = 3

    def __str__(self) -> str:
        words = ("does not meet", "cannot tell from this", "may meet", "meets")
        return words[self]

    @classmethod
    def of(cls, truth: object) -> Answer:
        """Return the answer of something that is known."""
        return cls.MEETS if truth else cls.NOT


class WhenTable(TypedDict, total=False):
    """What a launch is to be. All of it has to hold."""

    releases: str
    architectures: list[str]
    other_than: list[str]
    config: list[str]
    flags: list[str]
    machines: list[str]
    also: str


class _FactTable(TypedDict):
    id: str
    says: str
    when: list[WhenTable]


class _FactsTable(TypedDict):
    """``patches/launches.toml``, which says what each key is for."""

    defaults: dict[str, bool | int | str]
    unset: list[str]
    automatic: list[str]
    variables: list[str]
    config: list[str]
    machines: list[str]
    architectures: dict[str, str]
    families: dict[str, list[str]]
    fact: list[_FactTable]


@dataclass(frozen=True)
class Launch:
    """What is known of a server that is started.

    Attributes:
        release: of sglang.
        flags: by the names of sglang's ServerArgs, and by those of environment variables. What is
            missing is not known.
        architecture: the first of ``architectures`` in the model's ``config.json``.
        config: that file.
        machine: one of ``machines`` in ``patches/launches.toml``.

    """

    release: str | None
    flags: Mapping[str, Value]
    architecture: str | None
    config: Mapping[str, Any] | None
    machine: str | None

    def look(self, name: str) -> Value | Unknown:
        """Return the value of a flag, or of what sglang makes of several."""
        derived = _DERIVED.get(name)
        return self.flags.get(name, UNKNOWN) if derived is None else derived(self)

    def look_into_config(self, name: str) -> Value | Unknown:
        """Return a value of the model's config: of its text model, where it has one inside."""
        if self.config is None:
            return UNKNOWN
        inner = (self.config.get(key) for key in ("text_config", "llm_config", "language_config"))
        for config in (*(one for one in inner if isinstance(one, dict)), self.config):
            if name in config:
                value: Value = config[name]
                return value
        return None


def _attention_dp(launch: Launch) -> Value | Unknown:
    """Return how many groups of ranks have requests of their own; 1 without DP attention."""
    wanted, size = launch.look("enable_dp_attention"), launch.look("dp_size")
    if wanted is False or size == 1:
        return 1
    return UNKNOWN if UNKNOWN in {wanted, size} else size


def _quotient(launch: Launch, *names: str) -> Value | Unknown:
    sizes = [launch.look(name) for name in names]
    whole = [size for size in sizes if isinstance(size, int) and size > 0]
    return reduce(operator.floordiv, whole) if len(whole) == len(sizes) else UNKNOWN


def _expert_parallel(launch: Launch) -> Value | Unknown:
    """Return the expert-parallel size: all-to-alls but one make it the tensor-parallel size."""
    back_end, said = launch.look("moe_a2a_backend"), launch.flags.get("ep_size", UNKNOWN)
    if back_end in {"none", "ascend_tp"}:
        return said
    everyone = launch.look("tp_size")
    return everyone if back_end is not UNKNOWN or said == everyone else UNKNOWN


_DERIVED: dict[str, Callable[[Launch], Value | Unknown]] = {
    "attn_dp_size": _attention_dp,
    "attn_tp_size": lambda launch: _quotient(launch, "tp_size", "attn_dp_size", "attn_cp_size"),
    "ep_size": _expert_parallel,
    "machine": lambda launch: UNKNOWN if launch.machine is None else launch.machine,
    "request_pool": lambda launch: _quotient(launch, "max_running_requests", "attn_dp_size"),
}
_CALLED = {
    "attn_dp_size": "attention-DP size",
    "attn_tp_size": "attention-TP size",
    "machine": "machine",
    "request_pool": "request pool",
}


@dataclass(frozen=True)
class Constant:
    """A number, a word, ``True``, ``False`` or ``None``."""

    value: Value

    def of(self, _launch: Launch) -> Value | Unknown:
        """Return what it is in a launch."""
        return self.value

    def __str__(self) -> str:
        return f"`{self.value}`" if isinstance(self.value, str) else str(self.value)


@dataclass(frozen=True)
class Name:
    """A flag, a variable, or what sglang makes of several flags; or a value of the config."""

    name: str
    in_config: bool = False

    def of(self, launch: Launch) -> Value | Unknown:
        """Return what it is in a launch."""
        return (launch.look_into_config if self.in_config else launch.look)(self.name)

    @property
    def flag(self) -> str | None:
        """The launch flag, if it is one."""
        other = self.in_config or self.name in _CALLED or self.name.isupper()
        return None if other else f"--{self.name.replace('_', '-')}"

    def __str__(self) -> str:
        return _CALLED.get(self.name) or f"`{self.flag or self.name}`"


@dataclass(frozen=True)
class Remainder:
    """``left % right``."""

    left: Constant | Name
    right: Constant | Name

    def of(self, launch: Launch) -> Value | Unknown:
        """Return what it is in a launch."""
        left, right = self.left.of(launch), self.right.of(launch)
        if isinstance(left, int) and isinstance(right, int) and right > 0:
            return left % right
        return UNKNOWN

    def __str__(self) -> str:
        return f"{self.left} % {self.right}"


Operand: TypeAlias = Constant | Name | Remainder

_OPERATORS: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Eq: ("=", operator.eq),
    ast.NotEq: ("≠", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("≤", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: ("≥", operator.ge),
}
_OF = dict(_OPERATORS.values())


@dataclass(frozen=True)
class Comparison:
    """``a == b == c > 1``. Nothing is above or below what is no number: a flag that is not set."""

    operands: tuple[Operand, ...]
    signs: tuple[str, ...]

    def answer(self, launch: Launch) -> Answer:
        """Return what is known of it."""
        values = [operand.of(launch) for operand in self.operands]
        pairs = zip(values, self.signs, values[1:], strict=False)
        return min(self._pair(left, sign, right) for left, sign, right in pairs)

    @staticmethod
    def _pair(left: Value | Unknown, sign: str, right: Value | Unknown) -> Answer:
        if left is UNKNOWN or right is UNKNOWN:
            return Answer.UNKNOWN
        numbers = isinstance(left, int) and isinstance(right, int)
        return Answer.of((numbers or sign in "=≠") and _OF[sign](left, right))

    def __str__(self) -> str:
        left, right = self.operands[0], self.operands[1]
        if left == Name("machine") and self.signs == ("=",) and isinstance(right, Constant):
            return f"on {right.value}"
        if self.signs == ("=",) and isinstance(left, Name) and left.flag:
            said = f"`{left.flag} {right.value}`" if isinstance(right, Constant) else ""
            return said or f"{left} = {right}"
        rest = zip(self.signs, self.operands[1:], strict=True)
        return f"{left}{''.join(f' {sign} {operand}' for sign, operand in rest)}"


@dataclass(frozen=True)
class Membership:
    """``name in ("a", "b")``."""

    operand: Operand
    values: tuple[Value, ...]

    def answer(self, launch: Launch) -> Answer:
        """Return what is known of it."""
        value = self.operand.of(launch)
        return Answer.UNKNOWN if value is UNKNOWN else Answer.of(value in self.values)

    def __str__(self) -> str:
        *most, last = (f"`{value}`" for value in self.values)
        return f"{self.operand} {', '.join(most)} or {last}" if most else f"{self.operand} {last}"


@dataclass(frozen=True)
class Truth:
    """A name by itself: whether it is set."""

    operand: Operand

    def answer(self, launch: Launch) -> Answer:
        """Return what is known of it."""
        value = self.operand.of(launch)
        return Answer.UNKNOWN if value is UNKNOWN else Answer.of(value)

    def __str__(self) -> str:
        return str(self.operand)


@dataclass(frozen=True)
class Negation:
    """``not a``."""

    inner: Logic

    def answer(self, launch: Launch) -> Answer:
        """Return what is known of it."""
        inner = self.inner.answer(launch)
        if inner in {Answer.MEETS, Answer.NOT}:
            return Answer.of(inner is Answer.NOT)
        return Answer.UNKNOWN

    def __str__(self) -> str:
        return f"no {self.inner}" if isinstance(self.inner, Truth | Fact) else f"not: {self.inner}"


@dataclass(frozen=True)
class Several:
    """``a or b``, and where every one has to hold, ``a and b``."""

    inner: tuple[Logic, ...]
    every: bool

    def answer(self, launch: Launch) -> Answer:
        """Return what is known of it."""
        return (min if self.every else max)(one.answer(launch) for one in self.inner)

    def __str__(self) -> str:
        if self.every:
            return " and ".join(map(str, self.inner))
        return "either " + ", or ".join(map(str, self.inner))


@dataclass(frozen=True)
class Fact:
    """What several entries have to do with: one of its conditions has to hold."""

    id: str
    says: str
    when: tuple[Condition, ...]

    def answer(self, launch: Launch) -> Answer:
        """Return what is known of it."""
        return judge(self.when, launch)

    def __str__(self) -> str:
        return self.says


Logic: TypeAlias = Comparison | Membership | Truth | Negation | Several | Fact


@dataclass(frozen=True)
class Condition:
    """What a launch has to be: a ``[[meets]]`` table, or one of those of a fact.

    Attributes:
        releases: empty for all. An entry's ``affected`` counts besides.
        architectures: names of architectures and families; empty for all.
        other_than: the same, of those that are not meant.
        config: of the model.
        flags: how it is launched.
        machines: empty for all.
        also: what no launch can tell; empty for nothing.
        classes: what the names of architectures stand for.
        table: all of it as it is written.

    """

    releases: SpecifierSet
    architectures: tuple[str, ...]
    other_than: tuple[str, ...]
    config: tuple[Logic, ...]
    flags: tuple[Logic, ...]
    machines: tuple[str, ...]
    also: str
    classes: Mapping[str, tuple[str, ...]]
    table: WhenTable

    def parts(self, launch: Launch) -> Iterator[tuple[Logic | str, Answer]]:
        """Yield each thing that it asks for, and what is known of it."""
        if self.releases:
            known = launch.release is not None
            there = self.releases.contains(launch.release or "0", prereleases=True)
            yield f"sglang {written(self.releases)}", _if_known(known, there)
        known = launch.architecture is not None
        for names, wanted in ((self.architectures, True), (self.other_than, False)):
            if names:
                classes = {one for name in names for one in self.classes[name]}
                there = (launch.architecture in classes) is wanted
                said = ", ".join(f"`{n}`" if " " not in n else n for n in names)
                yield f"{'' if wanted else 'not '}{said}", _if_known(known, there)
        yield from ((one, one.answer(launch)) for one in (*self.config, *self.flags))
        if self.machines:
            known, there = launch.machine is not None, launch.machine in self.machines
            yield f"on {', '.join(self.machines)}", _if_known(known, there)
        if self.also:
            yield f"what no launch can tell: {self.also}", Answer.MAY

    def answer(self, launch: Launch) -> Answer:
        """Return what is known of it."""
        least = Answer.MEETS
        for _, answer in self.parts(launch):
            least = min(least, answer)
            if least is Answer.NOT:
                break
        return least

    @property
    def words(self) -> tuple[str, ...]:
        """Everything that it asks for."""
        return tuple(str(what) for what, _ in self.parts(_NOTHING))


_NOTHING = Launch(None, {}, None, None, None)


def _if_known(known: bool, truth: bool) -> Answer:
    return Answer.of(truth) if known else Answer.UNKNOWN


def judge(conditions: Iterable[Condition], launch: Launch) -> Answer:
    """Return what is known of whether one of them holds."""
    return max((one.answer(launch) for one in conditions), default=Answer.NOT)


def reasons(conditions: Sequence[Condition], launch: Launch) -> tuple[Answer, tuple[str, ...]]:
    """Return what :func:`judge` does, and what it comes from, in words.

    For a launch that meets one, all that this one asks for; else what speaks against each of those
    that come nearest, or what is not known of them.
    """
    found = judge(conditions, launch)
    told = (
        words
        for one in conditions
        if one.answer(launch) is found
        for what, answer in one.parts(launch)
        if answer is found
        for words in _told(what, answer, launch)
    )
    return found, tuple(dict.fromkeys(told))


def _told(what: Logic | str, answer: Answer, launch: Launch) -> tuple[str, ...]:
    """Return what it is in words: of a fact that is not so, or not known, why not."""
    if isinstance(what, Fact) and answer is not Answer.MEETS:
        return reasons(what.when, launch)[1]
    return (str(what),)


def written(releases: SpecifierSet) -> str:
    """Write a range with its lower end first."""
    return ",".join(sorted(map(str, releases), reverse=True))


def logic_in(conditions: Iterable[Condition]) -> Iterator[Logic]:
    """Yield every piece of logic in conditions, without what their facts are made of."""
    open_ones: list[Logic] = [one for c in conditions for one in (*c.config, *c.flags)]
    while open_ones:
        one = open_ones.pop()
        yield one
        open_ones += one.inner if isinstance(one, Several) else ()
        open_ones += [one.inner] if isinstance(one, Negation) else ()


def names_in(conditions: Iterable[Condition]) -> Iterator[Name]:
    """Yield every flag, variable and value of a config that conditions ask for."""
    for one in logic_in(conditions):
        operands: tuple[Operand, ...] = ()
        if isinstance(one, Comparison):
            operands = one.operands
        elif isinstance(one, Membership | Truth):
            operands = (one.operand,)
        for operand in operands:
            pair = (operand.left, operand.right) if isinstance(operand, Remainder) else (operand,)
            yield from (name for name in pair if isinstance(name, Name))


_MAY = "names, whole numbers, words in quotes, %, comparisons, in, not, and, or"


def parse(text: str, resolve: Callable[[str], Name | Fact]) -> Logic:
    """Return what an expression says.

    Args:
        text: the expression.
        resolve: what a name stands for.

    Raises:
        ValueError: it is none, or a name in it is unknown.

    """
    try:
        return _logic(ast.parse(text, mode="eval").body, resolve)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is no expression; it may hold {_MAY}") from error
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error


def _logic(node: ast.expr, resolve: Callable[[str], Name | Fact]) -> Logic:
    if isinstance(node, ast.BoolOp):
        every = isinstance(node.op, ast.And)
        return Several(tuple(_logic(one, resolve) for one in node.values), every)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return Negation(_logic(node.operand, resolve))
    if isinstance(node, ast.Compare):
        return _comparison(node, resolve)
    if isinstance(node, ast.Name):
        found = resolve(node.id)
        return found if isinstance(found, Fact) else Truth(found)
    raise _refusal(node)


def _comparison(node: ast.Compare, resolve: Callable[[str], Name | Fact]) -> Logic:
    left = _operand(node.left, resolve)
    if isinstance(node.ops[0], ast.In) and len(node.ops) == 1:
        within = node.comparators[0]
        if not isinstance(within, ast.Tuple) or not within.elts:
            raise _refusal(within)
        values = [_operand(one, resolve) for one in within.elts]
        constants = tuple(one.value for one in values if isinstance(one, Constant))
        if len(constants) != len(values):
            raise _refusal(within)
        return Membership(left, constants)
    if wrong := [one for one in node.ops if type(one) not in _OPERATORS]:
        raise _refusal(wrong[0])
    signs = tuple(_OPERATORS[type(one)][0] for one in node.ops)
    return Comparison((left, *(_operand(one, resolve) for one in node.comparators)), signs)


def _operand(node: ast.expr, resolve: Callable[[str], Name | Fact]) -> Operand:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | str | None):
        return Constant(node.value)
    if isinstance(node, ast.Name):
        found = resolve(node.id)
        if isinstance(found, Fact):
            raise _refusal(node)
        return found
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        left, right = _operand(node.left, resolve), _operand(node.right, resolve)
        if isinstance(left, Constant | Name) and isinstance(right, Constant | Name):
            return Remainder(left, right)
    raise _refusal(node)


def _refusal(node: ast.AST) -> ValueError:
    said = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
    return ValueError(f"{said!r} is not understood; there may be {_MAY}")


@dataclass(frozen=True)
class Facts:
    """``patches/launches.toml``: what conditions may name, and what several of them share.

    Attributes:
        defaults: of the flags that are something while they are not set.
        automatic: the flags for which sglang then chooses.
        names: every flag and variable.
        config: every value of a model's config.
        machines: what a machine may be.
        called: the architectures by their class names, and what people call each.
        classes: what the name of an architecture or of a family stands for.
        facts: by their ids.

    """

    defaults: Mapping[str, Value]
    automatic: frozenset[str]
    names: frozenset[str]
    config: frozenset[str]
    machines: tuple[str, ...]
    called: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, Fact]

    def launch(
        self,
        flags: Mapping[str, Value] | None = None,
        *,
        release: str | None = None,
        config: Mapping[str, Any] | None = None,
        architecture: str | None = None,
        machine: str | None = None,
    ) -> Launch:
        """Return a launch of which all flags are known: those that are not given have defaults.

        What sglang chooses by itself is not known.

        Raises:
            ValueError: a flag or the machine is none that is known.

        """
        given = dict(flags or {})
        for name in given:
            _is_known(name, self.names)
        for name in self.automatic & given.keys():
            if given[name] in {None, "auto"}:
                del given[name]
        if machine is not None:
            _is_known(machine, self.machines)
        if architecture is None and config is not None:
            architecture = next(iter(config.get("architectures") or ()), None)
        return Launch(release, {**self.defaults, **given}, architecture, config, machine)

    def condition(self, table: WhenTable) -> Condition:
        """Return a condition.

        Raises:
            ValueError: something in it is not understood, or unknown.

        """
        named = [*table.get("architectures", ()), *table.get("other_than", ())]
        for name in named:
            _is_known(name, self.classes)
        for name in table.get("machines", ()):
            _is_known(name, self.machines)
        return Condition(
            SpecifierSet(table.get("releases", "")),
            tuple(table.get("architectures", ())),
            tuple(table.get("other_than", ())),
            tuple(parse(text, self._in_config) for text in table.get("config", ())),
            tuple(parse(text, self._in_flags) for text in table.get("flags", ())),
            tuple(table.get("machines", ())),
            table.get("also", ""),
            {name: self.classes[name] for name in named},
            table,
        )

    def _in_config(self, name: str) -> Name:
        _is_known(name, self.config)
        return Name(name, in_config=True)

    def _in_flags(self, name: str) -> Name | Fact:
        _is_known(name, self.names | self.facts.keys() | _DERIVED.keys())
        return self.facts.get(name) or Name(name)


def _is_known(name: str, known: Iterable[str]) -> None:
    if name not in known:
        there = ", ".join(sorted(known))
        raise ValueError(f"{name!r} is unknown; there may be {there}, by patches/launches.toml")


def read_facts(data: dict[str, Any]) -> Facts:
    """Return what ``launches.toml`` says.

    Raises:
        ValueError: it cannot be used.

    """
    if wrong := misshapen(data, _FactsTable):
        raise ValueError(wrong)
    unset = dict.fromkeys(data["unset"])
    off = dict.fromkeys(data["variables"], False)
    defaults = {**data["defaults"], **unset, **off}
    called = data["architectures"]
    for name in (one for members in data["families"].values() for one in members):
        _is_known(name, called)
    families = {name: tuple(members) for name, members in data["families"].items()}
    facts: dict[str, Fact] = {}
    known = Facts(
        defaults=defaults,
        automatic=frozenset(data["automatic"]),
        names=frozenset({*defaults, *data["automatic"]}),
        config=frozenset(data["config"]),
        machines=tuple(data["machines"]),
        called=called,
        classes={**{name: (name,) for name in called}, **families},
        facts=facts,
    )
    for table in data["fact"]:  # each may name those before it
        when = tuple(known.condition(one) for one in table["when"])
        facts[table["id"]] = Fact(table["id"], table["says"], when)
    return known
