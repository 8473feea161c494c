"""The page in headless Chromium, as a person uses it. Skipped where Chromium and its driver are not installed.

HIERCLASS_SCREENSHOTS names a folder in which pictures of the page are kept.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from page_data import CAT, EXAMPLES, calibrated
from PIL import Image
from served_page import PATIENCE, Served, served

from hierclass.checkpoints.checkpoint import load_checkpoint
from hierclass.classifier import Classifier
from hierclass.page.model_info import read_card
from taxonomy import Taxonomy


@pytest.fixture(scope="module")
def page(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page around the tiny model: of 80% sure from a score of 0.1 on, of 90% from 0.3 on."""
    classifier = calibrated(tiny_checkpoint, {0.8: 0.1, 0.9: 0.3})
    with served(classifier, tmp_path_factory.mktemp("uploads")) as found:
        yield found


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
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_page_load_timeout(PATIENCE)
    return driver


def open_page(driver: Any, page: Served, *, width: int = 1280, dark: bool = False) -> None:
    """Load the page at a viewport width in pixels: a headless window can't be narrower than 500."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(page.address + ("/?__theme=dark" if dark else "/?__theme=light"))
    wait_until(driver, lambda: cards(driver, "waiting") == 3)
    wait_until(driver, lambda: driver.find_elements("css selector", "input[type=file]"))


def wait_until(driver: Any, condition: Callable[[], Any]) -> Any:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(driver, PATIENCE, 0.05, ignored_exceptions=[StaleElementReferenceException])
    return waiting.until(lambda _: condition())


def open_tab(driver: Any, name: str) -> None:
    """Open a tab; on a narrow page, some are in a menu."""

    def click() -> bool:
        for button in driver.find_elements("css selector", "button[role=tab], .overflow-dropdown button"):
            if button.is_displayed() and button.text.strip() == name:
                button.click()
                return True
        for menu in driver.find_elements("css selector", ".overflow-menu > button"):
            if menu.is_displayed():
                menu.click()
        return False

    wait_until(driver, click)


def upload(driver: Any, path: Path) -> None:
    """Hand a file to the page as if it had been dropped, removing the photograph that is there."""
    if clear := driver.find_elements("css selector", ".photo-part button[aria-label='Clear']"):
        clear[0].click()
        wait_until(driver, lambda: cards(driver, "done") == 0)
    wait_until(driver, lambda: driver.find_elements("css selector", ".photo-part input[type=file]"))
    driver.find_element("css selector", ".photo-part input[type=file]").send_keys(str(path))


def cards(driver: Any, state: str) -> int:
    return len(driver.find_elements("css selector", f".hc-steps li.{state}"))


def text_of(driver: Any, selector: str) -> str:
    return str(driver.find_element("css selector", selector).text)


def shown(driver: Any, selector: str) -> list[Any]:
    return [each for each in driver.find_elements("css selector", selector) if each.is_displayed()]


def press(driver: Any, name: str) -> None:
    wait_until(driver, lambda: [each for each in shown(driver, "button") if each.text == name])
    next(each for each in shown(driver, "button") if each.text == name).click()


def fits(driver: Any, width: int) -> bool:
    """Whether the page is no wider than the window."""
    return bool(driver.execute_script("return document.documentElement.scrollWidth") <= width)


def save_screenshot(driver: Any, tmp_path: Path, name: str) -> Path:
    """Save the whole page, below the fold too."""
    folder = Path(os.environ.get("HIERCLASS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    time.sleep(1)  # transitions
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
    (folder / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
    return folder / f"{name}.png"


# ---- one photograph


@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (1440, False),
        *(pytest.param(*each, marks=pytest.mark.full) for each in ((1440, True), (390, False), (390, True))),
    ],
)
def test_a_dropped_photograph_is_answered_down_to_the_finest_level(
    browser: Any, page: Served, tmp_path: Path, width: int, dark: bool
) -> None:
    open_page(browser, page, width=width, dark=dark)
    upload(browser, CAT)
    wait_until(browser, lambda: cards(browser, "done") == 3)
    assert text_of(browser, ".hc-path .last") == page.classifier.predict(CAT).label
    assert "as fine as it gets" in text_of(browser, ".hc-why")
    assert fits(browser, width)
    with Image.open(save_screenshot(browser, tmp_path, f"one-{width}-{'dark' if dark else 'light'}")) as shot:
        assert np.asarray(shot).std() > 10


@pytest.mark.full
def test_the_tree_is_drawn_with_the_path(browser: Any, page: Served) -> None:
    open_page(browser, page)
    upload(browser, CAT)
    wait_until(browser, lambda: cards(browser, "done") == 3)
    label = page.classifier.predict(CAT).path[0].label
    wait_until(browser, lambda: label in text_of(browser, "#tree"))
    assert len(browser.find_elements("css selector", "#tree .slice")) == 2 + 5 + 12


@pytest.mark.full
def test_the_level_can_be_changed(browser: Any, page: Served) -> None:
    open_page(browser, page)
    upload(browser, CAT)
    wait_until(browser, lambda: cards(browser, "done") == 3)
    browser.find_elements("css selector", "#one input[type=radio]")[0].click()
    wait_until(browser, lambda: cards(browser, "skipped") == 2)
    assert cards(browser, "done") == 1
    assert "You asked for one of 2 kinds" in text_of(browser, ".hc-why")
    assert "was never done" in text_of(browser, ".hc-why")


@pytest.mark.full
def test_the_slider_of_precision_is_moved_by_keys(browser: Any, page: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    upload(browser, CAT)
    wait_until(browser, lambda: cards(browser, "done") == 3)
    browser.find_element("css selector", "#one input[type=checkbox]").click()
    wait_until(browser, lambda: "right 90 times of 100" in text_of(browser, ".hc-why"))
    assert "perhaps" in text_of(browser, ".hc-path")
    slider = browser.find_element("css selector", "#one input[type=range]")
    slider.send_keys(Keys.HOME)
    wait_until(browser, lambda: "right 50 times of 100" in text_of(browser, ".hc-why"))
    slider.send_keys(Keys.ARROW_RIGHT)
    wait_until(browser, lambda: "right 51 times of 100" in text_of(browser, ".hc-why"))


@pytest.mark.full
def test_an_example_is_answered_with_one_click(browser: Any, page: Served) -> None:
    open_page(browser, page)
    wait_until(browser, lambda: shown(browser, ".gallery-item, .gallery button"))
    shown(browser, ".gallery-item, .gallery button")[0].click()
    wait_until(browser, lambda: cards(browser, "done") == 3)


@pytest.mark.full
def test_a_broken_file_does_not_break_the_page(browser: Any, page: Served, tmp_path: Path) -> None:
    broken = tmp_path / "holiday.jpg"
    broken.write_text("this is no photograph")
    open_page(browser, page)
    upload(browser, broken)
    trouble = wait_until(browser, lambda: browser.find_elements("css selector", ".trouble"))[0].text
    assert trouble.startswith("This photograph is no image")
    assert cards(browser, "done") == 0
    save_screenshot(browser, tmp_path, "one-broken")
    upload(browser, CAT)
    wait_until(browser, lambda: cards(browser, "done") == 3)
    assert browser.find_elements("css selector", ".trouble") == []


@pytest.mark.full
def test_an_old_answer_goes_before_the_new_one_comes(browser: Any, page: Served) -> None:
    open_page(browser, page)
    upload(browser, CAT)
    wait_until(browser, lambda: cards(browser, "done") == 3)
    page.service.resume.clear()
    try:
        upload(browser, EXAMPLES / "coffee.jpg")
        wait_until(browser, lambda: "Looking …" in text_of(browser, "#headline"))
        assert cards(browser, "done") == 0
    finally:
        page.service.resume.set()
    wait_until(browser, lambda: cards(browser, "done") == 3)


@pytest.mark.full
def test_a_page_that_is_too_busy_says_so_beside_the_photograph(
    browser: Any, page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradio.queueing import Queue

    open_page(browser, page)
    upload(browser, CAT)
    wait_until(browser, lambda: cards(browser, "done") == 3)

    async def full(*_: Any, **__: Any) -> tuple[bool, str]:
        return False, "Queue is full."

    with monkeypatch.context() as patched:
        patched.setattr(Queue, "push", full)
        browser.find_elements("css selector", "#one input[type=radio]")[0].click()
        wait_until(browser, lambda: "The page is busy" in text_of(browser, "#headline"))
        assert cards(browser, "done") == 0
    browser.find_elements("css selector", "#one input[type=radio]")[1].click()
    wait_until(browser, lambda: cards(browser, "done") == 2)


@pytest.mark.full
def test_nothing_jumps_while_answers_arrive(browser: Any, page: Served) -> None:
    open_page(browser, page, width=1440)
    places = "return [...document.querySelectorAll('.hc-steps li')].map(e => Math.round(e.getBoundingClientRect().top))"
    upload(browser, CAT)
    wait_until(browser, lambda: cards(browser, "done") >= 1)
    found = []
    for _ in range(20):
        found.append(browser.execute_script(places))
        if cards(browser, "done") == 3:
            break
    found.append(browser.execute_script(places))
    assert all(max(abs(a - b) for a, b in zip(each, found[0], strict=True)) <= 4 for each in found), found


@pytest.mark.full
def test_everything_can_be_reached_by_keys_and_has_a_name(browser: Any, page: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page)
    reached = set()
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(
            browser.execute_script(
                "const e = document.activeElement, role = e.getAttribute('role');"
                "return [e.tagName, e.type || '', role || ''].join(' ')"
            )
        )
    wanted = ("BUTTON submit tab", "INPUT radio ", "INPUT checkbox ", "INPUT range ")
    assert set(wanted) <= reached
    nameless = browser.execute_script(
        """const named = e => e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.title ||
             e.innerText?.trim() || e.closest('label')?.innerText.trim() || (e.labels && e.labels.length) ||
             e.querySelector('img[alt]') || e.querySelector('[aria-label]') || e.placeholder;
           return [...document.querySelectorAll('button, input:not([type=file]), textarea, a')]
             .filter(e => e.offsetParent && !named(e)).map(e => e.outerHTML.slice(0, 160))"""
    )
    assert nameless == []
    assert browser.execute_script("return document.documentElement.lang")
    live = [each.get_attribute("aria-live") for each in browser.find_elements("css selector", "[aria-live]")]
    assert "polite" in live


# ---- many photographs


def zip_of(tmp_path: Path, count: int) -> Path:
    path = tmp_path / "trip.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            archive.write(CAT, f"trip/{number}.jpg")
        archive.writestr("trip/broken.jpg", b"no photograph")
    return path


def drop_pile(driver: Any, *paths: Path) -> None:
    wait_until(driver, lambda: driver.find_elements("css selector", "#pile input[type=file]"))
    driver.find_element("css selector", "#pile input[type=file]").send_keys("\n".join(map(str, paths)))
    wait_until(driver, lambda: paths[-1].name.partition(".")[0] in text_of(driver, "#pile"))


@pytest.mark.full
@pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])
def test_many_photographs_are_labelled_and_both_tables_can_be_kept(
    browser: Any, page: Served, tmp_path: Path, width: int, dark: bool
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(kept)})
    open_page(browser, page, width=width, dark=dark)
    open_tab(browser, "Many photographs")
    drop_pile(browser, zip_of(tmp_path, 3), CAT)
    press(browser, "Label them")
    wait_until(browser, lambda: "5 photographs labelled" in text_of(browser, "#status"))
    assert "1 could not be read" in text_of(browser, "#status")
    wait_until(browser, lambda: "trip.zip/trip/broken.jpg" in text_of(browser, "#answers"))
    assert len(shown(browser, "#answers .virtual-body img")) == 4
    assert fits(browser, width)
    save_screenshot(browser, tmp_path, f"many-{width}-{'dark' if dark else 'light'}")
    for name in ("CSV", "Parquet"):
        press(browser, f"Download as {name}")
    wait_until(browser, lambda: {each.name for each in kept.iterdir()} == {"labels.csv", "labels.parquet"})
    rows = list(csv.DictReader((kept / "labels.csv").open()))
    paths = [f"trip.zip/trip/{name}.jpg" for name in (0, 1, 2, "broken")] + ["cat.jpg"]
    assert [row["path"] for row in rows] == paths
    assert [bool(row["error"]) for row in rows] == [False, False, False, True, False]
    assert rows[4]["label"] == page.classifier.predict(CAT).label
    assert [row["path"] for row in pq.read_table(kept / "labels.parquet").to_pylist()] == paths


@pytest.mark.full
def test_the_table_is_sorted_by_keys(browser: Any, page: Served, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, page, width=1440)
    open_tab(browser, "Many photographs")
    drop_pile(browser, zip_of(tmp_path, 1), *sorted(EXAMPLES.glob("*.jpg")))
    press(browser, "Label them")
    wait_until(browser, lambda: "7 photographs labelled" in text_of(browser, "#status"))

    def column(number: int) -> list[str]:
        cells = browser.find_elements("css selector", f"#answers .virtual-body [data-col='{number}']")
        return [cell.text for cell in cells]

    def choose(name: str) -> None:
        box = browser.find_element("css selector", "#order input")
        box.click()
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(name, Keys.ENTER)

    wait_until(browser, lambda: column(0) == list("1234567"))
    choose("surest first")
    scores = wait_until(browser, lambda: column(3) if column(0) != list("1234567") else None)
    assert scores[-1] == ""  # the broken one
    assert [float(score) for score in scores[:-1]] == sorted(map(float, scores[:-1]), reverse=True)
    choose("by file")
    wait_until(browser, lambda: column(4) == sorted(column(4)))
    choose("as sent")
    wait_until(browser, lambda: column(0) == list("1234567"))


@pytest.mark.full
def test_work_can_be_stopped_what_is_done_is_kept_and_it_can_be_begun_again(
    browser: Any, page: Served, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(kept)})
    page.service.seconds_per_batch = 0.3
    open_page(browser, page)
    open_tab(browser, "Many photographs")
    drop_pile(browser, zip_of(tmp_path, 200))
    press(browser, "Label them")
    wait_until(browser, lambda: " a second" in text_of(browser, "#status"))
    press(browser, "Stop")
    wait_until(browser, lambda: "Stopped:" in text_of(browser, "#status"))
    done = int(text_of(browser, "#status").split("Stopped: ")[1].split(" of")[0])
    assert 0 < done < 201
    press(browser, "Download as CSV")
    wait_until(browser, lambda: (kept / "labels.csv").exists())
    assert len(list(csv.DictReader((kept / "labels.csv").open()))) == done
    assert not [each for each in page.uploads.folder.rglob("*") if each.name == "0.jpg"]
    page.service.seconds_per_batch = 0.0
    press(browser, "Label them")
    wait_until(browser, lambda: "201 photographs labelled" in text_of(browser, "#status"))


@pytest.mark.full
def test_old_rows_go_when_new_photographs_are_refused(browser: Any, page: Served, tmp_path: Path) -> None:
    open_page(browser, page)
    open_tab(browser, "Many photographs")
    drop_pile(browser, CAT)
    press(browser, "Label them")
    wait_until(browser, lambda: "1 photograph labelled" in text_of(browser, "#status"))
    wait_until(browser, lambda: shown(browser, "#answers .virtual-body img"))
    shown(browser, "#pile button[aria-label='Clear']")[0].click()
    wait_until(browser, lambda: browser.find_elements("css selector", "#pile input[type=file]"))
    press(browser, "Label them")
    wait_until(browser, lambda: "nothing to label yet" in text_of(browser, "#status"))
    assert shown(browser, "#answers .virtual-body img") == []
    button = next(each for each in shown(browser, "button") if each.text == "Download as CSV")
    assert not button.is_enabled()


@pytest.mark.full
def test_nothing_to_label_is_said(browser: Any, page: Served) -> None:
    open_page(browser, page)
    open_tab(browser, "Many photographs")
    press(browser, "Label them")
    wait_until(browser, lambda: "nothing to label yet" in text_of(browser, "#status"))


# ---- the model


@pytest.mark.full
@pytest.mark.parametrize(("width", "dark"), [(1440, True), (390, False)])
def test_the_model_is_shown_with_its_classes(
    browser: Any, page: Served, tmp_path: Path, width: int, dark: bool
) -> None:
    open_page(browser, page, width=width, dark=dark)
    open_tab(browser, "The model")
    wait_until(browser, lambda: shown(browser, "#curve .main-svg"))
    box = shown(browser, "input[type=text], textarea")[0]
    box.send_keys("tabb")
    wait_until(browser, lambda: "1 found" in text_of(browser, ".hc-note"))
    assert "animal › cat" in text_of(browser, ".hc-found")
    summary = shown(browser, "#classes summary")[0]
    summary.click()
    wait_until(browser, lambda: "dog" in text_of(browser, "#classes"))
    assert fits(browser, width)
    save_screenshot(browser, tmp_path, f"model-{width}-{'dark' if dark else 'light'}")


@pytest.mark.full
def test_the_page_fetches_nothing_from_elsewhere(browser: Any, page: Served) -> None:
    open_page(browser, page)
    names = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert names
    assert [name for name in names if not name.startswith((page.address, "data:", "blob:"))] == []


EVIL = "<img src=x onerror=\"document.title='evil'\">{{7*7}}%{text}<script>document.title='evil'</script>"
CARD = f"""# A stranger's card
{EVIL} <iframe src="https://example.org"></iframe> <style>* {{display: none}}</style>
![seen](https://example.org/seen.png) ![seen][there] [press](javascript:document.title='evil')

```
{EVIL}
```

[there]: https://example.org/seen.png
"""


@pytest.mark.full
def test_a_strangers_names_and_card_are_shown_and_do_nothing(
    browser: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    tree = checkpoint.taxonomy.to_dict()
    for node in tree["nodes"]:
        node |= {"name": f"{node['id']} {EVIL}", "definition": EVIL}
    evil = Classifier(dataclasses.replace(checkpoint, taxonomy=Taxonomy.from_dict(tree)), device="cpu")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "MODEL_CARD.md").write_text(CARD)
    file = tmp_path / "<img src=x onerror=document.title='evil'>\u202egpj.jpg"
    shutil.copy(CAT, file)
    with served(evil, tmp_path / "uploads", read_card(tmp_path / "model")) as page:
        open_page(browser, page)
        upload(browser, file)
        wait_until(browser, lambda: cards(browser, "done") == 3)
        assert EVIL in text_of(browser, "#headline")
        open_tab(browser, "Many photographs")
        drop_pile(browser, file)
        press(browser, "Label them")
        wait_until(browser, lambda: "1 photograph labelled" in text_of(browser, "#status"))
        wait_until(browser, lambda: r"\u202egpj" in text_of(browser, "#answers"))
        open_tab(browser, "The model")
        next(each for each in shown(browser, "button") if "Model card" in each.text).click()
        wait_until(browser, lambda: any("stranger" in each.text for each in shown(browser, "h1")))
        time.sleep(1)
        assert browser.title == "hierclass: from coarse to fine"
        loaded = "return performance.getEntriesByType('resource').map(each => each.name)"
        assert all(
            name.startswith((page.address, "data:", "blob:")) for name in browser.execute_script(loaded)
        )
        assert not browser.find_elements("css selector", "iframe, img[src=x], a[href^='javascript']")
        assert not browser.find_elements("css selector", "img[src*='example.org']")
