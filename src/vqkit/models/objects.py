"""The objects that a configuration may name, written as they print: ``EMA(decay=0.95)``.

A text is parsed, never evaluated: a name of this table, and literals for its fields.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from vqkit.codebooks import EMA, Frozen, Gradient, KMeans, NoRevival, Normal, Reseed, Uniform
from vqkit.functional.estimators import RotationTrick, StraightThrough
from vqkit.models.architectures import Convolutional, Patchwise

# What may stand in which slot.
SLOTS: dict[str, tuple[type, ...]] = {
    "architecture": (Patchwise, Convolutional),
    "update": (EMA, Gradient, Frozen),
    "estimator": (StraightThrough, RotationTrick),
    "start": (KMeans, Normal, Uniform),
    "revival": (Reseed, NoRevival),
}


def parse_object(slot: str, text: str, slots: Mapping[str, tuple[type, ...]] = SLOTS) -> Any:
    """The object that ``text`` names for ``slot``: ``parse_object("update", "EMA(decay=0.95)")``.

    Raises:
        ValueError: no object of that slot, no such field, or a value that the object refuses.
    """
    allowed = {cls.__name__: cls for cls in slots[slot]}
    choices = ", ".join(f"{name}()" for name in allowed)
    try:
        node: ast.expr = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, MemoryError, RecursionError):  # the latter two: thousands of brackets
        raise ValueError(f"{slot}={text!r} cannot be read; write one of {choices}.") from None
    name = node.func if isinstance(node, ast.Call) else node
    if not isinstance(name, ast.Name) or name.id not in allowed:
        raise ValueError(f"{slot}={text!r} names no object for this slot; write one of {choices}.")
    if not isinstance(node, ast.Call):
        return allowed[name.id]()
    types = {field.name: field.type for field in dataclasses.fields(allowed[name.id])}
    example = f"{name.id}({', '.join(f'{field}=...' for field in types)})"
    values: dict[str, Any] = {}
    if node.args:
        raise ValueError(f"{slot}={text!r}: name each field, as in {example}.")
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg not in types:
            raise ValueError(f"{slot}={text!r}: {name.id} has no field {keyword.arg!r}; write {example}.")
        values[keyword.arg] = _literal(keyword.value)
        whole = types[keyword.arg] == "int"
        if type(values[keyword.arg]) not in ((int,) if whole else (int, float)):
            raise ValueError(f"{slot}={text!r}: {keyword.arg} must be a {'whole ' if whole else ''}number.")
    return allowed[name.id](**values)


def _literal(node: ast.expr) -> Any:
    """The finite number that a literal is, or None."""
    try:
        value = ast.literal_eval(node)
        return value if math.isfinite(value) else None
    except (ValueError, TypeError, OverflowError, MemoryError, RecursionError):
        return None


def nearest_names(name: str, names: list[str]) -> str:
    """``did you mean 'a' or 'b'?``, or else all of the names."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(repr(match) for match in close)}?"
    return f"there are {', '.join(names)}"
