"""What TensorFlow Serving takes beside a SavedModel: warm-up requests, and the configuration of a folder of models.

The messages are those of the package tensorflow-serving-api, which is needed only here.
"""

from __future__ import annotations

import base64
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow as tf

from tf_isvae import files
from tf_isvae.export.versions import is_version

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
# A server with batching refuses to load a model with a warm-up request above its max_batch_size.
WARMUP_BATCHES = (1, 8, 64)

# A PNG of one pixel.
_BLACK_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVQImWNgAAAAAgAB9HFkpgAAAABJRU5ErkJggg=="
)

# BatchingParameters, as text. Requests of more than max_batch_size rows are refused; those of more than
# max_execution_batch_size are run in parts. A request waits for others for at most a millisecond.
BATCHING = """\
max_batch_size { value: 4096 }
enable_large_batch_splitting { value: true }
max_execution_batch_size { value: 1024 }
batch_timeout_micros { value: 1000 }
max_enqueued_batches { value: 100 }
"""


def available() -> bool:
    """True if tensorflow-serving-api is installed."""
    return importlib.util.find_spec("tensorflow_serving") is not None


def require(what: str) -> None:
    """Raises ModuleNotFoundError, which says what needs it, if tensorflow-serving-api is not installed."""
    if not available():
        raise ModuleNotFoundError(
            f"{what} need tensorflow-serving-api, which is not installed: pip install tensorflow-serving-api."
        )


def write_warmup(version: str | os.PathLike, name: str, batches: Sequence[int] = WARMUP_BATCHES) -> None:
    """Writes warm-up requests into a SavedModel: one for each signature and batch size.

    A server answers them before it takes the model into service, so that no client waits for the first run. It refuses
    a model of which a request fails: each is read back and run here first, and if one fails, nothing is written.

    Args:
        version: the directory of the SavedModel.
        name: the name under which it will be served.
        batches: numbers of images.

    Raises:
        ModuleNotFoundError: tensorflow-serving-api is not installed.
        OSError: `version` is not a SavedModel, or the requests cannot be written.
        RuntimeError: a request fails.
    """
    require("warm-up requests")
    version = Path(version)
    signatures = tf.saved_model.load(str(version)).signatures
    path = version / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with files.atomic_write(path) as temporary:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for log in _requests(signatures, name, batches):
                writer.write(log.SerializeToString())
        _run(temporary, signatures)


def _requests(signatures, name: str, batches: Sequence[int]) -> Iterator:
    from tensorflow_serving.apis import prediction_log_pb2

    for signature_name, signature in signatures.items():
        for batch in batches:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = name
            request.model_spec.signature_name = signature_name
            for alias, spec in signature.structured_input_signature[1].items():
                # A message that holds one value and the shape: black images, code 0, seed 0.
                value = {tf.string: _BLACK_PIXEL, tf.bool: False}.get(spec.dtype, 0)
                request.inputs[alias].CopyFrom(tf.make_tensor_proto(value, spec.dtype, (batch, *spec.shape[1:])))
            yield log


def _run(path: Path, signatures) -> None:
    """Runs the requests in a warm-up file. Raises RuntimeError if one fails."""
    from tensorflow_serving.apis import prediction_log_pb2

    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {alias: tf.constant(tf.make_ndarray(tensor)) for alias, tensor in request.inputs.items()}
        try:
            signatures[request.model_spec.signature_name](**inputs)
        except Exception as error:
            shapes = ", ".join(f"{alias} {tuple(value.shape)}" for alias, value in inputs.items())
            raise RuntimeError(
                f"the warm-up request for {request.model_spec.signature_name} with {shapes} fails, and no server "
                f"would load the model: {' '.join(str(error).split())}"
            ) from error


def serving_config(folder: str | os.PathLike, base_path: str = "/models") -> Path:
    """Writes TensorFlow Serving's `models.config` and `batching.config` for the models in a folder.

    Args:
        folder: <folder>/<name>/<version>/saved_model.pb is served as <name>.
        base_path: where the server sees the folder; the default is that of the `docker run` line in docs/serving.md.

    Returns:
        The path of models.config.

    Raises:
        ModuleNotFoundError: tensorflow-serving-api is not installed.
        ValueError: there is no model in the folder, or `base_path` is relative.
        OSError: the folder cannot be read or written.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(8, 8, 1), latent_dim=4)
        >>> path = export.saved_model(model, "exported/digits")
        >>> print(export.serving_config("exported").read_text())
        model_config_list {
          config {
            name: "digits"
            base_path: "/models/digits"
            model_platform: "tensorflow"
          }
        }
    """
    require("models.config and batching.config")
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    folder = Path(folder)
    if not str(base_path).startswith("/") and "://" not in str(base_path):
        raise ValueError(f"base_path is {base_path!r}; it must be an absolute path, such as '/models'.")
    names = sorted({path.parent.parent.name for path in folder.glob("*/*/saved_model.pb") if is_version(path.parent)})
    if not names:
        raise ValueError(f"{folder} holds no models: export some as {folder}/<name>; each is served as <name>.")
    config = model_server_config_pb2.ModelServerConfig()
    for name in names:
        config.model_config_list.config.add(
            name=name, base_path=f"{str(base_path).rstrip('/')}/{name}", model_platform="tensorflow"
        )
    path = folder / "models.config"
    for file, text in ((folder / "batching.config", BATCHING), (path, text_format.MessageToString(config))):
        with files.atomic_write(file) as temporary:
            temporary.write_text(text)
    return path
