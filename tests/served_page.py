"""A page around a small model, served on this computer for the tests that talk to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from page_data import EXAMPLES

import app
from hierclass.page.layout import build_page
from hierclass.page.service import Service
from hierclass.page.uploads import Uploads

PATIENCE = 600
"""Seconds that a step may take on a busy machine."""


class SlowService(Service):
    """A service that can be held up: at the first answer to one photograph, and after every batch of many."""

    def __init__(self, classifier: Any, uploads: Uploads) -> None:
        super().__init__(classifier, uploads)
        self.resume = threading.Event()
        self.resume.set()
        self.seconds_per_batch = 0.0
        self.never_held = "no visitor"

    def classify(self, photo: Any, level: Any, precision: Any, **more: Any) -> Iterator[Any]:
        for each in super().classify(photo, level, precision, **more):
            if more.get("visitor") != self.never_held:
                self.resume.wait(PATIENCE)
            yield each

    def label_batch(self, sent: Any, level: Any, precision: Any, **more: Any) -> Iterator[Any]:
        for each in super().label_batch(sent, level, precision, **more):
            time.sleep(self.seconds_per_batch)
            yield each


class Served(NamedTuple):
    """Where the page is, and what it shows and keeps."""

    address: str
    classifier: Any
    uploads: Uploads
    service: SlowService


@contextmanager
def served(classifier: Any, folder: Path, card: str = "# A card") -> Iterator[Served]:
    """Serve a page; what visitors send lies in `folder`."""
    pytest.importorskip("gradio", reason="Gradio is not installed")
    pytest.importorskip("plotly", reason="plotly is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        uploads = Uploads(folder, [EXAMPLES])
        examples = sorted(EXAMPLES.glob("*.jpg"))
        service = SlowService(classifier, uploads)
        page = build_page(service, card=card, examples=examples)
        address = app.launch(page, uploads, "127.0.0.1", None).rstrip("/")
        yield Served(address, classifier, uploads, service)
        page.close(verbose=False)
