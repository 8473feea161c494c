"""A page around a small model, served on this computer for the tests that talk to it."""

from __future__ import annotations

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


class Served(NamedTuple):
    """Where the page is, and what it shows and keeps."""

    address: str
    classifier: Any
    uploads: Uploads


@contextmanager
def served(classifier: Any, folder: Path) -> Iterator[Served]:
    """Serve a page; what visitors send lies in `folder`."""
    pytest.importorskip("gradio", reason="Gradio is not installed")
    pytest.importorskip("plotly", reason="plotly is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        uploads = Uploads(folder, [EXAMPLES])
        examples = sorted(EXAMPLES.glob("*.jpg"))
        page = build_page(Service(classifier, uploads), card="# A card", examples=examples)
        yield Served(app.launch(page, uploads, "127.0.0.1", None).rstrip("/"), classifier, uploads)
        page.close(verbose=False)
