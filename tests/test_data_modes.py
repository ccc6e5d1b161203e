"""One tiny file for each way in which an image may hold its pixels, and what must come out, written by hand.

The files in golden/images were made once, by ``python -m tests.test_data_modes``.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqkit.data import DataError, open_images

FOLDER = Path(__file__).parent / "golden" / "images"
R, G, B, W = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]

GOLDEN = {
    "1.png": [[[0], [255]], [[255], [0]]],
    "l.png": [[[0], [1]], [[128], [255]]],
    "l-transparent.png": [[[255], [9]]],  # level 7 is the transparent one
    "la.png": [[[7], [255]], [[131], [0]]],  # 7 whole; 7 unseen; 7 half seen: (7 x 128 + 255 x 127) / 255 = 130.51
    "p.png": [[R, G], [B, [10, 20, 30]]],
    "p-transparent.png": [[W, G]],  # the first entry of the palette is transparent
    "p.gif": [[W, G]],
    "pa.tif": [[W, G]],
    "rgb.png": [[R, G], [B, W]],
    "rgb-transparent.png": [[W, G]],  # this red is the transparent colour
    # One whole, one unseen, one a fifth seen: (255 x 51 + 255 x 204) / 255 = 255; (0 x 51 + 255 x 204) / 255 = 204.
    "rgba.png": [[R, W, [255, 204, 204]]],
    "cmyk.tif": [[[0, 255, 255], [255, 0, 255], [0, 0, 0]]],
    "i16.png": [[[0], [0], [1]], [[128], [255], [255]]],  # 0 128 129; 32768 65407 65535, each divided by 257
    "i16.tif": [[[0], [0], [1]], [[128], [254], [255]]],  # the same, but 65406 for 65407: 254.498 for 254.502
    "f.tif": [[[0], [1]], [[128], [255]]],  # 0, 0.002, 0.5, 1: 255 v is 0, 0.51, 127.5 (to even), 255
    # All of these are stored as red green blue, and one white below each, and are to be turned right by 90 degrees.
    "turned.png": [[W, R], [W, G], [W, B]],
    "turned-late.png": [[W, R], [W, G], [W, B]],  # the EXIF data stands behind the pixels
    "turned.tif": [[W, R], [W, G], [W, B]],
    "mirrored.png": [[B, G, R], [W, W, W]],
}


@pytest.mark.parametrize("memory", [2**31, 0])
@pytest.mark.parametrize("name", [name for name in GOLDEN if name != "turned-late.png"])
def test_golden_images(name: str, memory: int) -> None:
    images = open_images(FOLDER / name, memory)
    assert images.images[0].tolist() == GOLDEN[name]
    assert images.images[0].dtype == np.uint8
    assert images.images.sizes.tolist() == [list(images.images[0].shape[:2])]  # known also where nothing was decoded
    assert images.images.kept == (memory > 0)


def test_metadata_behind_the_pixels_is_found_where_pixels_are_kept_and_else_the_difference_is_said() -> None:
    assert open_images(FOLDER / "turned-late.png").images[0].tolist() == GOLDEN["turned-late.png"]
    with pytest.raises(DataError, match=r"turned-late.png: is \(3, 2, 3\), but was \(2, 3, 3\) by its header"):
        open_images(FOLDER / "turned-late.png", memory=0).images[0]


def test_all_of_them_in_one_folder_become_rgb() -> None:
    images = open_images(FOLDER)
    assert images.skipped == (
        ("f-wide.tif", "32-bit floats from -1 to 7, expected 0 to 1; rescale them, or save 8 bits"),
        ("i.tif", "32-bit integers (mode I) have no known range; save 8 bits per channel"),
    )
    found = dict(zip([*images.names, *images.held_out_names], [*images.images, *images.held_out], strict=True))
    assert {name: image.tolist() for name, image in found.items()} == {
        name: np.broadcast_to(pixels, (*np.shape(pixels)[:2], 3)).tolist() for name, pixels in GOLDEN.items()
    }


def make(folder: Path) -> None:
    """The golden files."""

    def of(mode: str, values: object, dtype: type = np.uint8) -> Image.Image:
        array = np.array(values, dtype)
        return Image.frombytes(mode, array.shape[1::-1], array.tobytes())

    def palette(mode: str, size: tuple[int, int], *values: object) -> Image.Image:
        image = Image.new(mode, size)
        image.putpalette([*R, *G, *B, 10, 20, 30])
        image.putdata(values)
        return image

    exif = {n: Image.Exif() for n in (2, 6)}
    for n in exif:
        exif[n][0x0112] = n
    below = of("RGB", [[R, G, B], [W, W, W]])
    Image.fromarray(np.array([[False, True], [True, False]])).save(folder / "1.png")
    of("L", [[0, 1], [128, 255]]).save(folder / "l.png")
    of("L", [[7, 9]]).save(folder / "l-transparent.png", transparency=7)
    of("LA", [[[7, 255], [7, 0]], [[7, 128], [0, 255]]]).save(folder / "la.png")
    palette("P", (2, 2), 0, 1, 2, 3).save(folder / "p.png")
    for name in ("p-transparent.png", "p.gif"):
        palette("P", (2, 1), 0, 1).save(folder / name, transparency=0)
    palette("PA", (2, 1), (0, 0), (1, 255)).save(folder / "pa.tif")
    of("RGB", [[R, G], [B, W]]).save(folder / "rgb.png")
    of("RGB", [[R, G]]).save(folder / "rgb-transparent.png", transparency=(255, 0, 0))
    of("RGBA", [[[*R, 255], [*R, 0], [*R, 51]]]).save(folder / "rgba.png")
    of("CMYK", [[[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 0, 255]]]).save(folder / "cmyk.tif")
    of("I;16", [[0, 128, 129], [32768, 65407, 65535]], np.uint16).save(folder / "i16.png")
    of("I;16", [[0, 128, 129], [32768, 65406, 65535]], np.uint16).save(folder / "i16.tif")
    of("F", [[0, 0.002], [0.5, 1]], np.float32).save(folder / "f.tif")
    of("F", [[0, -1], [0.5, 7]], np.float32).save(folder / "f-wide.tif")
    of("I", [[0, 255]], np.int32).save(folder / "i.tif")
    below.save(folder / "turned.png", exif=exif[6])
    below.save(folder / "turned.tif", exif=exif[6])
    below.save(folder / "mirrored.png", exif=exif[2])
    below.save(folder / "turned-late.png")
    png, chunk = (folder / "turned-late.png").read_bytes(), b"eXIf" + exif[6].tobytes().removeprefix(b"Exif\0\0")
    late = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (folder / "turned-late.png").write_bytes(png[:-12] + late + png[-12:])


if __name__ == "__main__":
    make(FOLDER)
