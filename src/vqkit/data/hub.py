"""A Hugging Face dataset on disk, as ``save_to_disk`` leaves it."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vqkit.data.files import DataError, one_line
from vqkit.data.pictures import Entry

if TYPE_CHECKING:
    from datasets import Dataset

_HELD_OUT = ("test", "validation")


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds what ``save_to_disk`` writes, of a Dataset or of a DatasetDict."""
    names = ("dataset_info.json", "state.json")
    return (folder / "dataset_dict.json").is_file() or all((folder / name).is_file() for name in names)


def dataset_entries(folder: Path) -> tuple[list[Entry], list[Entry]]:
    """The rows of a dataset, or of its split `train`; and those of its split `test`, else `validation`, if any.

    Raises: ImportError where the extra is missing; `DataError` where no split or no column can be used.
    """
    try:
        import datasets
    except ImportError:
        raise ImportError(f"{folder} is a Hugging Face dataset; run: pip install 'vqkit[hub]'") from None
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # nearly anything, where files are missing or damaged
        raise DataError(
            f"{folder}: no dataset can be loaded ({one_line(error)}); it is damaged or empty: save it again"
        ) from None
    if not isinstance(loaded, datasets.DatasetDict):
        return _rows(loaded, folder, folder.name), []
    if "train" not in loaded:
        raise DataError(f"{folder}: none of its splits {', '.join(loaded)} is 'train'; give the folder of one of them")
    held_out = next((split for split in _HELD_OUT if split in loaded), None)
    return _rows(loaded["train"], folder, "train"), _rows(loaded[held_out], folder, held_out) if held_out else []


def _rows(rows: Dataset, folder: Path, name: str) -> list[Entry]:
    from datasets import Image

    columns = [column for column, feature in rows.features.items() if isinstance(feature, Image)]
    if not columns:
        kinds = ", ".join(f"{column}: {type(feature).__name__}" for column, feature in rows.features.items())
        raise DataError(f"{folder}: no column of {name} holds images ({kinds}); cast one to datasets.Image()")
    encoded = rows.select_columns(columns[0]).cast_column(columns[0], Image(decode=False))
    return [(f"{name}[{i}]", partial(_open_row, encoded, columns[0], i)) for i in range(len(rows))]


def _open_row(rows: Dataset, column: str, i: int) -> BinaryIO:
    image: dict[str, Any] | None = rows[i][column]
    if image is None:
        raise DataError("no image in this row")
    return open(image["path"], "rb") if image["bytes"] is None else BytesIO(image["bytes"])
