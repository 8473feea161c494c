"""The parts of a distillation: what the teacher is, crops and answers on disk, and what levels learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from distil_data import make_classifier, make_recipe, run, write_photographs, write_teacher
from PIL import Image
from training_data import draw, jpeg, write_parquet

from hierclass.checkpoints.checkpoint import Checkpoint, build, load_checkpoint, save_checkpoint
from hierclass.checkpoints.description import Architecture
from hierclass.errors import BackboneError, InputError
from hierclass.images.preprocessing import Preprocessing
from taxonomy import Taxonomy
from training.data.mixup import blend
from training.distillation.crop_store import ANSWERS, SIDES, CropStore, StoreColumn
from training.distillation.crops import CropSampler, shrink_pixels
from training.distillation.losses import TeacherLoss
from training.distillation.photographs import list_photographs
from training.distillation.teacher import model_teacher, timm_teacher
from training.distillation.teacher_runtime import PixelClassifier, _by_onnxruntime, run_by_torch
from training.trainer.sync_batchnorm import measure_statistics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_taxonomy: Taxonomy) -> Path:
    folder = tmp_path_factory.mktemp("distil")
    write_teacher(folder, tiny_taxonomy)
    write_photographs(folder / "photos", 12)
    return folder


def test_onnx_runtime_answers_as_torch_does(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    teacher = timm_teacher(
        "test_resnet",
        weights=folder / "weights.safetensors",
        taxonomy=str(folder / "tree.json"),
        classes=folder / "classes.txt",
    ).at_side(32)
    network = PixelClassifier(teacher.classifier, teacher.preprocessing).eval()
    answer = _by_onnxruntime(network, 32, threads=1)
    assert answer is not None
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    expected = run_by_torch(network, torch.device("cpu"))(images)
    assert np.allclose(answer(images), expected, atol=1e-3)
    normal = (images / 255 - np.array(teacher.preprocessing.mean)) / np.array(teacher.preprocessing.std)
    model = make_classifier(12)
    with torch.no_grad():
        theirs = model(torch.from_numpy(normal).float().permute(0, 3, 1, 2)).flip(1).numpy()
    assert np.allclose(expected, theirs, atol=1e-3)


@pytest.mark.parametrize("structure", ["prefix", "masks", "slices"])
def test_the_last_level_of_a_model_is_a_teacher_where_it_is_a_plain_network(
    structure: str, tiny_taxonomy: Taxonomy, tmp_path: Path
) -> None:
    shares = "densities" if structure == "masks" else "widths"
    architecture = Architecture(
        backbone="test_resnet", **{"widths": None, shares: (0.5, 0.75, 1.0)}, structure=structure
    )
    network = build(architecture, tiny_taxonomy, 32, warn=False).eval()
    save_checkpoint(
        tmp_path, Checkpoint(tiny_taxonomy, architecture, Preprocessing(32), network=network), dtype="float32"
    )
    if structure == "slices":
        with pytest.raises(
            BackboneError, match="is of structure slices, whose last level is no plain timm network"
        ):
            model_teacher(tmp_path, None)
        return
    teacher = model_teacher(tmp_path, None)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(
            teacher.classifier(images), load_checkpoint(tmp_path).network(images), atol=1e-5
        )


def test_a_model_is_nested_anew_in_another_tree_of_its_classes(folder: Path, tiny_checkpoint: Path) -> None:
    (folder / "few.csv").write_text("kind,leaf\ndog,beagle\ndog,husky\ncat,tabby\n")
    with pytest.raises(BackboneError, match="structure slices"):
        model_teacher(tiny_checkpoint, str(folder / "few.csv"))
    teacher = timm_teacher(
        "test_resnet",
        weights=folder / "weights.safetensors",
        taxonomy=str(folder / "few.csv"),
        classes=folder / "classes.txt",
    )
    classes = (folder / "classes.txt").read_text().split()
    image, model = torch.randn(1, 3, 32, 32), make_classifier(12)
    with torch.no_grad():
        wanted = model(image)[:, [classes.index(name) for name in ("beagle", "husky", "tabby")]]
        assert torch.allclose(teacher.classifier(image), wanted, atol=1e-5)


def test_photographs_come_from_folders_and_from_parquet_files(
    folder: Path, tiny_taxonomy: Taxonomy, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "a.parquet", tiny_taxonomy, 1)
    found = list_photographs([folder / "photos", tmp_path])
    assert len(found) == 24
    assert found.image(20).size == (32, 32)
    assert found.digest != list_photographs([tmp_path]).digest


def test_a_table_without_images_does_not_hide_the_photographs_beside_it(
    tiny_taxonomy: Taxonomy, tmp_path: Path
) -> None:
    write_photographs(tmp_path / "photos", 3)
    table = tmp_path / "photos" / "labels.parquet"
    pq.write_table(pa.table({"file": ["000.jpg"], "leaf": ["husky"]}), table)
    found = list_photographs([tmp_path / "photos"])
    assert len(found) == 3
    assert found.passed_over == (table,)
    write_parquet(tmp_path / "photos" / "more.parquet", tiny_taxonomy, 1)
    assert len(list_photographs([tmp_path / "photos"])) == 15


def test_a_crop_depends_on_seed_pass_and_photograph_alone() -> None:
    cutter = CropSampler(Preprocessing(16), (0.25, 1.0), 3, 5)
    image = draw(1, 1, size=64)
    first = cutter.cut(image, 1, 4)
    cutter.cut(image, 0, 2)
    again = CropSampler(Preprocessing(16), (0.25, 1.0), 3, 5).cut(image, 1, 4)
    assert (first.pixels == again.pixels).all()
    assert first.photograph == 64
    assert 64 * 0.25**0.5 * 0.75**0.5 - 1 <= first.shown <= 64
    assert not (first.pixels == cutter.cut(image, 2, 4).pixels).all()


def test_shrinking_a_crop_keeps_what_is_even_and_what_fits() -> None:
    even = np.full((2, 32, 32, 3), 77, dtype=np.uint8)
    assert (shrink_pixels(even, 12) == 77).all()
    assert shrink_pixels(even, 32) is even


def make_store(folder: Path, passes: int = 2, **made_from: object) -> CropStore:
    columns = {ANSWERS: StoreColumn((3,), np.float16), SIDES: StoreColumn((2,), np.uint16)}
    return CropStore(folder, {"seed": 0, **made_from}, columns, num_photographs=70, passes=passes)


def test_a_store_knows_what_is_whole_and_grows_by_passes(tmp_path: Path) -> None:
    store = make_store(tmp_path, 1)
    store.open()
    first, second = store.blocks()
    store.write(ANSWERS, second, np.full((6, 3), 2.0))
    assert not store.done(ANSWERS).any()
    store.commit()
    assert store.done(ANSWERS).tolist() == [0, 1]
    assert (store.read(ANSWERS)[64:] == 2).all()
    grown = make_store(tmp_path, 2)
    grown.open()
    assert grown.done(ANSWERS).tolist() == [0, 1, 0, 0]
    assert [block.first for block in grown.blocks()] == [0, 64, 0, 64]
    assert grown.read(ANSWERS).shape == (140, 3)
    assert first.stop == 64


def test_a_store_made_of_something_else_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path).open()
    with pytest.raises(InputError, match=r"crops of another run \(differing: seed\)"):
        make_store(tmp_path, seed=1).open()
    (tmp_path / "crops.json").write_text("no json")
    with pytest.raises(InputError, match="crops of another run"):
        make_store(tmp_path).open()


def test_the_loss_is_the_divergence_from_the_teacher_on_leaves_and_tier(tiny_taxonomy: Taxonomy) -> None:
    loss = TeacherLoss(tiny_taxonomy, [1], leaf_weight=2.0, tier_weight=0.5)
    logits, answer = torch.randn(4, 12), torch.randn(4, 12).softmax(1)
    leaf = F.kl_div(logits.log_softmax(1), answer, reduction="batchmean")
    groups = torch.tensor(tiny_taxonomy.projection(1))
    ours, theirs = (torch.zeros(4, 5).index_add_(1, groups, each) for each in (logits.softmax(1), answer))
    tier = F.kl_div(ours.log(), theirs, reduction="batchmean")
    assert float(loss([logits], answer)) == pytest.approx(float(2 * leaf + 0.5 * tier), rel=1e-5)
    assert float(loss([answer.log()], answer)) == pytest.approx(0, abs=1e-6)


def test_images_and_answers_are_mixed_alike() -> None:
    positions = torch.tensor([0, 3, 1, 2])  # pairs: 0 with 3, 1 with 2
    values = torch.eye(4)
    mixed = blend(values, positions, 4, 0.75)
    assert mixed[0].tolist() == [0.75, 0.25, 0, 0]
    assert mixed[2].tolist() == [0, 0, 0.75, 0.25]


def test_statistics_are_the_mean_over_the_calls_and_those_of_norms_that_are_not_called_stay() -> None:
    called, other, frozen = (torch.nn.BatchNorm1d(2) for _ in range(3))
    network = torch.nn.ModuleList([called, other, frozen])
    other.running_mean.fill_(7.0)
    batches = [torch.randn(8, 2) + shift for shift in (0.0, 2.0)]
    assert measure_statistics(network, [lambda each=each: called(each) for each in batches]) == 1
    assert torch.allclose(called.running_mean, torch.stack([each.mean(0) for each in batches]).mean(0))
    assert (other.running_mean == 7).all()
    assert called.momentum == 0.1


def test_labelled_photographs_measure_and_calibrate_the_model(
    folder: Path, tiny_taxonomy: Taxonomy, tmp_path: Path
) -> None:
    for number, leaf in enumerate(tiny_taxonomy.leaves):
        (tmp_path / "labelled" / leaf).mkdir(parents=True)
        for each in range(5):
            (tmp_path / "labelled" / leaf / f"{each}.jpg").write_bytes(jpeg(draw(number, each)))
    recipe = make_recipe(folder, crops=16, eval_every=16)
    _, text = run(recipe, tmp_path / "out", level=0, eval_data=[str(tmp_path / "labelled")])
    assert "60 images" in text
    checkpoint = load_checkpoint(tmp_path / "out" / "model")
    assert len(checkpoint.results["dev"]["levels"]) == 3
    assert len(checkpoint.decision["temperatures"]) == 3
    card = (tmp_path / "out" / "model" / "MODEL_CARD.md").read_text()
    assert "## Results on labelled photographs" in card
    assert "## Calibration" in card
    run(recipe, tmp_path / "out", level=1)  # the other level is new: what was measured does not hold
    checkpoint = load_checkpoint(tmp_path / "out" / "model")
    assert "dev" not in checkpoint.results
    assert checkpoint.decision == {}
    with pytest.raises(InputError, match="nowhere does not exist"):
        run(recipe, tmp_path / "out", level=1, resume=True, eval_data=[str(tmp_path / "nowhere")])


def test_pictures_are_read_as_inference_reads_them(folder: Path) -> None:
    assert isinstance(list_photographs([folder / "photos"]).image(0, min_side=8), Image.Image)
