"""The page: its functions without a browser, its endpoint, and the whole of it in headless Chromium."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import app
import hierclass
from hierclass.errors import ImageError, LevelError

ROOT = Path(__file__).parent.parent
CAT = ROOT / "examples" / "cat.jpg"
PATIENCE = 600
"""Seconds that a step in the browser may take on a busy machine."""

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="Gradio is not installed"
)


@pytest.fixture(scope="session")
def classifier(tiny_checkpoint: Path) -> Any:
    return hierclass.load(tiny_checkpoint, "cpu")


@pytest.fixture(scope="session")
def address(classifier: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served on this computer around the tiny model."""
    pytest.importorskip("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = app.build_page(classifier)
        yield app.launch(page, "127.0.0.1", None)
        page.close(verbose=False)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "holiday.jpg"
    path.write_text("this is no photograph")
    return path


def test_levels_arrive_coarse_first_and_add_up_to_the_full_cost(classifier: Any) -> None:
    stages = list(app.classify(classifier, str(CAT)))
    assert [stage.prediction.level for stage in stages] == [0, 1, 2]
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    assert sum(stage.macs for stage in stages) == classifier.levels[-1].macs
    assert all(stage.milliseconds > 0 and stage.macs > 0 for stage in stages)


def test_steps_that_reuse_nothing_are_shown_at_their_own_cost(classifier: Any) -> None:
    from hierclass.checkpoint import build
    from hierclass.classifier import Classifier

    given = {"structure": "masks", "widths": None, "densities": (0.25, 0.5, 1.0)}
    architecture = dataclasses.replace(classifier.checkpoint.architecture, **given)
    network = build(architecture, classifier.taxonomy, 32).eval()
    masks = Classifier(
        dataclasses.replace(classifier.checkpoint, network=network, architecture=architecture), device="cpu"
    )
    stages = list(app.classify(masks, str(CAT)))
    assert [stage.share for stage in stages] == pytest.approx([1, 1, 1], rel=0.01)  # heads differ
    assert [stage.macs for stage in stages] == [network.cost(level).macs for level in range(3)]
    assert "300% of the full cost" in app.draw(masks.levels, stages, 2)
    assert "not computed" in app.draw(masks.levels, stages[:1], 0)
    assert app.introduction(masks) == app.INTRODUCTION_APART
    assert app.introduction(classifier) == app.INTRODUCTION


def test_the_page_answers_what_the_classifier_answers(classifier: Any) -> None:
    for stage in app.classify(classifier, str(CAT)):
        expected = classifier.predict(CAT, stage.prediction.level)
        assert stage.prediction.synset == expected.synset
        assert stage.prediction.score == pytest.approx(expected.score, abs=1e-4)


def test_nothing_above_the_chosen_level_is_computed(classifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    refine = classifier._network.refine

    def watched(state: Any) -> Any:
        logits = refine(state)
        computed.append(state.level)
        return logits

    monkeypatch.setattr(classifier._network, "refine", watched)
    assert [stage.prediction.level for stage in app.classify(classifier, str(CAT), 1)] == [0, 1]
    assert computed == [0, 1]


def test_a_level_that_the_model_does_not_have_is_refused(classifier: Any) -> None:
    with pytest.raises(LevelError):
        list(app.classify(classifier, str(CAT), 7))


def test_a_broken_file_gives_a_message_without_its_path(classifier: Any, broken: Path) -> None:
    with pytest.raises(ImageError) as caught:
        list(app.classify(classifier, str(broken)))
    message = app.explain(caught.value)
    assert message.startswith("This photograph is no image of a kind that is read")
    assert str(broken.parent) not in message


def test_the_drawing_grows_level_by_level(classifier: Any) -> None:
    levels = classifier.levels
    stages: list[app.Stage] = []
    assert app.draw(levels, stages, 2).count('class="waiting"') == 3
    for number, stage in enumerate(app.classify(classifier, str(CAT)), start=1):
        stages.append(stage)
        drawing = app.draw(levels, stages, 2)
        assert drawing.count('class="done"') == number
        assert drawing.count('class="waiting"') == 3 - number
        assert all(step.label in drawing for step in stage.prediction.path)
    assert "100% of the full cost" in drawing


def test_levels_that_were_not_asked_for_are_drawn_as_not_computed(classifier: Any) -> None:
    drawing = app.draw(classifier.levels, list(app.classify(classifier, str(CAT), 0)), 0)
    assert drawing.count('class="skipped"') == 2
    assert "was never computed" in drawing


def test_what_is_drawn_is_escaped() -> None:
    assert "<script>" not in app.draw_trouble("<script>alert(1)</script>")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (0.001, "<1%"), (0.5, "50%"), (0.994, "99%"), (0.999, ">99%"), (1, "100%")],
)
def test_percentages_never_round_to_nothing_or_everything(share: float, text: str) -> None:
    assert app.percent(share) == text


@pytest.mark.parametrize(
    ("number", "text"), [(512, "512"), (3_210_000, "3.21 million"), (2 * 10**9, "2 billion")]
)
def test_large_counts_are_written_in_words(number: int, text: str) -> None:
    assert app.count(number) == text


def run_app(*arguments: str, prelude: str = "pass") -> subprocess.CompletedProcess[str]:
    code = f"import sys; {prelude}; sys.argv = ['app.py', *{list(arguments)!r}]; import app; app.main()"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@needs_gradio
def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    done = run_app("--model", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_missing_gradio_names_the_command_that_installs_it() -> None:
    done = run_app(prelude="sys.modules['gradio'] = None")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "app.py: the page needs Gradio; install it with: pip install 'hierclass[demo]'"
    ]


def test_importing_the_page_loads_neither_gradio_nor_torch() -> None:
    code = "import app, sys; print({'gradio', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.fixture(scope="session")
def client(address: str) -> Any:
    from gradio_client import Client

    return Client(address, verbose=False)


def test_programs_get_one_answer_per_level(client: Any, classifier: Any) -> None:
    from gradio_client import handle_file

    job = client.submit(handle_file(str(CAT)), 2, api_name="/classify")
    last = job.result(timeout=PATIENCE)
    assert [answer["level"] for answer in job.outputs()] == [0, 1, 2]
    assert last["synset"] == classifier.predict(CAT).synset
    assert [step["synset"] for step in last["path"]] == [step.synset for step in classifier.predict(CAT).path]
    assert last["cost"]["macs_added"] > 0
    json.dumps(last)


def test_a_program_may_leave_the_level_out(client: Any) -> None:
    from gradio_client import handle_file

    assert client.predict(handle_file(str(CAT)), api_name="/classify")["level"] == 2


def test_a_photograph_lying_on_its_side_is_turned_upright(client: Any, tmp_path: Path) -> None:
    from gradio_client import handle_file

    upright = Image.open(CAT).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    upright.save(tmp_path / "upright.png")
    answers = [
        client.predict(handle_file(str(path)), 2, api_name="/classify")
        for path in (turned, tmp_path / "upright.png")
    ]
    assert answers[0]["path"] == answers[1]["path"]


@pytest.mark.parametrize(
    "content", [b"", b"no photograph", CAT.read_bytes()[:5000]], ids=["empty", "text", "cut"]
)
def test_programs_get_a_sentence_for_a_broken_file(client: Any, tmp_path: Path, content: bytes) -> None:
    from gradio_client import handle_file

    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(Exception, match="This photograph is") as caught:
        client.predict(handle_file(str(path)), 2, api_name="/classify")
    assert "Traceback" not in str(caught.value)
    assert "/" not in str(caught.value).replace("JPEG2000", "")


def test_a_level_that_does_not_exist_is_refused_by_the_endpoint(client: Any) -> None:
    from gradio_client import handle_file

    with pytest.raises(Exception, match="level 9"):
        client.predict(handle_file(str(CAT)), 9, api_name="/classify")


@pytest.mark.parametrize("meta", [{"meta": {"_type": "gradio.FileData"}}, {}], ids=["checked", "unchecked"])
def test_a_file_of_the_server_can_not_be_named(
    address: str, classifier: Any, tmp_path: Path, meta: dict[str, Any]
) -> None:
    # Not by gradio_client, which would upload the file.
    secret = {"path": shutil.copy(CAT, tmp_path / "secret.jpg").as_posix(), **meta}
    endpoint = f"{address.rstrip('/')}/gradio_api/call/classify"
    body = json.dumps({"data": [secret, 2]}).encode()
    request = urllib.request.Request(endpoint, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        event = json.load(reply)["event_id"]
    with urllib.request.urlopen(f"{endpoint}/{event}", timeout=PATIENCE) as reply:
        text = reply.read().decode()
    assert "event: error" in text
    assert "synset" not in text
    assert str(tmp_path) not in text


# ---- the page in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("selenium", reason="selenium is not installed")
    if not find_chromium() or not shutil.which("chromedriver"):
        pytest.skip("Chromium and chromedriver are not installed")
    driver = open_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


def find_chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def open_browser(profile: Path) -> Any:
    """Start headless Chromium with an empty profile that calls nobody."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = find_chromium() or ""
    for name in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "hide-scrollbars",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{name}")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_page_load_timeout(PATIENCE)
    return driver


def open_page(driver: Any, address: str, *, width: int = 1280, dark: bool = False) -> None:
    """Load the page at a viewport width in pixels: a headless window can't be narrower than 500."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(address + ("?__theme=dark" if dark else "?__theme=light"))
    wait_until(driver, lambda: driver.find_elements("css selector", ".hc li"))
    wait_until(driver, lambda: driver.find_elements("css selector", "input[type=file]"))


def wait_until(driver: Any, condition: Callable[[], Any]) -> Any:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(driver, PATIENCE, 0.05, ignored_exceptions=[StaleElementReferenceException])
    return waiting.until(lambda _: condition())


def upload(driver: Any, path: Path) -> None:
    """Hand a file to the page as if it had been dropped, removing the photograph that is there."""
    if clear := driver.find_elements("css selector", "button[aria-label='Clear']"):
        clear[0].click()
        wait_until(driver, lambda: num_cards(driver, "done") == 0)
    wait_until(driver, lambda: driver.find_elements("css selector", "input[type=file]"))
    driver.find_element("css selector", "input[type=file]").send_keys(str(path))


def num_cards(driver: Any, state: str) -> int:
    return len(driver.find_elements("css selector", f".hc li.{state}"))


def save_screenshot(driver: Any, path: Path) -> None:
    """Save the whole page, below the fold too."""
    import base64

    time.sleep(1)  # transitions
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
    path.write_bytes(base64.b64decode(shot["data"]))


def screenshot_folder(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("HIERCLASS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("width", [1280, 390])
def test_a_dropped_photograph_is_answered_down_to_the_finest_level(
    browser: Any, address: str, classifier: Any, tmp_path: Path, width: int
) -> None:
    open_page(browser, address, width=width)
    upload(browser, CAT)
    wait_until(browser, lambda: num_cards(browser, "done") == 3)
    last = browser.find_element("css selector", ".hc-path .last").text
    assert last == classifier.predict(CAT).label
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    save_screenshot(browser, screenshot_folder(tmp_path) / f"page-{width}.png")
    with Image.open(screenshot_folder(tmp_path) / f"page-{width}.png") as shot:
        assert np.asarray(shot).std() > 10


def test_the_level_can_be_changed(browser: Any, address: str) -> None:
    open_page(browser, address)
    upload(browser, CAT)
    wait_until(browser, lambda: num_cards(browser, "done") == 3)
    browser.find_elements("css selector", "input[type=radio]")[0].click()
    wait_until(browser, lambda: num_cards(browser, "skipped") == 2)
    assert num_cards(browser, "done") == 1


def test_an_example_is_answered_with_one_click(browser: Any, address: str) -> None:
    open_page(browser, address)
    wait_until(browser, lambda: browser.find_elements("css selector", ".gallery-item, .gallery button"))
    browser.find_elements("css selector", ".gallery-item, .gallery button")[0].click()
    wait_until(browser, lambda: num_cards(browser, "done") == 3)


def test_a_broken_file_does_not_break_the_page(
    browser: Any, address: str, broken: Path, tmp_path: Path
) -> None:
    open_page(browser, address)
    upload(browser, broken)
    trouble = wait_until(browser, lambda: browser.find_elements("css selector", ".trouble"))[0].text
    assert trouble.startswith("This photograph is no image")
    assert num_cards(browser, "done") == 0
    save_screenshot(browser, screenshot_folder(tmp_path) / "page-broken.png")
    open_page(browser, address)
    upload(browser, CAT)
    wait_until(browser, lambda: num_cards(browser, "done") == 3)


def test_the_page_fetches_nothing_from_elsewhere(browser: Any, address: str) -> None:
    open_page(browser, address)
    names = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert names
    assert [name for name in names if not name.startswith((address, "data:", "blob:"))] == []
