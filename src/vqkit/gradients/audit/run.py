"""An audit: every check on copies of the layer, each within a time limit; one that fails does not stop the others.

A check is a function ``law_05_estimator(subject)``, named after the law. It returns a list of ``Finding`` and ``Kept``;
where that is empty the law is kept, in the words of the first line of its docstring. It raises ``NotMeasured`` where it
cannot be made. The subject it gets is its own.
"""

from __future__ import annotations

import ast
import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn

from vqkit.gradients import kept
from vqkit.gradients.audit import derivatives, learning, state, values
from vqkit.gradients.audit.discover import Conventions, find_out
from vqkit.gradients.audit.report import Audit, Finding, Kept, NotMeasured, law
from vqkit.gradients.audit.subject import Subject

CHECKS: tuple[Callable[[Subject], list[Finding | Kept]], ...] = (
    *(*values.CHECKS, *derivatives.CHECKS),
    *(*learning.CHECKS, *state.CHECKS),
)
_DIMS = ("dim", "embedding_dim", "vq_embed_dim", "e_dim", "embed_dim", "code_dim", "input_dim", "dimension")


def audit(
    layer: nn.Module | Callable[[], nn.Module],
    dim: int = 16,
    *,
    tell: Conventions | None = None,
    seconds: float = 20.0,
) -> Audit:
    """Measures any vector quantizer in PyTorch, ours or not, against the laws of docs/laws.md.

    How the layer takes vectors, what its outputs mean and where its codebook is, is found out by trying; ``tell`` says
    what cannot be. All of it runs on copies, on the CPU: the layer, its gradients and random states stay as they are.

    Args:
        layer: the layer; or what makes one (a class, or ``partial(Class, dim=64)``), which also shows how it starts.
        dim: the length of its vectors.
        tell: conventions that are known, ``Conventions(takes="channels first", indices="2.1")``.
        seconds: time limit of each check, and of building and trying the layer.

    Raises:
        ValueError: it cannot be built, needs CUDA, takes no vectors of this dim, hangs, or is no vector quantizer.

    >>> from vqkit import VectorQuantizer
    >>> report = audit(VectorQuantizer(dim=16, codebook_size=32))
    >>> report.ok, report.broken, report.conventions["codebook"]
    (True, (), 'codebook, (32, 16), a parameter')
    """
    for argument, value in (("dim", dim), ("seconds", seconds)):
        if not value > 0:
            raise ValueError(f"{argument} is {value}; it must be positive.")
    if not callable(layer):
        raise ValueError(f"layer is a {type(layer).__name__}; it must be a torch.nn.Module, or make one when called.")
    name = _name(layer)
    found: list[Finding | Kept] = []
    unmeasured = []
    with _untouched():
        try:
            subject, conventions = _within(seconds, lambda: _subject(layer, dim, tell or Conventions()))
        except TimeoutError:
            raise ValueError(f"layer ({name}) gave no answer in {seconds:g} s: it hangs.") from None
        except NotMeasured as reason:
            raise ValueError(f"layer ({name}) is no vector quantizer that can be tried: {reason}.") from None
        for check in CHECKS:
            number = int(check.__name__.split("_")[1])
            try:
                held = Kept(law(number), (check.__doc__ or check.__name__).splitlines()[0].rstrip("."))
                found += _within(seconds, partial(check, subject.fresh())) or [held]
            except TimeoutError:
                unmeasured.append((check.__name__, f"gave no answer in {seconds:g} s"))
            except (Exception, SystemExit) as error:
                unmeasured.append((check.__name__, f"{error}" if isinstance(error, NotMeasured) else _told(error)))
    findings = tuple(item for item in found if isinstance(item, Finding))
    kept = tuple(item for item in found if isinstance(item, Kept))
    return Audit(type(subject.layer).__name__, conventions, findings, kept, tuple(unmeasured))


def audit_class(
    path: str,
    arguments: Sequence[str] = (),
    dim: int | None = None,
    *,
    tell: Conventions | None = None,
    seconds: float = 20.0,
) -> Audit:
    """``audit`` of ``package.module:Class`` built with ``arguments``, each ``name=value`` with a Python literal.

    Modules are looked for in the current folder too. Without ``dim`` it is that of the arguments, else 16.

    Raises:
        ValueError: as ``audit``; or the class cannot be imported, or an argument is no literal.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"the layer is {path!r}; it must be package.module:Class.")
    given = dict(map(_argument, arguments))
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = getattr(_within(seconds, partial(import_module, module)), name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be imported: {_told(error)}") from error
    finally:
        sys.path.remove(os.getcwd())
    if dim is None:
        dim = next((given[key] for key in _DIMS if isinstance(given.get(key), int)), 16)
    return audit(partial(found, **given) if callable(found) else found, dim, tell=tell, seconds=seconds)


def _argument(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise ValueError(f"argument {text!r} must be name=literal, as in dim=64 or \"mode='mean'\".") from None


def _subject(layer: Any, dim: int, tell: Conventions) -> tuple[Subject, dict[str, str]]:
    try:
        built = layer if isinstance(layer, nn.Module) else layer()
    except (Exception, SystemExit) as error:  # a layer may leave; the program that asks about it stays
        what = "needs CUDA, and an audit runs on the CPU" if "cuda" in f"{error}".lower() else "cannot be built"
        raise ValueError(f"layer ({_name(layer)}) {what}: {_told(error)}") from error
    if not isinstance(built, nn.Module):
        raise ValueError(f"layer ({_name(layer)}) makes a {type(built).__name__}; it must make a torch.nn.Module.")
    return find_out(built, dim, tell, None if built is layer else layer)


def _name(makes: Any) -> str:
    makes = type(makes) if isinstance(makes, nn.Module) else getattr(makes, "func", makes)
    return getattr(makes, "__name__", type(makes).__name__)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(f'{error}'.split())[:200]}"


@contextmanager
def _untouched() -> Iterator[None]:
    """Random states are given back; warnings of the layer are not the caller's.

    One thread of PyTorch: each check has a Python thread, for which PyTorch would make new ones; on two cores the audit
    of a layer of 512 codes takes 2.4 s so, else 10 s.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with kept.random_state(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """What the call returns or raises; TimeoutError where it takes longer. It runs in a thread, from one seed."""
    answer: Future[Any] = Future()

    def run() -> None:
        torch.manual_seed(0)
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():  # it ends at the next line of Python that it runs; in a call that never returns, never
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        raise TimeoutError
    return answer.result()
