"""Runs the command gpu_check on several logical CPU devices: whether TF32 was allowed before, and what is printed."""

import contextlib
import io

import tensorflow as tf

from tf_isvae.commands import gpu_check


def main(*arguments):
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        gpu_check.work(gpu_check.prepare(gpu_check.make_parser().parse_args(arguments)))
    return before, printed.getvalue()
