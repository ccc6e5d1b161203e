"""The command line: each command parses, calls one function, and prints."""

from __future__ import annotations

import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

if TYPE_CHECKING:
    from vqkit.data import Images
    from vqkit.training import Figures

_FAILURE, _USAGE, _INTERRUPTED = 1, 2, 130


# What is optional is absent as None, which constructor=str keeps out of reach of the text "None"; the empty text, which
# an unset shell variable gives, then is a path like any other, and none that exists.
_Data = Positional[Annotated[str | None, arg(constructor=str, metavar="[DATA]", help_behavior_hint="")]]


class UsageError(ValueError):
    """The command as it was typed cannot be carried out."""


def train(
    data: _Data = None,
    /,
    recipe: Annotated[str | None, arg(constructor=str, metavar="NAME", help_behavior_hint="")] = None,
    out: Annotated[str | None, arg(constructor=str, metavar="DIR", help_behavior_hint="")] = None,
    resume: Annotated[str | None, arg(constructor=str, metavar="DIR", help_behavior_hint="")] = None,
    steps: Annotated[str | None, arg(constructor=str, metavar="N", help_behavior_hint="")] = None,
    device: Annotated[str | None, arg(constructor=str, metavar="cuda|mps|cpu", help_behavior_hint="")] = None,
    precision: Annotated[str | None, arg(constructor=str, metavar="bf16|fp16", help_behavior_hint="")] = None,
    compile: Annotated[bool, arg(help_behavior_hint=""), FlagCreatePairsOff] = False,
    workers: Annotated[str | None, arg(constructor=str, metavar="N", help_behavior_hint="")] = None,
    tensorboard: Annotated[bool, arg(help_behavior_hint=""), FlagCreatePairsOff] = False,
    settings: Annotated[
        tuple[tuple[str, ...], ...], UseAppendAction, arg(name="set", metavar="KEY=VALUE ...", help_behavior_hint="")
    ] = (),
) -> int:
    """Train a VQ-VAE on images, and write a report of it.

    Args:
        data: a folder, .tar, .tar.gz or .zip of images, one image, .npy, .npz, an idx file, or a directory that
            datasets saved; without it, bundled photos
        recipe: where the settings begin: photos (as without it), digits or cifar10
        out: directory for the results, new or empty; without it, the next free runs/N
        resume: go on with the run in this directory, which was stopped or killed, from its last checkpoint
        steps: how many training steps; without it, as many as the recipe says
        device: where to compute; without it, on a GPU where there is one
        precision: of the convolutions; without it, float32
        compile: compile the model with torch.compile first
        workers: how many processes load images; without it, none where all images fit into memory
        tensorboard: log scalars and images for TensorBoard as well, in the run's directory
        settings: change settings: --set codebook_size=256 "update=EMA(decay=0.95)"; a run's config.json has them all
    """
    from vqkit import runs
    from vqkit.training import Hardware, Watcher, progress_for, resolve

    if tensorboard:
        try:
            import_module("tensorboard")
        except ImportError:
            raise UsageError("--tensorboard needs a package: pip install 'vqkit[tensorboard]'") from None
    changes = [setting for group in settings for setting in group]
    changes += [] if steps is None else [f"steps={steps}"]
    processes = None if workers is None else int(workers) if workers.isdecimal() else workers
    chosen = {"device": device, "precision": precision, "workers": processes, "compile": compile or None}
    hardware: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if resume is not None:
        if recipe is not None or out is not None:
            raise UsageError("--resume goes on with a run as it was begun: leave out --recipe and --out.")
        try:
            plan = runs.resume(resume, changes, data, hardware)
        except runs.Slip as error:
            raise UsageError(error) from error
    else:
        try:
            config, place = resolve(recipe or "photos", changes), Hardware(**hardware)
        except ValueError as error:
            raise UsageError(error) from error
        plan = runs.begin(config, data, out, place)
    _say_skipped(plan.trained_on)
    print(f"training on {plan.trained_on.description}", flush=True)
    watchers: list[Watcher] = [progress_for(plan.config)]
    if tensorboard:
        from vqkit.training.tensorboard import TensorBoard

        watchers.append(TensorBoard(plan.directory / "tensorboard"))
    run = runs.carry_out(plan, watchers)
    if run.steps < plan.config.steps:
        stopped = f"interrupted after step {run.steps} of {plan.config.steps}, which is saved; go on with:"
        return _fail(f"{stopped} vqkit train --resume {shlex.quote(str(run.directory))}", _INTERRUPTED)
    for split, figures in run.figures.items():
        print(f"{split}: {_line(figures)}")
    print(f"{run.steps} steps in {run.seconds:.0f} s; the report is {run.report}")
    return 0


def report(
    run: Positional[Annotated[str, arg(metavar="RUN")]],
    second: Positional[Annotated[str | None, arg(constructor=str, metavar="[RUN2]", help_behavior_hint="")]] = None,
    /,
) -> int:
    """Make the report of a run anew, or show two runs side by side.

    Args:
        run: a directory that vqkit train left
        second: another one; both are measured on the images of the first
    """
    from vqkit import runs

    print(f"the report is {runs.report_runs(run, second)}")
    return 0


def evaluate(
    run: Positional[Annotated[str, arg(metavar="RUN")]],
    data: _Data = None,
    /,
    as_json: Annotated[bool, arg(name="json", help_behavior_hint=""), FlagCreatePairsOff] = False,
) -> int:
    """Measure a trained model: errors, codes, bits.

    Args:
        run: a directory that vqkit train left
        data: images to measure on; without it, those that the run trained on and held out
        as_json: print JSON
    """
    from vqkit import runs

    splits, images = runs.evaluate_run(run, data)
    _say_skipped(images)
    rows = {split: figures.to_json() for split, figures in splits.items()}
    if as_json:
        print(json.dumps({split.replace(" ", "_"): row for split, row in rows.items()}, indent=2))
        return 0
    print("".join([f"{'':16}", *(f"{split:>12}" for split in rows)]))
    for name in next(iter(rows.values())):
        print("".join([f"{name:16}", *(f"{_short(row[name]):>12}" for row in rows.values())]))
    return 0


def reconstruct(
    run: Positional[Annotated[str, arg(metavar="RUN")]],
    image: Positional[Annotated[str, arg(metavar="IMAGE")]],
    /,
    out: Annotated[str, arg(metavar="OUT.png", aliases=["-o"])],
) -> int:
    """Encode and decode an image of any size.

    Args:
        run: a directory that vqkit train left
        image: the image
        out: the PNG to write; it must not exist yet
    """
    from vqkit import runs

    if not out.lower().endswith(".png"):
        raise UsageError(f"-o {out}: a PNG is written, so the name must end in .png.")
    print(f"{out}: PSNR {runs.reconstruct_image(run, image, out):.2f} dB")
    return 0


def explain(
    out: Annotated[str | None, arg(constructor=str, metavar="PAGE.html", aliases=["-o"], help_behavior_hint="")] = None,
    open: Annotated[bool, arg(help_behavior_hint=""), FlagCreatePairsOff] = False,
    text: Annotated[bool, arg(help_behavior_hint=""), FlagCreatePairsOff] = False,
    as_json: Annotated[bool, arg(name="json", help_behavior_hint=""), FlagCreatePairsOff] = False,
) -> int:
    """Measure and explain where the gradients of a VQ-VAE go, as an interactive page.

    Args:
        out: the page to write, which must not exist yet; without it, vqkit-explain.html, or none with --text or --json
        open: open the page in a browser
        text: print the tables
        as_json: print every number as JSON
    """
    import webbrowser

    from vqkit.gradients.explain.page import explain as measure
    from vqkit.models.storage import replace_file

    if text and as_json:
        raise UsageError("--text and --json both print: choose one.")
    page = "vqkit-explain.html" if out is None and (open or not (text or as_json)) else out
    if page is not None:
        _require_new(page)
    explanation = measure(lambda said: print(f"vqkit: {said}", file=sys.stderr, flush=True))
    if text or as_json:
        print(explanation.to_text() if text else json.dumps(explanation.to_json(), indent=2))
    if page is not None:
        replace_file(Path(page), explanation.to_page().encode())
        print(f"the page is {page}", file=sys.stderr if text or as_json else sys.stdout)
        if open and not webbrowser.open(Path(page).resolve().as_uri()):
            return _fail(f"no browser could be started; open {page} yourself.", _FAILURE)
    return 0


def trace(
    run: Positional[Annotated[str, arg(metavar="RUN")]],
    data: _Data = None,
    /,
    as_json: Annotated[bool, arg(name="json", help_behavior_hint=""), FlagCreatePairsOff] = False,
) -> int:
    """Show which loss of a trained model reaches which part of it, and how good its straight-through gradient is.

    Args:
        run: a directory that vqkit train left
        data: images to measure on; without it, those that the run trained on
        as_json: print JSON
    """
    from vqkit.gradients.of_run import trace_run

    table, moved = trace_run(run, data)
    print(json.dumps({**table.to_json(), "codebook": moved}, indent=2) if as_json else f"{table}\ncodebook: {moved}")
    return 0


def audit(
    layer: Positional[Annotated[str, arg(metavar="PACKAGE.MODULE:CLASS")]],
    /,
    arguments: Annotated[
        tuple[tuple[str, ...], ...], UseAppendAction, arg(name="arg", metavar="NAME=VALUE ...", help_behavior_hint="")
    ] = (),
    dim: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
    tell: Annotated[
        tuple[tuple[str, ...], ...], UseAppendAction, arg(metavar="NAME=VALUE ...", help_behavior_hint="")
    ] = (),
    out: Annotated[str | None, arg(constructor=str, metavar="PAGE.html", aliases=["-o"], help_behavior_hint="")] = None,
    as_json: Annotated[bool, arg(name="json", help_behavior_hint=""), FlagCreatePairsOff] = False,
) -> int:
    """Check any PyTorch vector quantizer against the laws; the exit code is 0 where it has no fault, else 1.

    Args:
        layer: the class of the layer, for example vqkit:VectorQuantizer
        arguments: what it is built with: --arg dim=64 codebook_size=512
        dim: the length of its vectors; without it, that among its arguments, else 16
        tell: what cannot be found out: --tell takes="channels first" z_q=0 indices=2.1 loss=1 codebook=embedding.weight
        out: a page to write as well; it must not exist yet
        as_json: print JSON
    """
    from vqkit.gradients.audit import Conventions, audit_class
    from vqkit.models.storage import replace_file

    if out is not None:
        _require_new(out)
    told = dict(text.partition("=")[::2] for group in tell for text in group)
    names = [field.name for field in fields(Conventions)]
    if not set(told) <= set(names):
        raise UsageError(f"--tell {' '.join(told)}: one can tell {', '.join(names)}, each as NAME=VALUE.")
    try:
        with redirect_stdout(sys.stderr):  # what the layer prints is no part of the answer
            found = audit_class(layer, [text for group in arguments for text in group], dim, tell=Conventions(**told))
    except ValueError as error:
        raise UsageError(error) from error
    print(json.dumps(found.to_json(), indent=2) if as_json else found)
    if out is not None:
        replace_file(Path(out), found.to_page().encode())
        print(f"the page is {out}", file=sys.stderr)
    return 0 if found.ok else _FAILURE


def convert(
    source: Positional[Annotated[str, arg(metavar="RUN")]],
    /,
    to: Annotated[str, arg(metavar="keras|torch")],
    out: Positional[Annotated[str, arg(metavar="OUT")]],
) -> int:
    """Write the model of a run as a Keras file, or such a file as a run; every weight keeps its bits.

    Args:
        source: a directory that vqkit train left; with --to torch, a .keras file
        to: keras, to write a .keras file, or torch, to write a directory as vqkit train leaves it
        out: the file or directory to write, which must not exist yet
    """
    if to not in ("keras", "torch"):
        raise UsageError(f"--to {to}: write keras, for a .keras file, or torch, for a run.")
    if to == "keras" and not out.endswith(".keras"):
        raise UsageError(f"{out}: a Keras model is written, so the name must end in .keras.")
    from vqkit.keras.convert import convert as write  # seconds, for Keras and what it runs on

    print(f"the model is {write(source, to, out)}")
    return 0


def info() -> int:
    """Show versions, devices, and which search is active."""
    from vqkit import runs

    for name, value in runs.info().items():
        print(f"{name:8} {value}")
    return 0


_COMMANDS: dict[str, Callable[..., int]] = {
    **{"train": train, "eval": evaluate, "reconstruct": reconstruct, "report": report},
    **{"explain": explain, "trace": trace, "audit": audit, "convert": convert, "info": info},
}


def run(arguments: Sequence[str]) -> int:
    """Runs one command; the exit code is 0, 2 for a slip in the command, 1 for a failure, 130 after Ctrl-C.

    ``--debug``, anywhere, shows the traceback of an error in place of its one line.
    """
    debug = "--debug" in arguments
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn  # type: ignore[assignment]  # the rest of its arguments is the place
            return _command([argument for argument in arguments if argument != "--debug"])
    except KeyboardInterrupt as error:
        return _fail("; ".join(["interrupted", *map(str, error.args)]), _INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        return _fail(*_explain(error))


def _command(arguments: Sequence[str]) -> int:
    if not arguments:
        *most, last = _COMMANDS
        raise UsageError(f"name a command: {', '.join(most)} or {last}; vqkit --help says more.")
    return tyro.extras.subcommand_cli_from_dict(
        _COMMANDS,
        prog="vqkit",
        description="Train, inspect and use vector-quantized autoencoders.\n"
        "Any command takes --debug, which shows the traceback of an error.",
        args=arguments,
    )


def _require_new(page: str) -> None:
    """Said before anything is measured: nothing is overwritten, and what was measured must find a place."""
    if not page:
        raise FileNotFoundError("-o is empty: name the page to write.")
    if os.path.lexists(page):
        raise FileExistsError(f"{page} exists already and is not overwritten: choose another name with -o.")
    if not os.path.isdir(os.path.dirname(page) or "."):
        raise FileNotFoundError(f"{os.path.dirname(page)} is no directory to write into: make it first.")
    if not os.access(os.path.dirname(page) or ".", os.W_OK):
        raise PermissionError(f"{os.path.dirname(page) or '.'} may not be written to: choose another place with -o.")


def _warn(message: Warning | str, *_: object) -> None:
    print(f"vqkit: {' '.join(str(message).split())}", file=sys.stderr)


def _line(figures: Figures) -> str:
    return (
        f"PSNR {figures.psnr:.2f} dB, {100 * figures.usage:.0f} % of codes used, perplexity {figures.perplexity:.0f}, "
        f"{figures.bits_per_pixel:.4f} bits per pixel"
    )


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def _say_skipped(images: Images, most: int = 5) -> None:
    if images.skipped:
        print(f"vqkit: files left out: {len(images.skipped)}", file=sys.stderr)
        for name, reason in images.skipped[:most]:
            print(f"  {name}: {reason}", file=sys.stderr)
        if len(images.skipped) > most:
            print(f"  and {len(images.skipped) - most} more", file=sys.stderr)


def _explain(error: Exception) -> tuple[str, int]:
    """One line for a person, and the exit code."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install 'vqkit[train]'", _FAILURE
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    slips = (UsageError, FileExistsError, FileNotFoundError, NotADirectoryError)
    return " ".join(text.split()) or type(error).__name__, _USAGE if isinstance(error, slips) else _FAILURE


def _fail(message: str, code: int) -> int:
    print(f"vqkit: {message}", file=sys.stderr)
    return code
