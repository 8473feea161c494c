"""`hierclass-train fit --data photos/` and nothing else: what is proposed, asked, chosen, kept."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from training_data import draw, jpeg, write_cached_weights

from hierclass.errors import InputError
from taxonomy import load_taxonomy
from taxonomy.proposal import propose
from taxonomy.terminal import PlainConsole
from training.cli import main
from training.cli.prepare import Declined, PrepareOptions, prepare
from training.cli.prompts import draw as draw_tree
from training.recipe.recipe import Recipe

NAMES = ("golden_retriever", "Tabby-Cat", "Chihuahua", "school bus", "taxi", "fire_engine")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six class folders with English names, 4 images each."""
    for leaf, name in enumerate(NAMES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "photos" / name / f"{number}.jpg").write_bytes(jpeg(draw(leaf, number)))
    return tmp_path / "photos"


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a person at the terminal who types these answers, and then closes it."""

    def type_(*answers: str | type[BaseException]) -> None:
        waiting: Iterator[str | type[BaseException]] = iter(answers)

        def answer() -> str:
            found = next(waiting, EOFError)
            if isinstance(found, str):
                return found
            raise found

        monkeypatch.setattr("builtins.input", answer)
        monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())

    return type_


def run(photos: Path, out: Path, given: dict[str, Any] | None = None, **how: Any) -> tuple[Recipe, str]:
    """The prepared recipe, and what was printed."""
    text = io.StringIO()
    console = PlainConsole(file=text, width=200, force_terminal=True, no_color=True, force_interactive=False)
    options = {"pretrained": False, "backbone": "test_resnet", **(given or {})}
    recipe = Recipe(data=(str(photos),), **{"taxonomy": "tiny-imagenet", **options})
    found = prepare(recipe, options.keys(), out, PrepareOptions(**how), console)
    return found, re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())


def test_without_a_terminal_it_goes_on_and_says_that_it_did(photos: Path, tmp_path: Path) -> None:
    recipe, text = run(photos, tmp_path / "run")
    assert "no terminal to ask on: going on with this tree" in text
    assert "24 images of 6 classes (4 each): English names" in text
    assert recipe.taxonomy == str(tmp_path / "run" / "taxonomy.json")
    assert load_taxonomy(recipe.taxonomy).num_classes == (2, 6)
    assert (
        (tmp_path / "run" / "taxonomy.csv").read_text().startswith("tier 0,class,id,definition\ncarnivore,")
    )


def test_images_above_class_folders_are_said_to_be_of_no_class_below(photos: Path, tmp_path: Path) -> None:
    (photos / "dog" / "pug").mkdir(parents=True)
    for number, image in enumerate(sorted(photos.rglob("*.jpg"))[:5]):
        (photos / "dog" / ("pug" if number < 2 else "") / f"new{number}.jpg").write_bytes(image.read_bytes())
    recipe, text = run(photos, tmp_path / "run")
    assert "images of 7 classes" in text
    assert "3 images of dog itself count as that, not as a class below it" in text
    assert load_taxonomy(recipe.taxonomy).tiers[0].count("dog") == 1


def test_what_is_chosen_is_said_with_its_reason_and_stands_in_the_recipe(
    photos: Path, tmp_path: Path
) -> None:
    recipe, text = run(photos, tmp_path / "run", {"epochs": 1})
    assert (recipe.size, recipe.widths, recipe.batch_size, recipe.lr) == (32, (0.5, 1.0), 16, 0.0125)
    assert (recipe.epochs, recipe.warmup_epochs) == (1, 0)
    assert "chosen: --size 32 (images are tiny (shorter side about 32 px), on " in text
    assert "chosen: --widths 0.5,1 (a level for each of 2 tiers, each half of the next)" in text
    assert "chosen: --batch-size 16 --lr 0.0125 (24 images, from scratch)" in text


def test_weights_that_are_found_are_used_and_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    console, recipe = PlainConsole(file=io.StringIO()), Recipe(data=(str(photos),), taxonomy="x")
    without = prepare(recipe, set(), tmp_path / "a", PrepareOptions(), console)
    assert (without.pretrained, without.order) == (False, "given")
    write_cached_weights(tmp_path / "cache", "timm/resnet18.a1_in1k")
    found = prepare(recipe, set(), tmp_path / "b", PrepareOptions(), console)
    assert (found.pretrained, found.order, found.backbone) == (True, "importance", "resnet18")
    text = console.file.getvalue().replace("\n", " ")  # type: ignore[attr-defined]
    assert "start: from scratch, which needs more images and epochs: timm's weights are not" in text
    assert "start: timm's weights, from the local cache" in text


def test_a_tree_of_ones_own_is_taken_without_a_question(photos: Path, tmp_path: Path) -> None:
    tree = run(photos, tmp_path / "first")[0].taxonomy
    recipe, text = run(photos, tmp_path / "run", {"taxonomy": tree})
    assert recipe.taxonomy == tree
    assert "no terminal" not in text
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="--tiers and --pin belong to a proposed one"):
        run(photos, tmp_path / "run", {"taxonomy": tree}, tiers=[2])


# ---------------------------------------------------------------- the question


def test_yes_trains_and_other_words_are_asked_again(
    photos: Path, tmp_path: Path, typed: Callable[..., None]
) -> None:
    typed("what?", "", "yes")
    _, text = run(photos, tmp_path / "run")
    assert text.count("train with this tree? [y]es, [e]dit it, [n]o:") == 3
    assert "no terminal" not in text


@pytest.mark.parametrize("answers", [("n",), ()])
def test_no_and_the_end_of_input_train_nothing(
    answers: tuple[str, ...], photos: Path, tmp_path: Path, typed: Callable[..., None]
) -> None:
    typed(*answers)
    with pytest.raises(
        Declined, match=r"nothing was trained; edit .*taxonomy\.csv and give the same command again"
    ):
        run(photos, tmp_path / "run")
    assert (tmp_path / "run" / "taxonomy.csv").exists()


def test_yes_as_an_option_asks_nothing(photos: Path, tmp_path: Path, typed: Callable[..., None]) -> None:
    typed(KeyboardInterrupt)
    assert "--yes: going on with this tree" in run(photos, tmp_path / "run", yes=True)[1]


def editor(tmp_path: Path, old: str, new: str) -> str:
    """A program that replaces text in the file that it is given."""
    script = tmp_path / "editor.py"
    script.write_text(f"import sys, pathlib\np = pathlib.Path(sys.argv[1])\n"
                      f"p.write_text(p.read_text().replace({old!r}, {new!r}))\n")  # fmt: skip
    import sys

    return f"'{sys.executable}' '{script}'"


def test_an_edited_tree_is_shown_again_and_trained_with(
    photos: Path, tmp_path: Path, typed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", editor(tmp_path, "carnivore,", "pet,"))
    typed("e", "y")
    recipe, text = run(photos, tmp_path / "run")
    assert [node.name for node in load_taxonomy(recipe.taxonomy).classes(0)] == ["pet", "vehicle"]
    assert "pet 3" in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vehicle,taxi,", '"vehicle,taxi,', "taxonomy.csv:7: not a table"),
        ("vehicle,taxi,n02930766", "vehicle,cab,c", "the tree has no leaf for the class folder 'taxi'"),
    ],
)
def test_a_table_that_was_broken_while_editing_is_told_and_asked_about_again(
    old: str,
    new: str,
    message: str,
    photos: Path,
    tmp_path: Path,
    typed: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VISUAL", editor(tmp_path, old, new))
    typed("e", "y")
    recipe, text = run(photos, tmp_path / "run")
    assert message in text
    assert text.count("train with this tree?") == 2
    assert "taxi" in {node.name for node in load_taxonomy(recipe.taxonomy).classes(1)}


def test_an_editor_that_does_not_start_is_told(
    photos: Path, tmp_path: Path, typed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", str(tmp_path / "none"))
    typed("e", "y")
    assert "none does not start (No such file or directory); set EDITOR" in run(photos, tmp_path / "run")[1]


def test_no_line_of_the_tree_is_cut_off_where_the_console_is_narrow() -> None:
    proposal = propose(
        [("African_hunting_dog",), ("great_crested_grebe",), ("crane",), ("school_bus",)], name="t"
    )
    text = io.StringIO()
    console = PlainConsole(file=text, width=60)
    doubtful = [choice for choice in proposal.choices if choice.name == "African_hunting_dog"]
    console.print(draw_tree(proposal.taxonomy, doubtful, width=console.width))
    assert "African hunting dog a powerful doglike mammal … ?" in text.getvalue()
    assert all(len(line) <= 60 for line in text.getvalue().splitlines())
    text.truncate(0)
    PlainConsole(file=text, width=24).print(draw_tree(proposal.taxonomy, doubtful, width=24))
    assert "?" in text.getvalue()


# ---------------------------------------------------------------- the same command again


def test_a_table_edited_between_two_starts_is_the_tree(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "run")
    table = tmp_path / "run" / "taxonomy.csv"
    table.write_text(table.read_text().replace("carnivore,", "pet,"))
    for _ in range(2):  # it stays edited
        recipe, text = run(photos, tmp_path / "run")
        assert "with the tree as it was edited in" in text
        assert [node.name for node in load_taxonomy(recipe.taxonomy).classes(0)] == ["pet", "vehicle"]
    with pytest.raises(
        InputError, match="was edited, which --pin would undo; leave it out, or delete the file"
    ):
        run(photos, tmp_path / "run", pins={"taxi": "n02930766"})


def test_a_tree_edited_as_json_is_the_tree_too(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "run")
    tree = tmp_path / "run" / "taxonomy.json"
    tree.write_text(tree.read_text().replace('"carnivore"', '"pet"'))
    recipe, _ = run(photos, tmp_path / "run")
    assert [node.name for node in load_taxonomy(recipe.taxonomy).classes(0)] == ["pet", "vehicle"]


def test_a_proposal_that_nobody_edited_gives_way_to_a_new_one(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "run")
    (photos / "crane").mkdir()
    (photos / "crane" / "1.jpg").write_bytes(jpeg(draw(7, 1)))
    recipe, _ = run(photos, tmp_path / "run", pins={"crane": "n03126707"})
    assert "n03126707" in load_taxonomy(recipe.taxonomy).leaves


def test_a_broken_tree_is_told_with_its_line(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "run")
    (tmp_path / "run" / "taxonomy.csv").write_text('tier 0,class\nanimal,"dog\n')
    with pytest.raises(ValueError, match=r"taxonomy\.csv:2: "):
        run(photos, tmp_path / "run")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written_is_named(photos: Path, tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(InputError, match=r"--out .* cannot be written"):
        run(photos, tmp_path / "run")


# ---------------------------------------------------------------- as a command


def command(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str, str]:
    """Exit code, standard output and standard error of ``hierclass-train``."""
    try:
        code: Any = main([*map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    out, error = capfd.readouterr()
    return code, out, error


TINY = ("--backbone", "test_resnet", "--epochs", 1, "--workers", 0, "--threads", 1, "--no-pretrained")


def test_one_command_trains_and_a_resumed_run_keeps_its_tree(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text, error = command(capfd, "fit", "--data", "photos", *TINY)
    assert (code, error) == (0, "")
    assert "the run goes to runs/photos (--out)" in text
    stored = Recipe.load(Path("runs/photos/recipe.json"))
    assert (stored.pretrained, stored.taxonomy) == (
        False,
        str(tmp_path / "runs" / "photos" / "taxonomy.json"),
    )

    table = Path(stored.taxonomy)
    table.write_text(table.read_text().replace('"carnivore"', '"pet"'))
    code, text, error = command(capfd, "fit", "--data", "photos", "--resume", "--workers", 0, "--threads", 1)
    assert (code, error) == (0, "")
    assert "has changed since this run began, and the run keeps the tree it began with" in " ".join(
        text.split()
    )
    assert "train with this tree" not in text
    assert Recipe.load(Path("runs/photos/recipe.json")) == stored
    assert [node.name for node in load_taxonomy("runs/photos/last/taxonomy.json").classes(0)] == [
        "carnivore",
        "vehicle",
    ]
    code, _, error = command(capfd, "fit", "--data", "photos", *TINY)
    assert (code, error.count("\n")) == (2, 1)
    assert "runs/photos holds a run; add --resume to continue it or --overwrite to begin anew" in error


def test_evaluating_finds_the_folders_by_their_names_and_tells_the_mean_per_class(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(capfd, "fit", "--data", photos, "--out", tmp_path / "run", *TINY)[0] == 0
    code, text, _ = command(capfd, "evaluate", tmp_path / "run" / "model", "--data", photos, "--workers", 0)
    assert code == 0
    assert "mean accuracy per class: " in text
    assert "each level alone" in text


@pytest.mark.parametrize("balance", ["loss", "sampling"])
def test_balancing_is_an_option_of_the_command(
    balance: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ("fit", "--data", photos, "--out", tmp_path / "run", "--balance", balance)
    assert command(capfd, *given, *TINY)[0] == 0
    assert Recipe.load(tmp_path / "run" / "recipe.json").balance == balance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tiers", "9,3"), "--tiers 9,3: give growing numbers of classes"),
        (("--pin", "crane"), "--pin crane: write it as NAME=SYNSET"),
        (("--pin", "heron=n02009229"), "--pin heron: no class is called so"),
        (("--check", "fast"), "--check fast: give auto, none, quick or full"),
        (("--balance", "much"), "--balance much: give none, loss or sampling"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(
    arguments: tuple[str, str], message: str, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, error = command(capfd, "fit", "--data", photos, "--out", tmp_path / "run", *arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("answer", "code", "line"),
    [(KeyboardInterrupt, 130, "hierclass-train: interrupted"), ("n", 1, "nothing was trained; edit ")],
)
def test_who_does_not_say_yes_trains_nothing_and_reads_one_line(
    answer: Any,
    code: int,
    line: str,
    photos: Path,
    tmp_path: Path,
    typed: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed(answer)
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to rich
    found, text, error = command(capfd, "fit", "--data", photos, "--out", tmp_path / "run", *TINY)
    assert found == code
    assert line in (text + error).splitlines()[-1]
    assert not (tmp_path / "run" / "last").exists()


@pytest.mark.full
def test_training_with_a_given_tree_needs_no_wordnet(photos: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    tree = run(photos, tmp_path / "run")[0].taxonomy
    given = [
        "fit",
        "--data",
        str(photos),
        "--taxonomy",
        tree,
        "--out",
        str(tmp_path / "new"),
        *map(str, TINY),
    ]
    program = (
        "import sys; sys.modules['nltk'] = sys.modules['gradio'] = None; from training.cli import main; "
        f"sys.exit(main({given}))"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert dataclasses.asdict(Recipe.load(tmp_path / "new" / "recipe.json"))["taxonomy"] == tree
