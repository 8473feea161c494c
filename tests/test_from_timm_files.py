"""Where the weights of a timm classifier come from: files and caches, never the network, and nothing is executed."""

from __future__ import annotations

import functools
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm_models import CAT, NAME, make_model, random_inputs
from torch import nn

import hierclass
from hierclass.classifier import Classifier
from hierclass.errors import CheckpointError, HierclassError

from_timm = functools.partial(hierclass.from_timm, runtime="torch")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_model()


@pytest.fixture(scope="module")
def weights(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def classifier(weights: Path) -> Classifier:
    return from_timm(NAME, weights=weights, device="cpu")


@pytest.mark.parametrize("form", ["new", "old", "training"])
def test_a_pth_file_gives_the_same_answers(
    form: str, model: nn.Module, classifier: Classifier, tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    content = {"state_dict": model.state_dict(), "epoch": 3} if form == "training" else model.state_dict()
    torch.save(content, file, _use_new_zipfile_serialization=form != "old")
    assert from_timm(NAME, weights=str(file), device="cpu").predict(CAT) == classifier.predict(CAT)


def write_bad_file(kind: str, folder: Path, weights: Path) -> Path:
    file = folder / f"bad.{'safetensors' if 'safetensors' in kind else 'pth'}"
    if kind.startswith("cut"):
        torch.save(safetensors.torch.load_file(weights), folder / "whole.pth")
        whole = weights if file.suffix == ".safetensors" else folder / "whole.pth"
        file.write_bytes(whole.read_bytes()[:5000])
    elif kind == "no tensors":
        torch.save([1, 2], file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "whole module":
        torch.save(make_model(), file)
    elif kind == "other classes":
        torch.save(timm.create_model(NAME, num_classes=10).state_dict(), file)
    elif kind != "missing":
        file.write_bytes(b"no weights at all" * 20)
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no file of weights at"),
        ("folder", "there is no file of weights at"),
        ("cut", "is damaged, or holds more than weights"),
        ("cut safetensors", "is damaged: .*copy it again"),
        ("text", "is damaged, or holds more than weights"),
        ("text safetensors", "is damaged: .*copy it again"),
        ("no tensors", "holds no weights; give a state_dict"),
        ("whole module", "holds more than weights, which is refused"),
        ("other classes", r"fc.weight has shape \(10, 96\) there and \(1000, 96\) in the model"),
    ],
)
def test_a_bad_file_is_one_line(kind: str, message: str, tmp_path: Path, weights: Path) -> None:
    file = write_bad_file(kind, tmp_path, weights)
    with pytest.raises(CheckpointError, match=message) as caught:
        from_timm(NAME, weights=file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_another_models_file_is_refused(weights: Path) -> None:
    for name in ("test_vit", "test_efficientnet", "dla46x_c"):
        with pytest.raises(CheckpointError, match="is it another model's"):
            from_timm(name, weights=weights)


def test_weights_that_timm_would_leave_untrained_are_missed(tmp_path: Path) -> None:
    file = tmp_path / "part.safetensors"
    tensors = timm.create_model("dla46x_c").state_dict()  # timm loads parts of this one without a word
    safetensors.torch.save_file(tensors, file)
    from_timm("dla46x_c", weights=file)
    safetensors.torch.save_file({k: v for k, v in tensors.items() if not k.startswith("level1.")}, file)
    with pytest.raises(CheckpointError, match=r"no values for 1 weights of dla46x_c, the first is level1\.0"):
        from_timm("dla46x_c", weights=file)


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("saved_by", ["torch", "pickle"])
@pytest.mark.parametrize("ending", [".pth", ".bin", ".safetensors", ".npz"])
def test_nothing_in_a_file_is_executed(saved_by: str, ending: str, tmp_path: Path) -> None:
    target, file = tmp_path / "executed", tmp_path / f"bomb{ending}"
    content = {"state_dict": make_model().state_dict(), "args": Bomb(target)}
    if saved_by == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError):
        from_timm(NAME, weights=file)
    assert not target.exists()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def caches(no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of Hugging Face (hub/) and of torch (torch/)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.mark.parametrize("name", [NAME, "resnet18", "legacy_seresnet18"])
def test_weights_that_are_not_here_are_one_line_at_once_and_never_fetched(caches: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"the weights of {name} are not in the local cache") as caught:
        from_timm(name)
    assert "weights=FILE" in str(caught.value)
    assert f"timm.create_model('{name}', pretrained=True)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_weights_that_timm_has_fetched_before_are_used(
    caches: Path, ending: str, model: nn.Module, weights: Path, classifier: Classifier
) -> None:
    repository = caches / "hub" / "models--timm--test_resnet.r160_in1k"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (repository / "snapshots" / revision).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    if ending == ".bin":
        torch.save(model.state_dict(), repository / "snapshots" / revision / "pytorch_model.bin")
    else:
        (repository / "snapshots" / revision / "model.safetensors").write_bytes(weights.read_bytes())
    assert from_timm(NAME, device="cpu").predict(CAT) == classifier.predict(CAT)


def test_weights_in_torchs_cache_are_used(caches: Path) -> None:
    folder = caches / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    model = make_model("legacy_seresnet18")
    torch.save(model.state_dict(), folder / "seresnet18-4bb0ce65.pth")
    classifier = from_timm("legacy_seresnet18", device="cpu")
    image = random_inputs(classifier.preprocessing)
    with torch.inference_mode():
        expected = int(model(image).argmax())
    synset = timm.data.ImageNetInfo("imagenet-1k").label_names()[expected]
    assert classifier.predict_tensors(image.numpy())[0].synset == synset


def test_every_error_is_an_error_of_hierclass(weights: Path) -> None:
    for name, file in [("nonsense", weights), (NAME, "nowhere"), ("resnet18", weights)]:
        with pytest.raises(HierclassError):
            from_timm(name, weights=file)


def test_a_file_of_other_names_in_timms_order_is_taken_in_that_order(
    model: nn.Module, classifier: Classifier, tmp_path: Path
) -> None:
    renamed = {
        f"_{number}.{key.rpartition('.')[2]}": value
        for number, (key, value) in enumerate(model.state_dict().items())
    }
    torch.save(renamed, tmp_path / "renamed.pth")
    assert from_timm(NAME, weights=tmp_path / "renamed.pth", device="cpu").predict(CAT) == classifier.predict(
        CAT
    )
    swapped = dict(reversed(renamed.items()))  # another order is another network
    torch.save(swapped, tmp_path / "swapped.pth")
    with pytest.raises(CheckpointError, match="is it another model's"):
        from_timm(NAME, weights=tmp_path / "swapped.pth", device="cpu")
