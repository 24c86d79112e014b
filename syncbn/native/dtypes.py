"""The dtypes that the all-reduces in C++ sum."""

import tensorflow as tf

NATIVE = (
    tf.float32,
    tf.float64,
    tf.int8,
    tf.uint8,
    tf.int16,
    tf.uint16,
    tf.int32,
    tf.uint32,
    tf.int64,
    tf.uint64,
)
# Sent and summed as float32: MPI has no 16-bit floating point types, and sums would lose digits.
WIDENED = (tf.float16, tf.bfloat16)
