"""Images out of .npy, .npz and idx files, whole and damaged."""

from __future__ import annotations

import gzip
import mmap
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from vqkit.data import DataError, open_images

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (12, 10, 3), np.uint8)
SINGLE_CHANNEL = PHOTO[..., 0]


def fails(path: Path, *words: str) -> None:
    """`open_images` refuses, in one line that holds every one of these words."""
    with pytest.raises(DataError) as caught:
        open_images(path)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "count", "image"),
    [
        ((2, 7, 8), 2, (7, 8, 1)), ((2, 7, 8, 1), 2, (7, 8, 1)), ((2, 7, 8, 3), 2, (7, 8, 3)),
        ((2, 7, 8, 4), 2, (7, 8, 3)), ((7, 8, 1), 1, (7, 8, 1)), ((7, 8, 3), 1, (7, 8, 3)),
        ((7, 8, 4), 1, (7, 8, 3)), ((2, 1, 7, 8), 2, (7, 8, 1)), ((2, 3, 7, 8), 2, (7, 8, 3)),
        ((3, 7, 8), 3, (7, 8, 1)),
    ],
)  # fmt: skip
def test_shapes(tmp_path: Path, shape: tuple[int, ...], count: int, image: tuple[int, ...]) -> None:
    expected = RNG.integers(0, 256, (count, *image), np.uint8)
    array = expected.transpose(0, 3, 1, 2) if shape[1] in (1, 3) else expected
    if shape[-1] == 4:
        array = np.concatenate([array, np.full_like(array[..., :1], 255)], axis=-1)
    np.save(tmp_path / "a.npy", array.reshape(shape))
    np.testing.assert_array_equal(np.stack(open_images(tmp_path / "a.npy").images), expected)


@pytest.mark.parametrize("shape", [(), (5,), (5, 5), (5, 5, 5, 5), (2, 5, 5, 2), (2, 1, 5, 5, 3)])
def test_other_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    fails(tmp_path / "a.npy", "a.npy", str(shape), "none of (N, H, W)", "reshape")


@pytest.mark.parametrize("shape", [(0, 5, 5), (5, 0, 5, 3), (0,)])
def test_empty_arrays_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for dtype in (np.uint8, np.float32):
        np.save(tmp_path / "a.npy", np.zeros(shape, dtype))
        fails(tmp_path / "a.npy", str(shape), "is empty")
    np.savez(tmp_path / "a.npz", np.zeros(shape, dtype))
    fails(tmp_path / "a.npz", str(shape), "is empty")


def test_ambiguous_shape_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((9, 3, 8, 3), np.uint8))
    fails(tmp_path / "a.npy", "(9, 3, 8, 3) may be (N, H, W, C) or (N, C, H, W)")


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "i2", ">i4", "i8", "u8", "f2", "f4", ">f8", "g", "?"])
def test_dtypes(tmp_path: Path, dtype: str) -> None:
    expected = RNG.integers(0, 256, (5, 40, 50), np.uint8)
    array = expected.astype(dtype) if np.dtype(dtype).kind in "iu" else (expected / 255).astype(dtype)
    if dtype == "?":
        array, expected = expected > 99, (expected > 99) * np.uint8(255)
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.stack(open_images(tmp_path / "a.npy").images)[..., 0], expected)


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (256, "u2", "uint16 values from 0 to 256, expected 0 to 255; save x / 256 as float32"),
        (-1, "i4", "int32 values from -1 to 0, expected 0 to 255; save (x + 1) / 1 as float32"),
        (255, "f4", "float32 values from 0 to 255, expected 0 to 1; save x / 255 as float32"),
        (-1, "f8", "float64 values from -1 to 0, expected 0 to 1; save (x + 1) / 1 as float32"),
        (1.0001, "f8", "save numpy.clip(x, 0, 1) as float32"),
        (np.nan, "f2", "nan at (image, row, column, channel) (1, 2, 3, 0)"),
        (-np.inf, "f4", "-inf at (image, row, column, channel) (1, 2, 3, 0)"),
        (1j, "c8", "dtype complex64 is no pixel value"),
        ("a", "U1", "dtype <U1 is no pixel value"),
        (0, "M8[s]", "dtype datetime64[s] is no pixel value"),
        ((0, 0), "i1,i1", "is no pixel value"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, value: object, dtype: str, words: str) -> None:
    array = np.zeros((2, 5, 6), dtype)
    array[1, 2, 3] = value
    np.save(tmp_path / "a.npy", array)
    fails(tmp_path / "a.npy", str(tmp_path / "a.npy"), words)


class Trap:
    """What unpickling would run: nothing harmful, but it leaves a trace."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (f"{os.environ['VQKIT_TRAP']}",)


def test_uint8_is_mapped_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PHOTO)
    holder: object = open_images(tmp_path / "a.npy").images[0]
    while isinstance(holder, np.ndarray):
        holder = holder.base
    assert isinstance(holder, mmap.mmap)


def test_objects_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKIT_TRAP", str(tmp_path / "sprung"))
    np.save(tmp_path / "a.npy", np.array([Trap()], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", np.array([Trap()], object))
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("a.npy", "a.npz", "b.npy"):
        fails(tmp_path / name, name, "never unpickled", "numpy.save")
    assert not (tmp_path / "sprung").exists()


def test_npz_gives_its_only_array_or_the_one_named_so(tmp_path: Path) -> None:
    path, good = tmp_path / "a.npz", np.full((2, 5, 5), 7, np.uint8)
    labels = np.zeros(2)
    for wanted in ("images", "x", "x_train", "arr_0"):
        np.savez_compressed(path, y=labels, **{wanted: good})  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.stack(open_images(path).images)[..., 0], good)
    np.savez(path, x=labels, images=good, arr_0=labels)
    assert len(open_images(path).images) == 2
    np.savez(path, photos=good)
    assert len(open_images(path).images) == 2
    np.savez(path, photos=good, labels=labels)
    fails(path, "2 arrays (photos, labels)", "images, x, x_train, arr_0")
    np.savez(path)
    fails(path, "0 arrays ()")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["a.npy", "a.npz"]), st.data())
def test_no_damage_to_an_array_gives_anything_but_images_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    (np.save if name == "a.npy" else np.savez_compressed)(path, SINGLE_CHANNEL[None])
    damaged = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, min(130, len(damaged) - 1)), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255) | st.sampled_from(b"0123456789(),'<O"))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))])
    try:
        assert all(image.dtype == np.uint8 and image.ndim == 3 for image in open_images(path).images)
    except DataError as error:
        assert "\n" not in str(error) and str(path) in str(error)


def test_a_header_that_promises_the_moon_takes_no_memory(tmp_path: Path) -> None:
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000, 1000, 1000), }".ljust(117) + "\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header.encode())
    (tmp_path / "a.idx").write_bytes(b"\0\0\x08\x03" + b"\xff" * 12)
    (tmp_path / "b.idx").write_bytes(gzip.compress(b"\0\0\x08\x04" + b"\xff" * 16 + bytes(1000)))
    code = (
        "import resource, sys; from vqkit.data import open_images, DataError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))\n"
        "for path in sys.argv[1:]:\n"
        "    try: open_images(path); sys.exit(path)\n"
        "    except DataError as error: print(error)\n"
    )
    files = [str(tmp_path / name) for name in ("a.npy", "a.idx", "b.idx")]
    lines = subprocess.run([sys.executable, "-c", code, *files], check=True, capture_output=True, text=True)
    npy, idx, packed = lines.stdout.splitlines()
    assert "no plain array can be read" in npy
    assert files[1] in idx and files[2] in packed
    assert all("decompression bomb; unpack it yourself if you trust it" in said for said in (idx, packed))


# idx


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=12)),
    st.sampled_from(["a-idx3-ubyte", "a.idx"]),
    st.booleans(),
)
def test_idx_round_trip(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, name: str, packed: bool) -> None:
    for suffix in ("", ".gz"):  # the content tells, not the name: browsers unpack on download
        path = tmp_path_factory.getbasetemp() / (name + suffix)
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
        images = open_images(path)
        together = dict(zip(images.names + images.held_out_names, [*images.images, *images.held_out], strict=True))
        for i in range(len(array)):
            np.testing.assert_array_equal(together[f"{path.name}[{i}]"][..., 0], array[i])
            assert together[f"{path.name}[{i}]"].shape[-1] == 1


def test_idx_of_four_dimensions_has_channels(tmp_path: Path) -> None:
    (tmp_path / "a.idx").write_bytes(idx(PHOTO[None]))
    np.testing.assert_array_equal(open_images(tmp_path / "a.idx").images, [PHOTO])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "starts with nothing, no idx header"),
        (b"\0\0\x08", "starts with 00 00 08"),
        (b"<html> no such page", "no idx header"),
        (b"\0\0\x07\x03" + bytes(12), "no idx header"),
        (idx(np.zeros((2, 5, 5), ">f4"), 0x0D), "holds float32 in 3 dimensions, expected uint8"),
        (idx(np.zeros(5, np.uint8)), "one dimension is labels"),
        (idx(np.zeros((2, 5, 5), np.uint8))[:9], "ends inside its header"),
        (idx(np.zeros((2, 5, 5), np.uint8))[:-1], "(2, 5, 5) needs 50 bytes, 49 came"),
        (idx(np.zeros((2, 5, 5), np.uint8)) + b"\0", "(2, 5, 5) needs 50 bytes, 51 or more came"),
        (idx(np.zeros((0, 5, 5), np.uint8)), "(0, 5, 5) is empty"),
        (idx(np.zeros((1, 5, 5, 2), np.uint8)), "none of (N, H, W)"),
        (gzip.compress(idx(PHOTO))[:-20], "cannot be read"),
        (gzip.compress(idx(PHOTO))[:-8] + bytes(8), "cannot be read (CRC check failed"),
        (gzip.compress(idx(PHOTO))[:12] + b"\xff" * 99, "cannot be read (Error -3 while decompressing"),
    ],
)
def test_damaged_idx(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a-ubyte.gz").write_bytes(content)
    fails(tmp_path / "a-ubyte.gz", "a-ubyte.gz", words)
