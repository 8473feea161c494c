"""Text that is not ours reaches a terminal as it is: neither as markup nor as commands; closed streams do no harm."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from taxonomy import Node, Taxonomy
from taxonomy.cli import main as taxonomy_main
from taxonomy.streams import VisibleStream, visible
from taxonomy.terminal import PlainConsole
from training.cli.prompts import draw

ESCAPE = "\x1b[31mred\x9b2J\u202efdp"
SHOWN = r"\x1b[31mred\x9b2J\u202efdp"
NASTY = ("[/red]", "[bold]fox", ":dog:", "a\\")


def tree_of(names: tuple[str, ...], definition: str = "") -> Taxonomy:
    nodes = [Node(name, name, definition) for name in names]
    ids = list(names)
    return Taxonomy(
        name=names[0], nodes=[Node("t", "t"), *nodes], parents=[-1] + [0] * len(ids), leaves=ids, tiers=[ids]
    )


def printed(*what: object) -> str:
    text = io.StringIO()
    console = PlainConsole(file=text, width=100, force_terminal=True, no_color=True)
    for each in what:
        console.print(each)
    return text.getvalue()


def test_control_characters_are_escaped_and_lines_stay() -> None:
    assert visible(f"a\tb\n{ESCAPE}\ud83d") == f"a\tb\n{SHOWN}\\ud83d"
    assert visible("Mäusebussard 灰雁 🦊") == "Mäusebussard 灰雁 🦊"


def test_a_console_shows_what_others_take_for_markup_or_commands() -> None:
    table = Table(title=f"{ESCAPE}[/red]")
    table.add_column("[/]")
    table.add_row(f":dog: {ESCAPE}")
    branch = Tree(Text(ESCAPE))
    branch.add("[/red]")
    for each in (f"[/red] :dog: {ESCAPE}", table, branch):
        text = printed(each)
        assert SHOWN in text
        assert "[/red]" in text
        assert "\x9b" not in text
        assert "\x1b[31m" not in text
    assert ":dog:" in printed(table)


def test_a_proposed_tree_is_drawn_with_its_names_as_they_are() -> None:
    text = printed(draw(tree_of(NASTY, ESCAPE)))
    for name in NASTY:
        assert text.count(name) >= 1
    assert SHOWN[:8] in text
    assert "\x1b[31m" not in text


@pytest.mark.parametrize("command", [("show", "--leaves"), ("check",)], ids=lambda given: given[0])
def test_taxonomies_of_others_are_shown_as_they_are(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree_of(NASTY[:3], ESCAPE).save(tmp_path / "t.json")
    with pytest.raises(SystemExit) as stop:
        taxonomy_main([command[0], str(tmp_path / "t.json"), *command[1:]])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in NASTY[:3])


def test_an_error_about_a_file_sends_none_of_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"{ESCAPE}.csv"
    file.write_text("a\n")
    with pytest.raises(SystemExit):
        taxonomy_main(["check", str(file)])
    found = capsys.readouterr()
    assert SHOWN in found.out + found.err
    assert "\x1b" not in found.out + found.err


def test_lines_for_a_terminal_are_written_whole() -> None:
    text = io.StringIO()
    stream = VisibleStream(text)
    line = f"{ESCAPE},ä\n".encode()
    assert stream.write(memoryview(line)) == len(line)
    assert text.getvalue() == f"{SHOWN},ä\n"


def hierclass(shell: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'"$0" -m hierclass "$@" {shell}', sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")
def test_a_table_for_a_closed_standard_output_is_one_line(tiny_graphs: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    done = hierclass(">&-", "label", str(tmp_path / "a.png"), "--model", str(tiny_graphs))
    assert done.returncode == 2
    assert done.stderr == "error: standard output is closed; write the table to a file with --output\n"


@pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")
def test_with_closed_streams_no_file_gets_their_numbers(tiny_graphs: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    table = tmp_path / "labels.csv"
    done = hierclass(
        "<&- >&- 2>&-", "label", str(tmp_path / "a.png"), "-o", str(table), "--model", str(tiny_graphs)
    )
    assert done.returncode == 0
    head, row = table.read_text().splitlines()
    assert head.startswith("path,error,")
    assert row.startswith(f"{tmp_path / 'a.png'},,")
