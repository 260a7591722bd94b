"""The layout of the page, in Gradio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from dmtl.app.viewer import Analysis, Options, Viewer
from dmtl.diffusion import SAMPLERS
from dmtl.errors import DataError

MOST_STEPS, MOST_SAMPLES = 8, 16
HEAD = ["task", "value", "uncertainty"]
FONTS: dict[str, Any] = {
    "font": ["system-ui", "sans-serif"],
    "font_mono": ["monospace"],
}  # none that is loaded from elsewhere
CSS = "#maps {display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr))}"


def page(viewer: Viewer, name: str, folder: Path) -> gr.Blocks:
    """Return the page.

    Args:
        name: of the model.
        folder: for the files that are downloaded.
    """
    config = viewer.model.config
    chain = config.diffusion != "none"

    def analyse(path: str | None, steps: int, sampler: str, samples: int) -> tuple[Any, ...]:
        """Return what was found, the slider through it, and no file yet."""
        nothing = None, gr.skip(), gr.File(visible=False)
        if path is None:
            return nothing
        try:
            found = viewer.analyse(path, Options(int(steps), sampler, int(samples)))
        except DataError as error:
            message = str(error).removeprefix(f"{path}: ")
            gr.Warning(f"{Path(path).name}: {message}", duration=None)
            return nothing
        last = len(found.captions) - 1
        return found, gr.Slider(maximum=max(last, 1), value=last), gr.File(visible=False)

    def show(found: Analysis | None, stage: int, overlay: float, at: tuple[int, int] | None) -> list[Any]:
        if found is None:
            return ["", None, *[None] * len(viewer.tasks), []]
        stage = min(int(stage), len(found.captions) - 1)
        photo = found.image.permute(1, 2, 0).numpy()
        pictures = viewer.pictures(found, stage, overlay).values()
        return [f"**{found.captions[stage]}**", photo, *pictures, values(found, stage, at)]

    def values(found: Analysis | None, stage: int, at: tuple[int, int] | None) -> list[tuple[str, str, str]]:
        return [] if found is None or at is None else viewer.values(found, int(stage), *at)

    def click(found: Analysis | None, stage: int, event: gr.SelectData) -> tuple[Any, Any]:
        return tuple(event.index), values(found, stage, tuple(event.index))

    def save(found: Analysis | None) -> gr.File:
        if found is None:
            raise gr.Error("Choose a photo first.")
        try:
            return gr.File(str(viewer.save(found, folder)), visible=True)
        except DataError as error:
            raise gr.Error(str(error), duration=None) from None

    with gr.Blocks(
        title="dmtl", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)
    ) as blocks:
        found, at = gr.State(time_to_live=3600), gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                gr.Markdown(f"### dmtl: {name}")
                file = gr.File(label="Photo", elem_id="photo-file", height=110)
                caption = gr.Markdown(elem_id="caption")
                with gr.Group(visible=chain):
                    stage = gr.Slider(0, 1, 1, step=1, label="Denoising step to show", elem_id="stage")
                    samples = gr.Slider(1, MOST_SAMPLES, 1, step=1, label="Noise samples", elem_id="samples")
                    overlay = gr.Slider(0, 1, 0, label="Uncertainty (2 samples or more)", elem_id="overlay")
                    most = max(MOST_STEPS, config.steps)
                    steps = gr.Slider(1, most, config.steps, step=1, label="Denoising steps to take")
                    sampler = gr.Dropdown(SAMPLERS.names(), value=config.sampler_for()[0], label="Sampler")
                download = gr.Button("Download the maps", elem_id="save")
                zipped = gr.File(visible=False, label="Maps", interactive=False, elem_id="zip", height=80)
            with gr.Column(scale=3):
                look: dict[str, Any] = {"interactive": False, "format": "png", "buttons": ["fullscreen"]}
                with gr.Row(elem_id="maps"):
                    photo = gr.Image(label="photo", elem_id="photo", **look)
                    maps = [gr.Image(label=task, elem_id=f"map-{task}", **look) for task in viewer.tasks]
                table = gr.Dataframe(headers=HEAD, label="Click a pixel", interactive=False, elem_id="values")

        shown = {"fn": show, "inputs": [found, stage, overlay, at], "outputs": [caption, photo, *maps, table]}
        options = [file, steps, sampler, samples]
        changed = [file.change, steps.release, sampler.change, samples.release]
        gr.on(changed, analyse, options, [found, stage, zipped]).then(**shown)
        gr.on([stage.input, overlay.input], **shown, trigger_mode="always_last", show_progress="hidden")
        for image in (photo, *maps):
            image.select(click, [found, stage], [at, table], show_progress="hidden")
        download.click(save, found, zipped)
    return blocks
