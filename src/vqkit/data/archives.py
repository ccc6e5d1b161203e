"""The images in a .tar, compressed or not, or a .zip, read in place: no file ever appears under a member's name."""

from __future__ import annotations

import bz2
import gzip
import lzma
import mmap
import os
import posixpath
import re
import stat
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO

from vqkit.data.files import DataError, Read, one_line, refuse_bomb
from vqkit.data.pictures import Entry, Picture, Skipped, gather

ARCHIVE_NAME = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|tar\.\w+)$", re.IGNORECASE)
Member = tuple[str, int, bool, Read]  # its name, its size, whether it is a regular file, how to open it
_UNPACK: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_LARGEST = 2**29  # bytes of one file, which must be in memory to be looked at
_LONGEST = 2**20  # bytes of a name or other header, likewise; no file system takes a name of more than 4,096


def read_archive(path: Path, memory: int) -> tuple[list[Picture], list[Skipped]]:
    """The pictures in the order of names, the last of each name, and each other visible file; see `gather`.

    Raises: `DataError` where the archive is damaged. One that ends early is refused too: it nearly always is an
    incomplete download, and training on the half that came would look like success.
    """
    with path.open("rb") as file:  # By its content: browsers unpack a .gz on download and leave its name.
        unpack = _UNPACK.get(file.read(2))
    zipped = path.suffix.lower() == ".zip"
    members = _in_zip(path) if zipped else _in_tar(path, unpack)
    pictures, skipped = gather(_entries(path, members), memory, Spool() if unpack and not zipped else None)
    by_name = {picture.name: picture for picture in pictures}  # unpacking, too, would leave the last
    return sorted(by_name.values(), key=lambda picture: picture.name), sorted(skipped)


def _entries(path: Path, members: Iterator[Member]) -> Iterator[Entry]:
    """The visible members, each with how to open it or why it is refused."""
    try:
        for name, size, regular, read in members:
            parts = re.split(r"[/\\]", name)
            if not parts[0] or parts[0].endswith(":"):
                yield name, "an absolute path"
            elif ".." in parts:
                yield name, "a path that leads up by '..'"
            elif any(part.startswith(".") and part != "." for part in parts):
                continue
            elif not regular:
                yield posixpath.normpath(name), "a link or no regular file"
            elif not 0 <= size <= _LARGEST:
                yield posixpath.normpath(name), f"{size:,} bytes; an image has at most {_LARGEST:,}"
            else:
                yield posixpath.normpath(name), read
    except Exception as error:  # on damaged headers tarfile and zipfile raise nearly anything
        fault = (
            f"cannot be read to its end ({one_line(error)}); download it again, or pack its files as .zip or .tar.gz"
        )
        raise DataError(f"{path}: {error if isinstance(error, DataError) else fault}") from None


def _in_zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        listed = [member for member in archive.infolist() if not member.is_dir()]
    refuse_bomb(sum(member.file_size for member in listed), path.stat().st_size)
    for member in listed:
        regular = not stat.S_ISLNK(member.external_attr >> 16)
        yield _zip_name(member), member.file_size, regular, partial(_zip_member, path, member)


def _zip_name(member: zipfile.ZipInfo) -> str:
    """As UTF-8 where it can be: some programs, macOS's among them, write that without the flag that says so."""
    try:
        return member.filename if member.flag_bits & 0x800 else member.filename.encode("cp437").decode()
    except ValueError:
        return member.filename


def _zip_member(path: Path, member: zipfile.ZipInfo) -> BinaryIO:
    refuse_bomb(member.file_size, member.compress_size)
    if member.flag_bits & 1:
        raise DataError("is encrypted")
    # Not ZipFile.open: after a fork one open file has one position for all, so that each process would have to list
    # the archive again; of 100,000 members this takes 0.7 s and 50 MB.
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = struct.unpack("<4s22x2H", file.read(30))
        if header[0] != b"PK\3\4":
            raise DataError(f"no member of the archive at byte {member.header_offset:,}")
        file.seek(sum(header[1:]), os.SEEK_CUR)
        with zipfile.ZipExtFile(file, "r", member) as packed:
            # Without a number it unpacks what is there before it looks at what was promised.
            return BytesIO(packed.read(member.file_size))


def _in_tar(path: Path, unpack: Callable[..., Any] | None) -> Iterator[Member]:
    with (unpack or open)(path, "rb") as file:
        bounded = _Bounded(file, path.stat().st_size)
        # As a stream, for a compressed file can go back only to its beginning.
        with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_Header) as archive:  # type: ignore[call-overload]
            while member := archive.next():
                archive.members.clear()  # else kept to the end: 40 MB for 100,000
                regular = member.isreg() and not member.issparse()
                read: Read = partial(_part, path, member.offset_data, member.size)
                if unpack and regular and member.size <= _LARGEST:
                    read = partial(BytesIO, archive.extractfile(member).read())
                if not member.isdir():
                    yield member.name, member.size, regular, read
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

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        header = super().frombuf(buf, encoding, errors)
        if header.type in b"xgXLK" and header.size > _LONGEST:  # tarfile reads it whole
            raise tarfile.InvalidHeaderError(f"a header of {header.size:,} bytes")  # type: ignore[attr-defined]
        return header


class _Bounded:
    """What a file of ``packed`` bytes unpacks to, until it must be a bomb."""

    def __init__(self, file: IO[bytes], packed: int) -> None:
        self._file, self._packed, self._unpacked = file, packed, 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._unpacked += len(data)
        refuse_bomb(self._unpacked, self._packed)
        return data


class Spool:
    """Files that cannot be read twice from where they came, in a temporary file that vanishes with the process."""

    _file: IO[bytes] | None = None  # made when it is needed first: a system may have no place for it

    def __del__(self) -> None:
        if self._file:
            self._file.close()

    def __call__(self, read: Read) -> Read:
        data = read().read()
        try:
            self._file = self._file or tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            start = self._file.seek(0, os.SEEK_END)
            left = memoryview(data)
            while left:  # on a full disk it writes what fits, and only then nothing but raises
                left = left[self._file.write(left) :]
        except OSError as error:
            reason = f"{error.strerror}; images beyond memory go there: set TMPDIR to a larger place"
            raise OSError(error.errno, reason, tempfile.tempdir) from None
        return partial(self._part, start, len(data))

    def _part(self, start: int, size: int) -> BinaryIO:
        # Mapped, for a file's position would be shared with the processes that are forked.
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:  # type: ignore[union-attr]
            return BytesIO(mapped[start : start + size])
