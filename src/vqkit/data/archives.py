"""The images in a .tar, compressed or not, or a .zip, read in place: no file ever appears under a member's name."""

from __future__ import annotations

import bz2
import gzip
import lzma
import mmap
import os
import re
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from vqkit.data.files import DataError, Read, one_line
from vqkit.data.pictures import Entry, Picture, Skipped, gather

ARCHIVE_NAME = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|tar\.\w+)$", re.IGNORECASE)
_UNPACK: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_LARGEST = 2**29  # bytes of one file, which must be in memory to be looked at


def read_archive(path: Path, memory: int) -> tuple[list[Picture], list[Skipped]]:
    """The pictures in the order of names, and each other visible file; see `gather`.

    Raises: `DataError` where the archive is damaged. One that ends early is refused too: it nearly always is an
    incomplete download, and training on the half that came would look like success.
    """
    with path.open("rb") as file:  # By its content: browsers unpack a .gz on download and leave its name.
        unpack = _UNPACK.get(file.read(2))
    zipped = path.suffix.lower() == ".zip"
    entries = _whole(path, _in_zip(path) if zipped else _in_tar(path, unpack))
    pictures, skipped = gather(entries, memory, Spool() if unpack and not zipped else None)
    return sorted(pictures, key=lambda picture: picture.name), sorted(skipped)


def _whole(path: Path, entries: Iterator[Entry]) -> Iterator[Entry]:
    try:
        yield from entries
    except Exception as error:  # on damaged headers tarfile and zipfile raise nearly anything
        said = str(error) if isinstance(error, DataError) else f"cannot be read to its end ({one_line(error)})"
        raise DataError(f"{path}: {said}; download or make it again") from None


def _in_zip(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        listed = [member for member in archive.infolist() if not member.is_dir()]
    _refuse_bomb(sum(member.file_size for member in listed), path.stat().st_size)
    for member in listed:
        regular = not stat.S_ISLNK(member.external_attr >> 16)
        yield from _visible(member.filename, member.file_size, regular, partial(_zip_member, path, member))


def _zip_member(path: Path, member: zipfile.ZipInfo) -> BinaryIO:
    _refuse_bomb(member.file_size, member.compress_size)
    # Without a number ZipExtFile.read unpacks what is there before it looks at what was promised.
    with _zip_of(path, os.getpid()).open(member) as file:
        return BytesIO(file.read(member.file_size))


@lru_cache(maxsize=4)
def _zip_of(path: Path, process: int) -> zipfile.ZipFile:
    """Opened by each process for itself: after a fork, one open file would have one position for all."""
    return zipfile.ZipFile(path)


def _in_tar(path: Path, unpack: Callable[..., Any] | None) -> Iterator[Entry]:
    with (unpack or open)(path, "rb") as file:
        bounded = _Bounded(file, path.stat().st_size)
        # As a stream, for a compressed file can go back only to its beginning.
        with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_Header) as archive:  # type: ignore[call-overload]
            for member in archive:
                regular = member.isreg() and not member.issparse()
                read: Read = partial(_part, path, member.offset_data, member.size)
                if unpack and regular and member.size <= _LARGEST:
                    read = partial(BytesIO, archive.extractfile(member).read())
                if not member.isdir():
                    yield from _visible(member.name, member.size, regular, read)
        while bounded.read(2**20):  # the checksum stands at the end
            pass


def _part(path: Path, start: int, size: int) -> BinaryIO:
    with path.open("rb") as file:
        file.seek(start)
        return BytesIO(file.read(size))


class _Header(tarfile.TarInfo):
    """Says so where tarfile takes a damaged header for the end of the archive, and loses what follows."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            raise tarfile.ReadError(f"{error} at byte {archive.offset:,}") from None


def _visible(name: str, size: int, regular: bool, read: Read) -> Iterator[Entry]:
    """The entry of a member, unless it is hidden."""
    parts = re.split(r"[/\\]", name)
    plain = str(PurePosixPath(name))
    if not parts[0] or parts[0].endswith(":"):
        yield name, "an absolute path"
    elif ".." in parts:
        yield name, "a path that leads up by '..'"
    elif any(part == "__MACOSX" or (part.startswith(".") and part != ".") for part in parts):
        return
    elif not regular:
        yield plain, "a link or no regular file"
    elif size > _LARGEST:
        yield plain, f"{size:,} bytes; an image has at most {_LARGEST:,}"
    else:
        yield plain, read


def _refuse_bomb(unpacked: int, packed: int) -> None:
    # Photos hardly shrink, flat drawings 50 times, bombs 1,000 times.
    if unpacked > 64 * 2**20 + 100 * packed:
        raise DataError(f"{packed:,} bytes unpack to {unpacked:,} or more: a decompression bomb")


class _Bounded:
    """What a file of ``packed`` bytes unpacks to, until it must be a bomb."""

    def __init__(self, file: IO[bytes], packed: int) -> None:
        self._file, self._packed, self._unpacked = file, packed, 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._unpacked += len(data)
        _refuse_bomb(self._unpacked, self._packed)
        return data


class Spool:
    """Files that cannot be read twice from where they came, in a temporary file that vanishes with the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115

    def __del__(self) -> None:
        self._file.close()

    def __call__(self, read: Read) -> Read:
        data = read().read()
        start = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(data)
        except OSError as error:
            reason = f"{error.strerror}; images beyond memory go there: set TMPDIR to a larger place"
            raise OSError(error.errno, reason, tempfile.gettempdir()) from None
        return partial(self._part, start, len(data))

    def _part(self, start: int, size: int) -> BinaryIO:
        # Mapped, for a file's position would be shared with the processes that are forked.
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return BytesIO(mapped[start : start + size])
