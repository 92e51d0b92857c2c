"""What a page of Markdown holds: its blocks, its links, its code, and its anchors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FENCE = re.compile(r"(?P<indent> *)(?P<fence>```+)(?P<language>\w*)$")
_CODE = re.compile(r"(?<!`)(?P<ticks>`+)(?!`)(?P<code>.+?)(?<!`)(?P=ticks)(?!`)", re.DOTALL)
_LINK = re.compile(r"\[(?:[^][]|\[[^]]*\])*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"#+ (?P<text>.*)")
_TOOL = re.compile(r"<!-- (?P<name>[-a-z]+): by tools/\w+\.py -->")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: the file.
        line: where it begins, from 1.
        language: what is named behind the fence.
        text: what is in it, without the indentation of the fence.
        section: the name of the section that a tool writes, if it is in one.

    """

    page: Path
    line: int
    language: str
    text: str
    section: str

    @property
    def commands(self) -> list[str]:
        """Return the shell commands in it, each with the lines that continue it."""
        return [command.replace("\\\n", " ") for command in self._commands]

    @property
    def output(self) -> str:
        """Return what its commands have printed, as far as it is shown."""
        rest = f"\n{self.text}"
        for command in self._commands:
            rest = rest.replace(f"\n$ {command}", "", 1)
        return rest.strip()

    @property
    def _commands(self) -> list[str]:
        commands: list[str] = []
        goes_on = False
        for line in self.text.splitlines():
            if line.startswith("$ "):
                commands.append(line.removeprefix("$ "))
            elif goes_on:
                commands[-1] += f"\n{line}"
            last = commands[-1] if commands else ""
            goes_on = last.endswith("\\") or last.replace("\\'", "").count("'") % 2 == 1
        return commands


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    section = ""
    for number, line in lines:
        if mark := _TOOL.fullmatch(line):
            section = mark.group("name")
        if line == "<!-- end -->":
            section = ""
        if not (fence := _FENCE.fullmatch(line)):
            continue
        indent, end = len(fence.group("indent")), fence.group("indent") + fence.group("fence")
        inside = []
        for _, one in lines:
            if one == end:
                break
            inside.append(one[indent:])
        text = "\n".join(inside)
        yield Block(page, number, fence.group("language"), text, section)


def prose(page: Path) -> list[tuple[int, str]]:
    """Return the lines of a page that are in no block, each with its number."""
    found = []
    fence = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        mark = _FENCE.fullmatch(line)
        if not fence and not mark:
            found.append((number, line))
        elif not fence and mark:
            fence = mark.group("fence")
        elif line.strip() == fence:
            fence = ""
    return found


def _flat(page: Path) -> str:
    return "\n".join(line for _, line in prose(page))


def inline_code(page: Path) -> list[str]:
    """Return what stands in backticks, outside blocks, on one line each."""
    found = [mark.group("code") for mark in _CODE.finditer(_flat(page))]
    return [" ".join(code.replace("\\|", "|").split()) for code in found]


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures."""
    text = _CODE.sub(lambda found: "`" if "](" in found.group() else found.group(), _flat(page))
    return [found.group("target") for found in _LINK.finditer(text)]


def anchors(page: Path) -> list[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: list[str] = []
    for _, line in prose(page):
        if heading := _HEADING.fullmatch(line):
            text = re.sub(r"[^\w\- ]", "", heading.group("text").lower()).replace(" ", "-")
            repeated = sum(
                re.fullmatch(rf"{re.escape(text)}(-\d+)?", one) is not None for one in found
            )
            found.append(f"{text}-{repeated}" if repeated else text)
    return found


def cells(page: Path, head: str) -> list[list[str]]:
    """Return the rows of every table of a page whose first line begins with ``head``."""
    rows: list[list[str]] = []
    inside = False
    for _, line in prose(page):
        bare = line.strip()
        if not bare.startswith("|"):
            inside = False
        elif inside and not bare.startswith("|---"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", bare)[1:-1]])
        elif bare.startswith(f"| {head}"):
            inside = True
    return rows
