"""What the pages show of programs is what these print; links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pages
import pytest
from generated import bring_up_to_date
from page_text import anchors, blocks, inline_code, links, prose


ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/README.md")})
PAGES += sorted({*ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("patches/*.md")})
# Written by tools, from texts that have no lines.
UNWRAPPED = {"benchmarks/results/plan.md", "benchmarks/results/startup.md"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.releases
@pytest.mark.one_python
@pytest.mark.parametrize("name", pages.PAGES)
def test_what_programs_print_stands_in_the_pages_as_they_print_it(name: str) -> None:
    text = (ROOT / name).read_text()
    assert pages.sections_of(text)
    assert pages.render(text) == text, "python tools/pages.py brings it up to date"


def test_each_section_that_the_tool_knows_is_in_one_page() -> None:
    found = [one for name in pages.PAGES for one in pages.sections_of((ROOT / name).read_text())]
    assert sorted(found) == sorted(pages.SECTIONS)


def test_a_section_is_written_again_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pages, "section", lambda name: f"what {name} prints")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- status: by tools/pages.py -->\nold\n<!-- end -->\nafter\n")
    new = (
        "before\n<!-- status: by tools/pages.py -->\n\nwhat status prints\n\n<!-- end -->\nafter\n"
    )
    assert bring_up_to_date({page: pages.render(page.read_text())}, check=True) == 1
    assert bring_up_to_date({page: pages.render(page.read_text())}, check=False) == 0
    assert page.read_text() == new == pages.render(new)


def test_what_is_left_out_of_a_long_output_is_counted() -> None:
    ids = [patch.id for patch in pages.load().patches]
    line = f"applying {', '.join(ids)}; not needed: {ids[0]}"
    assert pages.shortened(line) == (
        f"applying {ids[0]}, [{len(ids) - 1} more]; not needed: {ids[0]}"
    )
    said = pages.abridged("\n".join([f"apply  {name}: why" for name in ids] + ["the end"]))
    assert said.splitlines() == [
        f"apply  {ids[0]}: why",
        f"apply  {ids[1]}: why",
        f"[{len(ids) - 3} more]",
        f"apply  {ids[-1]}: why",
        "the end",
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no {target}"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading in {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_file_that_a_page_names_exists(page: Path) -> None:
    folders = (
        "benchmarks/",
        "docs/",
        "patches/",
        "sglang_commfix/",
        "startup/",
        "tests/",
        "tools/",
    )
    for code in inline_code(page):
        if not code.startswith(folders) or not re.fullmatch(r"[-\w./*<>]+", code):
            continue
        pattern = re.sub(r"<\w+>", "*", code)
        assert any(ROOT.glob(pattern.rstrip("/"))), f"there is no {code}"


def test_each_test_that_a_page_names_exists() -> None:
    sources = "".join(file.read_text() for file in ROOT.glob("tests/**/*.py"))
    for page in PAGES:
        for code in inline_code(page):
            if test := re.match(r"test_\w+(?=\[|$)", code):
                assert f"def {test.group()}(" in sources, f"{name_of(page)}: {code}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if name_of(page) not in UNWRAPPED], ids=name_of
)
def test_prose_is_not_wider_than_code(page: Path) -> None:
    whole = re.compile(r"\s*(\||#|<|(`+)[^`].*\2\W*$|([-*] |\d+\. )?\S+$)")  # what cannot break
    wide = [
        f"line {number}: {line}"
        for number, line in prose(page)
        if len(line) > 100 and not whole.match(line)
    ]
    assert not wide


def test_headings_of_one_page_are_told_apart(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Its `own` lock\n\n```text\n# none\n```\n\n## Why not?\n\n## Why not?\n")
    assert anchors(page) == ["its-own-lock", "why-not", "why-not-1"]


def test_commands_and_their_output_are_told_apart(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("1. See\n\n   ```console\n   $ echo 'a\n   b'\n   a\n   b\n   $ true\n   ```\n")
    (block,) = blocks(page)
    assert block.commands == ["echo 'a\nb'", "true"]
    assert block.output == "a\nb"
