"""What is chosen where the user does not say, and where pretrained weights are looked for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save
from training_data import write_cached_weights

from hierclass.nested import create_backbone, default_shares, nest
from taxonomy import Taxonomy
from training.recipe.defaults import DatasetFacts, choose_network, choose_schedule
from training.recipe.recipe import Recipe
from training.trainer import pretrained
from training.trainer.network import make_network
from training.trainer.pretrained import find_pretrained


@pytest.mark.parametrize(
    ("side", "accelerator", "expected"),
    [
        (32, False, ("resnet18", 2, 32)),
        (32, True, ("resnet18", 1, 32)),
        (64, False, ("resnet18", None, 64)),
        (64, True, ("resnet18", 2, 64)),
        (375, False, ("resnet18", None, 128)),
        (375, True, ("resnet50", None, 224)),
    ],
)
def test_the_network_follows_the_images_and_the_machine(
    side: int, accelerator: bool, expected: tuple[str, int | None, int]
) -> None:
    choice = choose_network(DatasetFacts(1000, side, accelerator))
    assert tuple(choice.values[name] for name in ("backbone", "stem_stride", "size")) == expected
    assert f"about {side} px" in choice.why


@pytest.mark.parametrize(
    ("images", "start", "expected"),
    [
        (40, False, (100, 16, 0.0125)),
        (1000, False, (100, 32, 0.025)),
        (50_000, False, (30, 128, 0.1)),
        (1_281_167, False, (15, 128, 0.1)),
        (50_000, True, (10, 128, 0.03)),
        (1000, True, (33, 32, 0.0075)),
    ],
)
def test_the_schedule_follows_the_number_of_images(
    images: int, start: bool, expected: tuple[int, int, float]
) -> None:
    choice = choose_schedule(images, pretrained=start)
    assert tuple(choice.values[name] for name in ("epochs", "batch_size", "lr")) == expected


def test_the_learning_rate_follows_a_batch_size_that_is_given() -> None:
    assert choose_schedule(1000, pretrained=False, batch_size=256).values["lr"] == 0.2


@pytest.mark.parametrize("levels", range(1, 9))
def test_shares_rise_to_all_and_level_0_has_an_eighth_at_least(levels: int) -> None:
    shares = default_shares(levels)
    assert len(shares) == levels
    assert list(shares) == sorted(set(shares))
    assert shares[-1] == 1.0
    assert shares[0] == max(0.125, 0.5 ** (levels - 1))


@pytest.mark.parametrize("structure", ["slices", "prefix", "masks", "depths"])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_networks_of_any_number_of_levels_nest_without_numbers(structure: str, levels: int) -> None:
    backbone = create_backbone(
        "resnet18" if structure == "depths" else "test_resnet"
    )  # it needs several blocks
    network = nest(
        backbone, structure=structure, num_classes=[2] * levels, input_size=(3, 32, 32), warn=False
    )
    assert network.num_levels == levels


# ---------------------------------------------------------------- pretrained weights


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of test_resnet of which every value is 0.5, where the local cache is asked for them."""
    model = timm.create_model("test_resnet")
    tensors = {name: torch.full_like(value, 0.5) if value.is_floating_point() else value
               for name, value in model.state_dict().items()}  # fmt: skip
    write_cached_weights(tmp_path, "timm/test_resnet.r160_in1k", save(tensors))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_weights_in_the_local_cache_are_taken_and_nobody_is_asked(
    cached: Path, tiny_taxonomy: Taxonomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained.huggingface_hub, "get_hf_file_metadata", None)
    assert find_pretrained("test_resnet") == (True, "timm's weights, from the local cache")
    recipe = Recipe(
        data=(), taxonomy="x", backbone="test_resnet", size=32, pretrained=True, order="importance"
    )
    network = make_network(recipe, tiny_taxonomy)
    weights = [value for name, value in network.named_parameters() if "head" not in name and value.ndim == 4]
    assert weights
    assert all(bool((value == 0.5).all()) for value in weights if value.requires_grad)


def test_a_run_that_goes_on_takes_no_pretrained_weights(cached: Path, tiny_taxonomy: Taxonomy) -> None:
    recipe = Recipe(data=(), taxonomy="x", backbone="test_resnet", size=32, pretrained=True)
    network = make_network(recipe, tiny_taxonomy, fresh=False)
    assert not any(bool((value == 0.5).all()) for value in network.parameters())


def test_a_machine_without_a_connection_begins_from_scratch_and_says_so() -> None:
    found = find_pretrained("test_resnet")
    assert not found.usable
    assert found.why == "timm's weights are not in the local cache, and can't be reached from here"
    assert find_pretrained("test_resnet", reach=False) == (False, "timm's weights are not in the local cache")
    assert not find_pretrained("test_resnet.unknown").usable


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()
    monkeypatch.setattr(pretrained.huggingface_hub, "get_hf_file_metadata", lambda *_, **__: forever.wait())
    started = time.monotonic()
    assert not find_pretrained("test_resnet", patience=0.2).usable
    assert time.monotonic() - started < 5
    forever.set()


def test_weights_that_can_be_reached_are_fetched_and_a_broken_fetch_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(pretrained.huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(
        pretrained.huggingface_hub, "hf_hub_download", lambda repository, name, **_: fetched.append(name)
    )
    assert find_pretrained("test_resnet").usable
    assert fetched == ["model.safetensors"]

    def break_off(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(pretrained.huggingface_hub, "hf_hub_download", break_off)
    assert find_pretrained("test_resnet") == (False, "timm's weights could not be fetched (ConnectionError)")
