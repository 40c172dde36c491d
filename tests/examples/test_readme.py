"""README.md as a new user meets it: its programs, copied into an empty folder, run as printed."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from jobqueue_broadcast import events
from tests.examples.programs import ROOT, default_port, outcome, running

pytestmark = pytest.mark.anyio

README = (ROOT / "README.md").read_text(encoding="utf-8")

# Code blocks in order: language and text.
BLOCKS: list[tuple[str, str]] = re.findall(
    r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE
)

# Programs that end by themselves, each with the block of output printed below it.
ENDING = [
    (text, BLOCKS[number + 1][1])
    for number, (language, text) in enumerate(BLOCKS)
    if language == "python" and BLOCKS[number + 1][0] == "text"
]

FIRST = next(text for language, text in BLOCKS if language == "python")
TAIL = next(text for language, text in BLOCKS if language == "console" and "tail" in text)


def shape(frame: str) -> dict[str, object]:
    """Return a frame without its time."""
    decoded: dict[str, object] = json.loads(frame)
    assert isinstance(decoded.pop("timestamp"), int)
    return decoded


async def test_the_first_screen(tmp_path: Path) -> None:
    assert len([line for line in FIRST.splitlines() if line.strip()]) <= 12
    (tmp_path / "server.py").write_text(FIRST, encoding="utf-8")
    prompt, *printed = TAIL.splitlines()
    python, *command = shlex.split(prompt.removeprefix("$ "))
    assert python == "python"
    # In either order: the monitor waits for the server.
    with default_port():
        async with (
            running(sys.executable, *command, cwd=tmp_path) as monitor,
            running(sys.executable, "server.py", cwd=tmp_path) as server,
        ):
            seen = [await monitor.line() for _ in printed]
            assert await monitor.end() == 0
            await server.end()
    assert list(map(shape, seen)) == list(map(shape, printed))
    assert [len(line) for line in seen] == [len(line) for line in printed]


@pytest.mark.parametrize(("program", "printed"), ENDING)
async def test_a_program_prints_what_is_printed_below_it(
    program: str, printed: str, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    assert await outcome(sys.executable, "program.py", cwd=tmp_path) == (0, printed, "")


def test_every_program_is_tested() -> None:
    languages = [language for language, _ in BLOCKS]
    assert languages.count("python") == 1 + len(ENDING)
    assert set(languages) <= {"python", "console", "text"}


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert local
    assert not [link for link in local if not (ROOT / link).exists()]


def test_the_table_of_frames_names_every_event() -> None:
    table = README.partition("## What a peer is sent")[2].partition("##")[0]
    for cls in events.EVENT_CLASSES:
        assert f"`{cls.__name__}`" in table
