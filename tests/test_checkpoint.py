"""Checkpoints: what is written is what is read, and nothing else is."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from hierclass import load
from hierclass.checkpoints.checkpoint import (
    Checkpoint,
    as_stored,
    build,
    load_checkpoint,
    save_checkpoint,
)
from hierclass.checkpoints.description import Architecture
from hierclass.errors import BackboneError, CheckpointError
from hierclass.images.preprocessing import Preprocessing
from taxonomy import Node, Taxonomy

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a configuration as an early version may have written it, without a digest of its contents."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config.pop("digest", None)
    change(config)
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def test_a_written_model_is_read_with_the_same_answers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load_checkpoint(tiny_checkpoint)
    model.decision = {"lower_weight": 0.5}
    save_checkpoint(tmp_path / "again", model, dtype="float32")
    again = load_checkpoint(tmp_path / "again")
    with torch.inference_mode():
        for new, old in zip(
            again.network.forward_all(IMAGES), model.network.forward_all(IMAGES), strict=True
        ):
            assert torch.equal(new, old)
    assert again.taxonomy == model.taxonomy
    assert again.architecture == model.architecture
    assert again.preprocessing == model.preprocessing
    assert again.results == model.results != {}
    assert again.decision == {"lower_weight": 0.5}
    assert not again.network.training


def test_half_precision_takes_half_the_room_and_changes_little(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load_checkpoint(tiny_checkpoint)
    save_checkpoint(tmp_path, model)
    assert (tmp_path / WEIGHTS).stat().st_size < 0.6 * (tiny_checkpoint / WEIGHTS).stat().st_size
    half = load_checkpoint(tmp_path)
    assert {value.dtype for value in half.network.parameters()} == {torch.float32}
    with torch.inference_mode():
        expected, logits = model.network(IMAGES), half.network(IMAGES)
        rounded = as_stored(model.network)(IMAGES)
    assert torch.equal(rounded, logits)  # as it is measured before it is written
    assert not torch.equal(logits, expected)
    assert torch.allclose(logits, expected, atol=0.02 * float(expected.abs().max()))


def test_a_value_that_half_precision_cannot_hold_is_kept(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = load_checkpoint(tiny_checkpoint)
    name = next(name for name, _ in model.network.named_buffers() if name.endswith("running_var"))
    model.network.get_buffer(name).fill_(1e6)
    save_checkpoint(tmp_path, model)
    assert load_checkpoint(tmp_path).network.get_buffer(name).eq(1e6).all()


def test_writing_leaves_two_files_and_replaces_a_former_model(folder: Path) -> None:
    model = load_checkpoint(folder)
    model.results = {"note": "second"}
    save_checkpoint(folder, model)
    assert sorted(file.name for file in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert load_checkpoint(folder).results == {"note": "second"}


def test_a_model_needs_nothing_but_its_folder(tiny_taxonomy: Taxonomy, tmp_path: Path) -> None:
    from hierclass.nested import create_backbone

    start = tmp_path / "start.pth"
    torch.save(create_backbone("test_resnet").state_dict(), start)
    architecture = Architecture("test_resnet", (0.25, 0.5, 1.0), {"checkpoint_path": str(start)})
    network = build(architecture, tiny_taxonomy, 32).eval()
    save_checkpoint(
        tmp_path / "model",
        Checkpoint(tiny_taxonomy, architecture, Preprocessing(32), network=network),
        dtype="float32",
    )
    start.unlink()
    with torch.inference_mode():
        assert torch.equal(load_checkpoint(tmp_path / "model").network(IMAGES), network(IMAGES))


def test_a_network_of_which_levels_were_left_out_is_made_whole_and_cut(tiny_taxonomy: Taxonomy) -> None:
    architecture = Architecture("test_resnet", (0.25, 0.5, 1.0), levels=2)
    network = build(architecture, tiny_taxonomy.truncate(1), 32)
    whole = build(Architecture("test_resnet", (0.25, 0.5, 1.0)), tiny_taxonomy, 32)
    assert network.num_classes == (2, 5)
    assert {name: value.shape for name, value in network.stored().items()} == {
        name: value.shape for name, value in whole.truncate(1).stored().items()
    }


def test_arguments_of_the_backbone_survive_the_way_through_json(
    tiny_taxonomy: Taxonomy, tmp_path: Path
) -> None:
    architecture = Architecture(
        "test_resnet", (0.25, 0.5, 1.0), {"channels": (24, 32, 32, 64)}, stem_stride=2
    )
    network = build(architecture, tiny_taxonomy, 32)
    save_checkpoint(tmp_path, Checkpoint(tiny_taxonomy, architecture, Preprocessing(32), network=network))
    again = load_checkpoint(tmp_path)
    assert again.architecture == architecture
    assert again.network.num_features == (16, 32, 64)


def test_no_folder_is_no_model(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none").startswith("there is no model at ")


def test_a_folder_without_one_of_its_files_is_no_model(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert refusal(folder).endswith(f"is no model: it has no {WEIGHTS}")
    (folder / CONFIG).unlink()
    assert refusal(folder).endswith(f"is no model: it has no {CONFIG}")


def test_another_version_is_named_with_what_to_do(folder: Path) -> None:
    edit(folder, lambda config: config.update(version=2))
    message = refusal(folder)
    assert "checkpoint version 2; this hierclass reads version 1" in message
    assert "Use the hierclass that wrote it" in message


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"format": "other"}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_damaged_configuration_is_refused(folder: Path, content: bytes) -> None:
    (folder / CONFIG).write_bytes(content)
    assert CONFIG in refusal(folder)


WRONG: dict[str, Any] = {
    "taxonomy": [None, {}, [], {"format": "hierclass-taxonomy", "version": 99}],
    "architecture": [None, [], {}, {"backbone": "test_resnet"}, {"backbone": "test_resnet", "widths": 3}],
    "preprocessing": [None, [], {}, {"size": "64"}, {"size": 0}, {"size": 32, "crop": 0}, {"sise": 32}],
    "decision": [[1], 3, {"lower_weight": "much"}, {"lower_weight": -1}, {"lower_weight": None}],
    "results": [[1], "good"],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_a_wrong_part_of_the_configuration_is_one_line(folder: Path, key: str, value: object) -> None:
    edit(folder, lambda config: config.update({key: value}))
    assert "does not describe a model: " in refusal(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"mean": [0.5, 0.5]},
        {"std": [0.5, 0.5, 0]},
        {"std": [0.5, 0.5, float("nan")]},
        {"mean": "abc"},
        {"interpolation": "magic"},
        {"interpolation": 3},
        {"size": 5000},
        {"size": 32.5},
    ],
)
def test_preprocessing_that_no_image_can_be_prepared_with_is_refused(
    folder: Path, values: dict[str, Any]
) -> None:
    edit(folder, lambda config: config["preprocessing"].update(values))
    refusal(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "resnet_huge"}, "timm has no model called 'resnet_huge'"),
        ({"backbone": 5}, "does not describe"),
        ({"widths": [0.5, 1.0]}, "3 tiers but 2 widths"),
        ({"widths": [0.5, 0.4, 1.0]}, "rising to 1"),
        ({"structure": "rings"}, "structure 'rings' is not known"),
        ({"structure": "masks"}, "structure 'masks' takes densities and depths, not widths"),
        ({"levels": 2}, "has 3 tiers but 2 of 3 levels are said to be left"),
        ({"levels": 3, "widths": [0.5, 1.0]}, "has 3 tiers but 3 of 2 levels are said to be left"),
        ({"levels": "3"}, "'3' of 3 levels"),
        ({"stem_stride": 7}, "can't have stride 7"),
        ({"backbone_args": {"wings": 2}}, "timm can't make test_resnet"),
        ({"backbone_args": {"pretrained": True}}, "pretrained"),
        ({"backbone_args": {"num_classes": 7}}, "num_classes"),
        ({"backbone_args": [1]}, "does not describe"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_one_line(
    folder: Path, values: dict[str, Any], message: str
) -> None:
    edit(folder, lambda config: config["architecture"].update(values))
    assert message in refusal(folder)


def test_the_taxonomy_of_another_model_does_not_fit(folder: Path) -> None:
    nodes = [Node(name, name) for name in ("root", "a", "b", "c")]
    other = Taxonomy(
        name="other", nodes=nodes, parents=[-1, 0, 0, 0], leaves=["a", "b", "c"], tiers=[["a", "b", "c"]] * 3
    )
    edit(folder, lambda config: config.update(taxonomy=other.to_dict()))
    assert "does not fit its config.json" in refusal(folder)


def test_a_truncated_file_of_weights_is_damaged(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    for length in (0, 5, 100, len(content) - 1):
        (folder / WEIGHTS).write_bytes(content[:length])
        assert f"{WEIGHTS} is damaged" in refusal(folder)


@pytest.mark.parametrize("change", ["missing", "extra", "reshaped"])
def test_weights_of_another_network_are_refused_with_the_first_name(folder: Path, change: str) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    name = sorted(tensors)[0]
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        name = "aaa.weight"
        tensors[name] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(1, 2, 3)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
    assert refusal(folder).endswith(f"does not fit its {CONFIG}: 1 tensors differ, the first is {name}")


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_nothing_in_a_model_is_executed(folder: Path, tmp_path: Path, file: str) -> None:
    trace = tmp_path / "trace"
    (folder / file).write_bytes(pickle.dumps(Bomb(trace)))
    refusal(folder)
    torch.save({"weights": Bomb(trace)}, folder / file)
    refusal(folder)
    assert not trace.exists()


def test_a_file_of_weights_named_in_the_configuration_is_not_opened(folder: Path, tmp_path: Path) -> None:
    trace, bomb = tmp_path / "trace", tmp_path / "bomb.pth"
    torch.save({"weights": Bomb(trace)}, bomb)
    edit(folder, lambda config: config["architecture"].update(backbone_args={"checkpoint_path": str(bomb)}))
    load_checkpoint(folder)
    assert not trace.exists()


def test_a_network_of_another_number_of_levels_than_tiers_is_not_built(tiny_taxonomy: Taxonomy) -> None:
    with pytest.raises(BackboneError, match="taxonomy 'tiny' has 3 tiers but 2 widths are given"):
        build(Architecture("test_resnet", (0.5, 1.0)), tiny_taxonomy, 32)


LEFT_BY_A_KILL = (f".{WEIGHTS}.4194305.tmp", f".{CONFIG}.4194305.tmp")


def test_what_a_kill_left_half_written_goes_with_the_next_write(folder: Path) -> None:
    model = load_checkpoint(folder)
    for name in (*LEFT_BY_A_KILL, ".notes.4194305.tmp", f".{WEIGHTS}.mine.tmp"):
        (folder / name).touch()
    save_checkpoint(folder, model)
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        [CONFIG, WEIGHTS, ".notes.4194305.tmp", f".{WEIGHTS}.mine.tmp"]
    )


def test_equal_models_are_equal_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_checkpoint(tmp_path / name, load_checkpoint(tiny_checkpoint))
    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("broken", [0, 1])
def test_a_write_that_fails_leaves_the_former_model(
    broken: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    model, done = load_checkpoint(folder), list[int]()

    def fsync(_: int) -> None:
        done.append(1)
        if len(done) > broken:
            raise OSError("No space left on device")

    monkeypatch.setattr("hierclass.files.os.fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, model)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_the_files_of_two_models_are_no_model(folder: Path, tmp_path: Path, file: str) -> None:
    model = load_checkpoint(folder)
    save_checkpoint(folder, model)
    model.results = {"note": "second"}
    save_checkpoint(tmp_path / "second", model)
    shutil.copy(tmp_path / "second" / file, folder / file)
    assert "has the model.safetensors of one model and the config.json of another" in refusal(folder)


def test_a_stop_between_the_two_renames_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rename = load_checkpoint(folder), os.replace
    save_checkpoint(folder, model)

    def stop_at_the_second(source: Path, target: Path) -> None:
        if target.name == CONFIG:
            raise KeyboardInterrupt
        rename(source, target)

    model.results = {"note": "second"}
    with monkeypatch.context() as patch:
        patch.setattr("hierclass.files.os.replace", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, model)
    assert "make or copy it again" in refusal(folder)
    save_checkpoint(folder, model)
    assert load_checkpoint(folder).results == {"note": "second"}


def test_a_model_of_before_there_were_digests_is_read(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    edit(folder, lambda config: config)
    load_checkpoint(folder)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
    load_checkpoint(folder)


def convolutions_run(folder: Path) -> int:
    """Number of convolutions computed while a model is loaded and its levels are described."""
    calls: list[object] = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, _, found: (
            calls.append(1) if isinstance(module, nn.Conv2d) and not found.is_meta else None
        )
    )
    try:
        load(folder, device="cpu")
    finally:
        hook.remove()
    return len(calls)


def test_a_model_that_these_versions_have_proven_is_not_proven_again(folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    levels = load(folder, device="cpu").levels
    assert [cost["macs"] for cost in config["proven"]["costs"]] == [level.macs for level in levels]
    assert convolutions_run(folder) == 0
    for proven in ({**config["proven"], "digest": "of others"}, {"digest": "0"}, None, [1]):
        file.write_text(json.dumps({**config, "proven": proven}), encoding="utf-8")
        assert convolutions_run(folder) > 0
        assert load(folder, device="cpu").levels == levels


@pytest.mark.parametrize(
    "costs", [None, [], [1, 2, 3], [{"macs": 1, "parameters": 1, "bytes": -1}] * 3, [{"macs": 1}] * 3]
)
def test_costs_that_say_nothing_are_counted(folder: Path, costs: object) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    levels = load(folder, device="cpu").levels
    config["proven"]["costs"] = costs
    file.write_text(json.dumps(config), encoding="utf-8")
    assert load(folder, device="cpu").levels == levels
