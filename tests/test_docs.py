"""The documentation is true: its Python runs, its commands exist, its links lead somewhere.

Each page's ``python`` blocks run in order as one program, so a page reads as one session. ``bash``
blocks are not run: their commands are checked. ``no-test`` marks whole set-ups (installing,
cloning, running everything) and is allowed for nothing else.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from cascade.cli import parse

ROOT = Path(__file__).parents[1]
PAGES = [
    page
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
    if page.exists()
]
SETUPS = re.compile(
    r"(git clone|cd|make (demo|test)|python3 -m venv|source|(\S+/)?pip install|export PIP_\w+).*"
)
BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, the words after it, and where it starts."""

    language: str
    tags: frozenset[str]
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, top to bottom."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(3)) + 1
        yield Block(match[1], frozenset(match[2].split()), match[3], line)


def named(page: Path) -> str:
    """How a page is called in the tests' names."""
    return str(page.relative_to(ROOT))


@pytest.mark.models
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_python_on_a_page_runs(
    page: Path, default_bundle: Path, session_home: Path, tmp_path: Path
) -> None:
    program = ""
    for block in blocks(page):
        if block.language == "python":
            # Empty lines keep the page's line numbers in a traceback.
            program += "\n" * (block.line - 1 - program.count("\n")) + block.text
    script = tmp_path / f"{page.stem}.py"
    script.write_text(program, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_only_whole_set_ups_are_exempt(page: Path) -> None:
    for block in blocks(page):
        if "no-test" not in block.tags:
            continue
        where = f"{named(page)}:{block.line}"
        assert block.language == "bash", f"{where}: only bash blocks may be no-test"
        for line in commands(block):
            assert SETUPS.fullmatch(line), f"{where}: {line!r} is not a set-up"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_commands_on_a_page_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks(page):
        if block.language != "bash" or "no-test" in block.tags:
            continue
        for line in commands(block):
            where = f"{named(page)}:{block.line}: {line}"
            program, *words = shlex.split(line, comments=True)
            if program == "make":
                assert words[0] in targets, where
                continue
            if program == "python":
                assert words[0] == "-m", where
                assert find_spec(words[1]), where
                continue
            assert program == "cascade", f"{where}: neither make nor cascade; a set-up is no-test"
            try:
                parse(words)
            except SystemExit:
                pytest.fail(f"{where}\n{capsys.readouterr().err}")


def commands(block: Block) -> Iterator[str]:
    """The commands of a bash block, one a line, continuation lines joined."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_links_on_a_page_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{named(page)} links to {target}"
