"""Images out of array files: .npy, .npz, and the idx format of MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from vqkit.data.files import DataError, one_line, over_white, refuse_bomb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from jaxtyping import UInt8

_PREFERRED = ("images", "x", "x_train", "arr_0")
_IDX_TYPES = {8: "uint8", 9: "int8", 11: "int16", 12: "int32", 13: "float32", 14: "float64"}


def read_npy(path: Path) -> list[UInt8[np.ndarray, "H W C"]]:
    """The images of a .npy file, or of an .npz file's only array or the first that is there of `_PREFERRED`.

    A uint8 .npy is mapped, not read, and may be larger than the memory. Nothing is ever unpickled.
    """
    try:
        with path.open("rb") as file:
            # Of a damaged archive that it opened itself, NumPy would leave the file open.
            zipped = file.read(2) == b"PK"
            file.seek(0)
            loaded = np.load(file if zipped else path, mmap_mode="r", allow_pickle=False)
            array = _only(loaded, path) if zipped else np.asarray(loaded)
    except DataError:
        raise
    except Exception as error:  # a damaged header raises SyntaxError, OverflowError, MemoryError and others
        raise DataError(
            f"{path}: no plain array can be read ({one_line(error)}); Python objects are never unpickled; "
            f"save one uint8 array with numpy.save"
        ) from None
    return images_of(array, path)


def _only(archive: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    names = list(archive)
    for name in names if len(names) == 1 else _PREFERRED:
        if name in names:
            return archive[name]
    raise DataError(
        f"{path}: holds {len(names)} arrays ({', '.join(names[:10])}), none of them named "
        f"{', '.join(_PREFERRED)}; save the one to use as 'images'"
    )


def images_of(array: np.ndarray, source: object) -> list[UInt8[np.ndarray, "H W C"]]:
    """The images in an array; `source` names the array in errors.

    Shapes: (N, H, W), (N, H, W, C), (H, W, C), C in {1, 3, 4}, the fourth channel alpha, composited over white;
    and (N, C, H, W), C in {1, 3}, where it cannot be (N, H, W, C).
    Values: uint8; bool (to 0 and 255); other integers within 0..255; floats v within [0, 1], to round(255 v).
    """
    shape = array.shape
    last, second = shape[-1:] in ((1,), (3,), (4,)), shape[1:2] in ((1,), (3,))
    if 0 in shape:
        raise DataError(f"{source}: shape {shape} is empty; expected at least one image")
    if len(shape) == 4 and last and second:
        raise DataError(f"{source}: shape {shape} may be (N, H, W, C) or (N, C, H, W); save them as image files")
    if len(shape) == 3:
        array = array[None] if last else array[..., None]
    elif len(shape) == 4 and second:
        array = array.transpose(0, 2, 3, 1)
    elif len(shape) != 4 or not last:
        raise DataError(
            f"{source}: shape {shape} is none of (N, H, W), (N, H, W, C), (N, C, H, W), (H, W, C) with C "
            f"1 or 3 (or, last, 4: with alpha); reshape it, one gray image to (H, W, 1)"
        )
    pixels = array if array.dtype == np.uint8 else _to_uint8(array, source)
    return [over_white(image) if image.shape[-1] == 4 else image for image in pixels]


def _to_uint8(array: np.ndarray, source: object) -> Iterator[UInt8[np.ndarray, "H W C"]]:
    if array.dtype.kind not in "biuf":
        raise DataError(f"{source}: dtype {array.dtype} is no pixel value; save uint8, or floats in [0, 1]")
    low, high = float(array.min()), float(array.max())  # NaN, if there is any, is both
    if not (math.isfinite(low) and math.isfinite(high)):
        first = tuple(map(int, np.unravel_index(np.isfinite(array).argmin(), array.shape)))
        raise DataError(
            f"{source}: {array[first]} at (image, row, column, channel) {first}; pixels must be finite; "
            f"mend or remove that image"
        )
    top = 255 if array.dtype.kind in "iu" else 1
    if low < 0 or high > top:
        if low > -0.05 and high < 1.05:  # resizing and resampling overshoot a little
            rescaled = "numpy.clip(x, 0, 1)"
        else:
            rescaled = f"(x + {-low:g}) / {high - low:g}" if low < 0 else f"x / {max(high, 255):g}"
        raise DataError(
            f"{source}: {array.dtype} values from {low:g} to {high:g}, expected 0 to {top}; save {rescaled} as float32"
        )
    return (np.rint(image * (255 // top)).astype(np.uint8) for image in array)  # one by one, to spare memory


def read_idx(path: Path) -> list[UInt8[np.ndarray, "H W C"]]:
    """The images of an idx file, gzipped or not, as MNIST and its relatives come.

    Two zero bytes, the type (8: uint8), the number of dimensions, each dimension as a big-endian uint32, then
    the values. (LeCun, Cortes, Burges: The MNIST database of handwritten digits, section "File formats".)
    """
    try:
        with path.open("rb") as file:  # By its content: browsers unpack a .gz on download and leave its name.
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            array = _idx_array(file, path.stat().st_size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}); download the file again") from None
    return list(array[..., None]) if array.ndim == 3 else images_of(array, path)


def _idx_array(file: Any, packed: int) -> UInt8[np.ndarray, "..."]:
    """The array; of a fault it raises `DataError` without the path."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _IDX_TYPES:
        raise DataError(f"starts with {start.hex(' ') or 'nothing'}, no idx header; check the file")
    kind, dimensions = _IDX_TYPES[start[2]], start[3]
    if kind != "uint8" or dimensions not in (3, 4):
        raise DataError(
            f"holds {kind} in {dimensions} dimensions, expected uint8 in 3 or 4; "
            f"one dimension is labels: give the file of the images"
        )
    sides = file.read(4 * dimensions)
    if len(sides) < 4 * dimensions:
        raise DataError("ends inside its header; download the file again")
    shape = struct.unpack(f">{dimensions}I", sides)
    size = math.prod(shape)
    if not size:
        raise DataError(f"shape {shape} is empty; expected at least one image")
    refuse_bomb(size, packed)  # a header may promise anything
    data = file.read(size + 1)  # one byte more, behind which stands the checksum
    if len(data) != size:
        found = f"{len(data):,}{' or more' if len(data) > size else ''}"
        raise DataError(f"shape {shape} needs {size:,} bytes, {found} came; download the file again")
    return np.frombuffer(data, np.uint8).reshape(shape)
