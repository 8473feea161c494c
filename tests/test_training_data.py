"""Reading labelled images, holding some out, and making the same batches again."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import draw, jpeg, write_folder, write_parquet

from hierclass.errors import InputError
from hierclass.images.decoding import read_image
from hierclass.images.preprocessing import Preprocessing, decode_side, preprocess
from taxonomy import Taxonomy, load_taxonomy
from training.data.batches import (
    TrainingBatch,
    evaluation_loader,
    read_batches,
    read_training_batches,
    training_loader,
)
from training.data.sampler import BatchSampler, BatchShare
from training.data.samples import ImageSet, decode_small, read_images, split


def test_parquet_and_folders_give_the_same_leaves(tmp_path: Path, tiny_taxonomy: Taxonomy) -> None:
    table = read_images([write_parquet(tmp_path / "a.parquet", tiny_taxonomy, 2)], tiny_taxonomy)
    folder = read_images([write_folder(tmp_path / "classes", tiny_taxonomy, 2)], tiny_taxonomy)
    assert np.bincount(table.labels).tolist() == np.bincount(folder.labels).tolist() == [2] * 12


def test_a_folder_of_parquet_files_and_several_paths_are_read_as_one(
    tmp_path: Path, tiny_taxonomy: Taxonomy
) -> None:
    (tmp_path / "tables").mkdir()
    write_parquet(tmp_path / "tables" / "0.parquet", tiny_taxonomy, 1)
    write_parquet(tmp_path / "tables" / "1.parquet", tiny_taxonomy, 2)
    folder = write_folder(tmp_path / "classes", tiny_taxonomy, 1)
    assert len(read_images([tmp_path / "tables", folder], tiny_taxonomy)) == 12 * 4


def test_a_folder_tree_finds_its_own_images(tmp_path: Path) -> None:
    for leaf, path in enumerate(("animal/dog/a b", "animal/cat/tom", "thing/tool/saw")):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "0.jpg").write_bytes(jpeg(draw(leaf, 0)))
    images = read_images([tmp_path], load_taxonomy(str(tmp_path)))
    assert sorted(images.labels.tolist()) == [0, 1, 2]


def test_images_inside_a_class_folder_may_lie_deeper(tmp_path: Path, tiny_taxonomy: Taxonomy) -> None:
    (tmp_path / "beagle" / "images").mkdir(parents=True)
    (tmp_path / "beagle" / "images" / "0.jpg").write_bytes(jpeg(draw(1, 0)))
    assert read_images([tmp_path], tiny_taxonomy).labels.tolist() == [1]


def test_a_label_that_the_taxonomy_lacks_is_named(tmp_path: Path, tiny_taxonomy: Taxonomy) -> None:
    (tmp_path / "unicorn").mkdir()
    (tmp_path / "unicorn" / "0.jpg").write_bytes(jpeg(draw(0, 0)))
    with pytest.raises(InputError, match="'unicorn' is no leaf of taxonomy 'tiny'"):
        read_images([tmp_path], tiny_taxonomy)


def test_a_missing_path_a_missing_column_and_an_empty_folder_are_named(
    tmp_path: Path, tiny_taxonomy: Taxonomy
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"picture": [b""]}), tmp_path / "bad.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("none", "does not exist"),
        ("bad.parquet", "no column path .* and no column label"),
        ("text.parquet", "no whole Parquet"),
        ("empty", "no images found"),
    ):
        with pytest.raises(InputError, match=message):
            read_images([tmp_path / name], tiny_taxonomy)


def test_numbered_names_split_at_the_number(tmp_path: Path, tiny_taxonomy: Taxonomy) -> None:
    images = read_images([write_parquet(tmp_path / "a.parquet", tiny_taxonomy, 5)], tiny_taxonomy)
    train, dev = split(images, dev_from=3, dev_share=0.0, seed=0)
    assert {images.names[i].split("_")[1] for i in dev} == {"3.JPEG", "4.JPEG"}
    assert sorted([*train, *dev]) == list(range(60))


def test_a_share_is_held_out_of_every_leaf_and_always_the_same(tiny_taxonomy: Taxonomy) -> None:
    leaves = np.repeat(np.arange(12), 10)
    images = ImageSet([b""] * 120, [""] * 120, leaves)
    train, dev = split(images, dev_from=None, dev_share=0.2, seed=1)
    again = split(images, dev_from=None, dev_share=0.2, seed=1)
    assert np.bincount(leaves[dev]).tolist() == [2] * 12
    assert not set(train.tolist()) & set(dev.tolist())
    assert dev.tolist() == again[1].tolist()


def test_a_split_that_cannot_be_made_is_refused() -> None:
    images = ImageSet([b""] * 3, ["a_1", "b_2", "c"], np.arange(3))
    with pytest.raises(InputError, match="`dev_share`"):
        split(images, dev_from=2, dev_share=0.0, seed=0)
    with pytest.raises(InputError, match="cannot be held out"):
        split(images, dev_from=None, dev_share=0.5, seed=0)
    for share in (0.0, 1.5):
        with pytest.raises(InputError, match=f"^`dev_share` {share}: give more than 0, less than 1$"):
            split(images, dev_from=None, dev_share=share, seed=0)
    numbered = ImageSet([b""] * 2, ["a_1", "b_2"], np.arange(2))
    with pytest.raises(
        InputError, match="`dev_from` 3 leaves 2 images to train on and 0 held out; give a number"
    ):
        split(numbered, dev_from=3, dev_share=0.1, seed=0)


def test_unreadable_images_are_counted_and_no_neighbour_takes_their_place(tiny_taxonomy: Taxonomy) -> None:
    sources = [jpeg(draw(0, 0)), b"not an image", jpeg(draw(2, 0)), jpeg(draw(3, 0))[:200]]
    images = ImageSet(sources, ["a", "broken", "c", "cut"], np.arange(4))
    readable, errors = decode_small(images, max_side=64)
    assert readable.labels.tolist() == [0, 2]
    assert [error.name for error in errors] == ["broken", "cut"]
    loader = evaluation_loader(images, Preprocessing(32), batch_size=4, workers=0)
    batch, leaves, messages = next(read_batches(loader))
    assert (len(batch), leaves.tolist(), len(messages)) == (2, [0, 2], 2)


def test_large_images_stay_encoded() -> None:
    images = ImageSet([jpeg(draw(0, 0, 32)), jpeg(draw(0, 0, 96))], ["a", "b"], np.zeros(2, dtype=np.int64))
    readable, _ = decode_small(images, max_side=64)
    assert [type(source) for source in readable.sources] == [np.ndarray, bytes]


def test_an_epoch_holds_every_image_once_and_depends_on_seed_and_epoch_alone() -> None:
    def order(epoch: int) -> list[int]:
        return [i for share in BatchSampler(40, 10, seed=3).shares(epoch) for i in share.indices]

    assert sorted(order(0)) == list(range(40))
    assert order(0) == order(0) != order(1)


@pytest.mark.parametrize(("size", "processes"), [(10, 2), (12, 3), (7, 2)])
def test_processes_deal_every_batch_out_and_pairs_stay_together(size: int, processes: int) -> None:
    (whole,) = BatchSampler(size, size, seed=3).shares(0)
    assert whole.positions == list(range(size))
    parts = [
        next(iter(BatchSampler(size, size, seed=3, process=process, num_processes=processes).shares(0)))
        for process in range(processes)
    ]
    assert sorted(place for part in parts for place in part.positions) == whole.positions
    for part in parts:
        assert part.indices == [whole.indices[place] for place in part.positions]
        assert {size - 1 - place for place in part.positions} == set(part.positions)
        assert part.batch == size


def test_an_epoch_begins_where_it_was_left() -> None:
    order = BatchSampler(40, 10, seed=3)
    assert list(order.shares(2, start=3)) == list(order.shares(2))[3:]


def augmented(images: ImageSet, shares: Iterable[BatchShare], workers: int = 0) -> list[TrainingBatch]:
    loader = training_loader(
        images,
        shares,
        sides=[16, 24],
        crop_scale=(0.35, 1.0),
        color_jitter=0.2,
        auto_augment="rand-m5-n1",
        seed=0,
        workers=workers,
    )
    return list(read_training_batches(loader))


def shapes(count: int) -> ImageSet:
    return ImageSet(
        [jpeg(draw(i, 0)) for i in range(count)], [str(i) for i in range(count)], np.arange(count)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_repeats_for_an_epoch_and_differs_between_epochs(workers: int) -> None:
    images, order = shapes(12), BatchSampler(12, 4, seed=0)
    first = augmented(images, order.shares(0, side=16), workers)
    again = augmented(images, order.shares(0, side=16))
    (share,) = BatchSampler(12, 12, seed=0).shares(0, side=16)
    (other,) = augmented(images, [dataclasses.replace(share, epoch=1)])
    assert first[0].images.shape == (4, 3, 16, 16)
    assert first[0].images.dtype == torch.uint8
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].images, other.images[:4])


def test_how_an_image_is_augmented_does_not_depend_on_who_prepares_it_beside_which_others() -> None:
    images = shapes(12)
    (whole,) = augmented(images, BatchSampler(12, 12, seed=0).shares(0, side=16))
    for process in range(2):
        (part,) = augmented(
            images, BatchSampler(12, 12, seed=0, process=process, num_processes=2).shares(0, side=16)
        )
        assert torch.equal(part.images, whole.images[part.positions])
        assert torch.equal(part.labels, whole.labels[part.positions])


def test_an_image_that_is_drawn_twice_is_augmented_in_two_ways() -> None:
    share = BatchShare(indices=[3, 3, 3], positions=[0, 1, 2], batch=3, epoch=0, side=16)
    (batch,) = augmented(shapes(4), [share])
    assert not torch.equal(batch.images[0], batch.images[1])
    assert not torch.equal(batch.images[1], batch.images[2])


def test_the_same_workers_go_on_when_the_images_grow() -> None:
    order = BatchSampler(12, 4, seed=0)
    shares = [*order.shares(0, side=16), *order.shares(1, side=24)]
    batches = augmented(shapes(12), shares, workers=1)
    assert [batch.images.shape[-1] for batch in batches] == [16] * 3 + [24] * 3
    assert [batch.share for batch in batches] == shares


def test_a_batch_says_which_of_its_images_could_be_read(tiny_taxonomy: Taxonomy) -> None:
    images = shapes(4)
    broken = ImageSet([*images.sources[:2], b"broken", images.sources[3]], images.names, images.labels)
    share = BatchShare([3, 2, 1], [0, 4, 5], 6, 0, 16)
    (batch,) = augmented(broken, [share])
    assert batch.positions.tolist() == [0, 5]
    assert batch.labels.tolist() == [3, 1]
    assert [message.split(":")[0] for message in batch.errors] == ["2"]


@pytest.mark.parametrize("crop", [1.0, 0.8])
def test_evaluation_sees_what_inference_sees(crop: float) -> None:
    file = io.BytesIO()
    draw(3, 1, 48).resize((512, 384)).save(file, "jpeg")  # large enough to be decoded at a reduced scale
    images = ImageSet([file.getvalue()], ["a"], np.array([3]))
    preprocessing = Preprocessing(48, crop=crop)
    batch, _, _ = next(read_batches(evaluation_loader(images, preprocessing, batch_size=1, workers=0)))
    image = read_image(file.getvalue(), min_side=decode_side(preprocessing))
    assert np.array_equal(batch[0].numpy(), preprocess(image, preprocessing))


@pytest.mark.full
@pytest.mark.skipif(os.name == "nt", reason="a process can't be killed so on Windows")
def test_workers_end_with_a_process_that_was_killed() -> None:
    code = """
import os, signal
import numpy as np
from PIL import Image
import io
from hierclass.images.preprocessing import Preprocessing
from training.data.batches import evaluation_loader, read_batches
from training.data.samples import ImageSet
file = io.BytesIO()
Image.new("RGB", (64, 64)).save(file, "jpeg")
images = ImageSet([file.getvalue()] * 640, ["a"] * 640, np.zeros(640, np.int64))
loader = evaluation_loader(images, Preprocessing(64), batch_size=64, workers=2)
for _ in read_batches(loader):
    print("first batch", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    found, _ = process.communicate(timeout=120)  # it waits for all that hold the other end: the workers too
    assert found == b"first batch\n"
