"""Bundled photos, image files and folders, with every fault of one really caused in a file.

The tests of real data look for it in `$VQKIT_DATA` or ../shared/data beside the repository, else are skipped.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vqkit.data import DataError, NoSuchPath, RandomCrops, open_images, sources

RNG = np.random.default_rng(0)
SHARED = Path(os.environ.get("VQKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
PHOTO = RNG.integers(0, 256, (12, 10, 3), np.uint8)
SINGLE_CHANNEL = PHOTO[..., 0]


def shared(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"real data absent: {SHARED / name} (set VQKIT_DATA)")
    return SHARED / name


def fails(path: object, *words: str, error: type[DataError] = DataError) -> None:
    """`open_images` refuses, in one line that holds every one of these words."""
    with pytest.raises(DataError) as caught:
        open_images(path)  # type: ignore[arg-type]
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def only(path: Path) -> np.ndarray:
    images = open_images(path)
    assert len(images.images) == 1
    return images.images[0]


# The bundled photos


def test_bundled_photos_are_those_of_their_packages() -> None:
    import skimage.data
    from sklearn.datasets import load_sample_image

    images = open_images()
    assert images.names == ("astronaut", "coffee", "rocket", "hubble_deep_field", "china", "flower")
    assert images.held_out_names == ("chelsea",) and images.skipped == ()
    assert "chelsea held out" in images.description
    for name, image in zip(images.names[:4], images.images[:4], strict=True):
        np.testing.assert_array_equal(image, getattr(skimage.data, name)())
    for name, image in zip(images.names[4:], images.images[4:], strict=True):
        np.testing.assert_array_equal(image, load_sample_image(f"{name}.jpg"))
    np.testing.assert_array_equal(images.held_out[0], skimage.data.chelsea())


def test_bundled_photos_import_no_large_package() -> None:
    code = (
        "import sys; from vqkit.data import open_images; open_images()\n"
        "sys.exit(', '.join({'torch', 'skimage', 'sklearn', 'scipy'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_absent_photo_and_absent_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.BUNDLED, "astronaut", "skimage/data/no.png")
    fails(None, "data/no.png", "scikit-image lacks this photo", "pip install --force-reinstall scikit-image")
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"scikit-image; run: pip install 'vqkit\[train\]'"):
        open_images()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"Pillow; run: pip install 'vqkit\[train\]'"):
        open_images(Path(__file__))


# Image files


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif", "webp", "PNG"])
def test_lossless_formats_give_their_pixels(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(PHOTO).save(tmp_path / f"a.{suffix}", lossless=True)
    np.testing.assert_array_equal(only(tmp_path / f"a.{suffix}"), PHOTO)
    assert open_images(tmp_path).names == (f"a.{suffix}",)


def test_gray_stays_gray_and_16_bits_become_8(tmp_path: Path) -> None:
    Image.fromarray(SINGLE_CHANNEL).save(tmp_path / "l.png")
    np.testing.assert_array_equal(only(tmp_path / "l.png"), SINGLE_CHANNEL[..., None])
    bits = SINGLE_CHANNEL > 127
    Image.fromarray(bits).save(tmp_path / "1.png")
    np.testing.assert_array_equal(only(tmp_path / "1.png"), bits[..., None] * np.uint8(255))
    values = RNG.integers(0, 1 << 16, (12, 10)).astype(np.uint16)
    values[0, :4] = 0, 128, 129, 65535
    Image.fromarray(values).save(tmp_path / "16.png")
    Image.fromarray(values).save(tmp_path / "16.tif")
    (tmp_path / "16.pgm").write_bytes(b"P5 10 12 65535\n" + values.astype(">u2").tobytes())
    for suffix in ("png", "tif", "pgm"):
        np.testing.assert_array_equal(only(tmp_path / f"16.{suffix}"), np.rint(values[..., None] / 257))


def test_one_colour_image_makes_all_rgb(tmp_path: Path) -> None:
    Image.fromarray(SINGLE_CHANNEL).save(tmp_path / "a.png")
    Image.fromarray(SINGLE_CHANNEL).save(tmp_path / "c.png")
    assert {image.shape for image in open_images(tmp_path).images} == {(12, 10, 1)}
    Image.fromarray(PHOTO).save(tmp_path / "b.png")
    gray = np.repeat(SINGLE_CHANNEL[..., None], 3, axis=2)
    for image, expected in zip(open_images(tmp_path).images, (gray, PHOTO, gray), strict=True):
        np.testing.assert_array_equal(image, expected)


def test_transparency_is_composited_over_white(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, (12, 10, 1), np.uint8)
    alpha[0, :2] = [[0], [255]]

    def expected(colour: np.ndarray) -> np.ndarray:
        return np.rint((colour.astype(float) * alpha + 255.0 * (255 - alpha)) / 255)

    Image.fromarray(np.concatenate([PHOTO, alpha], 2)).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(only(tmp_path / "rgba.png"), expected(PHOTO))
    Image.fromarray(np.concatenate([PHOTO[..., :1], alpha], 2)).save(tmp_path / "la.png")
    np.testing.assert_array_equal(only(tmp_path / "la.png"), expected(PHOTO[..., :1]))
    np.save(tmp_path / "rgba.npy", np.concatenate([PHOTO, alpha], 2))
    np.testing.assert_array_equal(only(tmp_path / "rgba.npy"), expected(PHOTO))

    # One transparent palette entry, gray level, colour: the same in four ways a PNG and a GIF can say it.
    two = Image.new("P", (2, 1))
    two.putpalette([10, 20, 30, 40, 50, 60])
    two.putpixel((1, 0), 1)
    two.save(tmp_path / "p.png", transparency=0)
    two.save(tmp_path / "p.gif", transparency=0)
    Image.fromarray(np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)).save(
        tmp_path / "t.png", transparency=(10, 20, 30)
    )
    for name in ("p.png", "p.gif", "t.png"):
        assert only(tmp_path / name).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    Image.fromarray(np.array([[7, 9]], np.uint8)).save(tmp_path / "l.png", transparency=7)
    assert only(tmp_path / "l.png").tolist() == [[[255], [9]]]


def test_pa_and_cmyk_become_rgb(tmp_path: Path) -> None:
    palette = Image.new("PA", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), (1, 255))
    palette.save(tmp_path / "pa.tif")
    assert only(tmp_path / "pa.tif").tolist() == [[[255, 255, 255], [40, 50, 60]]]
    Image.new("CMYK", (3, 2), (255, 0, 0, 0)).save(tmp_path / "cmyk.tif")
    assert only(tmp_path / "cmyk.tif").tolist() == [[[0, 255, 255]] * 3] * 2


def test_exif_orientation_is_applied_and_animations_give_their_first_frame(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    Image.fromarray(PHOTO).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(only(tmp_path / "turned.png"), np.rot90(PHOTO, -1))
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert only(tmp_path / name)[0, 0].tolist() == [255, 0, 0]


def png_chunk(body: bytes) -> bytes:
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def png_without_pixels(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(header) + png_chunk(b"IDAT")


def test_bad_files_among_good_ones_are_skipped_and_named(tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    Image.fromarray(PHOTO).save(tmp_path / "exif.png", exif=b"Exif\0\0no such thing")  # Pillow: SyntaxError
    Image.fromarray(PHOTO).save(tmp_path / "script.eps")
    (tmp_path / "empty.png").touch()
    (tmp_path / "bomb1.png").write_bytes(png_without_pixels(10_000, 10_000))  # Pillow only warns
    (tmp_path / "bomb2.png").write_bytes(png_without_pixels(100_000, 100_000))  # Pillow raises
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would never return
    (tmp_path / "badname-").with_name(os.fsdecode(b"\xff.png")).write_bytes(whole)
    images = open_images(tmp_path)
    assert images.names == ("\\udcff.png", "good.png")
    reasons = dict(images.skipped)
    assert sorted(reasons) == [
        "bomb1.png", "bomb2.png", "dangling.png", "empty.png", "exif.png", "half.png", "pipe.png", "script.eps",
        "text.jpg",
    ]  # fmt: skip
    assert "89,478,485 pixels" in reasons["bomb1.png"] and "89,478,485 pixels" in reasons["bomb2.png"]
    assert "cannot be decoded: " in reasons["half.png"] and "truncated" in reasons["half.png"]
    assert reasons["exif.png"].startswith("cannot be decoded: not a TIFF file")
    assert reasons["text.jpg"] == reasons["empty.png"] == "not an image that Pillow can open"
    assert reasons["script.eps"].startswith("PostScript is a program")
    assert "broken link" in reasons["dangling.png"] and "no regular file" in reasons["pipe.png"]
    assert images.description.endswith("2 RGB images, 9 other files skipped")
    for name, reason in images.skipped:
        if name not in ("dangling.png", "pipe.png"):
            fails(tmp_path / name, str(tmp_path / name), reason)
    fails(tmp_path / "pipe.png", "neither a regular file nor a folder")
    fails(tmp_path / "dangling.png", error=NoSuchPath)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA"]), st.data())
def test_no_damage_to_an_image_gives_anything_but_an_image_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    Image.fromarray(PHOTO).save(path, format=kind)
    damaged = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    try:
        image = only(path)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] in (1, 3)


# Folders


def test_folder_is_read_recursively_in_order_without_hidden_names_and_loops(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    folder = tmp_path / "folder"
    for place in ("b/deep/1.png", "b/0.png", "a/2.png", ".hidden/3.png", "a/.4.png", "z.png"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PHOTO).save(folder / place)
    outside.mkdir()
    Image.fromarray(PHOTO).save(outside / "5.png")
    (folder / "b" / "loop").symlink_to(folder)
    (folder / "c").symlink_to(outside)
    (folder / "c2").symlink_to(outside)
    images = open_images(str(folder))
    assert images.names == ("a/2.png", "b/0.png", "b/deep/1.png", "c/5.png", "z.png")
    assert images.skipped == ()


def test_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def guarded(path: str) -> object:  # permissions do not stop root, so the refusal is played
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert open_images(tmp_path).skipped == (("locked", "cannot be listed: Permission denied"),)


def test_nothing_to_read_is_an_error_that_says_so(tmp_path: Path) -> None:
    for path in ("", tmp_path / "no", tmp_path / "no\0", "x" * 5000):
        fails(path, "no such file or folder", error=NoSuchPath)
    fails(tmp_path, str(tmp_path), "no file at all")
    (tmp_path / ".hidden.png").touch()
    fails(tmp_path, "no file at all")
    np.save(tmp_path / "x.npy", PHOTO)
    (tmp_path / "y.txt").touch()
    fails(tmp_path, "2 other files (x.npy: not an image that Pillow can open)", "a .npy, .npz or idx file")


@pytest.mark.parametrize(
    ("n", "out"), [(1, 0), (9, 0), (10, 1), (19, 1), (20, 2), (1000, 100), (1001, 91), (12345, 99)]
)
def test_a_deterministic_tenth_is_held_out(tmp_path: Path, n: int, out: int) -> None:
    np.save(tmp_path / "a.npy", np.arange(n * 25, dtype=np.int64).reshape(n, 5, 5) // 25 % 256)
    first, again = open_images(tmp_path / "a.npy"), open_images(tmp_path / "a.npy")
    assert (len(first.images), len(first.held_out)) == (n - out, out)
    assert first.names == again.names and first.held_out_names == again.held_out_names
    assert {*first.names, *first.held_out_names} == {f"a.npy[{i}]" for i in range(n)}
    every = max(10, math.ceil(n / 100))
    assert first.held_out_names == tuple(f"a.npy[{i}]" for i in range(every - 1, n, every))
    for name, image in zip(first.names + first.held_out_names, [*first.images, *first.held_out], strict=True):
        assert image[0, 0, 0] == int(name[len("a.npy[") : -1]) % 256


# Real data


def test_real_tiles_of_mixed_modes() -> None:
    images = open_images(shared("crawl-tiles-cc0.tar.gz"))
    together = dict(zip(images.names + images.held_out_names, [*images.images, *images.held_out], strict=True))
    assert len(together) == 4357 and len(images.held_out) == 99
    assert [name for name, _ in images.skipped] == [
        "ARTISTS.md",
        "README.md",
        "TILES_UNDER_UNKNOWN_LICENSE.md",
    ]
    modes = set()
    with tarfile.open(shared("crawl-tiles-cc0.tar.gz")) as archive:
        for member in (member for i, member in enumerate(archive) if i % 7 == 0 and member.name.endswith(".png")):
            with Image.open(archive.extractfile(member)) as tile:  # type: ignore[arg-type]
                modes.add(tile.mode)
                white = Image.new("RGBA", tile.size, "white")
                expected = np.asarray(Image.alpha_composite(white, tile.convert("RGBA")))[..., :3]
            # Pillow's compositing and ours may round a half apart.
            assert np.abs(together[member.name.removeprefix("./")].astype(int) - expected).max() <= 1
    assert modes >= {"P", "RGBA", "RGB", "L"}


def test_real_mnist_photos_and_jpegs(tmp_path: Path) -> None:
    digits = open_images(shared("mnist/t10k-images-idx3-ubyte.gz"))
    raw = gzip.decompress(shared("mnist/t10k-images-idx3-ubyte.gz").read_bytes())
    assert (len(digits.images), len(digits.held_out)) == (9900, 100)
    np.testing.assert_array_equal(digits.images[0].ravel(), np.frombuffer(raw, np.uint8, 784, offset=16))
    np.testing.assert_array_equal(digits.held_out[-1].ravel(), np.frombuffer(raw[-784:], np.uint8))
    fails(shared("mnist/t10k-labels-idx1-ubyte.gz"), "labels")
    photos = open_images(shared("kodak"))
    assert {*(image.shape for image in photos.images)} <= {(512, 768, 3), (768, 512, 3)} and len(photos.images) == 6
    with tarfile.open(shared("cifar10-test.tar.gz")) as archive:
        members = [archive.next() for _ in range(60)]
        archive.extractall(tmp_path, filter(None, members), filter="data")
    small = open_images(tmp_path)
    assert {image.shape for image in small.images} == {(32, 32, 3)} and small.skipped == ()
    assert RandomCrops(small.images, 32, 8, 0).batch_at(0).shape == (8, 3, 32, 32)
