"""A run from its plan to its report, in one go or in several."""

from __future__ import annotations

import itertools
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from filelock import FileLock, Timeout

import vqkit
from vqkit.data import DataError, Images, RandomCrops, open_images
from vqkit.data.loading import workers_for
from vqkit.models import VQVAE, ModelConfig
from vqkit.models.storage import FORMAT, read_config, write_json
from vqkit.report import write_report
from vqkit.runs.summary import evaluate_splits, images_of_run, summarise
from vqkit.training import RECIPES, Config, Diverged, Figures, Hardware, MetricsFile, Watcher, fit, resolve
from vqkit.training.checkpoints import last_step


class Slip(ValueError):
    """A setting that was typed to go on with a run does not fit it."""


_LOCK = ".lock"
_NOTHING = {_LOCK, "config.json.partial"}  # what a process leaves that was killed as it began


@dataclass(frozen=True)
class Plan:
    """A run that is about to begin (``fresh``), or to go on."""

    directory: Path
    config: Config
    images: Images
    hardware: Hardware
    data: str | None
    fresh: bool

    @property
    def trained_on(self) -> Images:
        """The images that are large enough for a crop."""
        return self.images.for_crops(self.config.crop, self.config.model.architecture.stride)


@dataclass(frozen=True)
class Run:
    """What a run came to: its directory, the model in evaluation mode, and the figures by split.

    After Ctrl-C ``steps`` are fewer than the configuration asks for, and there are no figures and no report.
    """

    directory: Path
    model: VQVAE
    figures: dict[str, Figures]
    steps: int
    seconds: float

    @property
    def report(self) -> Path:
        return self.directory / "report.html"


def train(
    config: Config = RECIPES["photos"],
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    hardware: Hardware | None = None,
    watchers: Sequence[Watcher] = (),
) -> Run:
    """Trains a VQ-VAE; leaves ``config.json``, ``model.safetensors``, ``metrics.jsonl``, ``report.html`` in ``out``.

    Args:
        config: what to train; ``vqkit.training.resolve("photos", ["steps=500"])`` makes one from a recipe.
        data: a folder or archive of images, an image, ``.npy``, ``.npz``, an idx file, or a ``datasets`` directory;
            None trains on the bundled photos.
        out: a directory that is empty or not there yet; None takes the first free ``runs/N``.
        hardware: where and in which precision; None takes a GPU where there is one.
        watchers: what hears of the run, for example ``vqkit.training.progress_for(config)``.

    Raises:
        ValueError: data that cannot be used.
        FileExistsError: ``out`` holds files already; nothing is overwritten.
        Diverged: the loss is no longer a number; the last checkpoint stays.
        OSError: the disk is full, or not to be written; the last checkpoint stays.
    """
    return carry_out(begin(config, data, out, hardware), watchers)


def begin(
    config: Config,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    hardware: Hardware | None = None,
) -> Plan:
    """The plan of a new run; see ``train``. What is wrong with ``out`` is said before any data is read."""
    directory = None if out is None else Path(out)
    if directory is not None:
        if not os.fspath(out or ""):
            raise FileNotFoundError("--out is empty: name a directory, or leave it out for the next free runs/N.")
        _require_empty(directory)
    images = open_images(data)
    config = replace(config, model=replace(config.model, channels=images.channels))
    source = None if data is None else os.path.abspath(data)
    plan = Plan(directory or Path(), config, images, hardware or Hardware(), source, fresh=True)
    _ = plan.trained_on  # images that are all too small are refused before a directory is made
    if directory is None:
        return replace(plan, directory=_next_free(Path("runs")))
    directory.mkdir(parents=True, exist_ok=True)
    return plan


def resume(
    directory: str | os.PathLike[str],
    settings: Sequence[str] = (),
    data: str | os.PathLike[str] | None = None,
    hardware: Mapping[str, Any] = MappingProxyType({}),
) -> Plan:
    """The plan to go on with a run that was stopped, killed or diverged, for ``carry_out``.

    Without changes the weights become bit for bit those of a run that was never stopped (on the same hardware, PyTorch
    and number of threads). ``settings`` change what is not of the model, ``hardware`` some of
    ``Hardware``'s fields; ``data`` says where the same images are now.

    Raises:
        FileNotFoundError: no such directory.
        ValueError: no run of this version, other images than before, or settings that would change the model.
    """
    if not os.fspath(directory):
        raise FileNotFoundError("--resume is empty: name the directory of the run to go on with.")
    directory = Path(directory)
    entries = read_config(directory)
    try:
        pairs = {**entries["training"], **entries["model"]}
        model = ModelConfig.from_json(entries["model"])
        config = resolve("photos", [f"{name}={value}" for name, value in pairs.items() if name != "channels"])
        config = replace(config, model=model)
        recorded = {field.name: entries["hardware"][field.name] for field in fields(Hardware)}
        fingerprint, source = entries["fingerprint"], entries["data"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory / 'config.json'} does not describe a run of this version ({error}).") from None
    try:
        changed, place = resolve(config, settings), Hardware(**{**recorded, **hardware})
    except ValueError as error:
        raise Slip(error) from None
    if changed.model != model:
        raise Slip(f"--set {' '.join(settings)} changes the model of {directory}, which is trained already.")
    if changed.steps < (done := last_step(directory)):
        raise Slip(f"steps is {changed.steps}, but {directory} has {done} already: ask for more, or leave it out.")
    with _locked(directory):  # a process that is training there is told of before the data are read
        pass
    images = images_of_run(directory) if data is None else open_images(data)
    if images.fingerprint != fingerprint:
        raise ValueError(
            f"{source if data is None else data} does not hold the images that {directory} was trained on: restore "
            "them, or begin a new run."
        )
    return Plan(directory, changed, images, place, source if data is None else os.path.abspath(data), False)


def carry_out(plan: Plan, watchers: Sequence[Watcher] = ()) -> Run:
    """Trains as planned; see ``train``."""
    config, directory = plan.config, plan.directory
    with _locked(directory):
        if plan.fresh:
            _require_empty(directory)
        entries = {
            "format": FORMAT,
            "vqkit": vqkit.__version__,
            "data": plan.data,
            "fingerprint": plan.images.fingerprint,
            "hardware": asdict(plan.hardware),
            "training": config.to_json(),
            "model": config.model.to_json(),
        }
        write_json(directory / "config.json", entries)
        torch.manual_seed(config.seed)
        model = config.model.build(seed=config.seed)
        images = plan.trained_on
        crops = RandomCrops(images.images, config.crop, config.batch, config.seed, (config.augmentation,))
        hardware, began = plan.hardware, time.monotonic()
        if hardware.workers is None:
            hardware = replace(hardware, workers=workers_for(images))
        watchers = [MetricsFile(directory), *watchers]
        try:
            steps = fit(model, crops, images.variance(), config, directory, hardware, watchers)
            model.eval()
            run = Run(directory, model, {}, steps, time.monotonic() - began)
            if steps < config.steps:
                return run
            figures, counts = evaluate_splits(model, plan.images)
            run = replace(run, figures=figures, seconds=time.monotonic() - began)
            write_report(run.report, summarise(directory, model, plan.images, figures, counts))
            return run
        except Diverged as error:
            lower = f"--set learning_rate={config.learning_rate / 4:g}"
            raise Diverged(f"{error}; {_go_on(directory, lower)}") from error
        except OSError as error:
            raise OSError(f"{_said(error)}; {_go_on(directory)}") from error
        except (RuntimeError, DataError) as error:
            said = str(error).strip().rpartition("DataError: ")[2]  # one of a worker comes with its traceback before it
            raise RuntimeError(f"{said}; {_go_on(directory)}") from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_go_on(directory)) from None
        finally:
            for watcher in watchers:
                watcher.close()


def _go_on(directory: Path, settings: str = "") -> str:
    step = last_step(directory)
    saved = f"step {step} is saved" if step else "nothing was saved yet"
    return f"{saved}; go on with: vqkit train --resume {shlex.quote(str(directory))} {settings}".rstrip()


def _said(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time; the system opens the lock when its holder ends, however that comes."""
    try:
        with FileLock(directory / _LOCK, timeout=0):
            yield
    except Timeout:
        raise FileExistsError(
            f"{directory}: another process is training there; wait for it, or choose another."
        ) from None


def _require_empty(directory: Path) -> None:
    if directory.is_dir() and all(path.name in _NOTHING for path in directory.iterdir()):
        return
    if directory.exists():
        raise FileExistsError(
            f"{directory} holds files already and nothing is overwritten: choose another --out, or go on with a run "
            f"that was stopped: --resume {directory}"
        )


def _next_free(parent: Path) -> Path:
    parent.mkdir(exist_ok=True)
    for number in itertools.count(1):
        with suppress(FileExistsError):  # two runs that begin at once get two directories
            (parent / str(number)).mkdir()
            break
    return parent / str(number)
