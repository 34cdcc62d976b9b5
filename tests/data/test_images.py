"""Images as a person sees them: depth, transparency, colour spaces, rotation, animations, broken files."""

import io

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from peft_vprompt.data import DataOptions, EvalTransform, load_images
from peft_vprompt.data.images import to_rgb


def grey(values, dtype):
    return Image.fromarray(np.asarray(values, dtype=dtype))


def pixels(image, **options):
    return np.asarray(to_rgb(image, **options))


RAMP = np.linspace(0, 1, 256).reshape(16, 16)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (grey(RAMP * 65535, np.uint16), RAMP * 255),
        (grey(RAMP * 4095, np.uint16), RAMP * 4095 / 257),
        (grey(RAMP * 255, np.int32), RAMP * 255),
        (grey(RAMP * 65535, np.int32), RAMP * 255),
        (grey(RAMP * 10**6, np.int32), RAMP * 255),
        (grey(RAMP, np.float32), RAMP * 255),
        (grey(RAMP * 255, np.float32), RAMP * 255),
        (grey(RAMP * 65535, np.float32), RAMP * 255),
        (grey(RAMP * 8 - 4, np.float32), RAMP * 255),
    ],
    ids=["16", "12-in-16", "8-in-32", "16-in-32", "32", "float-1", "float-255", "float-65535", "float-signed"],
)
def test_deep_grey_is_scaled(image, expected):
    shown = pixels(image)
    assert shown.shape == (16, 16, 3) and (shown == shown[..., :1]).all()
    np.testing.assert_allclose(shown[..., 0], expected, atol=1.01)  # whole numbers, some cut off before


def test_big_endian_tiff(tmp_path):
    values = (RAMP * 65535).astype(">u2")
    image = Image.frombytes("I;16B", (16, 16), values.tobytes())
    np.testing.assert_allclose(pixels(image)[..., 0], RAMP * 255, atol=1)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite pixel values"):
        to_rgb(grey([[np.nan, 1.0]], np.float32))


def icon(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((200, 0, 0, 255), (0, 0, 2, 4))
    if mode == "P":
        palette = Image.new("P", (4, 4), 0)
        palette.putpalette([0, 0, 0, 200, 0, 0])
        palette.paste(1, (0, 0, 2, 4))
        palette.info["transparency"] = 0
        return palette
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparent_parts_show_the_ground(mode):
    left = (200, 0, 0) if mode != "LA" else (60, 60, 60)
    for background, right in (("white", (255, 255, 255)), ("#102030", (16, 32, 48))):
        shown = pixels(icon(mode), background=background)
        assert tuple(shown[0, 3]) == right
        np.testing.assert_allclose(shown[0, 0], left, atol=1)


def test_half_transparent_is_half_of_the_ground():
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    np.testing.assert_allclose(pixels(image), 127, atol=1)


def test_a_picture_with_another_beside_it_is_no_animation(recwarn):
    buffer = io.BytesIO()
    pair = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pair[0].save(buffer, format="MPO", save_all=True, append_images=pair[1:])
    image = Image.open(buffer)
    assert image.n_frames == 2
    np.testing.assert_allclose(pixels(image)[0, 0], (255, 0, 0), atol=3)
    assert not [warning for warning in recwarn if "Animated" in str(warning.message)]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_files_in_cmyk(kind):
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(buffer, format=kind)
    np.testing.assert_allclose(pixels(Image.open(buffer))[4, 4], (255, 0, 0), atol=3)


def test_a_palette():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert tuple(pixels(image)[0, 0]) == (10, 200, 30)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "RGB"])
def test_other_modes_keep_their_look(mode):
    image = Image.new("RGB", (4, 4), "white").convert(mode)
    np.testing.assert_allclose(pixels(image), 255, atol=1)


def test_the_rotation_of_the_camera_is_applied():
    image = Image.new("RGB", (4, 2), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", exif=exif)
    assert to_rgb(Image.open(buffer)).size == (2, 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_rotated_tiff_in_a_folder_is_not_scrambled(dtype, tmp_path):
    """Pillow maps plain TIFFs of one channel into memory by their name, with the sides swapped before."""
    image = Image.fromarray((np.arange(200).reshape(10, 20) * (257 if dtype is np.uint16 else 1)).astype(dtype))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(2):
            image.save(tmp_path / name / f"{number}.tif", exif=exif)
    shown = np.asarray(load_images(DataOptions(str(tmp_path)))["train"][0]["image"])
    assert np.array_equal(shown[..., 0], np.rot90(np.arange(200).reshape(10, 20), -1))


def test_a_deep_grey_that_stands_for_transparent():
    image = grey([[20000, 65535], [0, 20000]], np.uint16)
    image.info["transparency"] = 20000
    assert pixels(image, background="red").tolist() == [[[255, 0, 0], [255] * 3], [[0] * 3, [255, 0, 0]]]


def test_a_colour_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match="name of a colour.*'whit'"):
        DataOptions(str(tmp_path), background="whit")


def test_an_animation_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="first frame"):
        assert tuple(pixels(Image.open(tmp_path / "a.gif"))[0, 0]) == (255, 0, 0)


def test_a_pixel_of_a_16_bit_photo_is_not_cut_off():
    size = {"height": RAMP.shape[0], "width": RAMP.shape[1]}
    transform = EvalTransform(CLIPImageProcessorPil(do_resize=False, do_center_crop=False, size=size))
    batch = transform({"image": [grey(RAMP * 60000, np.uint16)]})
    assert len(np.unique(batch["pixel_values"])) > 200


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(3):
            grey(RAMP * 65535, np.uint16).save(tmp_path / name / f"{index}.png")
            icon("RGBA").save(tmp_path / name / f"icon{index}.png")
    return tmp_path


def test_a_folder_of_them(folder):
    rows = load_images(DataOptions(str(folder), background="blue"))["train"]
    by_size = {image.size: np.asarray(image) for image in rows["image"]}
    assert len(np.unique(by_size[16, 16])) == 256
    assert tuple(by_size[4, 4][0, 3]) == (0, 0, 255)
    chosen = rows.select([0, 1]).remove_columns("label").with_format("numpy")  # what is read stays so
    assert {image.shape[-1] for image in chosen["image"]} == {3}
