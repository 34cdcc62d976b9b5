"""Answers as HTML: one card for each, with bars, the attention over the image, and a link to download all as a table.

Everything that a visitor or an adapter's file wrote is escaped. Nothing here is fetched: pictures and the table are in the page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib import colormaps
from PIL import Image

from ..experiments.attention_maps import AttentionMaps
from ..export.classifier import Prediction
from .playground import Answer


#: Edge of the layer that shows attention, in pixels; the browser enlarges it.
_HEAT_EDGE = 112
#: Opacity of that layer where attention is least and where it is most.
_OPACITY = (0.25, 0.75)
#: The words under the pictures.
CAPTION = (
    "What the model sees, and the last layer's attention over it: bright where its image feature looks most. Point at a "
    "picture to see it plain."
)


def placeholder() -> str:
    """Return what stands there before there is an image."""
    return _notice("Drop an image, and the answers appear here.", "vp-empty")


def message(text: str) -> str:
    """Return a message to the visitor, in the place of answers."""
    return _notice(text, "vp-problem")


def cards(answers: Sequence[Answer], remarks: Sequence[str], table: str) -> str:
    """Return the answers side by side, with remarks on the class names above and the table (CSV) to download below."""
    if not answers:
        return _notice("Choose at least one model.", "vp-empty")
    others = [each.predictions[0].label for each in answers if each.is_zero_shot and each.predictions]
    shown = "".join(_card(each, others) for each in answers)
    notes = "".join(f'<p class="vp-remark">{escape(remark)}</p>' for remark in remarks)
    caption = f'<p class="vp-caption">{CAPTION}</p>' if any(each.attention for each in answers) else ""
    return f'{notes}<div class="vp-cards">{shown}</div><div class="vp-foot">{caption}{_download(table, answers)}</div>'


def _notice(text: str, kind: str) -> str:
    return f'<div class="vp-notice {kind}" role="status">{escape(text)}</div>'


def _card(answer: Answer, zero_shot: Sequence[str]) -> str:
    kind = "vp-card vp-zero" if answer.is_zero_shot else "vp-card"
    badge = ""
    if not answer.is_zero_shot and answer.predictions and zero_shot:
        same = answer.predictions[0].label in zero_shot
        badge = (
            '<span class="vp-badge">as zero-shot</span>' if same else '<span class="vp-badge vp-new">differs</span>'
        )
    head = f"<header><h3>{escape(answer.name)}</h3>{badge}<p>{escape(answer.about)}</p></header>"
    if answer.problem is not None:
        return f'<section class="{kind}">{head}{_notice(answer.problem, "vp-problem")}</section>'
    return f'<section class="{kind}">{head}{_look(answer)}{_bars(answer.predictions)}</section>'


def _look(answer: Answer) -> str:
    if answer.no_attention is not None:
        return f'<p class="vp-remark">No attention to show. {escape(answer.no_attention)}</p>'
    if answer.attention is None:
        return ""
    seen, heat = pictures(answer.attention)
    return (
        f'<figure class="vp-look"><img src="{seen}" alt="the image as the model sees it">'
        f'<img class="vp-heat" src="{heat}" alt="attention of {escape(answer.name, quote=True)}"></figure>'
    )


def _bars(predictions: Sequence[Prediction]) -> str:
    rows = "".join(
        f'<li><span class="vp-label">{escape(label)}</span><span class="vp-value">{escape(_percent(probability))}</span>'
        f'<span class="vp-track" aria-hidden="true"><span style="width:{100 * probability:.2f}%"></span></span></li>'
        for label, probability in predictions
    )
    return f'<ol class="vp-bars">{rows}</ol>'


def _percent(probability: float) -> str:
    percent = 100 * probability
    if 0 < percent < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if 99.9 < percent < 100 else f"{percent:.1f} %"


def _download(table: str, answers: Sequence[Answer]) -> str:
    if not any(each.predictions for each in answers):
        return ""
    return (
        f'<a class="vp-download" download="predictions.csv" href="{_data("text/csv;charset=utf-8", table.encode())}">'
        "Download predictions (CSV)</a>"
    )


def pictures(found: AttentionMaps) -> tuple[str, str]:
    """Return what the model sees and the layer of attention above it, as data URLs."""
    seen = Image.fromarray(np.round(found.image * 255).astype(np.uint8))
    shares = found.maps.mean(0)
    low, high = float(shares.min()), float(shares.max())
    grid = (shares - low) / (high - low) if high > low else np.zeros_like(shares)
    height, width = found.image.shape[:2]
    scale = _HEAT_EDGE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smooth = np.asarray(Image.fromarray(grid.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    heat = colormaps["inferno"](smooth)
    heat[..., 3] = _OPACITY[0] + (_OPACITY[1] - _OPACITY[0]) * smooth
    return _picture(seen), _picture(Image.fromarray(np.round(heat * 255).astype(np.uint8), "RGBA"))


def _picture(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return _data("image/png", file.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
