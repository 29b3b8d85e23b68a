"""LiteRT (.tflite): the signatures of `tf_isvae.export.signatures` for phones and small machines."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tf_isvae import _private_apis, checks, files
from tf_isvae.chunks import parts_of
from tf_isvae.export.signatures import inputs, signatures, write
from tf_isvae.model import DiscreteVAE, check_model
from tf_isvae.precision import in_precision

QUANTIZATIONS = (None, "float16", "int8")
# What int8 files compute in integers: the products with the weights, where all time and space goes. Noise and sums
# over pixels would lose what they are for in 8 bits: a Categorical would hardly ever draw most of its values. So would
# eta: 8 bits over its range are steps of 0.7 in a trained fc_bvae, and the encoder's last Dense layer stays as it is
# (4% of that model's bits changed with it in integers, 0.2% change without).
_INTEGER_OPS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "RELU", "TRANSPOSE_CONV"}
_CALIBRATION_BATCH = 100


def litert(model: DiscreteVAE, path: str | os.PathLike, quantize: str | None = None, calibration=None) -> Path:
    """Writes the model as a LiteRT file.

    The signatures are those of `tf_isvae.export.signatures` (sampling takes `noise`), for any batch size and with
    built-in operations only. Every signature of the file is run before the file takes its place. It appears whole or
    not at all.

    Args:
        model: a DiscreteVAE.
        path: the file; its directory is created.
        quantize: None for float32. "float16": weights in half precision, half the size. "int8": weights and their
            products in 8-bit integers, a quarter of the size; inputs and outputs stay float32 and int32.
        calibration: for "int8", images (n, H, W, C) in [0, 1] of the kind that will be encoded; 100 to 1,000 do.

    Returns:
        The path.

    Raises:
        TypeError: `model` is not a DiscreteVAE.
        ValueError: a wrong argument, or a model that built-in operations cannot express.
        ImportError: ai-edge-litert, which runs the file, is not installed.
        OSError: the file cannot be written.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(8, 8, 1), latent_dim=4)
        >>> print(export.litert(model, "digits.tflite"))
        digits.tflite
        >>> from ai_edge_litert.interpreter import Interpreter
        >>> decode = Interpreter("digits.tflite").get_signature_runner("decode")
        >>> decode(codes=np.zeros((5, 4), np.int32))["images"].shape
        (5, 8, 8, 1)
    """
    check_model(model)
    checks.one_of("quantize", quantize, QUANTIZATIONS)
    if (calibration is None) == (quantize == "int8"):
        given = "missing" if calibration is None else "given"
        raise ValueError(
            f"calibration images are {given}; they must be given for quantize='int8', and for nothing else."
        )
    if calibration is not None:
        calibration = checks.images("calibration images", calibration, model.image_shape)
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; give the name of a file, such as {path / 'model.tflite'}.")
    _interpreter_class()
    model = in_precision(model, "float32")  # LiteRT has no bfloat16
    graphs = signatures(model, for_litert=True)
    content = _convert(model, graphs, quantize, calibration)
    run_every_signature(content, graphs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


def run_every_signature(content: bytes, graphs: dict) -> None:
    """Runs a LiteRT file on 1 and on 3 rows.

    Raises RuntimeError if an output has another name, shape or type than in the graphs, or is not finite.
    """
    interpreter = _interpreter_class()(model_content=content, num_threads=1)
    found = interpreter.get_signature_list()
    rng = np.random.default_rng(0)
    for name, graph in graphs.items():
        expected = graph.structured_outputs
        if set(found.get(name, {}).get("outputs", ())) != set(expected):
            raise RuntimeError(f"the LiteRT file has the signatures {found}; {name} must give {', '.join(expected)}.")
        for rows in (1, 3):
            feed = {}
            for key, spec in inputs(graph).items():
                values = rng.uniform(0.01, 0.99, (rows, *spec.shape[1:]))
                feed[key] = values.astype(spec.dtype.as_numpy_dtype)  # integer codes: 0, which any latent has
            outputs = interpreter.get_signature_runner(name)(**feed)
            for key, spec in expected.items():
                value = outputs[key]
                if value.shape != (rows, *spec.shape[1:]) or value.dtype != spec.dtype.as_numpy_dtype:
                    raise RuntimeError(f"{name} of the LiteRT file gives {key} as {value.dtype} {value.shape}.")
                if not np.isfinite(value).all():
                    raise RuntimeError(f"{name} of the LiteRT file gives values of {key} that are not finite.")


def share_of_codes(path: Path, model: DiscreteVAE, images: np.ndarray) -> float:
    """The share of entries of the images' codes that a LiteRT file gives as the model does (in float32).

    Real codes count as equal if they differ by at most a hundredth.
    """
    images = checks.images("images", images, model.image_shape)
    encode = _interpreter_class()(model_path=str(path), num_threads=1).get_signature_runner("encode")
    found = np.concatenate([encode(images=images[i : i + 100])["codes"] for i in range(0, len(images), 100)])
    expected = parts_of(in_precision(model, "float32").encode(images))[0]
    tolerance = 0 if model.latent.code_values is not None else 0.01
    return float((np.abs(found - expected) <= tolerance).mean())


def _interpreter_class() -> type:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            f"LiteRT files are run before they are kept, which needs ai-edge-litert ({error}): "
            "pip install ai-edge-litert."
        ) from None
    return Interpreter


def _convert(model: DiscreteVAE, graphs: dict, quantize: str | None, calibration: np.ndarray | None) -> bytes:
    with tempfile.TemporaryDirectory() as folder, _quiet():
        write(model, graphs, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(graphs))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            if quantize is None:
                return converter.convert()
            if quantize == "float16":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.target_spec.supported_types = [tf.float16]
                return converter.convert()
            graph = _analysis(converter.convert())
            floating = _operations(graph) - _INTEGER_OPS
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: (
                (name, feed) for name, feed in _calibration_feeds(model, calibration) if name in graphs
            )
            # The debugger is the public way to keep some operations in floating point.
            options = tf.lite.experimental.QuantizationDebugOptions(
                denylisted_ops=sorted(floating), denylisted_nodes=_nodes_of_eta(model, graph)
            )
            debugger = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_options=options)
            return debugger.get_nondebug_quantized_model()
        except _private_apis.converter_error() as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"LiteRT's built-in operations cannot express this model: {reason}") from None


def _analysis(content: bytes) -> str:
    """The operations and tensors of a LiteRT file, in all signatures, as text."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        tf.lite.experimental.Analyzer.analyze(model_content=content)
    return text.getvalue()


def _operations(analysis: str) -> set[str]:
    return set(re.findall(r"^ *Op#\d+ (\w+)\(", analysis, re.MULTILINE))


def _nodes_of_eta(model: DiscreteVAE, analysis: str) -> list[str]:
    """The names of the operations of the encoder's last layer, if that is Dense: those with its kernel's shape."""
    layer = model.encoder.layers[-1]
    if not isinstance(layer, keras.layers.Dense):
        return []
    kernel = ", ".join(map(str, reversed(layer.kernel.shape)))
    tensors = re.findall(r"^ *(T#\w+)\((.*?)\) shape\w*:\[(.*?)\]", analysis, re.MULTILINE)
    names = {number: name for number, name, _ in tensors}
    kernels = {number for number, _, shape in tensors if shape == kernel}
    products = re.findall(r"FULLY_CONNECTED\(T#\w+, (T#\w+), T#-?\w+\) -> \[(T#\w+)\]", analysis)
    return [names[output] for weights, output in products if weights in kernels]


def _calibration_feeds(model: DiscreteVAE, images: np.ndarray) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Inputs for every signature. The codes to decode are those of the images, and samples of the prior."""
    rng = np.random.default_rng(0)
    for i in range(0, len(images), _CALIBRATION_BATCH):
        batch = images[i : i + _CALIBRATION_BATCH]
        noise = rng.uniform(1e-6, 1 - 1e-6, (len(batch), model.latent.units)).astype(np.float32)
        prior = model.latent.stored(model.prior.sample(len(batch), seed=tf.constant([0, i])))
        yield "encode", {"images": batch}
        for stored in (model.encode(batch), prior):
            yield "decode", dict(zip(("codes", "features"), map(np.asarray, parts_of(stored)), strict=False))
        yield "reconstruct", {"images": batch}
        yield "generate", {"noise": noise}
        yield "score", {"images": batch, "noise": noise}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TensorFlow's advice to run files with LiteRT's interpreter, which we do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated.*")
        yield
