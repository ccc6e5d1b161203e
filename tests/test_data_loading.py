"""Images beyond memory, images too small, and batches that other processes load; a saved dataset."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_data_archives import everything, pack
from vqkit.data import DataError, Images, Photographic, RandomCrops, load, open_images, workers_for

# PyTorch says so of any number of workers above that of the cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

RNG = np.random.default_rng(0)
PIXELS = [RNG.integers(0, 256, (12 + i % 3, 14 + i % 4, 3), np.uint8) for i in range(12)]


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """What waits for a worker that never answers fails, instead of stopping the whole suite."""

    def late(*_: object) -> None:
        raise TimeoutError("more than 60 s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / "folder" / f"{i:02}.png")
    return tmp_path / "folder"


def crops_of(images: Images, size: int = 8) -> RandomCrops:
    return RandomCrops(images.images, size, 16, seed=3, augment=[Photographic()])


def break_pixels(path: Path) -> None:
    """The header stays, so that the fault shows only when the image is decoded."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


# Memory


@pytest.mark.parametrize("memory", [0, 2000, 3000, 10**6])
def test_images_beyond_memory_are_the_same_images(folder: Path, memory: int) -> None:
    images, whole = open_images(folder, memory), open_images(folder)
    held = sum(p.content.nbytes for p in images.images.pictures if isinstance(p.content, np.ndarray))
    assert held <= memory and images.images.kept == (memory == 10**6) and whole.images.kept
    assert memory in (0, 10**6) or held > memory - 600
    assert everything(images) == everything(whole) and images.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(images.images.sizes, [image.shape[:2] for image in whole.images])
    for step in (0, 7):
        assert torch.equal(crops_of(images).batch_at(step), crops_of(whole).batch_at(step))
    again = pickle.loads(pickle.dumps(images))
    assert everything(again) == everything(whole)
    assert [len(part) for part in (images.images[::2], images.images[3:5])] == [6, 2]
    np.testing.assert_array_equal(images.images[3:5][1], whole.images[4])


def test_gray_among_colour_takes_no_more_memory(folder: Path) -> None:
    Image.fromarray(PIXELS[0][..., 0]).save(folder / "gray.png")
    images = open_images(folder)
    i = images.names.index("gray.png")
    assert images.images[i].tolist() == np.repeat(PIXELS[0][..., :1], 3, axis=2).tolist()
    assert images.images.pictures[i].shape == (*PIXELS[0].shape[:2], 1) and not images.images[i].flags.writeable


def test_an_image_that_cannot_be_decoded_later_is_replaced_and_named_once(folder: Path) -> None:
    break_pixels(folder / "03.png")
    assert dict(open_images(folder).skipped).keys() == {"03.png"}
    images = open_images(folder, memory=0)
    assert images.skipped == () and images.names[3] == "03.png"
    with pytest.raises(DataError, match=r"03\.png: cannot be decoded: .*truncated"):
        images.images[3]
    crops = crops_of(images)
    with pytest.warns(RuntimeWarning, match=r"passed over 03\.png: cannot be decoded") as caught:
        batches = [crops.batch_at(step) for step in range(20)]
    assert len(caught) == 1
    with pytest.warns(RuntimeWarning):
        assert torch.equal(crops_of(open_images(folder, memory=0)).batch_at(19), batches[19])
    sound = crops_of(open_images(folder, memory=0).for_crops(8))
    (folder / "03.png").write_bytes((folder / "00.png").read_bytes())
    with pytest.warns(RuntimeWarning, match=r"03\.png: is \(12, 14, 3\), but was \(12, 17, 3\) by its header"):
        for step in range(20):  # a file that changed counts as one that cannot be decoded
            assert torch.equal(sound.batch_at(step), batches[step])


def test_only_images_that_cannot_be_decoded_are_an_error(folder: Path) -> None:
    for path in folder.iterdir():
        break_pixels(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="100 images drawn in a row cannot be decoded"):
            crops_of(open_images(folder, memory=0)).batch_at(0)


def test_variance_is_that_of_all_pixels(folder: Path) -> None:
    values = np.concatenate([image.ravel() for image in open_images(folder).images]) / 255
    for memory in (0, 10**6):
        assert open_images(folder, memory).variance() == pytest.approx(values.var(), rel=1e-12)
    for i in range(12):
        Image.new("L", (9, 9), 77).save(folder / f"{i:02}.png")
    assert open_images(folder).variance() == 1.0


def test_the_fingerprint_tells_other_images(folder: Path) -> None:
    prints = [open_images(folder).fingerprint]
    assert re.fullmatch("[0-9a-f]{64}", prints[0])
    (folder / "05.png").rename(folder / "05b.png")
    prints.append(open_images(folder).fingerprint)
    Image.fromarray(PIXELS[0][:, ::-1][:-1]).save(folder / "00.png")
    prints.append(open_images(folder).fingerprint)
    (folder / "00.png").unlink()
    prints.append(open_images(folder).fingerprint)
    assert len(set(prints)) == 4


# Images smaller than the crop


def test_images_smaller_than_the_crop_are_skipped_and_named(folder: Path) -> None:
    images = open_images(folder)
    same = images.for_crops(12)
    assert same is images
    fit = images.for_crops(14)
    assert fit.names == tuple(f"{i:02}.png" for i in (2, 5, 8, 11)) and fit.held_out_names == images.held_out_names
    assert fit.skipped[:2] == (
        ("00.png", "14 x 12 pixels, smaller than the 14 x 14 crops"),
        ("01.png", "15 x 13 pixels, smaller than the 14 x 14 crops"),
    )
    assert fit.description == f"{images.description}; {len(fit.skipped)} smaller than 14 x 14 left out"
    assert crops_of(fit, 14).batch_at(0).shape == (16, 3, 14, 14)
    with pytest.raises(DataError, match=r"00\.png is 14 x 12 pixels, but crops are 14 x 14; .*Images\.for_crops"):
        crops_of(images, 14)
    all_small = r"all 11 images are smaller than the 16 x 16 crops, the largest 16 x 14 pixels; use --set crop=12, or"
    with pytest.raises(DataError, match=all_small):
        images.for_crops(16, multiple=4)
    with pytest.raises(DataError, match="pixels; use larger images"):
        images.for_crops(16, multiple=15)


# Other processes


@pytest.mark.parametrize("kind", ["folder", "a.tar", "a.tar.gz", "a.zip"])
def test_workers_load_the_same_bits_in_the_same_order(folder: Path, kind: str) -> None:
    path = folder
    if kind != "folder":
        path = pack(folder.parent / kind, {path.name: path.read_bytes() for path in folder.iterdir()})
    crops = crops_of(open_images(path, memory=0))
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    found = [list(load(crops, range(5, 25), workers)) for workers in (0, 1, 3)]
    assert torch.equal(torch.rand(2), expected)  # nothing was drawn from the global generator
    for here, one, three in zip(*found, strict=True):
        assert torch.equal(here, one) and torch.equal(here, three)
    assert torch.equal(found[0][3], crops_of(open_images(folder)).batch_at(8))


def test_workers_are_chosen_where_images_are_decoded_again_and_again(folder: Path) -> None:
    assert workers_for(open_images(folder)) == 0
    assert workers_for(open_images(folder, memory=0)) == min(4, len(os.sched_getaffinity(0)))


def test_numbers_of_workers_that_cannot_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = crops_of(open_images(folder))
    with pytest.raises(ValueError, match=r"workers is -1; it must be 0 or more"):
        load(crops, range(3), -1)
    monkeypatch.setattr("vqkit.data.loading._CAN_FORK", False)
    with pytest.raises(ValueError, match=r"workers is 2; it must be 0, without fork: use 0"):
        load(crops, range(3), 2)
    assert workers_for(open_images(folder, memory=0)) == 0


LOADING = """
import os, signal, sys, time
from vqkit.data import RandomCrops, load, open_images
crops = RandomCrops(open_images(sys.argv[1], memory=0).images, 8, 16, 0)
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
signal.signal(signal.SIGTERM, lambda *_: print("told to stop", flush=True))
batches = load(crops, range(10**9), 2)
next(batches)
tasks = f"/proc/{os.getpid()}/task"
print(*[child for task in os.listdir(tasks) for child in open(f"{tasks}/{task}/children").read().split()], flush=True)
"""


def running(pids: list[int]) -> list[int]:
    return [
        pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()
    ]


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are counted in /proc")
def test_workers_outlive_signals_and_neither_the_iterator_nor_the_parent(folder: Path) -> None:
    after = (
        "for _ in range(3): sys.stdin.readline(); [next(batches) for _ in range(20)]; print('loaded', flush=True)\n"
        "sys.stdin.readline(); del batches; print('closed', flush=True)\n"
        "sys.stdin.readline(); batches = load(crops, range(10**9), 2); next(batches)\n"
        "print(*open(f'{tasks}/{os.getpid()}/children').read().split(), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", LOADING + after, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def say_and_hear() -> str:
            print(file=process.stdin, flush=True)
            return process.stdout.readline()  # type: ignore[union-attr]

        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(running(workers)) == 2
        assert say_and_hear() == "loaded\n"
        for number, said in ((signal.SIGINT, "interrupted\n"), (signal.SIGTERM, "told to stop\n")):
            os.killpg(process.pid, number)  # as a terminal does: the workers get it as well
            assert process.stdout.readline() == said
            assert say_and_hear() == "loaded\n"
        assert running(workers) == workers
        assert say_and_hear() == "closed\n"
        wait_until(lambda: not running(workers), 3)
        workers = [int(pid) for pid in say_and_hear().split()]
        assert len(running(workers)) == 2
        process.kill()
        process.wait()
        wait_until(lambda: not running(workers), 15)


# Saved datasets


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    column = [Image.fromarray(pixels) for pixels in PIXELS]
    rows = datasets.Dataset.from_dict(
        {"label": list(range(12)), "photo": column},
        features=datasets.Features(label=datasets.Value("int32"), photo=datasets.Image()),
    )
    rows.save_to_disk(tmp_path / "rows")
    for memory in (0, 10**6):
        images = open_images(tmp_path / "rows", memory)
        assert images.images.kept == (memory > 0) and images.skipped == ()
        assert images.names == tuple(f"rows[{i}]" for i in range(12) if i != 9) and images.held_out_names == (
            "rows[9]",
        )
        for name, image in zip(images.names, images.images, strict=True):
            np.testing.assert_array_equal(image, PIXELS[int(name[5:-1])])
    assert images.description == f"{tmp_path / 'rows'}: 11 RGB images, 1 more held out"
    lazy = open_images(tmp_path / "rows", memory=0)
    for here, there in zip(load(crops_of(lazy), range(4), 0), load(crops_of(lazy), range(4), 2), strict=True):
        assert torch.equal(here, there)

    splits = {
        "test": rows.select([3, 4]),
        "validation": rows.select([5]),
        "train": rows.select(range(5, 12)).shuffle(0),
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "splits")
    images = open_images(tmp_path / "splits")
    assert images.names == tuple(f"train[{i}]" for i in range(7)) and images.held_out_names == ("test[0]", "test[1]")
    np.testing.assert_array_equal(images.held_out[1], PIXELS[4])
    np.testing.assert_array_equal(images.images[2], np.asarray(splits["train"][2]["photo"]))
    assert open_images(tmp_path / "splits" / "test").names == ("test[0]", "test[1]")


def test_datasets_that_cannot_be_used_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"label": [1], "text": ["a"]}).save_to_disk(tmp_path / "a")
    with pytest.raises(DataError, match=r"no column of a holds images \(label: Value, text: Value\); cast one"):
        open_images(tmp_path / "a")
    datasets.DatasetDict({"dev": datasets.Dataset.from_dict({"x": [1]})}).save_to_disk(tmp_path / "b")
    with pytest.raises(DataError, match=r"none of its splits dev is 'train'"):
        open_images(tmp_path / "b")
    nothing = datasets.Dataset.from_dict({"x": []}, features=datasets.Features(x=datasets.Image()))
    datasets.DatasetDict(train=nothing).save_to_disk(tmp_path / "empty")
    for path in (tmp_path / "empty", tmp_path / "empty" / "train"):
        with pytest.raises(DataError, match=rf"{path}: no dataset can be loaded \(.*\); it is damaged or empty"):
            open_images(path)
    photos = [Image.fromarray(PIXELS[0]), None]
    rows = datasets.Dataset.from_dict({"x": photos}, features=datasets.Features(x=datasets.Image()))
    rows.save_to_disk(tmp_path / "c")
    assert open_images(tmp_path / "c").skipped == (("c[1]", "no image in this row"),)
    next((tmp_path / "c").glob("*.arrow")).write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"c: no dataset can be loaded \(.*\); it is damaged or empty: save it again"):
        open_images(tmp_path / "c")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"run: pip install 'vqkit\[hub\]'"):
        open_images(tmp_path / "c")
