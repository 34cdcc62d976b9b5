"""Classify images with the model in this folder: python predict.py photo.jpg another.png [--top-k 3]

Needs Pillow and NumPy, and what the model was exported for: onnxruntime (model.onnx), torch (model.pt2), or torch and
transformers (model.safetensors). Prints one JSON line for each image.
"""

import argparse
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps


#: What Pillow raises of files that are damaged or no images.
UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


def read_image(path, background="white"):
    """Return an image file in RGB: rotated as the camera says, transparent parts on a colour, 16 bits scaled to 8.

    Raises:
        ValueError: pixel values that are not finite.
    """
    with open(path, "rb") as file, Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode == "F" or image.mode.startswith("I"):
            values = np.asarray(image, np.float64)
            if not np.isfinite(values).all():
                raise ValueError("its pixel values are not finite")
            low, high = float(values.min()), float(values.max())
            if image.mode.startswith("I;16"):
                low, high = 0.0, 65535.0
            elif low >= 0:
                tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
                low, high = next(((0.0, top) for top in tops if high <= top), (low, high))
            grey = np.round((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
            result = Image.fromarray(grey).convert("RGB")
            if (clear := image.info.get("transparency")) is not None:
                result.paste(ImageColor.getrgb(background), mask=Image.fromarray(np.asarray(image) == clear))
            return result
        if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(
                Image.new("RGBA", image.size, ImageColor.getrgb(background)), image.convert("RGBA")
            )
        return image.convert("RGB")


def preprocess(image, config):
    """Return what the model takes of an image in RGB, float32 [3, height, width]; `config` is preprocessor_config.json."""
    size, crop = config["size"], config.get("crop_size")
    if config.get("do_resize"):
        width, height = size.get("width"), size.get("height")
        if edge := size.get("shortest_edge"):
            short, long = sorted(image.size)
            other = int(edge * long / short)
            width, height = (edge, other) if image.width <= image.height else (other, edge)
        image = image.resize((width, height), config["resample"])
    if config.get("do_center_crop"):
        left, top = (image.width - crop["width"]) // 2, (image.height - crop["height"]) // 2
        image = image.crop((left, top, left + crop["width"], top + crop["height"]))
    pixels = np.asarray(image).astype(np.float32).transpose(2, 0, 1)
    if config.get("do_rescale"):
        pixels = (pixels * config["rescale_factor"]).astype(np.float32)
    if config.get("do_normalize"):
        mean, std = (np.array(config[name], np.float32)[:, None, None] for name in ("image_mean", "image_std"))
        pixels = (pixels - mean) / std
    return pixels


def load_onnx(folder):
    """Return logits of pixels by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return lambda pixels: session.run(["logits"], {"pixel_values": pixels})[0]


def load_torch_export(folder):
    """Return logits of pixels by a program of torch.export."""
    import torch

    model = torch.export.load(folder / "model.pt2").module()
    return lambda pixels: model(torch.from_numpy(pixels)).detach().float().numpy()


def load_classifier(folder):
    """Return logits of pixels by an image classifier of transformers."""
    import torch
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(folder).eval()

    @torch.no_grad()
    def logits(pixels):
        return model(pixel_values=torch.from_numpy(pixels).to(model.dtype)).logits.float().numpy()

    return logits


def load_image_encoder(folder):
    """Return logits of pixels by an image encoder of transformers and a matrix of class features."""
    import torch
    import transformers
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = getattr(transformers, config["architectures"][0]).from_pretrained(folder).eval()
    classes = load_file(folder / "classes.safetensors")

    @torch.no_grad()
    def logits(pixels):
        output = model(pixel_values=torch.from_numpy(pixels).to(model.dtype))
        features = output.image_embeds if hasattr(output, "image_embeds") else output.pooler_output
        features = torch.nn.functional.normalize(features.float(), dim=-1)
        return (features @ classes["class_features"].T * classes["logit_scale"] + classes["logit_bias"]).numpy()

    return logits


LOADERS = {
    "onnx": load_onnx,
    "torch-export": load_torch_export,
    "classifier": load_classifier,
    "image-encoder": load_image_encoder,
}


class Predictor:
    """The model in a folder: `Predictor(folder)(path)` gives (label, probability) pairs, the most probable first."""

    def __init__(self, folder):
        folder = Path(folder)
        self.about = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        self.config = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        self.logits = LOADERS[self.about["kind"]](folder)

    def probabilities(self, paths):
        """Return the probabilities of image files, [images, classes]."""
        background = self.about.get("background", "white")
        pixels = np.stack([preprocess(read_image(path, background), self.config) for path in paths])
        logits = self.logits(pixels).astype(np.float64)
        if self.about["multi_label"]:
            return 1 / (1 + np.exp(-logits))
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def __call__(self, path, top_k=5):
        """Return the labels of an image file."""
        row = self.probabilities([path])[0]
        return [(self.about["labels"][i], float(row[i])) for i in np.argsort(-row, kind="stable")[:top_k]]


def main():
    """Classify the files that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+")
    parser.add_argument("--top-k", type=int, default=1)
    arguments = parser.parse_args()
    predictor = Predictor(Path(__file__).resolve().parent)
    skipped = 0
    for path in arguments.images:
        try:
            found = predictor(path, arguments.top_k)
        except UNREADABLE as error:
            print(f"Skipped {path}: {error}", file=sys.stderr)
            skipped += 1
            continue
        labels = [{"label": label, "probability": round(probability, 6)} for label, probability in found]
        print(json.dumps({"file": path, "predictions": labels}, ensure_ascii=False))
    return int(skipped == len(arguments.images))


if __name__ == "__main__":
    sys.exit(main())
