"""What a model sees in images of each class tells what names mean, and whose images show something else."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from page_data import EXAMPLES, ROOT
from PIL import Image

import hierclass
from hierclass.classifier import Classifier
from taxonomy import load_taxonomy, wordnet
from taxonomy.proposal import Proposal, propose
from taxonomy.senses import choose_senses
from taxonomy.terminal import PlainConsole
from training.cli import prompts
from training.cli.looking import look
from training.cli.prepare import PrepareOptions, prepare
from training.data.dataset_summary import IN_ALL, PER_LABEL, DatasetSummary, summarise_dataset
from training.look.kinds import CHANCE, Floats, Kinds
from training.look.seen import Looker, Seen, images_of_classes
from training.recipe.recipe import Recipe

SHARED = ROOT.parent / "shared" / "data" / "imagenet-dev.parquet"
BIRD, MACHINE = "n02012849", "n03126707"
DOG, CAT = "n02085620", "n02124075"  # Chihuahua, Egyptian cat
ESPRESSO, SWEATSHIRT, CLOAK, DAISY = "n07920052", "n04370456", "n03045698", "n11939491"
TREE = load_taxonomy("imagenet-1k")


@pytest.fixture(scope="module")
def kinds() -> Kinds:
    """Those of ImageNet-1k, the bundled model's."""
    return Kinds(TREE.leaves, [TREE.node(leaf).name for leaf in TREE.leaves])


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return hierclass.load(device="cpu")


def sure(*leaves: str, sureness: float = 0.9) -> Floats:
    """Probabilities of images that show these leaves, one each; the rest is spread over all."""
    found = np.full((len(leaves), len(TREE.leaves)), (1 - sureness) / len(TREE.leaves))
    found[range(len(leaves)), [TREE.leaves.index(leaf) for leaf in leaves]] += sureness
    return found


def meaning(seen: Seen, names: Sequence[str]) -> dict[str, str]:
    return {choice.name: choice.synset.id for choice in choose_senses(names, evidence=seen.evidence())}


# ---------------------------------------------------------------- kinds


def test_what_is_expected_of_a_synset_sums_to_one_and_is_likeliest_near_it(kinds: Kinds) -> None:
    expected = dict(zip(TREE.leaves, kinds.expected(BIRD), strict=True))
    assert sum(expected.values()) == pytest.approx(1)
    assert expected[BIRD] == max(expected.values())
    heron, hen = "n02009912", "n01514859"
    assert expected[BIRD] > expected[heron] > expected[hen] > expected[DOG] > 0


def test_a_synset_that_the_model_knows_nothing_near_of_fits_as_by_chance(kinds: Kinds) -> None:
    """A skyrocket is a substance to WordNet, and so is an espresso; that says nothing."""
    assert kinds.fit(sure(ESPRESSO), "n04232902")[0] == pytest.approx(0, abs=1e-9)


def test_images_of_something_else_fit_worse_than_by_chance_but_never_more_than_so_much(kinds: Kinds) -> None:
    fits = {synset: float(kinds.fit(sure(BIRD), synset)[0]) for synset in (BIRD, MACHINE)}
    assert fits[BIRD] > 3
    assert np.log(CHANCE) < fits[MACHINE] < 0


def test_the_narrowest_kind_that_has_most_of_what_is_seen_names_it(kinds: Kinds) -> None:
    assert kinds.narrowest(sure(BIRD)[0], 0.6) == (BIRD, pytest.approx(0.9, abs=0.01))
    terriers = sure("n02093256", "n02096585", "n02095889").mean(0)
    found = kinds.narrowest(terriers, 0.6)
    assert found is not None
    assert kinds.name(found[0]) == "terrier"
    assert kinds.narrowest(sure(BIRD, MACHINE, ESPRESSO, DOG).mean(0), 0.6) is None


def test_breeds_are_near_each_other_and_dogs_are_not_near_cats(kinds: Kinds) -> None:
    assert not kinds.apart("n02093256", "n02096585")
    assert not kinds.apart(CLOAK, SWEATSHIRT)
    assert not kinds.apart("n02084071", DOG), "one lies above the other"
    assert kinds.apart("n02084071", CAT)
    assert kinds.apart(BIRD, MACHINE)


# ---------------------------------------------------------------- meanings


@pytest.mark.parametrize("synset", [BIRD, MACHINE])
def test_a_folder_named_crane_means_what_its_images_show(kinds: Kinds, synset: str) -> None:
    names = ["crane", "dog", "tulip"]
    seen = Seen(kinds, {"crane": sure(*[synset] * 5), "dog": sure(DOG, "n02093256", "n02096585")})
    assert meaning(seen, names)["crane"] == synset
    (crane, *_) = choose_senses(names, evidence=seen.evidence())
    assert not crane.doubtful
    assert crane.synset.id == synset


def test_images_of_another_class_near_a_meaning_speak_for_it_too(kinds: Kinds) -> None:
    """Rodents that the model knows for mice, which it does not."""
    hamster, marmot, computer_mouse = "n02342885", "n02361337", "n03793489"
    seen = Seen(kinds, {"mouse": sure(hamster, marmot, hamster, hamster)})
    assert meaning(seen, ["mouse", "keyboard"])["mouse"] == "n02330245"
    seen = Seen(kinds, {"mouse": sure(*[computer_mouse] * 4)})
    assert meaning(seen, ["mouse", "cat"])["mouse"] == computer_mouse


def test_many_images_count_as_three(kinds: Kinds) -> None:
    one, three, twenty = (
        Seen(kinds, {"crane": sure(*[BIRD] * count)}).evidence()["crane"][BIRD] for count in (1, 3, 20)
    )
    assert three == pytest.approx(3 * one)
    assert twenty == pytest.approx(three)


def test_a_class_without_a_readable_image_has_no_evidence(kinds: Kinds) -> None:
    seen = Seen(kinds, {"crane": sure()})
    assert seen.evidence() == {}
    assert seen.sight("crane") is None
    assert seen.sight("never heard of") is None


def test_images_that_show_nothing_leave_the_meaning_to_the_names(kinds: Kinds) -> None:
    names = ["crane", "heron", "stork"]
    nothing = Seen(kinds, {name: np.full((5, 1000), 0.001) for name in names})
    assert meaning(nothing, names) == meaning(Seen(kinds, {}), names)


# ---------------------------------------------------------------- images that do not fit


def proposed(*names: str) -> Proposal:
    return propose([(name,) for name in names], name="mine")


def test_images_of_something_else_are_pointed_out_with_what_they_look_like(kinds: Kinds) -> None:
    seen = Seen(kinds, {"house": sure(*["n02504458"] * 2, *["n02504013"] * 2), "dog": sure(DOG, DOG, DOG)})
    assert seen.misfits(proposed("house", "dog").taxonomy) == [
        "images of 'house' look like elephant 0.90 (Indian elephant 0.45, African elephant 0.45), not like house "
        "(a dwelling that serves as living quarters for one or more …)"
    ]


def test_a_class_that_mixes_two_kinds_is_pointed_out(kinds: Kinds) -> None:
    seen = Seen(kinds, {"dog": sure(*[DOG] * 6, *[CAT] * 4), "horse": sure(*["n02389026"] * 5)})
    assert seen.misfits(proposed("dog", "horse").taxonomy) == [
        "images of 'dog' show two kinds: 6 of 10 look like Chihuahua, 4 like Egyptian cat"
    ]


def test_an_id_that_decides_is_held_against_the_images(kinds: Kinds) -> None:
    seen = Seen(kinds, {BIRD: sure(*[MACHINE] * 4), "n02504458-elephant": sure(*["n02504458"] * 4)})
    (line,) = seen.misfits(proposed(BIRD, "n02504458-elephant").taxonomy)
    assert line.startswith(
        f"images of '{BIRD}' look like construction crane 0.90, not like crane (large long-necked"
    )


@pytest.mark.parametrize(
    "images",
    [
        sure(MACHINE, MACHINE),  # too few
        sure(BIRD, BIRD, BIRD, MACHINE),  # one odd image
        sure(*["n02006656", "n02009912", "n02018207"] * 2),  # other water birds
        sure(MACHINE, ESPRESSO, DOG, CLOAK, DAISY, CAT),  # of many kinds
        np.full((6, 1000), 0.001),  # of nothing
    ],
)
def test_no_alarm_is_raised_without_a_reason(kinds: Kinds, images: Floats) -> None:
    assert Seen(kinds, {"crane": images}).misfits(proposed("crane", "heron", "stork").taxonomy) == []


def test_clothes_of_two_sorts_are_no_two_kinds(kinds: Kinds) -> None:
    seen = Seen(kinds, {"long sleeve": sure(*[CLOAK] * 5, *[SWEATSHIRT] * 5)})
    assert seen.misfits(proposed("long sleeve", "hat").taxonomy) == []


def test_a_class_that_wordnet_lacks_is_not_judged(kinds: Kinds) -> None:
    seen = Seen(kinds, {"X42": sure(*[DOG] * 5, *[MACHINE] * 5)})
    assert seen.misfits(proposed("X42", "dog", "cat").taxonomy) == []


# ---------------------------------------------------------------- which images


def test_at_most_twenty_images_of_a_class_are_drawn_evenly(tmp_path: Path) -> None:
    for name, count in (("a", 60), ("b", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number:02}.jpg").write_bytes(b"")
    samples = summarise_dataset([str(tmp_path)]).drawn
    assert [len(sources) for sources in samples.values()] == [PER_LABEL, 3]
    numbers = [int(Path(str(source)).stem) for source in samples["a",]]
    assert (numbers[0], numbers[-1]) == (0, 59)
    assert set(np.diff(numbers)) <= {3, 4}


def test_images_of_many_classes_are_bounded_in_all(tmp_path: Path) -> None:
    def summary(count: int) -> DatasetSummary:
        labels = [str(k) for k in range(count) for _ in range(4)]
        pq.write_table(pa.table({"image": [b"x"] * len(labels), "wnid": labels}), tmp_path / "many.parquet")
        return summarise_dataset([str(tmp_path / "many.parquet")])

    assert sum(map(len, summary(200).drawn.values())) == 2 * 200
    assert sum(map(len, summary(IN_ALL).drawn.values())) == IN_ALL
    assert sum(map(len, summary(IN_ALL + 1).drawn.values())) == 0


def test_folders_that_read_the_same_are_one_class_and_a_tree_of_folders_is_none() -> None:
    one, two = Path("1.jpg"), Path("2.jpg")
    assert images_of_classes({("Tabby Cat",): [one], ("tabby_cat",): [two]}) == {"Tabby Cat": [one, two]}
    assert images_of_classes({("animal", "dog"): [one], ("animal", "cat"): [two], ("car",): [one]}) == {}
    assert images_of_classes({("all", "dog"): [one], ("all", "cat"): [two]}) == {"dog": [one], "cat": [two]}


# ---------------------------------------------------------------- real photographs


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folders of crops of the examples: a rocket, an espresso, and a cat in a folder that says temple."""
    for folder, name in (("rocket", "rocket"), ("espresso", "coffee"), ("temple", "cat"), ("X42", "cat")):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        with Image.open(EXAMPLES / f"{name}.jpg") as image:
            width, height = image.size
            for number in range(4):
                box = (number * width // 40, number * height // 40, width, height)
                image.crop(box).convert("RGB").save(tmp_path / "photos" / folder / f"{number}.jpg")
    return tmp_path / "photos"


def prepared(data: Path, out: Path, **how: bool) -> str:
    """What is printed before training, on a terminal on which the tree is accepted."""
    text = io.StringIO()
    console = PlainConsole(file=text, width=200, no_color=True)
    options = {"pretrained": False, "backbone": "test_resnet"}
    recipe = Recipe(data=(str(data),), **{"taxonomy": "tiny-imagenet", **options})
    prepare(recipe, options.keys(), out, PrepareOptions(yes=True, **how), console)
    return re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())


def test_the_proposal_says_what_the_images_look_like(photos: Path, tmp_path: Path) -> None:
    (photos / "rocket" / "0.jpg").write_text("no picture")
    text = prepared(photos, tmp_path / "run")
    assert re.search(r"looked at 15 images with the bundled model in \d+ s \(--no-look: not\)\n", text)
    assert re.search(
        r"! images of 'temple' look like (house|domestic) cat 0\.\d\d.*, not like temple \(place of", text
    )
    assert re.search(r"'X42' looks like (house|domestic) cat 0\.\d\d; .*--pin 'X42=(n\d{8})'", text)
    pin = re.search(r"--pin 'X42=(n\d{8})'", text)
    assert pin is not None
    assert wordnet.known(pin[1]).lemmas[0] == "domestic cat"
    tree = load_taxonomy(tmp_path / "run" / "taxonomy.json")
    assert {leaf for leaf in tree.leaves if leaf[0] == "n"} >= {"n04099429", "n07920052"}, (
        "a vehicle, a drink"
    )


def test_no_look_goes_by_names_alone(photos: Path, tmp_path: Path) -> None:
    text = prepared(photos, tmp_path / "run", look=False)
    assert "looked" not in text
    assert "images of" not in text.replace("images of 4 classes", "")
    assert "looks like" not in text


def test_without_the_bundled_model_names_alone_tell(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hierclass.classifier.BUNDLED", tmp_path / "nowhere")
    text = prepared(photos, tmp_path / "run")
    assert "not looking at the images (the bundled model can't be used: there is no model at" in text
    assert "train" in text or "chosen" in text


def test_small_pictures_are_not_looked_at(tmp_path: Path) -> None:
    text = io.StringIO()
    found = DatasetSummary(
        {("dog",): 1, ("cat",): 1}, 32, drawn={("dog",): [Path("1.jpg")], ("cat",): [Path("2.jpg")]}
    )
    assert look(found, PlainConsole(file=text, width=200)) is None
    assert (
        text.getvalue()
        == "not looking at the images (smaller than 48 pixels): names alone tell what is meant\n"
    )


def test_images_that_can_not_be_read_are_left_out(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no picture")
    images = {"cat": [tmp_path / "bad.jpg", EXAMPLES / "cat.jpg", b"nothing"], "dog": [tmp_path / "gone.jpg"]}
    found = {
        name: (probabilities.shape, count) for name, probabilities, count in Looker(classifier).look(images)
    }
    assert found == {"cat": ((1, 1000), 3), "dog": ((0, 1000), 1)}


def test_pictures_may_be_bytes_or_arrays(classifier: Classifier) -> None:
    file = EXAMPLES / "cat.jpg"
    with Image.open(file) as image:
        sources = [file, file.read_bytes(), np.asarray(image.convert("RGB"))]
    ((_, found, _),) = Looker(classifier).look({"cat": sources})
    assert np.allclose(found, found[0], atol=1e-6)


def test_doubt_is_shown_with_what_was_seen(kinds: Kinds) -> None:
    text = io.StringIO()
    seen = Seen(kinds, {"sad crane": sure(BIRD)})
    proposal = propose([("sad crane",), ("dog",)], name="mine", evidence=seen.evidence())
    prompts.show(PlainConsole(file=text, width=200, no_color=True), proposal, seen)
    lines = text.getvalue().splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("  sad crane = "))
    assert lines[at + 1] == "    its images look like: crane (bird) 0.90"


def test_images_that_show_what_a_name_was_taken_for_leave_no_doubt(kinds: Kinds) -> None:
    """WordNet has no "sad crane"; birds say that it is a crane, machines would be another doubt."""
    for images, marked in ((sure(*[BIRD] * 4), False), (sure(BIRD), True), (sure(*[ESPRESSO] * 4), True)):
        seen, text = Seen(kinds, {"sad crane": images}), io.StringIO()
        proposal = propose([("sad crane",), ("heron",)], name="mine", evidence=seen.evidence())
        prompts.show(PlainConsole(file=text, width=200, no_color=True), proposal, seen)
        assert ("may mean something else" in text.getvalue()) == marked
    seen = Seen(kinds, {f"{DOG}-crane": sure(*[DOG] * 4)})
    proposal = propose([(f"{DOG}-crane",), ("heron",)], name="mine", evidence=seen.evidence())
    assert not any(map(seen.confirms, proposal.doubtful)), "a name that contradicts its id"


@pytest.mark.skipif(not SHARED.exists(), reason="the photographs of ImageNet's classes are not here")
@pytest.mark.parametrize(
    ("name", "synset"),
    [
        ("crane", MACHINE),
        ("crane", BIRD),
        ("kite", "n01608432"),
        ("drake", "n01847000"),
    ],
)
def test_photographs_tell_what_an_ambiguous_name_means(
    classifier: Classifier, name: str, synset: str
) -> None:
    table = pq.read_table(SHARED, filters=[("wnid", "=", synset)])
    if not len(table):
        pytest.skip("none of this class")
    found = list(Looker(classifier).look({name: table.column("image").to_pylist()}))
    seen = Seen(Looker(classifier).kinds, {each: probabilities for each, probabilities, _ in found})
    assert meaning(seen, [name, "person", "house", "guitar"])[name] == synset
