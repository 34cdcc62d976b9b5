"""The page: Gradio's widgets around `Playground`. Nothing is decided here, and nothing is fetched from elsewhere."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .cards import cards, message, placeholder
from .playground import Playground, read_names


STYLE = Path(__file__).with_name("page.css")
#: How pip is asked for Gradio: the extra [app].
GRADIO = "gradio>=6.31,<7"
#: The largest file that a visitor can give.
MAX_FILE = "50mb"
_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]  # what the machine has


def load_gradio() -> Any:
    """Import Gradio, with its telemetry switched off.

    Raises:
        ImportError: it is not installed; says how to.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise ImportError(f"The page needs Gradio: pip install '{GRADIO}'") from error


def answer(
    playground: Playground,
    image: str | None,
    names: str,
    chosen: Sequence[str],
    top_k: float,
    attention: bool,
) -> str:
    """Return the HTML for what the widgets hold; what a visitor can mend is a message in it."""
    if image is None:
        return placeholder()
    try:
        class_names, remarks = read_names(names)
        answers = playground.compare(image, class_names, chosen, int(top_k), attention)
    except (ValueError, OSError) as error:
        return message(str(error).replace(image, Path(image).name))
    return cards(answers, remarks, playground.table(image, answers))


def build_page(playground: Playground) -> Any:
    """Return the page as Gradio's `Blocks`; `serve` shows it.

    Raises:
        ImportError: Gradio is not installed.
    """
    gr = load_gradio()
    with gr.Blocks(title="vprompt", analytics_enabled=False) as page:
        gr.HTML(
            "<h1>Try your adapters</h1><p>One image, several models. Class names can be changed while you look.</p>",
            elem_id="vp-title",
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                widgets = _inputs(gr, playground)
            with gr.Column(scale=7, min_width=420):
                shown = gr.HTML(placeholder(), elem_id="vp-answers", container=False)
        changes = [each.change for each in widgets]
        gr.on(
            changes,
            lambda *values: answer(playground, *values),
            widgets,
            shown,
            trigger_mode="always_last",
            show_progress="minimal",
        )
    return page


def _inputs(gr: Any, playground: Playground) -> list:
    """Lay out the widgets, and return those that `answer` takes, in its order."""

    image = gr.Image(
        type="filepath", label="Image", sources=["upload", "clipboard"], height=300, elem_id="vp-image", buttons=[]
    )
    _hand_over_as_file(image)
    if examples := playground.examples():
        gr.Examples(examples, image, label="Images of the embedded task", elem_id="vp-examples")
    names = gr.Textbox(
        "\n".join(playground.class_names),
        label="Class names",
        info="One on each line",
        lines=10,
        max_lines=10,  # of one height: growing with a thousand names keeps a browser busy for minutes
        elem_id="vp-names",
    )
    models = gr.CheckboxGroup(playground.names, value=playground.names[:4], label="Models", elem_id="vp-models")
    with gr.Row():
        top_k = gr.Slider(1, 10, value=5, step=1, label="Labels of each", elem_id="vp-top-k")
        attention = gr.Checkbox(True, label="Attention", elem_id="vp-attention")
    return [image, names, models, top_k, attention]


def _hand_over_as_file(image: Any) -> None:
    """Let an image be handed over as its file, whatever is in it: this package reads it, or says why it cannot.

    Gradio opens it before, and fails without a word to the visitor. (Of a subclass it would write a stub beside this file.)
    """
    decode = image.preprocess

    def preprocess(payload):
        if payload is None or payload.path is None or (payload.url or "").startswith("data:"):
            return decode(payload)
        return payload.path

    image.preprocess = preprocess


def serve(
    playground: Playground,
    port: int | None = None,
    share: bool = False,
    opened: Callable[[str], Any] = lambda address: None,
) -> None:
    """Show the page until it is stopped.

    Args:
        playground: what it shows.
        port: of this machine; default: the first free one from 7860 on.
        share: also make a public address, by way of Gradio's servers.
        opened: is called with the page's address.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the port is taken.
    """
    page = build_page(playground)
    theme = load_gradio().themes.Base(
        primary_hue="teal", neutral_hue="slate", radius_size="lg", font=_FONTS, font_mono=["monospace"]
    )
    try:
        _, here, public = page.launch(
            server_port=port,
            share=share,
            theme=theme,
            css_paths=STYLE,
            footer_links=[],
            max_file_size=MAX_FILE,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        if port is None or "port" not in str(error):
            raise
        raise OSError(f"Port {port} is taken. Give another with --port, or none for the first free one.") from error
    opened(public or here)
    page.block_thread()
