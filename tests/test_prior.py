"""Weights of classes for a place or a season: what a file says, which weight a leaf has, and what scores become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelling_data import READING, job, label, make_photos, rows, run_in

import hierclass
from hierclass.classifier import Classifier
from hierclass.cli import main
from hierclass.decisions.calibration import Decision
from hierclass.decisions.exit_policy import ExitPolicy, Request
from hierclass.decisions.prediction import sum_classes
from hierclass.decisions.prior import apply_prior, leaf_weights, tier_weights
from hierclass.errors import InputError
from hierclass.labelling.prior_file import PriorFile
from hierclass.labelling.run_folder import RunFolder
from hierclass.labelling.run_manifest import LabelJob
from taxonomy import Node, Taxonomy

TREE = Taxonomy(
    name="tiny",
    nodes=[
        *(Node("root", "thing"), Node("n1", "animal"), Node("n2", "tool, weapon or stationery")),
        *(Node("n3", "dog"), Node("n4", "cat"), Node("n5", "pug"), Node("n6", "husky"), Node("n7", "saw")),
    ],
    parents=[-1, 0, 0, 1, 1, 3, 3, 2],
    leaves=["n4", "n5", "n6", "n7"],
    tiers=[["n1", "n2"], ["n4", "n5", "n6", "n7"]],
)


def weights(*prior: tuple[str, float]) -> list[float]:
    """Of cat, pug, husky and saw."""
    return leaf_weights(prior, TREE).tolist()


def test_a_weight_applies_to_all_leaves_below_and_the_nearest_class_decides() -> None:
    assert weights(("dog", 0.5)) == [1, 0.5, 0.5, 1]
    assert weights(("animal", 0.2), ("DOG", 0.4), ("n5", 1)) == [0.2, 1, 0.4, 1]
    assert weights(("animal", 0), ("husky", 1)) == [0, 0, 1, 1]


def test_a_star_stands_for_all_that_no_other_line_says() -> None:
    assert weights(("*", 0), ("dog", 3)) == [0, 1, 1, 0]  # the largest is 1: scores are normalised anyway
    assert weights(("thing", 0), ("*", 9), ("saw", 1)) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ((("dgo", 1.0),), r"^prior, 'dgo': this model has no class 'dgo'; did you mean 'dog'\?$"),
        ((("Weapon", 1.0),), r"no class 'Weapon'; did you mean 'tool, weapon or stationery'\?$"),
        ((("dog", 1.0), ("n3", 2.0)), r"'n3' has a weight already, by prior, 'dog'; leave one of them out$"),
        ((("*", 0.0),), "gives every class of this model the weight 0"),
        ((("dog", -1.0),), r"prior, 'dog': the weight is -1; give a number from 0, as 2\.5 or 0$"),
        ((("dog", float("inf")),), "the weight is inf"),
    ],
)
def test_a_prior_that_makes_no_sense_is_refused(prior: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        leaf_weights(prior, TREE)


def test_scores_are_weighed_normalised_and_summed_up_the_tree() -> None:
    scores = sum_classes(np.array([[0.4, 0.2, 0.2, 0.2]]), TREE, 1)
    by = tier_weights(leaf_weights((("cat", 0.5), ("saw", 2)), TREE), TREE)
    kinds, leaves = apply_prior(scores, TREE, by)
    np.testing.assert_allclose(leaves, [[0.2, 0.2, 0.2, 0.4]])
    np.testing.assert_allclose(kinds, [[0.6, 0.4]])


def test_a_coarser_level_weighs_a_class_by_the_mean_of_its_leaves() -> None:
    by = tier_weights(leaf_weights((("dog", 4), ("cat", 1), ("saw", 1)), TREE), TREE)
    assert [each.tolist() for each in by] == [[0.75, 0.25], [0.25, 1, 1, 0.25]]
    (kinds,) = apply_prior([np.array([[0.25, 0.75]])], TREE, by)
    np.testing.assert_allclose(kinds, [[0.5, 0.5]])


def test_where_the_model_rules_out_all_that_has_a_weight_the_weights_decide() -> None:
    by = tier_weights(leaf_weights((("*", 0), ("dog", 1)), TREE), TREE)
    kinds, leaves = apply_prior(sum_classes(np.array([[0.0, 0, 0, 1]]), TREE, 1), TREE, by)
    assert (kinds.tolist(), leaves.tolist()) == ([[1, 0]], [[0, 0.5, 0.5, 0]])


def test_classes_of_weight_0_are_never_the_answer() -> None:
    tiers = sum_classes(np.array([[0.1, 0.5, 0.3, 0.1]]), TREE, 1)
    _, answers = ExitPolicy(Request(prior=(("pug", 0),)), TREE, Decision()).judge(tiers)
    assert answers.classes[0].tolist() == [0, 2]
    assert answers.scores[0].tolist() == pytest.approx([0.8, 0.6])
    with pytest.raises(InputError, match="leave classes alone that the prior gives the weight 0"):
        ExitPolicy(Request(only=("pug",), prior=(("dog", 0),)), TREE, Decision())


def read(folder: Path, text: str | bytes, name: str = "spring.csv") -> PriorFile:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return PriorFile.read(folder / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'class,weight\ndog,2.5\n\n"tool, or two",0\n'),
        ("b.csv", '\ufeffdog;2.5\r\n"tool, or two";0'),
        ("c.txt", "dog\t2.5\ntool, or two\t0\n"),
        ("e.csv", "class;weight;note\ndog;2,5;seen often\ntool, or two;0;\n"),
        ("f.csv", 'dog,2.5,\n"tool, or two",0,,\n'),
        ("d.json", '{"dog": 2.5, "tool, or two": 0}'),
    ],
)
def test_files_of_several_kinds_say_the_same(name: str, text: str, tmp_path: Path) -> None:
    assert read(tmp_path, text, name).entries == (("dog", 2.5), ("tool, or two", 0.0))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", r"^a\.csv names no class; give lines such as: dog,2\.5$"),
        ("a.csv", "class,weight\n", "names no class"),
        (
            "a.csv",
            "dog,2\ncat\n",
            r"^a\.csv line 2: give a class and its weight, as dog,2\.5; a comma in a name needs",
        ),
        ("a.csv", "tool, or two,3\n", "line 1: give a class and its weight"),
        ("a.csv", "dog,2\n,3\n", "line 2: give a class"),
        (
            "a.csv",
            "dog,many\n",
            r"line 1: the weight is no number but 'many'; give a number from 0, as 2\.5 or 0$",
        ),
        (
            "a.csv",
            "class,weight\ntool, or two,3\n",
            "line 2: .*; a comma in a name needs quotes, a further column a heading",
        ),
        ("a.csv", "dog\t2,5\n", "line 1: the weight is no number but '2,5'"),
        ("a.csv", "dog;1.000,5\n", "line 1: the weight is no number but '1.000,5'"),
        ("a.csv", "dog,nan\n", "line 1: the weight is nan"),
        ("a.csv", "dog,1e999\n", "line 1: the weight is inf"),
        ("a.csv", "dog,-0.5\n", r"line 1: the weight is -0\.5"),
        ("a.csv", "dog," + "9" * 200_000, "line 1 can't be read: field larger than field limit"),
        ("a.csv", b"dog,1\nc\xe9,2\n", "line 2 is no UTF-8; save it as CSV UTF-8"),
        ("a.csv", b"x" * ((1 << 20) + 1), "larger than a mebibyte"),
        ("a.json", '{"dog": 1,\n "cat" 2}', r"^a\.json line 2 is no JSON: Expecting ':'"),
        ("a.json", '{"dog":\n true}', r"^a\.json line 1: the weight is no number but 'true'"),
        ("a.json", '{"dog": "1",\n\n "c\\"a:t" : null}', "line 3: the weight is no number but 'null'"),
        ("a.json", '{"dog": 1, "cat": NaN}', "line 1: the weight is nan"),
        ("a.json", "[1]", "is no JSON object of classes and weights"),
        ("a.json", "[" * 100_000, "is no JSON object"),
        ("a.json", '{"dog": ' + "9" * 5000 + "}", "is no JSON object"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_that_names_the_line(
    name: str, text: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, text, name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_class_that_the_model_lacks_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^spring\.csv line 3: this model has no class 'dgo'; did you mean 'dog'\?$"
    ):
        read(tmp_path, "class,weight\ncat,1\ndgo,2\n").check(TREE)
    with pytest.raises(
        InputError, match=r"^spring\.csv line 2: 'Cat' has a weight already, by spring\.csv line 1;"
    ):
        read(tmp_path, "cat,1\nCat,2\n").check(TREE)
    with pytest.raises(InputError, match=r"^spring\.csv gives every class of this model the weight 0;"):
        read(tmp_path, "*,0\n").check(TREE)


# ---------------------------------------------------------------- requests with a prior


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path) -> Classifier:
    return hierclass.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("prior") / "photos", 10)


def test_the_command_and_python_weigh_alike(
    classifier: Classifier, photos: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "spring.json").write_text(json.dumps({"animal": 0}))
    out = tmp_path / "labels.jsonl"
    asked = ["label", str(photos), "--model", str(tiny_checkpoint), "-o", str(out)]
    assert main([*asked, "--prior", str(tmp_path / "spring.json")]) == 3  # the eighth is no picture
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["tier0_label"] for row in found} == {"vehicle", None}
    again = list(hierclass.label(photos, classifier=classifier, prior={"animal": 0}))
    assert [row.synset for row in again] == [row["synset"] for row in found]
    with pytest.raises(InputError, match="prior, 'animal': the weight is no number but 'much'"):
        hierclass.label(photos, classifier=classifier, prior={"animal": "much"})  # type: ignore[dict-item]


def test_a_prior_is_part_of_what_a_run_was_asked(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def asking(*prior: tuple[str, float]) -> LabelJob:
        return LabelJob(names=(str(photos),), request=Request(level=0, prior=prior), reading=READING)

    label(folder, classifier, asking(("animal", 0), ("dog", 2)))
    label(folder, classifier, asking(("dog", 2), ("animal", 0)))  # in another order it says the same
    for other, shown in ((asking(("dog", 3)), "dog 3"), (asking(), "none")):
        with pytest.raises(
            InputError, match=rf"begun with --prior animal 0, dog 2, not {shown}; give the same"
        ):
            label(folder, classifier, other)
    run, _ = run_in(folder, classifier)
    run.refine("1", Request(level=1))  # with the prior of the run
    assert RunFolder(folder).manifest()["jobs"][1]["prior"] == {"animal": 0, "dog": 2}
    run.assemble(folder / "labels.parquet")
    assert {row["tier0_label"] for row in rows(folder) if not row["error"]} <= {"vehicle", "animal"}
    run.refine("1", Request(level=2, prior=(("*", 1),)))  # without one
    run.assemble(folder / "labels.parquet")
    own = [each.synset for each in hierclass.label(photos, classifier=classifier)]
    assert [row["synset"] for row in rows(folder)] == own


def test_a_run_of_before_there_were_priors_goes_on(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    label(folder, classifier, job(photos))
    run, _ = run_in(folder, classifier)
    run.refine("path like '%0.png'", Request(level=1))
    manifest = RunFolder(folder).manifest()
    for each in manifest["jobs"]:
        del each["prior"]
    RunFolder(folder).write_manifest(manifest)
    label(folder, classifier, job(photos))
    run.refine("path like '%0.png'", Request(level=1))  # the same again: no new pass
    assert len(RunFolder(folder).manifest()["jobs"]) == 2
