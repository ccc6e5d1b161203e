"""Which loss trains which part of a Keras model: measured on TensorFlow's tape, nothing changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import keras
import numpy as np

from vqkit.gradients.table import Route, Trace


def trace(losses: Mapping[str, Any], groups: Mapping[str, Any], tape: Any) -> Trace:
    """Prints and returns which loss reaches which group of variables: ``|d loss / d group|``, and each zero's kind.

    A zero is ``no path`` where the tape gives None: nothing connects the two, or a custom gradient says so. It is
    ``0 on a path`` where what arrives is exactly 0. ``tf.IndexedSlices`` are summed by row first. Cosines are those of
    two losses' gradients at a group that both reach. TensorFlow's backend only, since it alone has a tape.

    Args:
        losses: scalar tensors by name, computed inside ``with tf.GradientTape(persistent=True) as tape``.
        groups: by name, a built layer or model, whose trainable variables are meant, or variables or tensors.
        tape: that tape; it can be used again afterwards.

    Raises:
        ValueError: another backend; a tape that is not persistent; a loss that is no scalar tensor or depends on
            nothing in groups; a group that is empty or not yet built.

    >>> import tensorflow as tf
    >>> import vqkit.keras
    >>> encoder, vq, decoder = keras.layers.Dense(4), vqkit.keras.VectorQuantizer(8, seed=0), keras.layers.Dense(9)
    >>> x = tf.ones((5, 9))
    >>> with tf.GradientTape(persistent=True) as tape:
    ...     reconstruction = tf.reduce_mean((decoder(vq(encoder(x))) - x) ** 2)
    ...     codebook, commitment = vq.losses
    >>> table = trace({"reconstruction": reconstruction, "codebook": codebook},
    ...               {"encoder": encoder, "codebook": vq, "decoder": decoder}, tape)
    ... # doctest: +ELLIPSIS +NORMALIZE_WHITESPACE
    gradient norm   encoder  codebook     decoder
    reconstruction  ...
    >>> table.routes["codebook"]["decoder"].kind
    'no path'
    """
    backend = keras.backend.backend()
    if backend != "tensorflow":
        instead = {"torch": "vqkit.trace(losses, model)"}.get(backend, "the gradients of each loss by hand")
        raise ValueError(
            f"vqkit.keras.trace reads a tf.GradientTape, and Keras runs on {backend}: use {instead}, or set "
            "KERAS_BACKEND=tensorflow before Keras is imported."
        )
    for argument, value in (("losses", losses), ("groups", groups)):
        if not isinstance(value, Mapping) or not value:
            raise ValueError(f'{argument} is {value!r}; it must name at least one, as in {{"name": ...}}.')
    if not hasattr(tape, "gradient"):
        raise ValueError(f"tape is {tape!r}; it must be the tf.GradientTape(persistent=True) that recorded the losses.")
    variables = {name: _variables(name, group) for name, group in groups.items()}
    arrived = {name: _gradients(name, loss, variables, tape) for name, loss in losses.items()}
    routes = {name: {group: _route(found) for group, found in row.items()} for name, row in arrived.items()}
    cosines: dict[str, dict[tuple[str, str], float]] = {}
    for group in variables:
        live = [name for name in routes if routes[name][group].kind == "flows"]
        for a, b in combinations(live, 2):
            pairs = zip(arrived[a][group], arrived[b][group], strict=True)
            dot = sum(float(np.vdot(x, y)) for x, y in pairs if x is not None and y is not None)
            cosines.setdefault(group, {})[a, b] = dot / (routes[a][group].norm * routes[b][group].norm)
    result = Trace(routes, cosines)
    print(result)
    return result


def _variables(name: str, group: Any) -> Sequence[Any]:
    layer = isinstance(group, keras.layers.Layer)
    listed = group.trainable_variables if layer else group
    if not isinstance(listed, Sequence) or not (listed or (layer and group.built)):
        raise ValueError(
            f"groups[{name!r}] is {group!r}; it must be a list of variables, or a layer or model already called."
        )
    return listed


def _gradients(name: str, loss: Any, variables: Mapping[str, Sequence[Any]], tape: Any) -> dict[str, list[Any]]:
    import tensorflow as tf  # here, since Keras may run where TensorFlow is not

    if not tf.is_tensor(loss) or loss.shape.rank != 0 or tf.is_symbolic_tensor(loss):
        raise ValueError(
            f"losses[{name!r}] is a {type(loss).__name__} of shape {getattr(loss, 'shape', ())}; it must be a scalar "
            "tensor, as tf.reduce_mean gives outside tf.function."
        )
    try:
        tape.gradient(loss, [])  # of nothing: a tape that is not persistent has then answered its one question
        found = iter(tape.gradient(loss, [variable for group in variables.values() for variable in group]))
    except RuntimeError as error:
        raise ValueError("tape is not persistent: open it with tf.GradientTape(persistent=True).") from error

    def wide(gradient: Any) -> Any:  # IndexedSlices become dense, which sums the entries of a row
        return None if gradient is None else tf.cast(tf.convert_to_tensor(gradient), tf.float64).numpy()

    arrived = {group: [wide(next(found)) for _ in listed] for group, listed in variables.items()}
    if all(gradient is None for row in arrived.values() for gradient in row):
        raise ValueError(
            f"losses[{name!r}] depends on nothing in {', '.join(arrived)}: compute it from these while the tape "
            "records. (Under EMA the codebook loss is a report only: leave it out.)"
        )
    return arrived


def _route(arrived: Sequence[Any]) -> Route:
    live = [gradient for gradient in arrived if gradient is not None]
    if not live:
        return Route(0.0, "no path" if arrived else "no parameters")
    norm = math.sqrt(sum(float(np.vdot(gradient, gradient)) for gradient in live))
    return Route(norm, "zero" if norm == 0 else "flows" if math.isfinite(norm) else "not finite")
