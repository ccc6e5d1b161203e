"""What Keras has no operation for, in TensorFlow. ``on_jax`` and ``on_torch`` have the same names."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from vqkit.keras.search import search as search


def is_concrete(x: tf.Tensor) -> bool:
    """Whether the values can be looked at now; in a graph they cannot."""
    return tf.executing_eagerly() and hasattr(x, "numpy")


def read(variable: Any) -> tf.Tensor:
    """The values of a Keras variable as they are now; what Keras itself gives is the variable, which changes."""
    return tf.convert_to_tensor(variable.value)


def bits(x: tf.Tensor) -> tf.Tensor:
    """The bytes of float32 numbers as int32."""
    return tf.bitcast(x, tf.int32)


def look_up(codebook_KD: tf.Tensor, indices_N: tf.Tensor) -> tf.Tensor:
    """The rows that ``indices`` name; their gradient is a ``tf.IndexedSlices`` with the indices as looked up.

    Of a row that was looked up several times the first slice holds the whole gradient and the others are zero: they sum
    to the gradient of ``tf.gather``, and an optimizer that squares slices before it adds them, as Keras's Adam does
    (3.15), squares the gradient and not its parts. Under several replicas the gradient is dense, because there Keras
    joins the slices of all replicas before it squares them.
    """

    @tf.custom_gradient
    def rows(table_KD: tf.Tensor) -> tuple:
        def gradient(upstream_ND: tf.Tensor) -> tf.Tensor | tf.IndexedSlices:
            codes = table_KD.shape[0]
            dense_KD = tf.math.unsorted_segment_sum(upstream_ND, indices_N, codes)
            if tf.distribute.get_strategy().num_replicas_in_sync > 1:
                return dense_KD
            place_N = tf.range(tf.shape(indices_N)[0])
            is_first_N = tf.gather(tf.math.unsorted_segment_min(place_N, indices_N, codes), indices_N) == place_N
            values_ND = tf.where(is_first_N[:, None], tf.gather(dense_KD, indices_N), 0)
            return tf.IndexedSlices(values_ND, indices_N, tf.constant(table_KD.shape.as_list()))

        return tf.gather(table_KD, indices_N), gradient

    return rows(codebook_KD)


def segment_sum(x: tf.Tensor, indices_N: tf.Tensor, codes: int) -> tf.Tensor:
    """Per code the sum of what chose it, in x's dtype; Keras's own sums float64 in float32 on PyTorch."""
    return tf.math.unsorted_segment_sum(x, indices_N, codes)


def over_replicas(sums: list[tf.Tensor], rows: tf.Tensor | None) -> tuple[list[tf.Tensor], tf.Tensor | None]:
    """Under ``tf.distribute``, each of ``sums`` summed over the replicas and the ``rows`` of all of them, on all."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return sums, rows
    if rows is None:
        return context.all_reduce(tf.distribute.ReduceOp.SUM, sums), None
    # Rows cannot be summed, so each replica adds its own to zeros in a place of its own.
    is_own = tf.range(context.num_replicas_in_sync) == context.replica_id_in_sync_group
    places = tf.where(is_own[:, None, None], rows[None], 0)
    *sums, places = context.all_reduce(tf.distribute.ReduceOp.SUM, [*sums, places])
    return sums, tf.reshape(places, [-1, rows.shape[1]])
