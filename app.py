"""The page: drop a photograph, read the answer of level 0 at once, then watch the finer levels arrive.

Its command and its server; what is on it is in `hierclass.page`. Run `python app.py`.
Importing this file starts nothing and needs neither Gradio nor torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from hierclass.cli.shared import (
    DeviceOption,
    Int8Option,
    ModelChoice,
    RuntimeOption,
    ThreadsOption,
    TimmOption,
    WeightsOption,
)
from hierclass.errors import HierclassError, require
from hierclass.labelling.reader_pipes import kept_ready
from hierclass.page.addresses import AllowedHosts
from hierclass.page.uploads import Uploads
from taxonomy.streams import prepare_streams, visible

if TYPE_CHECKING:
    import gradio as gr

    from hierclass.classifier import Classifier

EXAMPLES = Path(__file__).with_name("examples")
NUM_OPEN_FILES = 20_000
"""Files and connections that the page may have open; systems often allow 1,000, and an upload may hold so many."""
NUM_SESSIONS = 500
"""Visitors of whom Gradio remembers what they see."""


def launch(
    page: gr.Blocks,
    uploads: Uploads,
    host: str,
    port: int | None,
    *,
    share: bool = False,
    hosts: AllowedHosts | None = None,
) -> str:
    """Start serving the page without blocking and return its address; port None takes the next free one."""
    import gradio as gr
    from starlette.middleware import Middleware

    from hierclass.page.guard import Guard
    from hierclass.page.service import NUM_THREADS
    from hierclass.page.tab_batch import MAX_FILE

    hosts = hosts or AllowedHosts(host)
    arguments = _arguments(dict(page.config))
    unread = page._queue.pending_messages_per_session  # no public name; without it, they are unbounded
    guard = Middleware(Guard, hosts=hosts, uploads=uploads, arguments=arguments, unread=unread)
    theme = gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(  # Gradio's own greys have too little contrast for small text
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
    )
    _, address, tunnel = page.launch(
        server_name=f"[{host.strip('[]')}]" if ":" in host else host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=share,
        show_error=False,
        max_file_size=MAX_FILE,
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        state_session_capacity=NUM_SESSIONS,
        allowed_paths=[str(EXAMPLES)],
        max_threads=NUM_THREADS,
        app_kwargs={"middleware": [guard]},
        footer_links=["api"],
        theme=theme,
        css=resources.files("hierclass.page").joinpath("style.css").read_text(encoding="utf-8"),
    )
    for name in ("uvicorn.error", "python_multipart"):  # no line for every odd request
        logging.getLogger(name).setLevel(logging.ERROR)
    if tunnel:
        hosts.add(urlsplit(tunnel).netloc)
    return str(tunnel or address)


def _arguments(config: dict[str, Any]) -> dict[int, list[range | None]]:
    """What each function of a page takes, for its guard: of examples the number, of all else anything."""
    examples = {
        each["id"]: range(len(each["props"]["samples"]))
        for each in config["components"]
        if each["type"] == "dataset"
    }
    functions = (each for each in config["dependencies"] if each["backend_fn"])
    return {each["id"]: [examples.get(widget) for widget in each["inputs"]] for each in functions}


@kept_ready(start=True)
def serve(
    model: Annotated[
        Path | None, typer.Option(help="Folder of a model. Default: the one that comes with hierclass.")
    ] = None,
    timm: TimmOption = None,
    weights: WeightsOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens the page to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name under which browsers reach the page, such as photos.example.org behind a web server; may be "
            "repeated. Computers' addresses and names of the local network need none. '*' allows every name.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    threads: ThreadsOption = None,
    int8: Int8Option = False,
    share: Annotated[
        bool,
        typer.Option(
            "--share/--share-off",
            help="Also open the page to the internet, through a tunnel of Gradio's (needs the network).",
        ),
    ] = False,
) -> None:
    """Open the page of hierclass in this computer's browser: photographs labelled coarse to fine."""
    try:
        require("demo", "gradio", "plotly", what="the page")
        hosts = AllowedHosts(host, allow_host or ())
        classifier = ModelChoice(model, timm, weights, device, runtime, threads, int8).open()
    except HierclassError as error:
        _stop(str(error), 2)
    for number in _STOPPING:
        signal.signal(number, _stop_at)
    try:
        with Uploads.opened([EXAMPLES]) as uploads:
            _serve(classifier, uploads, _card(model, timm), hosts, host=host, port=port, share=share)
    except HierclassError as error:
        _stop(str(error), 1)
    except SystemExit as stop:
        sys.stderr.flush()
        os._exit(int(stop.code or 0))  # threads that still work have nobody to tell
    os._exit(0)


def _serve(
    classifier: Classifier,
    uploads: Uploads,
    card: str,
    hosts: AllowedHosts,
    *,
    host: str,
    port: int,
    share: bool,
) -> None:
    _allow_open_files()
    os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)
    with ThreadPoolExecutor(1) as beside:  # importing Gradio takes seconds
        warm = beside.submit(_warm_up, classifier)
        from hierclass.page.layout import build_page
        from hierclass.page.service import Service

        page = build_page(Service(classifier, uploads), card=card, examples=sorted(EXAMPLES.glob("*.jpg")))
        warm.result()
    try:
        address = launch(page, uploads, host, port, share=share, hosts=hosts)
    except OSError:
        _stop(f"can't listen on {host}, port {port}; try another one with --port", 2)
    uploads.keep_what_is_there()
    uploads.start_sweeping()
    print(f"hierclass is at {address} (stop it with Ctrl+C)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        page.block_thread()
    _ignore_signals()


def _allow_open_files() -> None:
    """Raise the number of files that may be open, as far as the system lets this process do so."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = NUM_OPEN_FILES if hard == resource.RLIM_INFINITY else min(NUM_OPEN_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _card(model: Path | None, timm: str | None) -> str:
    from hierclass.files import BUNDLED
    from hierclass.page.model_info import read_card

    if timm is not None:
        return f"timm's `{timm}`, as it is; its probabilities are summed up the tree."
    return read_card(model or BUNDLED)


def _warm_up(classifier: Classifier) -> None:
    """Run the network once, so that the first visitor's times are not those of a cold start."""
    from PIL import Image

    for _ in classifier.refine(Image.new("RGB", (64, 64))):
        pass


_STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _stop_at(number: int, _: object) -> None:
    """End the page because of a signal."""
    _ignore_signals()
    sys.exit(128 + number)


def _ignore_signals() -> None:
    """Let nothing interrupt the deletion of uploads."""
    for number in (signal.SIGINT, *_STOPPING):
        signal.signal(number, signal.SIG_IGN)


def _stop(message: str, code: int) -> None:
    print(f"app.py: {visible(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(code)


def main() -> None:
    """Read the command line and serve the page until it is stopped."""
    prepare_streams()
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    cli.command()(serve)
    cli()


if __name__ == "__main__":
    main()
