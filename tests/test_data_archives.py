"""Images out of .tar, compressed .tar and .zip, whole, hostile and damaged."""

from __future__ import annotations

import gzip
import io
import os
import random
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.test_data import shared
from vqkit.data import DataError, Images, open_images

RNG = np.random.default_rng(0)
KINDS = ["a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz", "a.zip"]


def png(side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (side, side + 1, 3), np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """An archive of the kind that its name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:" + {"gz": "gz", "tgz": "gz", "bz2": "bz2", "xz": "xz"}.get(path.suffix[1:], "")) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def everything(images: Images) -> dict[str, bytes]:
    names = [*images.names, *images.held_out_names]
    return {n: image.tobytes() for n, image in zip(names, [*images.images, *images.held_out], strict=True)}


def fails(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        open_images(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("memory", [2**31, 1000, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_read_as_its_folder_is(tmp_path: Path, kind: str, memory: int) -> None:
    files = {f"{place}{i}.png": png(8 + i) for i, place in enumerate(["b/", "", "a/deep/", "b/", "./a/"] * 3)}
    files |= {"README.md": b"no image", "a/half.png": files["1.png"][:40]}
    hidden = {".x.png": png(), "a/.git/y.png": png(), "__MACOSX/a/._0.png": b"resource fork"}
    shuffled = list((files | hidden).items())
    random.Random(0).shuffle(shuffled)
    folder = tmp_path / "folder"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    expected = open_images(folder)
    before = set(tmp_path.rglob("*"))
    images = open_images(pack(tmp_path / kind, dict(shuffled)), memory)
    assert images.names == expected.names and images.held_out_names == expected.held_out_names
    assert everything(images) == everything(expected)
    assert images.skipped == expected.skipped and [name for name, _ in images.skipped] == ["README.md", "a/half.png"]
    assert images.fingerprint == expected.fingerprint
    assert images.description == expected.description.replace(str(folder), str(tmp_path / kind))
    assert images.images.kept == (memory == 2**31)
    assert set(tmp_path.rglob("*")) - before == {tmp_path / kind}


@pytest.mark.parametrize("kind", KINDS)
def test_paths_that_lead_out_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    bad = ["/etc/a.png", "../b.png", "c/../../d.png", "C:\\e.png", "f\\..\\..\\g.png", "../.h.png"]
    images = open_images(pack(tmp_path / kind, {name: png() for name in [*bad, "good.png", "c/..png"]}))
    assert images.names == ("good.png",)
    upwards, absolute = "a path that leads up by '..'", "an absolute path"
    expected = dict(zip(bad, [absolute, upwards, upwards, absolute, upwards, upwards], strict=True))
    assert dict(images.skipped) == expected


def test_links_devices_and_sparse_files_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        content = png()
        for name, kind in {
            "1.png": tarfile.REGTYPE, "2.png": tarfile.SYMTYPE, "3.png": tarfile.LNKTYPE, "4.png": tarfile.CHRTYPE,
            "5.png": tarfile.FIFOTYPE, "6.png": tarfile.DIRTYPE,
        }.items():  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "1.png"
            member.size = len(content) if name == "1.png" else 0
            archive.addfile(member, io.BytesIO(content))
        sparse = tarfile.TarInfo("7.png")
        sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000"}
        archive.addfile(sparse)
    images = open_images(tmp_path / "a.tar.gz")
    assert images.names == ("1.png",)
    assert images.skipped == tuple((f"{i}.png", "a link or no regular file") for i in (2, 3, 4, 5, 7))
    pack(tmp_path / "a.zip", {"1.png": content})
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as zipped:
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(link, "1.png")
    assert open_images(tmp_path / "a.zip").skipped == (("link.png", "a link or no regular file"),)


def test_members_of_a_zip_fail_alone(tmp_path: Path) -> None:
    files = {f"{i}.png": png() for i in range(5)}
    path = pack(tmp_path / "a.zip", files)
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
    raw = bytearray(path.read_bytes())
    raw[members["1.png"].header_offset + 60] ^= 255
    listed = raw.index(b"PK\1\2", members["2.png"].header_offset)
    place = raw.index(b"2.png", listed) - 46
    raw[place + 8] |= 1  # encrypted
    place = raw.index(b"3.png", listed) - 46
    raw[place + 10] = 99  # a method of compression that nobody has
    raw[members["4.png"].header_offset] ^= 1
    path.write_bytes(raw)
    images = open_images(path)
    assert images.names == ("0.png",)
    reasons = dict(images.skipped)
    assert "cannot be decoded" in reasons["1.png"]
    assert reasons["2.png"] == "is encrypted"
    assert reasons["4.png"] == f"no member of the archive at byte {members['4.png'].header_offset:,}"
    assert "compression method" in reasons["3.png"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["a.tar", "a.zip"])
def test_of_one_name_the_last_counts(tmp_path: Path, kind: str) -> None:
    first, last = png(5), png(6)
    pack(tmp_path / kind, {"a.png": first, "b.png": first})
    if kind == "a.zip":
        with zipfile.ZipFile(tmp_path / kind, "a") as zipped:
            zipped.writestr("a.png", last)
    else:
        with tarfile.open(tmp_path / kind, "a") as tar:
            member = tarfile.TarInfo("./a.png")
            member.size = len(last)
            tar.addfile(member, io.BytesIO(last))
    images = open_images(tmp_path / kind)
    assert images.names == ("a.png", "b.png")
    assert [image.shape[0] for image in images.images] == [6, 5]


def test_names_in_any_encoding_are_printable_and_in_one_order(tmp_path: Path) -> None:
    raw = [
        b"\xff.png",
        b"\xfe.png",
        "\uff21.png".encode(),
        "\ue000.png".encode(),
        b"a\nb\x1b[31m.png",
        "é.png".encode(),
    ]
    files = {os.fsdecode(name): png() for name in raw}
    (tmp_path / "folder").mkdir()
    for name, content in files.items():
        (tmp_path / "folder" / name).write_bytes(content)
    images = open_images(tmp_path / "folder")
    expected = [r"\udcfe.png", r"\udcff.png", r"a\nb\x1b[31m.png", "é.png", "\ue000.png", "\uff21.png"]
    assert images.names == tuple(expected)
    assert everything(open_images(pack(tmp_path / "a.tar", files))) == everything(images)
    assert open_images(tmp_path / "a.tar").names == images.names
    with pytest.raises(DataError, match=r"1 other files \(x\\ny: not an image"):
        open_images(pack(tmp_path / "b.tar", {"x\ny": b""}))
    # Both as some programs write them, without the flag for UTF-8.
    path = pack(tmp_path / "a.zip", {"__.png": png(), "____.png": png()})
    path.write_bytes(path.read_bytes().replace(b"____.png", "äé.png".encode()).replace(b"__.png", b"_\x82.png"))
    assert open_images(path).names == ("_é.png", "äé.png")


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "long.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("x" * 2**21))
    fails(tmp_path / "long.tar", "a header of 2,097,153 bytes at byte 0")
    member = tarfile.TarInfo("0.png")
    member.size = -512
    (tmp_path / "negative.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    fails(tmp_path / "negative.tar", "0.png: -512 bytes; an image has at most")


class Zeros(io.RawIOBase):
    """A file of zeros that nobody has to hold."""

    def __init__(self, size: int) -> None:
        self.left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        n = min(len(buffer), self.left)
        buffer[:n] = bytes(n)
        self.left -= n
        return n


def test_bombs_are_refused_in_little_memory(tmp_path: Path) -> None:
    size = 100 * 2**20  # packs to 0.1 MB
    member = tarfile.TarInfo("zeros.png")
    member.size = size
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(member, Zeros(size))
    hidden = tarfile.TarInfo(".hidden")
    hidden.size = size
    with tarfile.open(tmp_path / "hidden.tar.gz", "w:gz") as archive:
        archive.addfile(hidden, Zeros(size))
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as zipped,
        zipped.open("zeros.png", "w") as file,
    ):
        for _ in range(size // 2**20):
            file.write(bytes(2**20))
    with zipfile.ZipFile(tmp_path / "a.zip") as zipped:
        [listed] = zipped.infolist()
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    place = raw.index(b"PK\1\2") + 24
    assert int.from_bytes(raw[place : place + 4], "little") == listed.file_size
    raw[place : place + 4] = (1000).to_bytes(4, "little")  # it lies, and unpacks to 100 MiB
    (tmp_path / "lying.zip").write_bytes(raw)
    (tmp_path / "a.idx.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + b"\0\0\0\x02" * 3 + bytes(size)))
    code = (
        "import resource, sys; from vqkit.data import open_images, DataError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))\n"
        "for path in sys.argv[1:]:\n"
        "    try: open_images(path); sys.exit(path)\n"
        "    except DataError as error: print(error)\n"
        "print(*[line for line in open('/proc/self/status') if line.startswith('VmHWM')])\n"
    )
    files = [str(tmp_path / name) for name in ("a.tar.gz", "hidden.tar.gz", "a.zip", "lying.zip", "a.idx.gz")]
    ran = subprocess.run([sys.executable, "-c", code, *files], check=True, capture_output=True, text=True)
    *bombs, lying, idx, peak = ran.stdout.split("\n")[:6]
    for path, bomb in zip(files[:3], bombs, strict=True):
        assert path in bomb and bomb.endswith("or more: a decompression bomb; unpack it yourself if you trust it")
    assert "Bad CRC" in lying or "cannot be" in lying
    assert "needs 8 bytes, 9 or more came" in idx
    assert int(peak.split()[1]) < 200 * 1024  # KiB


def test_damage_is_said_in_one_line(tmp_path: Path) -> None:
    files = {f"{i:02}.png": png(20) for i in range(20)}
    for kind, cut in (("a.tar", 0), ("a.tar.gz", 0), ("a.tar.bz2", 0), ("a.tar.xz", 0), ("a.zip", 0)):
        whole = pack(tmp_path / kind, files).read_bytes()
        for end in (0, 1, 5, 700, len(whole) // 2, len(whole) // 2 // 512 * 512, len(whole) - 3 * len(whole) // 8):
            (tmp_path / kind).write_bytes(whole[: end + cut])
            fails(tmp_path / kind, "cannot be read to its end", "download it again")
    for kind, message in (("a.tar.gz", "CRC check failed"), ("a.tar", "bad checksum at byte")):
        raw = bytearray(pack(tmp_path / kind, files).read_bytes())
        if kind == "a.tar":
            with tarfile.open(tmp_path / kind) as archive:
                raw[archive.getmember("10.png").offset] ^= 1  # other readers take this for the end
        else:
            raw[-5] ^= 1
        (tmp_path / kind).write_bytes(raw)
        fails(tmp_path / kind, message)
    (tmp_path / "text.tar").write_bytes(b"no tar archive" * 100)
    fails(tmp_path / "text.tar", "cannot be read to its end (")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_read_and_names_that_mislead(tmp_path: Path, kind: str) -> None:
    fails(pack(tmp_path / kind, {}), "no image in it, no file at all", ".tar")
    fails(pack(tmp_path / kind, {"x.txt": b"text"}), "1 other files (x.txt: not an image")
    if "tar." in kind or "tgz" in kind:
        plain = pack(tmp_path / "b.tar", {"0.png": png()})
        plain.rename(tmp_path / kind)  # browsers unpack on download and leave the name
        assert open_images(tmp_path / kind).names == ("0.png",)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["d.tar", "d.tar.gz", "d.zip"]), st.data())
def test_no_damage_to_an_archive_gives_anything_but_images_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / kind
    pack(path, {f"{i}.png": PNG for i in range(3)})
    damaged = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))])
    try:
        images = open_images(path, memory=data.draw(st.sampled_from([0, 2**31])))
        for i in range(len(images.images)):
            images.images[i]
    except DataError as error:
        assert "\n" not in str(error)


PNG = png()


@pytest.mark.parametrize("count", [1, 20])
def test_a_full_disk_is_named(tmp_path: Path, count: int) -> None:
    path = pack(tmp_path / "a.tar.gz", {f"{i}.png": png(100) for i in range(count)})
    code = (
        "import resource, signal, sys; from vqkit.data import open_images\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: open_images(sys.argv[1], memory=0)\n"
        "except OSError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert "set TMPDIR to a larger place" in ran.stdout


def test_a_temporary_file_is_made_only_where_needed_and_never_stays(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar.gz", {f"{i}.png": png() for i in range(3)})
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(path.read_bytes()[:-20])
    place = tmp_path / "temporary"
    place.mkdir()
    code = (
        "import os, signal, sys, tempfile; from vqkit.data import DataError, open_images\n"
        "tempfile._candidate_tempdir_list = lambda: ['/no such place']\n"
        "print(len(open_images(sys.argv[1]).images))\n"
        "try: open_images(sys.argv[1], memory=0)\n"
        "except OSError as error: print(error)\n"
        "tempfile._candidate_tempdir_list = lambda: [sys.argv[3]]\n"
        "try: open_images(sys.argv[2], memory=0)\n"
        "except DataError: print(os.listdir(sys.argv[3]))\n"
        "images = open_images(sys.argv[1], memory=0); print(images.images.kept, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(path), str(cut), str(place)]
    ran = subprocess.run(command, capture_output=True, text=True)
    fits, nowhere, after_an_error, kept = ran.stdout.splitlines()
    assert ran.returncode == -9 and ran.stderr == "" and list(place.iterdir()) == []
    assert (fits, after_an_error, kept) == ("3", "[]", "False")
    assert "No usable temporary directory" in nowhere and "set TMPDIR to a larger place" in nowhere


def test_memory_is_bounded_whatever_holds_the_images(tmp_path: Path) -> None:
    tile = RNG.integers(0, 256, (100, 100, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.tile(tile, (6, 6, 1))).save(buffer, format="PNG", compress_level=1)  # 1 MB of pixels
    files = {f"{i:02}.png": buffer.getvalue() for i in range(50)}
    (tmp_path / "folder").mkdir()
    for name, content in files.items():
        (tmp_path / "folder" / name).write_bytes(content)
    code = (
        "import sys; from vqkit.data import open_images; from PIL import Image; Image.init()\n"
        "def peak():\n"
        "    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "for path in sys.argv[1:]:\n"
        "    before = peak()\n"
        "    images = open_images(path, 8 << 20).images\n"
        "    for image in images: pass\n"
        "    print(len(images), images.kept, peak() - before)\n"
    )
    paths = [str(pack(tmp_path / kind, files)) for kind in ("a.tar", "a.tar.gz", "a.zip")]
    command = [sys.executable, "-c", code, str(tmp_path / "folder"), *paths]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    for line in ran.stdout.splitlines():
        count, kept, grown = line.split()
        # In KiB: 8 MiB are allowed, and one image is decoded beside them; all pixels are 51 MiB.
        assert (count, kept) == ("45", "False") and int(grown) < 20 * 2**10, ran.stdout


def test_real_tiles_of_which_one_is_unreadable(tmp_path: Path) -> None:
    """The archive of 4,357 tiles, with one of them cut in its middle."""
    real, broken_copy = shared("crawl-tiles-cc0.tar.gz"), tmp_path / "tiles.tar.gz"
    with tarfile.open(real) as archive, tarfile.open(broken_copy, "w:gz", compresslevel=1) as copy:
        pngs = 0
        for member in archive:
            content = archive.extractfile(member).read() if member.isreg() else None  # type: ignore[union-attr]
            if member.name.endswith(".png") and (pngs := pngs + 1) == 2000:
                broken, content = member.name.removeprefix("./"), content[: len(content) // 2]  # type: ignore[index]
                member.size = len(content)
            copy.addfile(member, None if content is None else io.BytesIO(content))
    images = open_images(tmp_path / "tiles.tar.gz")
    assert len(images.images) + len(images.held_out) == 4356 and pngs == 4357
    [(name, reason)] = [skipped for skipped in images.skipped if not skipped[0].endswith(".md")]
    assert name == broken and reason.startswith("cannot be decoded: ") and "truncated" in reason
    small = images.for_crops(32)
    assert len(small.images) + len(small.skipped) == len(images.images) + 4
    whole = open_images(real, memory=10**6)
    assert len(whole.images) + len(whole.held_out) == 4357 and not whole.images.kept
    for i in range(0, len(images.images), 20):
        there = whole.names.index(images.names[i]) if images.names[i] in whole.names else None
        assert there is None or (whole.images[there] == images.images[i]).all()
