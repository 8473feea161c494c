"""What runs the levels: ONNX Runtime and torch give the same answers; forks, threads and what they import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from labelling_data import job, label, rows, run_in
from numpy.typing import NDArray

import hierclass
from hierclass.classifier import Classifier
from hierclass.decisions.exit_policy import Request
from hierclass.errors import CheckpointError, InputError
from hierclass.files import BUNDLED
from hierclass.runtime.choice import on_accelerator

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def onnx(tiny_graphs: Path) -> Classifier:
    return hierclass.load(tiny_graphs, runtime="onnx")


@pytest.fixture(scope="module")
def torch(tiny_graphs: Path) -> Classifier:
    return hierclass.load(tiny_graphs, device="cpu", runtime="torch")


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), dtype=np.uint8))


def scores(classifier: Classifier, pictures: list[NDArray[np.uint8]], level: int) -> NDArray[np.float64]:
    return np.array([each.scores() for each in classifier.predict_batch(pictures, level)])


def test_on_a_processor_a_folder_with_graphs_runs_by_onnxruntime(tiny_graphs: Path) -> None:
    assert hierclass.load(tiny_graphs, device="cpu").runtime.name == "onnx"
    assert hierclass.load(device="cpu").runtime.name == "onnx"


def test_a_classifier_says_what_runs_it() -> None:
    said = "<Classifier imagenet-1k: levels of 16, 112 and 1,000 classes, on cpu by onnx"
    assert repr(hierclass.load(device="cpu")) == f"{said}>"
    assert repr(hierclass.load(int8=True)) == f"{said}, 8 bits>"


@pytest.mark.parametrize("level", [0, 1, 2])
def test_both_runtimes_give_the_same_scores(
    onnx: Classifier, torch: Classifier, pictures: list[NDArray[np.uint8]], level: int
) -> None:
    assert np.allclose(scores(onnx, pictures, level), scores(torch, pictures, level), atol=1e-5)


def test_refining_reads_what_lower_levels_kept(onnx: Classifier, pictures: list[NDArray[np.uint8]]) -> None:
    assert onnx.reuses
    refined = [each.scores() for each in onnx.refine(pictures[0])]
    for level, found in enumerate(refined):
        assert np.allclose(found, onnx.predict(pictures[0], level).scores(), atol=1e-6)


def test_images_of_a_batch_go_on_in_other_batches(onnx: Classifier) -> None:
    runtime = onnx.runtime
    pixels = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    first, second = runtime.start(pixels[:3]), runtime.start(pixels[3:])
    runtime.refine(first)
    runtime.refine(second)
    joined = runtime.join_states([runtime.take_state(first, [2, 0]), second])
    assert np.allclose(runtime.refine(joined, 2), runtime.run(pixels[[2, 0, 3]], 2), atol=1e-5)


def test_features_are_those_of_torch(onnx: Classifier, torch: Classifier) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for level in range(3):
        found, expected = (
            each.runtime.run(each.runtime.to_batch(pixels), level, "features") for each in (onnx, torch)
        )
        assert np.allclose(found, expected, atol=1e-4)


def test_a_model_is_the_same_model_in_both_runtimes(onnx: Classifier, torch: Classifier) -> None:
    assert onnx.digest == torch.digest
    assert onnx.levels == torch.levels


def test_a_run_that_one_runtime_began_the_other_finishes(
    onnx: Classifier, torch: Classifier, tmp_path: Path
) -> None:
    label(tmp_path / "run", torch, job(EXAMPLES, level=0))
    run, _ = run_in(tmp_path / "run", onnx)
    run.refine("tier0_score <= 1", Request(level=2))
    run.assemble(tmp_path / "run" / "labels.parquet")
    assert {row["chosen_level"] for row in rows(tmp_path / "run")} == {2}


def test_without_graphs_torch_runs_a_model(tiny_checkpoint: Path) -> None:
    assert hierclass.load(tiny_checkpoint, device="cpu").runtime.name == "torch"
    with pytest.raises(CheckpointError, match=r"has no graphs for ONNX Runtime.*hierclass export --in-place"):
        hierclass.load(tiny_checkpoint, runtime="onnx")


def test_graphs_of_other_weights_are_not_used(tiny_graphs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_graphs, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["graphs"]["digest"] = "another"
    (folder / "config.json").write_text(json.dumps(config))
    assert hierclass.load(folder, device="cpu").runtime.name == "torch"


def test_a_damaged_graph_is_an_error_of_one_line(tiny_graphs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_graphs, tmp_path / "model")
    (folder / "level2.onnx").write_bytes((folder / "level2.onnx").read_bytes()[:1000])
    classifier = hierclass.load(folder, runtime="onnx")
    with pytest.raises(
        CheckpointError, match=r"level2.onnx is damaged .*write it again: hierclass"
    ) as caught:
        classifier.predict(np.zeros((40, 40, 3), np.uint8))
    assert "\n" not in str(caught.value)


def test_a_graph_that_no_sum_vouches_for_is_tried(tiny_graphs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_graphs, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["graphs"]["sums"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "level2.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match=r"level2.onnx can't be run: .*write it again: hierclass"):
        hierclass.load(folder, runtime="onnx").predict(np.zeros((40, 40, 3), np.uint8))


def test_files_may_be_links_as_in_caches_of_downloads(tiny_graphs: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "model").mkdir()
    for number, file in enumerate(sorted(tiny_graphs.iterdir())):
        blob = tmp_path / "blobs" / str(number)
        shutil.copyfile(file, blob)
        (tmp_path / "model" / file.name).symlink_to(blob)
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    answers = [
        hierclass.load(each, runtime="onnx").predict(picture) for each in (tiny_graphs, tmp_path / "model")
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runtime": "tensorrt"}, "runtime 'tensorrt' is not known; there are auto, onnx, torch"),
        ({"runtime": "onnx", "device": "cuda"}, "for device 'cuda' use runtime torch"),
        ({"threads": 0}, "threads must be 1 to 256, not 0"),
        ({"threads": 10**9}, "threads must be 1 to 256"),
        ({"device": "abacus"}, "device 'abacus' can't be used"),
    ],
)
def test_options_that_do_not_exist_are_refused(
    tiny_graphs: Path, arguments: dict[str, str | int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        hierclass.load(tiny_graphs, **arguments)  # type: ignore[arg-type]


def test_a_processor_is_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not on_accelerator("cpu")
    assert not on_accelerator("auto")
    assert on_accelerator("cuda:1")


def test_threads_share_a_classifier(onnx: Classifier, pictures: list[NDArray[np.uint8]]) -> None:
    work = [(picture, level) for picture in pictures for level in range(3)] * 4
    expected = [onnx.predict(*each) for each in work]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda each: onnx.predict(*each), work)) == expected


def test_a_started_process_gets_a_classifier_of_its_own(
    onnx: Classifier, pictures: list[NDArray[np.uint8]]
) -> None:
    expected = onnx.predict(pictures[0])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(onnx.predict, pictures[0]).result() == expected


FORKS = """
import os, signal, sys, threading
import hierclass, numpy

def threads():
    return len(os.listdir("/proc/self/task"))

def forked(when):
    child = os.fork()
    if not child:
        signal.alarm(60)
        labels = [row.label for row in hierclass.label(sys.argv[2], classifier=classifier, level="auto")]
        print(when, classifier.predict(sys.argv[3]).label, len(labels), flush=True)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0, when

before = threads()
classifier = hierclass.load(runtime=sys.argv[1], device="cpu")
started = threads() - before
assert sys.argv[1] == "torch" or not started, started
forked("loaded")
classifier.predict(sys.argv[3])
forked("predicted")
list(hierclass.label(sys.argv[2], classifier=classifier))
forked("labelled")
busy = threading.Thread(target=lambda: [classifier.predict(sys.argv[3]) for _ in range(30)])
busy.start()
forked("predicting")
busy.join()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads as Linux shows them")
@pytest.mark.parametrize("runtime", ["onnx", pytest.param("torch", marks=pytest.mark.full)])
def test_a_forked_child_answers_and_ends(runtime: str) -> None:
    command = [sys.executable, "-c", FORKS, runtime, str(EXAMPLES), str(EXAMPLES / "cat.jpg")]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "OMP_"))}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=plain, timeout=300)
    assert done.returncode == 0, done.stderr
    when = ("loaded", "predicted", "labelled", "predicting")
    assert done.stdout.splitlines() == [f"{each} Egyptian cat 5" for each in when]


THREADS = """
import os, sys
import hierclass, numpy
before = len(os.listdir("/proc/self/task"))
classifier = hierclass.load(device="cpu")
classifier.predict(sys.argv[1])
print(classifier.runtime.threads, len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads as Linux shows them")
@pytest.mark.parametrize("threads", [1, 3])
def test_as_many_threads_compute_as_omp_num_threads_says(threads: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", THREADS, str(EXAMPLES / "cat.jpg")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == [str(threads), str(threads - 1)]


COMMAND = """
import sys
from hierclass.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "torchvision", "timm", "onnx", "nltk", "scipy", "sklearn", "gradio"} & sys.modules.keys()
print("imported", sorted(heavy), file=sys.stderr)
sys.exit(code)
"""


def run_command(*arguments: object) -> str:
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "imported []"
    return done.stdout


@pytest.mark.skipif(on_accelerator("auto"), reason="torch runs the levels where there is a GPU")
def test_the_commands_of_a_processor_import_no_torch(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert "Egyptian cat" in run_command("predict", EXAMPLES / "cat.jpg")
    assert "mammal" in run_command("label", EXAMPLES, "--level", "auto")
    run_command("label", EXAMPLES, "-o", f"{run}/", "--level", "0")
    run_command("refine", run, "--where", "tier0_score < 0.99")
    assert "tier" in run_command("levels")
    assert "cat" in run_command("classes", "cat")


PAGE = """
import sys, app
from hierclass.cli.shared import ModelChoice
from hierclass.page.layout import build_page
from hierclass.page.service import Service
from hierclass.page.uploads import Uploads
classifier = ModelChoice(None, None, None).open()
classifier.predict(sys.argv[1])
with Uploads.opened([]) as uploads:
    build_page(Service(classifier, uploads))
print(sorted({"torch", "torchvision", "timm"} & sys.modules.keys()))
"""


@pytest.mark.skipif(on_accelerator("auto"), reason="torch runs the levels where there is a GPU")
def test_the_page_of_a_processor_imports_no_torch() -> None:
    command = [sys.executable, "-c", PAGE, str(EXAMPLES / "cat.jpg")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_bundled_model_answers_alike_in_both_runtimes() -> None:
    onnx, torch = (hierclass.load(BUNDLED, device="cpu", runtime=each) for each in ("onnx", "torch"))
    for photo in sorted(EXAMPLES.glob("*.jpg")):
        for found, expected in zip(onnx.refine(photo), torch.refine(photo), strict=True):
            assert np.allclose(found.scores(), expected.scores(), atol=1e-4)
