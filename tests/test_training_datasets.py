"""Where labelled images lie: class folders of all kinds, divided data, CIFAR-100, and the first look at them."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR100, ImageFolder
from training_data import draw, jpeg, write_folder, write_parquet

from hierclass.errors import InputError
from taxonomy import Taxonomy, load_taxonomy
from training.data import cifar
from training.data.dataset_summary import default_out, summarise_dataset
from training.data.datasets import absolute, divided, list_images
from training.data.samples import read_images, split


def put(path: Path, leaf: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(draw(leaf, 0)))


def test_imagefolder_lists_what_torchvision_lists(tmp_path: Path) -> None:
    for name in ("dog/1.jpg", "dog/deeper/2.jpg", "cat/3.jpg", "cat/notes.txt"):
        put(tmp_path / name)
    (listing,) = list_images(f"imagefolder:{tmp_path}")
    theirs = ImageFolder(str(tmp_path))
    ours = [(str(path), way[0]) for path, way in zip(listing.sources, listing.ways, strict=True)]
    assert sorted(ours) == sorted((path, theirs.classes[label]) for path, label in theirs.samples)


def test_a_val_folder_is_held_out_and_evaluated_on(tmp_path: Path, tiny_taxonomy: Taxonomy) -> None:
    write_folder(tmp_path / "train", tiny_taxonomy, 3)
    write_folder(tmp_path / "val", tiny_taxonomy, 1)
    (tmp_path / "test").mkdir()
    for data in (str(tmp_path), f"imagefolder:{tmp_path}", f"imagenet:{tmp_path}"):
        images = read_images([data], tiny_taxonomy)
        train, dev = split(images, dev_from=None, dev_share=0.5, seed=0)
        assert (len(train), len(dev)) == (36, 12)
        assert len(read_images([data], tiny_taxonomy, part="val")) == 12
        with pytest.raises(InputError, match="leave `dev_from` out"):
            split(images, dev_from=1, dev_share=0.5, seed=0)


def test_classes_that_are_called_train_and_bus_are_classes(tmp_path: Path) -> None:
    put(tmp_path / "train" / "1.jpg")
    put(tmp_path / "bus" / "1.jpg")
    assert set(summarise_dataset([str(tmp_path)]).ways) == {("train",), ("bus",)}


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "dog" / "1.jpg")
    put(tmp_path / "elsewhere" / "2.jpg")
    (tmp_path / "photos" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "dog" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "self").symlink_to(tmp_path / "photos" / "self")
    assert summarise_dataset([str(tmp_path / "photos")]).ways == {("cat",): 1, ("dog",): 1}


def test_hidden_files_and_files_of_other_kinds_are_no_images(tmp_path: Path) -> None:
    for name in ("dog/1.jpg", "dog/._1.jpg", ".cache/2.jpg", "dog/notes.txt"):
        put(tmp_path / name)
    assert summarise_dataset([str(tmp_path)]).ways == {("dog",): 1}


def test_folders_of_nas_and_desktops_are_neither_classes_nor_stand_beside_train_and_val(
    tmp_path: Path,
) -> None:
    for name in ("train/dog/1.jpg", "train/dog/@eaDir/2.jpg", "train/@eaDir/3.jpg", "val/dog/4.jpg"):
        put(tmp_path / name)
    put(tmp_path / "#recycle" / "5.jpg")
    assert summarise_dataset([str(tmp_path / "train")]).ways == {("dog",): 1}
    assert divided(tmp_path) == (tmp_path / "train", tmp_path / "val")


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode on Windows")
def test_file_names_of_any_bytes_are_read_and_can_be_printed(tmp_path: Path, tiny_taxonomy: Taxonomy) -> None:
    for name in (b"\xff.jpg", b"[red] :dog:\n.jpg"):
        put(tmp_path / "beagle" / os.fsdecode(name))
    images = read_images([tmp_path], tiny_taxonomy)
    assert sorted(images.names) == ["beagle/[red] :dog:\n.jpg", "beagle/\\xff.jpg"]
    assert all(image.size == (32, 32) for image in map(images.image, range(2)))


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        ([], "{}", "no images in .*; give a folder with a folder of images for each class"),
        (["dog/notes.txt"], "{}", "no images in .*; give a folder with"),
        (
            ["1.jpg", "dog/2.jpg"],
            "{}",
            r"holds 1 image beside its class folders \(1.jpg\); move it into one",
        ),
        (["1.jpg"], "imagefolder:{}", "but no class folders; make a folder for each class"),
        (["train/dog/1.jpg", "val/2.jpg"], "imagenet:{}", "val holds images .*but no class folders"),
        (["dog/1.jpg"], "imagenet:{}", "imagenet expects the folders train and val in it"),
        ([], "{}/none", "none does not exist"),
    ],
)
def test_folders_without_labelled_images_are_told_in_one_line(
    files: list[str], data: str, message: str, tmp_path: Path
) -> None:
    for name in files:
        put(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        summarise_dataset([data.format(tmp_path)])
    assert "\n" not in str(caught.value)


def test_a_survey_counts_the_images_and_knows_their_size(tmp_path: Path, tiny_taxonomy: Taxonomy) -> None:
    write_parquet(tmp_path / "shapes.parquet", tiny_taxonomy, 3)
    put(tmp_path / "folder" / "owl" / "1.jpg")
    found = summarise_dataset([str(tmp_path / "shapes.parquet"), str(tmp_path / "folder")])
    assert (found.num_images, found.ways[("owl",)], found.side) == (37, 4, 32)


def test_a_run_goes_to_a_folder_that_is_called_as_its_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").touch()
    assert default_out(["photos/"]) == Path("runs/photos")
    assert default_out(["a.parquet"]) == Path("runs/a")
    assert default_out(["cifar100:/data"]) == Path("runs/cifar100")
    assert absolute("cifar100:data") == f"cifar100:{tmp_path / 'data'}"


# ---------------------------------------------------------------- CIFAR-100


@pytest.fixture
def cifar_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of CIFAR-100's form with the real names, 2 training images and 1 test image a class, and their sums."""
    taxonomy = load_taxonomy("cifar-100")
    names = sorted(taxonomy.node(leaf).name.replace(" ", "_") for leaf in taxonomy.leaves)
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def part(per_class: int) -> dict[str, object]:
        labels = list(range(100)) * per_class
        rows = np.array([[label] * 3072 for label in labels], dtype=np.uint8)
        return {"data": rows, "fine_labels": labels}

    members = {
        "train_list": [["train", write("train", part(2))]],
        "test_list": [["test", write("test", part(1))]],
        "meta": {
            "filename": "meta",
            "key": "fine_label_names",
            "md5": write("meta", {"fine_label_names": names}),
        },
    }
    monkeypatch.setattr(cifar, "LOADER", type("Small", (CIFAR100,), members))
    return tmp_path


def test_cifar_100_is_read_by_name_with_its_own_tree(cifar_folder: Path) -> None:
    taxonomy = load_taxonomy("cifar-100")
    for path in (cifar_folder, cifar_folder / "cifar-100-python"):
        images = read_images([f"cifar100:{path}"], taxonomy)
        assert len(images) == 200
        assert np.bincount(images.labels).tolist() == [2] * 100
    apple = next(
        i for i, leaf in enumerate(images.labels) if taxonomy.node(taxonomy.leaves[leaf]).name == "apple"
    )
    assert np.asarray(images.image(apple)).max() == 0  # the pixels are the label: apple is class 0
    assert images.names[0] == "train_0.png"


def test_evaluating_on_cifar_100_means_its_test_images(cifar_folder: Path) -> None:
    images = read_images([f"cifar100:{cifar_folder}"], load_taxonomy("cifar-100"), part="val")
    assert (len(images), images.names[0]) == (100, "test_0.png")


def test_missing_files_of_cifar_100_are_named(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").touch()
    with pytest.raises(
        InputError, match=r"expects the files train, test, meta in .*, and test, meta are missing"
    ):
        list(list_images(f"cifar100:{tmp_path}"))


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path(os.environ["HIERCLASS_TRAP"]),)


def test_a_file_that_is_not_the_published_one_is_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIERCLASS_TRAP", str(tmp_path / "sprung"))
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="their MD5 sums differ"):
        list(list_images(f"cifar100:{tmp_path}"))
    assert not (tmp_path / "sprung").exists()
