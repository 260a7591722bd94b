"""`dmtl app`: a page in the browser that shows what a model predicts for your photos."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from dmtl.cli._arguments import MODEL, parse
from dmtl.cli._common import say
from dmtl.errors import ConfigError

HOST = "127.0.0.1"


@dataclass(frozen=True)
class App:
    """Show the maps of your photos in the browser.

    Prints the address of a page on this machine (it needs dmtl[app]). Drop a photo on the page to see all
    maps at every denoising step and where the model is uncertain. Click a pixel to read its values, or
    download the maps. Only this machine can open the page, and nothing is sent elsewhere. Ctrl-C ends it.
    """

    model: Annotated[str, *MODEL] = "six-tasks"
    port: int | None = None
    """Port of the page; default: the first free one from 7860 on."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""


def main(arguments: list[str]) -> int:
    args = parse(App, arguments, "app")
    if args.port is not None and not 1 <= args.port <= 65535:
        raise ConfigError(f"--port must be from 1 to 65535, got {args.port}")
    with TemporaryDirectory(prefix="dmtl-app-") as folder:
        _keep_local(folder)
        try:
            import gradio
        except ImportError as error:
            raise ConfigError(f"dmtl app needs Gradio ({error}): pip install 'dmtl[app]'") from None
        from dmtl.app.page import CSS, FONTS, page
        from dmtl.app.viewer import Viewer
        from dmtl.models.pretrained import from_pretrained
        from dmtl.runtime.devices import pick_device

        model = from_pretrained(args.model).to(pick_device(args.device))
        blocks = page(Viewer(model), args.model, Path(folder))
        private: dict[str, Any] = {"server_name": HOST, "share": False, "ssr_mode": False, "footer_links": []}
        look: dict[str, Any] = {"css": CSS, "theme": gradio.themes.Default(**FONTS)}
        try:
            blocks.launch(server_port=args.port, quiet=True, prevent_thread_lock=True, **private, **look)
        except OSError:
            raise ConfigError(f"--port must be a free port, got {args.port or 'none from 7860 on'}") from None
        say(f"open {blocks.local_url} in a browser; Ctrl-C ends")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # also leaves no upload behind
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
        finally:
            blocks.close(verbose=False)
    return 0


def _keep_local(folder: str) -> None:
    """Make Gradio, before it is imported, keep uploads in `folder` and ask no server for anything."""
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # also its check for new versions
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    # it opens its own page once, which a proxy cannot reach
    os.environ["no_proxy"] = ",".join(filter(None, [HOST, os.environ.get("no_proxy")]))
