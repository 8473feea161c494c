"""Images are looked at before training begins."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_data import draw, jpeg, write_folder

from hierclass.errors import ImageError, InputError
from hierclass.images.decoding import read_header
from taxonomy import Taxonomy, load_taxonomy
from taxonomy.terminal import PlainConsole
from training.data import dataset_check
from training.data.dataset_check import (
    CheckResult,
    check_image,
    check_images,
    digest_images,
    resolve_check_mode,
)
from training.data.load import load_data
from training.data.samples import ImageSet, Unreadable, split_by_share
from training.evaluation.console import Reporter
from training.recipe.recipe import Recipe


def encoded(kind: str, size: int = 200) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_a_header_tells_the_size_and_whether_the_file_is_whole(kind: str) -> None:
    data = encoded(kind)
    assert read_header(data) == ((200, 200), True)
    with contextlib.suppress(ImageError):  # WebP's own reader refuses it at once
        assert not read_header(data[:-300]).whole
    assert read_header(encoded("BMP")) == ((200, 200), False)  # can't be told: it is decoded


def test_a_header_of_no_picture_is_an_error_in_one_line() -> None:
    for data in (b"", b"text", encoded("PNG")[:12]):
        with pytest.raises(ImageError) as caught:
            read_header(data)
        assert "\n" not in str(caught.value)


def test_a_quick_look_finds_what_was_cut_short_and_a_full_one_what_is_damaged() -> None:
    whole = encoded("PNG")
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for full, found in ((False, [False, True, True, False]), (True, [False, True, True, True])):
        files = (whole, whole[:-300], b"text", bytes(damaged))
        assert [check_image(file, full=full, min_side=64) is not None for file in files] == found


def test_what_follows_the_end_of_a_jpeg_does_not_make_it_broken() -> None:
    assert check_image(encoded("JPEG") + b"a film follows", full=False, min_side=64) is None


def test_a_look_at_all_shows_its_rate_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 10_000, 20))
    monkeypatch.setattr(dataset_check.time, "monotonic", lambda: float(next(ticks)))
    text = io.StringIO()
    images = ImageSet([encoded("JPEG"), b"", encoded("PNG")], ["a", "b", "c"], np.zeros(3, dtype=np.int64))
    found = list(
        check_images(images, full=True, min_side=64, reporter=Reporter(PlainConsole(file=text, width=200)))
    )
    assert found == [(1, Unreadable("b", "is empty (0 bytes)"))]
    assert re.search(r"checked \d of 3 images .* img/s left", text.getvalue())


def test_few_bytes_are_decoded_and_many_looked_at_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageSet([encoded("JPEG")], ["a"], np.zeros(1, dtype=np.int64))
    assert resolve_check_mode("auto", images) == "full"
    monkeypatch.setattr(dataset_check, "FULL_UP_TO", 100)
    assert resolve_check_mode("auto", images) == "quick"
    assert resolve_check_mode("full", images) == "full"
    with pytest.raises(InputError, match="`check` fast: give auto, none, quick or full"):
        resolve_check_mode("fast", images)


def test_findings_hold_for_the_same_images_only(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG"))
    images = ImageSet([tmp_path / "a.jpg"], ["a.jpg"], np.zeros(1, dtype=np.int64))
    digest = digest_images(images)
    CheckResult("quick", digest, {0: Unreadable("a.jpg", "why")}).save(tmp_path / "checked.json")
    found = CheckResult.load(tmp_path / "checked.json", mode="quick", digest=digest)
    assert found is not None
    assert found.unreadable == (Unreadable("a.jpg", "why"),)
    assert CheckResult.load(tmp_path / "checked.json", mode="full", digest=digest) is None
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", 100))
    assert CheckResult.load(tmp_path / "checked.json", mode="quick", digest=digest_images(images)) is None
    (tmp_path / "checked.json").write_text("{")
    assert CheckResult.load(tmp_path / "checked.json", mode="quick", digest=digest) is None


# ---------------------------------------------------------------- as a run does


@pytest.fixture
def photographs(tmp_path: Path, tiny_taxonomy: Taxonomy) -> Recipe:
    """Three images a class, too large to be decoded once and kept."""
    for name in tiny_taxonomy.leaves:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "photos" / name / f"{number}.jpg").write_bytes(encoded("JPEG"))
    tiny_taxonomy.save(tmp_path / "tiny.json")
    return Recipe(
        data=(str(tmp_path / "photos"),), taxonomy=str(tmp_path / "tiny.json"), size=32, dev_share=0.34
    )


def load(recipe: Recipe, out: Path, check: str = "auto") -> tuple[ImageSet, ImageSet, str]:
    text = io.StringIO()
    reporter = Reporter(PlainConsole(file=text, width=500))
    out.mkdir(exist_ok=True)
    train, dev = load_data(recipe, load_taxonomy(recipe.taxonomy), reporter, out=out, check=check)
    return train, dev, text.getvalue()


def test_what_can_not_be_read_is_listed_and_left_out_before_training(
    photographs: Recipe, tmp_path: Path
) -> None:
    folder = Path(photographs.data[0])
    (folder / "owl" / "1.jpg").write_bytes(encoded("JPEG")[:-9000])
    (folder / "owl" / "[b] 2.jpg").write_text("text")
    train, dev, text = load(photographs, tmp_path / "run")
    assert len(train) + len(dev) == 35
    assert "2 of 37 images cannot be read and are left out" in text
    assert "owl/[b] 2.jpg: is no image of a kind" in text
    rows = (tmp_path / "run" / "unreadable.csv").read_text().splitlines()
    assert rows[0] == "image,error"
    assert {row.split(",")[0] for row in rows[1:]} == {"owl/1.jpg", "owl/[b] 2.jpg"}


def test_a_second_start_takes_what_the_first_one_found(photographs: Recipe, tmp_path: Path) -> None:
    (Path(photographs.data[0]) / "owl" / "1.jpg").write_bytes(encoded("JPEG")[:-9000])
    first = load(photographs, tmp_path / "run")
    assert "checked (each decoded): 1 of 36 images cannot be read" in first[2]

    again = load(photographs, tmp_path / "run")
    assert "checked" not in again[2]
    assert [list(part.names) for part in again[:2]] == [list(part.names) for part in first[:2]]


def test_without_a_check_nothing_is_looked_at(photographs: Recipe, tmp_path: Path) -> None:
    (Path(photographs.data[0]) / "owl" / "1.jpg").write_bytes(encoded("JPEG")[:-9000])
    train, dev, _ = load(photographs, tmp_path / "run", check="none")
    assert len(train) + len(dev) == 36


def test_images_of_which_none_can_be_read_are_an_error(photographs: Recipe, tmp_path: Path) -> None:
    for file in Path(photographs.data[0]).rglob("*.jpg"):
        file.write_text("text")
    with pytest.raises(
        InputError, match=r"none of the .* training images can be read; the first: .*is no image"
    ):
        load(photographs, tmp_path / "run")


def test_a_class_that_lost_its_images_and_one_without_held_out_images_are_named(
    photographs: Recipe, tmp_path: Path
) -> None:
    folder = Path(photographs.data[0])
    for file in (folder / "owl").iterdir():
        file.write_text("text")
    for number in (1, 2):
        (folder / "jeep" / f"{number}.jpg").unlink()
    _, _, text = load(photographs, tmp_path / "run")
    assert "no images to train on: 1 class (owl)" in text
    assert "no image held out: 1 class (jeep)" in text
    assert "training images: 1 to 2 per class, median 2" in text


def test_uneven_classes_are_told_of_the_option(photographs: Recipe, tmp_path: Path) -> None:
    for number in range(40):
        file = Path(photographs.data[0]) / "owl" / f"more{number}.jpg"
        file.write_bytes(jpeg(draw(6, number, 96)))
    assert (
        "times as many images as the smallest: consider `balance` loss"
        in load(photographs, tmp_path / "run")[2]
    )
    balanced = dataclasses.replace(photographs, balance="loss")
    assert "--balance" not in load(balanced, tmp_path / "run")[2]


def test_a_broken_image_takes_no_other_of_its_name_along(photographs: Recipe, tmp_path: Path) -> None:
    other = tmp_path / "more"
    shutil.copytree(tmp_path / "photos", other)
    first = next((tmp_path / "photos").rglob("1.jpg"))
    first.write_text("broken")
    recipe = dataclasses.replace(photographs, data=(str(tmp_path / "photos"), str(other)))
    for _ in range(2):  # by looking, and from what was found
        train, dev, _ = load(recipe, tmp_path / "run")
        assert len(train) + len(dev) == 2 * 36 - 1


def test_a_class_of_few_images_beside_large_ones_is_held_out_too() -> None:
    leaves = np.repeat(np.arange(3), (60, 3, 20))
    train, dev = split_by_share(leaves, 0.1, seed=0)
    assert np.bincount(leaves[dev]).tolist() == [6, 1, 2]
    assert sorted([*train, *dev]) == list(range(83))


def test_a_share_of_few_images_is_held_out_of_every_class_that_has_two() -> None:
    leaves = np.array([0, 1, 1, 2, 2, 2, 3] + [4] * 40)
    train, dev = split_by_share(leaves, 0.1, seed=0)
    assert np.bincount(leaves[dev], minlength=5).tolist() == [0, 1, 1, 0, 4]
    assert sorted([*train, *dev]) == list(range(len(leaves)))
    assert split_by_share(leaves, 0.1, seed=0)[1].tolist() == dev.tolist()


def test_small_images_are_checked_by_decoding_them_once(tmp_path: Path, tiny_taxonomy: Taxonomy) -> None:
    folder = write_folder(tmp_path / "shapes", tiny_taxonomy, 4)
    (folder / "owl" / "owl_0.jpg").write_text("text")
    tiny_taxonomy.save(tmp_path / "tiny.json")
    recipe = Recipe(data=(str(folder),), taxonomy=str(tmp_path / "tiny.json"), size=32)
    train, dev, text = load(recipe, tmp_path / "run", check="none")
    assert len(train) + len(dev) == 47
    assert "1 of 48 images cannot be read" in text


def test_what_is_found_while_decoding_and_by_the_check_is_told_in_one_line(
    photographs: Recipe, tmp_path: Path
) -> None:
    folder = Path(photographs.data[0])
    (folder / "owl" / "1.jpg").write_text("text")  # few bytes: read at once, before the others are checked
    _, _, text = load(photographs, tmp_path / "a")
    assert "1 of 36 images cannot be read and are left out" in text
    assert "all can be read" not in text
    (folder / "owl" / "1.jpg").unlink()
    _, _, text = load(photographs, tmp_path / "b")
    assert "checked 35 images (each decoded): all can be read" in text
