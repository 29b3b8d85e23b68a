"""export.serving, examples/ and docs/serving.md, against a stand-in for TensorFlow Serving.

The stand-in starts from models.config, as the server does; takes the highest version of each model; looks the aliases
of a request up in the SignatureDefs, as tensorflow_serving/servables/tensorflow/predict_util.cc does; and runs the
tensors that they name in a session. Its REST side follows the text of TensorFlow Serving's API (api_rest.md).
"""

import base64
import http.server
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from concurrent import futures
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from helpers import ROOT

from tf_isvae import BernoulliLatent, CategoricalLatent, DiscreteVAE, GaussianLatent, export, networks, priors
from tf_isvae.export import serving

pytest.importorskip("tensorflow_serving", reason="needs tensorflow-serving-api")
pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")
import grpc
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

PAGE = (ROOT / "docs" / "serving.md").read_text()
SIGNATURES = ["decode", "encode", "encode_png", "generate", "reconstruct", "score", "serve", "serving_default"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


# --- The stand-in.


class Refused(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Servable:
    """One version of one model, in a session."""

    def __init__(self, base_path):
        self.path = base_path / str(max(int(path.name) for path in base_path.iterdir() if path.name.isdecimal()))
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        saved = saved_model_pb2.SavedModel.FromString((self.path / "saved_model.pb").read_bytes())
        self.signatures = saved.meta_graphs[0].signature_def
        inputs = [info for signature in self.signatures.values() for info in signature.inputs.values()]
        with self.session.graph.as_default():
            # As in the C++ session, which feeds a tensor of any shape.
            self.fed = {info.name: tf.compat.v1.placeholder(info.dtype) for info in inputs}
            tf.compat.v1.saved_model.load(self.session, ["serve"], str(self.path), input_map=self.fed)

    def signature(self, name):
        name = name or "serving_default"
        if name not in self.signatures:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        return self.signatures[name]

    def predict(self, request):
        signature = self.signature(request.model_spec.signature_name)
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        if set(request.inputs) != set(signature.inputs):
            raise Refused(invalid, f"inputs are {sorted(request.inputs)}; required: {sorted(signature.inputs)}")
        outputs = list(request.output_filter) or list(signature.outputs)
        if not set(outputs) <= set(signature.outputs):
            raise Refused(invalid, f"output tensor alias not found in signature: {outputs}")
        feeds = {
            self.fed[signature.inputs[alias].name]: tf.make_ndarray(value) for alias, value in request.inputs.items()
        }
        for alias, value in request.inputs.items():
            if value.dtype != signature.inputs[alias].dtype:
                raise Refused(invalid, f"{alias} has the wrong type")
        try:
            results = self.session.run([signature.outputs[alias].name for alias in outputs], feeds)
        except (ValueError, tf.errors.OpError) as error:
            raise Refused(invalid, str(error)) from error
        response = predict_pb2.PredictResponse()
        for alias, value in zip(outputs, results, strict=True):
            response.outputs[alias].CopyFrom(tf.make_tensor_proto(value))
        return response


class Server(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Serves the models of a models.config whose base paths lie in /models, which is `folder` here."""

    def __init__(self, folder):
        config = text_format.Parse((folder / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
        self.models = {}
        for model in config.model_config_list.config:
            assert model.base_path.startswith("/models/") and model.model_platform == "tensorflow"
            self.models[model.name] = Servable(folder / model.base_path.removeprefix("/models/"))
        self.grpc = grpc.server(futures.ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", -1)])
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, self.grpc)
        self.grpc_port = self.grpc.add_insecure_port("localhost:0")
        self.rest = http.server.ThreadingHTTPServer(("localhost", 0), Rest)
        self.rest.server = self
        self.rest_port = self.rest.server_address[1]

    def __enter__(self):
        self.grpc.start()
        threading.Thread(target=self.rest.serve_forever).start()
        return self

    def __exit__(self, *_):
        self.grpc.stop(None)
        self.rest.shutdown()
        self.rest.server_close()

    def predict(self, request):
        name = request.model_spec.name
        if name not in self.models:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name})")
        return self.models[name].predict(request)

    def Predict(self, request, context):
        try:
            return self.predict(request)
        except Refused as refused:
            context.abort(refused.code, str(refused))


class Rest(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        try:
            path = re.fullmatch(r"/v1/models/([^/:]+):predict", self.path)
            if not path:
                raise Refused(grpc.StatusCode.NOT_FOUND, f"Malformed request: POST {self.path}")
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = 200, self.predict(path[1], body)
        except Refused as refused:
            status, answer = (404 if refused.code == grpc.StatusCode.NOT_FOUND else 400), {"error": str(refused)}
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def predict(self, name, body):
        server = self.server.server
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        if name not in server.models:
            server.predict(request)
        request.model_spec.signature_name = body.get("signature_name", "")
        inputs = server.models[name].signature(request.model_spec.signature_name).inputs
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        if ("instances" in body) == ("inputs" in body):
            raise Refused(invalid, "give either instances or inputs")
        values = body.get("inputs")
        if "instances" in body:
            rows = body["instances"]
            values = rows
            if all(isinstance(row, dict) for row in rows):
                if any(set(row) != set(inputs) for row in rows):
                    raise Refused(invalid, f"each instance must have {sorted(inputs)}")
                values = {alias: [row[alias] for row in rows] for alias in inputs}
        if not isinstance(values, dict):
            if len(inputs) != 1:
                raise Refused(invalid, f"name the inputs: {sorted(inputs)}")
            values = {alias: values for alias in inputs}
        for alias, value in values.items():
            dtype = tf.as_dtype(inputs[alias].dtype) if alias in inputs else tf.float32
            try:
                value = np.array(decoded(value))
            except ValueError as error:
                raise Refused(invalid, f"{alias}: lists of different lengths") from error
            kinds = {tf.string: "S", tf.bool: "b"}.get(dtype, "if" if dtype.is_floating else "i")
            if value.dtype.kind not in kinds:
                raise Refused(invalid, f"{alias} is not of expected type: {dtype.name}")
            if dtype != tf.string:
                value = value.astype(dtype.as_numpy_dtype)
            request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
        outputs = {alias: as_json(tf.make_ndarray(v)) for alias, v in server.predict(request).outputs.items()}
        by_column = "inputs" in body
        if len(outputs) == 1:  # the name is dropped
            return {"outputs" if by_column else "predictions": next(iter(outputs.values()))}
        if by_column:
            return {"outputs": outputs}
        return {"predictions": [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]}


def decoded(value):
    """JSON values, in which {"b64": text} stands for bytes."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return base64.b64decode(value["b64"], validate=True) if isinstance(value, dict) else value


def as_json(array):
    """Nested lists of the shortest decimal numbers that give the same float32."""
    if array.dtype.kind == "f":
        array = np.array([float(str(number)) for number in array.ravel()]).reshape(array.shape)
    return array.tolist()


# --- What is served: the model of docs/serving.md, and small ones with other latents and image shapes.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory as docs/serving.md leaves it after its Python block, with examples/ in it."""
    place = tmp_path_factory.mktemp("serving")
    (place / "examples").symlink_to(ROOT / "examples")
    return place


def small(latent, image_shape):
    return DiscreteVAE(
        networks.dense_encoder(image_shape, latent.encoder_units, hidden=(5,)),
        latent,
        networks.dense_decoder(latent.units, image_shape, hidden=(5,)),
    )


@pytest.fixture(scope="module")
def models(place):
    """name -> model; each is exported in place/exported_models."""
    (python,) = blocks("python")
    before = Path.cwd()
    os.chdir(place)
    try:
        keras.utils.set_random_seed(0)
        names = {"__name__": "__main__"}
        exec(compile(python, "docs/serving.md", "exec"), names)
        models = {
            "bits": small(BernoulliLatent(4), (2, 2, 1)),
            "colours": small(CategoricalLatent(5, variables=3), (6, 5, 3)),
            "real": small(GaussianLatent(2), (3, 2, 1)),
        }
        for name, model in models.items():
            export.saved_model(model, Path("exported_models", name), warmup=True)
        export.serving_config("exported_models")
    finally:
        os.chdir(before)
    return {"digits": names["model"], **models}


@pytest.fixture(scope="module")
def server(place, models):
    with Server(place / "exported_models") as server:
        yield server


def images_for(model, n=5):
    return np.random.default_rng(n).random((n, *model.image_shape), np.float32)


NAMES = ["digits", "bits", "colours", "real"]


# --- The files.


@pytest.mark.all
def test_models_config(place, models, server):
    """As the server parses it; `server` has found each model's version by it."""
    config = text_format.Parse(
        (place / "exported_models" / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    found = {model.name: model.base_path for model in config.model_config_list.config}
    assert found == {name: f"/models/{name}" for name in NAMES}
    assert {name: servable.path.name for name, servable in server.models.items()} == dict.fromkeys(NAMES, "1")


def test_the_page_shows_the_files(tmp_path):
    (shown,) = blocks("textproto")
    (tmp_path / "digits" / "3").mkdir(parents=True)
    (tmp_path / "digits" / "3" / "saved_model.pb").touch()
    assert export.serving_config(tmp_path).read_text() == shown


def test_what_is_no_model_is_left_out(tmp_path):
    for name in ("digits/1", "digits/2", "half/unfinished-0123", "half/x", "odd names/7"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "saved_model.pb").touch()
    (tmp_path / "empty" / "1").mkdir(parents=True)
    (tmp_path / "models.config").write_text("the old one")
    path = export.serving_config(tmp_path, base_path="gs://bucket/models/")
    config = text_format.Parse(path.read_text(), model_server_config_pb2.ModelServerConfig())
    found = [(model.name, model.base_path) for model in config.model_config_list.config]
    assert found == [("digits", "gs://bucket/models/digits"), ("odd names", "gs://bucket/models/odd names")]


def test_a_folder_without_models(tmp_path):
    with pytest.raises(ValueError, match="holds no models: export some"):
        export.serving_config(tmp_path)
    with pytest.raises(ValueError, match="base_path is 'models'; .* absolute"):
        export.serving_config(tmp_path, base_path="models")
    assert list(tmp_path.iterdir()) == []


def batching_parameters():
    """The message BatchingParameters, after TensorFlow Serving's session_bundle_config.proto: no package has it."""
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto", package="test", syntax="proto3", dependency=["google/protobuf/wrappers.proto"]
    )
    message = file.message_type.add(name="BatchingParameters")
    kinds = {1: "Int64", 2: "Int64", 3: "Int64", 4: "Int64", 8: "Bool", 9: "Int64"}
    names = "max_batch_size batch_timeout_micros max_enqueued_batches num_batch_threads"
    names = [*names.split(), "enable_large_batch_splitting", "max_execution_batch_size"]
    for (number, kind), name in zip(kinds.items(), names, strict=True):
        message.field.add(name=name, number=number, label=1, type=11, type_name=f".google.protobuf.{kind}Value")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.BatchingParameters"))


def test_batching_config(place, models):
    text = (place / "exported_models" / "batching.config").read_text()
    parameters = text_format.Parse(text, batching_parameters()())
    # What the server demands of them, and of warm-up requests.
    assert parameters.enable_large_batch_splitting.value
    assert max(serving.WARMUP_BATCHES) <= parameters.max_execution_batch_size.value <= parameters.max_batch_size.value
    for number in (parameters.max_batch_size.value, parameters.max_execution_batch_size.value):
        assert f"{number:,}" in PAGE


# --- Warm-up requests.


@pytest.mark.all
@pytest.mark.parametrize("name", NAMES)
def test_warm_up_requests_run(server, name):
    servable = server.models[name]
    seen = []
    path = servable.path / "assets.extra" / "tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == name
        (n,) = {tensor.tensor_shape.dim[0].size for tensor in request.inputs.values()}
        outputs = {alias: tf.make_ndarray(value) for alias, value in servable.predict(request).outputs.items()}
        assert {len(value) for value in outputs.values()} == {n}
        assert all(np.isfinite(value).all() for value in outputs.values())
        seen.append((request.model_spec.signature_name, n))
    assert sorted(seen) == [(signature, n) for signature in SIGNATURES for n in (1, 8, 64)]
    assert path.stat().st_size < 10_000  # a number and a shape each, not the numbers


@keras.saving.register_keras_serializable("test_serving")
class AtMostEight(keras.layers.Layer):
    def call(self, x):
        tf.debugging.assert_less_equal(tf.shape(x)[0], 8, "more than eight rows")
        return x


@pytest.mark.all
def test_a_model_that_fails_its_warm_up_is_not_written(tmp_path):
    latent = BernoulliLatent(3)
    encoder = keras.Sequential([networks.dense_encoder((2, 2, 1), 3, hidden=(4,)), AtMostEight()])
    encoder.build((None, 2, 2, 1))
    model = DiscreteVAE(encoder, latent, networks.dense_decoder(3, (2, 2, 1), hidden=(4,)))
    with pytest.raises(RuntimeError, match=r"warm-up request for encode with images \(64, 2, 2, 1\) fails.*eight rows"):
        export.saved_model(model, tmp_path / "eight", warmup=True)
    assert list((tmp_path / "eight").iterdir()) == []
    path = export.saved_model(model, tmp_path / "eight", warmup=False)
    assert not (path / "assets.extra").exists()
    serving.write_warmup(path, "eight", batches=(1, 8))  # afterwards, with what it can bear
    before = (path / "assets.extra" / "tf_serving_warmup_requests").read_bytes()
    with pytest.raises(RuntimeError):
        serving.write_warmup(path, "eight")
    (file,) = (path / "assets.extra").iterdir()
    assert file.read_bytes() == before


def test_without_the_extra(tmp_path, models, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    with pytest.raises(ModuleNotFoundError, match=r"^warm-up requests need .* pip install tensorflow-serving-api\.$"):
        export.saved_model(models["bits"], tmp_path / "bits", warmup=True)
    with pytest.raises(ModuleNotFoundError, match=r"models.config .* pip install tensorflow-serving-api\.$"):
        export.serving_config(tmp_path)
    assert list(tmp_path.iterdir()) == []
    path = export.saved_model(models["bits"], tmp_path / "bits")
    assert (path / "saved_model.pb").exists() and not (path / "assets.extra").exists()


# --- Signatures.


def table(name, model):
    """The table of docs/serving.md for one model: {(signature, side, alias): (dtype, shape)}."""
    logits, codes = {"digits": (50, 50), "bits": (4, 4), "colours": (15, 3), "real": (4, 2)}[name]
    images = {"images": ("DT_FLOAT", (-1, *model.image_shape))}
    codes = {"codes": ("DT_FLOAT" if name == "real" else "DT_INT32", (-1, codes))}
    encoded = {**codes, "logits": ("DT_FLOAT", (-1, logits))}
    seed = {"seed": ("DT_INT32", (-1, 2))}
    score = {alias: ("DT_FLOAT", (-1,)) for alias in ("elbo", "log_likelihood", "kl")}
    signatures = {
        "encode": (images, encoded),
        "serving_default": (images, encoded),
        "serve": (images, encoded),
        "encode_png": ({"image_bytes": ("DT_STRING", (-1,)), "invert": ("DT_BOOL", (-1,))}, encoded),
        "decode": (codes, {**images, "logits": images["images"]}),
        "reconstruct": (images, {**images, **codes}),
        "generate": (seed, {**images, **codes}),
        "score": ({**images, **seed}, score),
    }
    return {
        (signature, side, alias): info
        for signature, sides in signatures.items()
        for side, infos in zip(("inputs", "outputs"), sides, strict=True)
        for alias, info in infos.items()
    }


@pytest.mark.all
@pytest.mark.parametrize("name", NAMES)
def test_signatures(server, models, name):
    found = {
        (key, side, alias): (
            tf.as_dtype(info.dtype).name,
            tuple(dim.size for dim in info.tensor_shape.dim),
        )
        for key, signature in server.models[name].signatures.items()
        if not key.startswith("__")  # TensorFlow's own
        for side in ("inputs", "outputs")
        for alias, info in getattr(signature, side).items()
    }
    names = {"DT_FLOAT": "float32", "DT_INT32": "int32", "DT_STRING": "string", "DT_BOOL": "bool"}
    assert found == {key: (names[dtype], shape) for key, (dtype, shape) in table(name, models[name]).items()}


@pytest.mark.all
def test_saved_model_cli(models, shell):
    """The command on the page, and what it prints."""
    *_, show, _ = blocks("sh")
    done = shell(show)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.split("Concrete Functions:")[0]
    assert re.findall(r"tag-set: '(.*)' contains", shown) == ["serve"]
    parts = re.split(r"signature_def\['(\w+)'\]:", shown)[1:]
    pattern = r"(inputs|outputs)\['(\w+)'\] tensor_info:\s+dtype: (\w+)\s+shape: \((.*?)\)\s+name: \S+:\d"
    found = {
        (signature, side, alias): (dtype, tuple(int(size) for size in shape.split(",") if size))
        for signature, text in zip(parts[::2], parts[1::2], strict=True)
        for side, alias, dtype, shape in re.findall(pattern, text)
        if not signature.startswith("__")
    }
    assert found == table("digits", models["digits"])


# --- PredictRequest messages over gRPC.


@pytest.fixture(scope="module")
def predict(server):
    with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def call(model, signature, outputs=(), **inputs):
            request = predict_pb2.PredictRequest(output_filter=outputs)
            request.model_spec.name = model
            request.model_spec.signature_name = signature
            for alias, value in inputs.items():
                request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
            return {alias: tf.make_ndarray(value) for alias, value in stub.Predict(request).outputs.items()}

        yield call


@pytest.mark.all
@pytest.mark.parametrize("name", NAMES)
def test_predict_requests(models, predict, name):
    model = models[name]
    images = images_for(model)
    codes = model.encode(images)
    for signature in ("encode", "", "serving_default"):
        encoded = predict(name, signature, images=images)
        assert encoded["codes"].dtype == codes.dtype
        np.testing.assert_allclose(encoded["codes"], codes, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(encoded["logits"], model.encoder(images), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(predict(name, "decode", codes=codes)["images"], model.decode(codes), atol=1e-6)
    reconstructed = predict(name, "reconstruct", images=images)
    np.testing.assert_allclose(reconstructed["images"], model.predict(images, verbose=0), atol=1e-6)
    np.testing.assert_allclose(reconstructed["codes"], codes, rtol=1e-5, atol=1e-6)
    seed = np.array([[1, 2], [3, 4], [1, 2], [-5, 0], [0, 0]], np.int32)
    generated = predict(name, "generate", seed=seed)
    np.testing.assert_allclose(generated["images"], model.decode(generated["codes"]), atol=1e-6)
    score = predict(name, "score", images=images, seed=seed)
    kl = model.latent.kl(model.latent.posterior(model.encoder(images)))
    np.testing.assert_allclose(score["kl"], kl, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(score["elbo"], score["log_likelihood"] - score["kl"], rtol=1e-5, atol=1e-4)


@pytest.mark.all
def test_an_output_filter(models, predict):
    images = images_for(models["bits"])
    assert list(predict("bits", "encode", outputs=["codes"], images=images)) == ["codes"]


@pytest.mark.all
@pytest.mark.parametrize(
    "model, signature, inputs, code",
    [
        ("missing", "encode", {"images": np.zeros((1, 2, 2, 1), np.float32)}, "NOT_FOUND"),
        ("bits", "enc", {"images": np.zeros((1, 2, 2, 1), np.float32)}, "FAILED_PRECONDITION"),
        ("bits", "encode", {"x": np.zeros((1, 2, 2, 1), np.float32)}, "INVALID_ARGUMENT"),
        ("bits", "encode", {"images": np.zeros((1, 2, 2, 1), np.int32)}, "INVALID_ARGUMENT"),
        ("bits", "encode", {"images": np.zeros((1, 3, 2, 1), np.float32)}, "INVALID_ARGUMENT"),
        ("bits", "score", {"images": np.zeros((1, 2, 2, 1), np.float32)}, "INVALID_ARGUMENT"),
        ("bits", "decode", {"codes": np.zeros((1, 5), np.int32)}, "INVALID_ARGUMENT"),
    ],
)
def test_requests_that_do_not_fit(predict, model, signature, inputs, code):
    with pytest.raises(grpc.RpcError) as error:
        predict(model, signature, **inputs)
    assert error.value.code().name == code


# --- The examples, as docs/serving.md runs them.


@pytest.fixture(scope="module")
def example(place):
    """Runs an example in this process, in `place`; returns (exit status or message, standard output)."""

    def run(capsys, name, *arguments):
        script = ROOT / "examples" / name
        before, argv = Path.cwd(), sys.argv
        os.chdir(place)
        sys.argv = [str(script), *map(str, arguments)]
        capsys.readouterr()
        try:
            runpy.run_path(str(script), run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            os.chdir(before)
            sys.argv = argv
        return status, capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def shell(place, server):
    """Runs a block of docs/serving.md as printed, but for the ports of the server."""
    bin = place / "bin"
    bin.mkdir()
    if shutil.which("ld.gold"):  # links with the tensorflow wheel's libraries several times as fast as the default
        (bin / "ld").symlink_to(shutil.which("ld.gold"))
    environment = {**os.environ, "COMPILER_PATH": str(bin), "CUDA_VISIBLE_DEVICES": ""}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def run(block):
        block = block.replace("localhost:8501", f"localhost:{server.rest_port}")
        block = block.replace("localhost:8500", f"localhost:{server.grpc_port}")
        return subprocess.run(
            ["bash", "-e", "-c", block], cwd=place, env=environment, capture_output=True, text=True, timeout=100
        )

    return run


def printed(codes):
    return "".join(" ".join(map(str, code)) + "\n" for code in codes)


@pytest.fixture(scope="module")
def clients_ran(models, shell):
    clients, *_ = blocks("sh")
    done = shell(clients)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.all
@pytest.mark.parametrize("client", ["rest", "grpc"])
def test_the_clients(place, models, clients_ran, client):
    assert clients_ran.stdout == ""
    images = np.fromfile(place / "images.f32", np.float32).reshape(16, 28, 28, 1)
    codes = models["digits"].encode(images)
    assert len(np.unique(codes, axis=0)) > 1  # the comparison means something
    assert (place / f"{client}.txt").read_text() == printed(codes)
    decoded = np.fromfile(place / f"{client}.f32", np.float32).reshape(images.shape)
    np.testing.assert_allclose(decoded, models["digits"].decode(codes), atol=1e-6)


@pytest.fixture(scope="module")
def c_program(place, models, clients_ran, shell):
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed: the C program cannot be built")
    _, _, build, *_ = blocks("sh")
    done = shell(build)  # ends with the comparison of its codes with those of the clients
    assert done.returncode == 0, done.stderr + done.stdout
    return place / "encode"


@pytest.mark.all
def test_the_c_program(place, models, c_program):
    images = np.fromfile(place / "images.f32", np.float32).reshape(16, 28, 28, 1)
    codes = models["digits"].encode(images)
    assert (place / "c.txt").read_text() == printed(codes)
    decoded = np.fromfile(place / "c.f32", np.float32).reshape(images.shape)
    np.testing.assert_allclose(decoded, models["digits"].decode(codes), atol=1e-6)


@pytest.mark.all
@pytest.mark.parametrize("name", ["colours", "real"])
def test_the_c_program_with_other_latents(place, models, c_program, tmp_path, name):
    images = images_for(models[name], 7)
    images.tofile(tmp_path / "images")
    version = place / "exported_models" / name / "1"
    done = subprocess.run(
        [c_program, version, tmp_path / "images", tmp_path / "decoded"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    codes = models[name].encode(images)
    np.testing.assert_allclose(np.loadtxt(done.stdout.splitlines(), ndmin=2), codes, rtol=1e-5, atol=1e-6)
    decoded = np.fromfile(tmp_path / "decoded", np.float32).reshape(images.shape)
    np.testing.assert_allclose(decoded, models[name].decode(codes), atol=1e-6)


@pytest.mark.all
@pytest.mark.parametrize(
    "model, images, words",
    [
        ("exported_models/digits", "images.f32", "encode: exported_models/digits: Could not find SavedModel"),
        ("exported_models/digits/1", "none.f32", "encode: none.f32: cannot be read"),
        ("exported_models/digits/1", "examples/encode.c", "28x28x1 images of float32, 3136 bytes each"),
        ("exported_models/digits/1", "bytes.f32", "images have values from 0 to 255; they must be in [0, 1]"),
    ],
)
def test_what_the_c_program_refuses(place, c_program, model, images, words):
    (np.arange(2 * 784, dtype=np.float32) % 256).tofile(place / "bytes.f32")
    done = subprocess.run([c_program, model, images], cwd=place, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert words in done.stderr


@pytest.mark.all
def test_the_c_program_that_generates(place, c_program, tmp_path):
    """The codes and images of the signature `generate` in Python, with the same seeds; also of a prior that learns."""
    latent = BernoulliLatent(4)
    prior = priors.Autoregressive((5,)).build_for(latent)
    for weight in prior.weights:
        weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    parts = (networks.dense_encoder((4, 4, 1), 4), latent, networks.dense_decoder(4, (4, 4, 1)))
    learned = export.saved_model(DiscreteVAE(*parts, prior=prior), tmp_path / "learned")
    program = place / "generate"
    for version, seed in ((place / "exported_models" / "digits" / "1", 0), (learned, 7)):
        done = subprocess.run(
            [program, version, "8", str(seed), tmp_path / "images"], capture_output=True, text=True, cwd=place
        )
        assert done.returncode == 0, done.stderr
        seeds = np.array([(seed, i) for i in range(8)], np.int32)
        expected = tf.saved_model.load(str(version)).signatures["generate"](seed=tf.constant(seeds))
        assert done.stdout == printed(expected["codes"].numpy()) and len(set(done.stdout.splitlines())) > 1
        images = np.fromfile(tmp_path / "images", np.float32).reshape(expected["images"].shape)
        np.testing.assert_allclose(images, expected["images"], atol=1e-6)
        if seed == 0:  # as the page runs it
            assert (place / "samples.txt").read_text() == done.stdout
    for n, seed, words in (("0", "0", "N is 0; it must be an integer from 1"), ("1", "x", "SEED is x")):
        done = subprocess.run([program, version, n, seed], capture_output=True, text=True)
        assert done.returncode == 2 and words in done.stderr and done.stdout == ""


def test_the_litert_example(place, models, example, capsys, tmp_path):
    *_, command = blocks("sh")
    arguments, output = re.fullmatch(r"python examples/litert_encode.py (.*) > (.*)\n", command).groups()
    status, printed_codes = example(capsys, "litert_encode.py", *arguments.split())
    assert status == 0 and output == "lite.txt"
    images = np.fromfile(place / "images.f32", np.float32).reshape(16, 28, 28, 1)
    codes = models["digits"].encode(images)
    assert printed_codes == printed(codes)
    decoded = np.fromfile(place / "lite.f32", np.float32).reshape(images.shape)
    np.testing.assert_allclose(decoded, models["digits"].decode(codes), atol=1e-5)
    for file, images, words in (
        ("images.f32", "images.f32", "images.f32 cannot be loaded"),
        (arguments.split()[0], "examples/encode.c", "cannot be read as images of (28, 28, 1)"),
        (arguments.split()[0], "none.f32", "none.f32 cannot be read"),
    ):
        message, out = example(capsys, "litert_encode.py", file, images, "refused.f32")
        assert out == "" and "\n" not in message and words in message
    assert not (place / "refused.f32").exists()


@pytest.mark.all
def test_an_image_in_one_line_of_curl(place, models, server, shell):
    """The command on the page: the codes of the file that its Python block wrote."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    _, curl, *_ = blocks("sh")
    assert curl.count("\n") == 1
    done = shell(curl)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["predictions"]
    image = np.fromfile(place / "images.f32", np.float32)[:784].reshape(1, 28, 28, 1)
    assert row["codes"] == models["digits"].encode(np.round(255 * image) / 255)[0].tolist() and len(row["logits"]) == 50
    refused = shell(curl.replace("base64 < digit.png", "echo bm8gaW1hZ2U="))
    assert "Unknown image file format" in json.loads(refused.stdout)["error"]


@pytest.mark.all
def test_rest_by_rows_and_columns(server, models):
    """The requests that docs/serving.md shows, and the other forms of the same."""
    import urllib.request

    def ask(request):
        url = f"http://localhost:{server.rest_port}/v1/models/bits:predict"
        with urllib.request.urlopen(url, json.dumps(request).encode()) as answer:
            return json.load(answer)

    (shown,) = blocks("json")
    rows, columns = (json.loads(line) for line in shown.splitlines())
    image = rows["instances"][0]["images"]
    expected = models["bits"].encode(np.array([image]))[0].tolist()
    (row,) = ask(rows)["predictions"]
    assert row["codes"] == expected and len(row["logits"]) == 4
    assert ask({"instances": [image]}) == ask(rows)  # the default signature; a single input needs no name
    assert ask({"inputs": [image]}) == {"outputs": {alias: [value] for alias, value in row.items()}}
    codes = columns["inputs"]["codes"]
    decoded = np.array(ask(columns)["outputs"]["images"], np.float32)
    np.testing.assert_allclose(decoded, models["bits"].decode(codes), atol=1e-6)
    scored = ask({"signature_name": "score", "instances": [{"images": image, "seed": [1, 2]}] * 3})["predictions"]
    assert scored[1] == pytest.approx(scored[0], rel=1e-5) and set(scored[0]) == {"elbo", "log_likelihood", "kl"}


@pytest.mark.all
@pytest.mark.parametrize(
    "signature, instance, words",
    [
        ("encode", {"images": [[[0.0], [255.0]], [[1.0], [0.0]]]}, "images have values from 0 to 255; they must be in"),
        ("encode", {"images": [[[0.0], [0.5]]]}, "[1,1,2,1] is not compatible with expected shape [?,2,2,1]"),
        ("decode", {"codes": [0, 1, 7, 0]}, "codes have values from 0 to 7; they must be from 0 to 1"),
    ],
)
def test_bad_input_is_the_clients_error(server, signature, instance, words):
    import urllib.error
    import urllib.request

    url = f"http://localhost:{server.rest_port}/v1/models/bits:predict"
    request = json.dumps({"signature_name": signature, "instances": [instance]}).encode()
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(url, request)
    assert error.value.code == 400 and words in json.load(error.value)["error"]


CLIENTS = {"rest_client.py": "http://localhost:{}", "grpc_client.py": "localhost:{}"}


@pytest.mark.all
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "model, shape, images, words",
    [
        ("missing", "28x28x1", "images.f32", "Servable not found for request: Latest(missing)"),
        ("digits", "14x28x1", "images.f32", "{client}: "),
        ("digits", "28x28x5", "images.f32", "images.f32"),
        ("digits", "28x28x1", "none.f32", "none.f32 cannot be read"),
    ],
)
def test_what_the_clients_refuse(example, capsys, server, models, client, model, shape, images, words):
    address = CLIENTS[client].format(server.rest_port if client.startswith("rest") else server.grpc_port)
    message, output = example(capsys, client, address, model, shape, images, "refused.f32")
    assert output == "" and "\n" not in message and message.startswith(f"{client}: ")
    assert words.format(client=client) in message


@pytest.mark.parametrize("client", CLIENTS)
def test_no_server(example, capsys, place, models, client):
    with http.server.HTTPServer(("localhost", 0), Rest) as unused:
        port = unused.server_address[1]
    message, output = example(
        capsys, client, CLIENTS[client].format(port), "digits", "28x28x1", "images.f32", "refused.f32"
    )
    assert output == "" and "\n" not in message
    assert re.match(rf"{client}: .*(does not answer|UNAVAILABLE)", message)
    assert not (place / "refused.f32").exists()


@pytest.mark.parametrize("client", CLIENTS)
def test_usage(example, capsys, place, client):
    message, _ = example(capsys, client, "localhost:1")
    assert message.startswith(f"usage: {client} ")
