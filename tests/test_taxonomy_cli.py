"""`python -m taxonomy` as a user meets it: what it prints, where, and how it exits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taxonomy import from_csv, load_taxonomy
from taxonomy.cli import main

TABLE = """kingdom,kind,leaf
animal,dog,pug
animal,dog,poodle
animal,fish,fish
plant,tree,oak
plant,tree,elm
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "small.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, out, err


def folder_tree(root: Path) -> Path:
    for leaf in ("animal/dog/pug", "animal/dog/poodle", "plant/oak"):
        (root / leaf).mkdir(parents=True)
        (root / leaf / "1.jpg").write_bytes(b"")
    return root


# ---------------------------------------------------------------- show


def test_show_draws_the_coarser_tiers_with_leaf_counts(
    capsys: pytest.CaptureFixture[str], table: Path
) -> None:
    code, out, err = run(capsys, "show", table)
    assert (code, err) == (0, "")
    assert [line.rstrip() for line in out.splitlines()] == [
        "small  tiers of 2 / 3 / 5",
        "├── animal 3",
        "│   ├── dog 2",
        "│   └── fish",
        "└── plant 2",
        "    └── tree 2",
    ]


def test_show_stops_at_the_tier_that_is_asked_for(capsys: pytest.CaptureFixture[str], table: Path) -> None:
    _, out, _ = run(capsys, "show", table, "--tier", "0")
    assert [line.rstrip() for line in out.splitlines()[1:]] == ["├── animal 3", "└── plant 2"]


def test_show_draws_leaves_on_request(capsys: pytest.CaptureFixture[str], table: Path) -> None:
    _, out, _ = run(capsys, "show", table, "--leaves")
    assert "│   │   └── poodle" in out
    assert out.count("fish") == 1


def test_show_can_draw_every_node_to_a_depth(capsys: pytest.CaptureFixture[str], table: Path) -> None:
    _, out, _ = run(capsys, "show", table, "--depth", "1")
    assert [line.strip() for line in out.splitlines()[1:]] == [
        "└── everything 5",
        "├── animal 3",
        "└── plant 2",
    ]


def test_show_takes_names_with_brackets_literally(capsys: pytest.CaptureFixture[str], table: Path) -> None:
    table.write_text("kind,leaf\n[red] thing,pug\n[/red],oak\n", encoding="utf-8")
    _, out, _ = run(capsys, "show", table)
    assert "[red] thing 1" in out
    assert "[/red] 1" in out


def test_show_of_what_is_not_there_is_wrong_use(capsys: pytest.CaptureFixture[str], table: Path) -> None:
    code, out, err = run(capsys, "show", "no-such-tree")
    assert (code, out) == (2, "")
    assert "'no-such-tree' is no bundled taxonomy" in err
    assert err.count("\n") == 1
    code, _, err = run(capsys, "show", "-my tree.json")
    assert code == 2
    assert "name a file that begins with - as ./-my tree.json, or after --" in err
    code, _, err = run(capsys, "show", table, "--tier", "3")
    assert code == 2
    assert "this taxonomy has tiers 0 to 2" in err


def test_show_of_a_wrong_file_is_one_line(capsys: pytest.CaptureFixture[str], table: Path) -> None:
    table.write_text("kind,leaf\n,pug\n", encoding="utf-8")
    code, out, err = run(capsys, "show", table)
    assert (code, out) == (1, "")
    assert err.startswith(f"taxonomy: {table}:2: leaf 'pug' has no class in tier 'kind'")
    assert err.count("\n") == 1


# ---------------------------------------------------------------- check


def test_check_sums_up_a_good_file(capsys: pytest.CaptureFixture[str], table: Path) -> None:
    code, out, err = run(capsys, "check", table)
    assert (code, err) == (0, "")
    assert "a good taxonomy" in out
    assert "│    1 │       3 │           1 to 2 │             1 │ dog, fish, tree" in out


def test_check_names_file_line_and_message_of_every_problem(
    capsys: pytest.CaptureFixture[str], table: Path
) -> None:
    table.write_text(TABLE + "animal,,cat\nanimal,dog,pug\n", encoding="utf-8")
    code, out, _ = run(capsys, "check", table)
    assert code == 1
    first, second = out.splitlines()
    assert first.startswith(f"{table}:7: leaf 'cat' has no class in tier 'kind'")
    assert second.startswith(f"{table}:8: leaf 'pug' stands in line 2 already")


def test_check_points_at_the_line_of_a_json_file(
    capsys: pytest.CaptureFixture[str], table: Path, tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    from_csv(table).save(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    wrong = next(i for i, line in enumerate(lines) if '"animal/dog/pug", "name"' in line)
    lines[wrong] = lines[wrong].replace('"parent": "animal/dog"', '"parent": "animal/dgo"')
    path.write_text("\n".join(lines), encoding="utf-8")
    code, out, _ = run(capsys, "check", path)
    assert code == 1
    assert out.startswith(f"{path}:{wrong + 1}: node 'animal/dog/pug' has the unknown parent 'animal/dgo'")


def test_check_of_a_missing_file_is_wrong_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "check", tmp_path / "missing.json")
    assert code == 2
    assert err.count("\n") == 1


def test_check_reads_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, "check", folder_tree(tmp_path / "zoo"))[0] == 0
    (tmp_path / "empty").mkdir()
    code, out, _ = run(capsys, "check", tmp_path / "empty")
    assert code == 1
    assert "no class folders in it" in out


# ---------------------------------------------------------------- build


def test_build_from_a_folder_writes_a_file_that_loads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "zoo.json"
    code, out, _ = run(capsys, "build", "-o", output, "--folder", folder_tree(tmp_path / "pictures"))
    assert code == 0
    assert out == f"wrote {output}: 3 leaves, tiers of 2 / 2 / 3\n"
    assert load_taxonomy(output).name == "zoo"


def test_build_from_names_reports_each_choice_and_what_was_rejected(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "birds.json"
    names = ("crane", "heron", "flamingo", "tabby cat")
    code, out, _ = run(capsys, "build", *names, "-o", output)
    assert code == 0
    assert "crane = n02012849 " in out
    assert "  not n03126707 " in out
    assert "lifts and moves heavy objects" in out
    assert load_taxonomy(output).leaves[0] == "n02012849"


def test_build_marks_what_is_doubtful_and_a_name_that_contradicts_its_id(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = ["dog", "n02012849_whale", "bass"]
    code, out, _ = run(capsys, "build", *names, "-o", tmp_path / "x.json")
    assert code == 0
    marks = {name: f"? {name} = " in out for name in names}
    assert marks == {"dog": False, "n02012849_whale": True, "bass": True}
    assert "not 'whale'; the id decides" in out
    assert "? 2 of 3 names may mean something else: look at these" in out


def test_build_takes_the_pinned_sense(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "t.json"
    code, _, _ = run(capsys, "build", "crane", "heron", "-o", output, "--pin", "crane=n03126707")
    assert code == 0
    assert load_taxonomy(output).leaves[0] == "n03126707"


def test_build_from_names_in_a_file_leaves_blank_lines_and_comments_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("# water birds\nheron\n\nflamingo\n", encoding="utf-8")
    code, out, _ = run(capsys, "build", "--names", names, "-o", tmp_path / "t.json", "--name", "wet")
    assert code == 0
    assert "2 leaves" in out
    assert load_taxonomy(tmp_path / "t.json").name == "wet"


def test_build_from_ids_takes_the_first_word_of_a_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ids = tmp_path / "ids.tsv"
    ids.write_text("n02012849\tcrane\nn02009229\tlittle blue heron\n", encoding="utf-8")
    assert run(capsys, "build", "--ids", ids, "-o", tmp_path / "t.json")[0] == 0
    assert load_taxonomy(tmp_path / "t.json").leaves == ("n02012849", "n02009229")


def test_build_points_at_the_line_that_is_no_id(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("n02012849\n\ncrane\n", encoding="utf-8")
    code, _, err = run(capsys, "build", "--ids", ids, "-o", tmp_path / "t.json")
    assert code == 1
    assert f"{ids}:3: 'crane' is no synset id" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "t.json"], "give one of: class names"),
        (["crane"], "say with -o FILE.json"),
        (["crane", "--folder", ".", "-o", "t.json"], "give one of: class names"),
        (["crane", "-o", "t.json", "--tiers", "12;40"], "is no list of numbers"),
        (["crane", "-o", "t.json", "--tiers", "40,12"], "must grow from coarse to fine"),
        (["crane", "-o", "t.json", "--pin", "crane"], "is not NAME=SYNSET"),
        (["crane", "-o", "t.json", "--pin", "heron=n02009229"], "is not among the class names"),
        (["--folder", ".", "-o", "t.json", "--tiers", "3"], "leave --tiers and --anchors out"),
        (["--folder", ".", "-o", "t.json", "--pin", "a=n02009229"], "it goes with class names"),
        (["--ids", "missing.txt", "-o", "t.json"], "does not exist"),
        (["--colour"], "No such option"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, out, err = run(capsys, "build", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "1: not valid JSON"),
        ('{"a": 1}', "1: anchors are a list of synset ids per tier"),
        ('[null,\n"n02084071"]', "2: the anchors of tier 1 must be a list"),
        ('[["n02084071",\n{"id": "x", "of": 3}]]', "2: anchor 1 of tier 0 must be a synset id, or an object"),
    ],
)
def test_wrong_anchors_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, words: str
) -> None:
    anchors = tmp_path / "anchors.json"
    anchors.write_text(text, encoding="utf-8")
    code, _, err = run(capsys, "build", "crane", "-o", tmp_path / "t.json", "--anchors", anchors)
    assert code == 1
    assert f"{anchors}:{words}" in err


def test_output_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "missing" / "t.json"
    code, _, err = run(capsys, "build", "--folder", folder_tree(tmp_path / "zoo"), "-o", output)
    assert code == 1
    assert err.startswith(f"taxonomy: {output}: cannot be written")


# ---------------------------------------------------------------- as a program


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "taxonomy", *arguments]
    return subprocess.run(
        command, cwd=root, env={**os.environ, **environment}, capture_output=True, check=False
    )


def test_help_needs_neither_torch_nor_wordnet() -> None:
    script = (
        "import sys\nfrom taxonomy.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "print({'torch', 'nltk', 'PIL'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent.parent, capture_output=True, check=True
    )
    assert result.stdout.decode().splitlines()[-1] == "set()"


def test_a_terminal_without_the_letters_still_gets_the_rest(table: Path) -> None:
    table.write_text("kind,leaf\nvögel,灰雁\ndog,pug\n", encoding="utf-8")
    result = program("show", str(table), "--leaves", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert result.returncode == 0
    assert rb"v\xf6gel" in result.stdout
    assert b"Traceback" not in result.stderr


def test_a_reader_that_stops_early_gets_no_traceback(table: Path) -> None:
    rows = "".join(f"kind {i},leaf {i}\n" for i in range(5_000))
    table.write_text("kind,leaf\n" + rows, encoding="utf-8")
    command = f'"{sys.executable}" -m taxonomy show "{table}" --leaves | head -n 1'
    result = subprocess.run(
        command, shell=True, cwd=Path(__file__).parent.parent, capture_output=True, check=False
    )
    assert result.stderr == b""
    assert result.stdout.decode().startswith("small")
