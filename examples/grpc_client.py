"""Encodes and decodes images with a model in TensorFlow Serving, over gRPC.

    pip install tensorflow-serving-api
    python examples/grpc_client.py localhost:8500 digits 28x28x1 images.f32 decoded.f32

images.f32 holds (n, H, W, C) float32 numbers in [0, 1], as NumPy's images.tofile(path) writes them. Prints the code of
each image on a line of its own; writes the images decoded from the codes to decoded.f32, in the same form.
"""

import sys

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def predict(stub, model, signature, **inputs):
    """The outputs of a signature for the inputs, by name, as NumPy arrays."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    try:
        response = stub.Predict(request, timeout=30)
    except grpc.RpcError as error:
        sys.exit(f"grpc_client.py: {error.code().name}: {' '.join(error.details().split())}")
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def main(server, model, shape, images_path, decoded_path):
    shape = [int(size) for size in shape.split("x")]
    try:
        images = np.fromfile(images_path, np.float32).reshape(-1, *shape)
    except (OSError, ValueError) as error:
        sys.exit(f"grpc_client.py: {images_path} cannot be read as images of {shape}: {error}")
    # Without the option, answers of more than 4 MB are refused.
    with grpc.insecure_channel(server, options=[("grpc.max_receive_message_length", -1)]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        codes = predict(stub, model, "encode", images=images)["codes"]
        for code in codes:
            print(*code)
        predict(stub, model, "decode", codes=codes)["images"].tofile(decoded_path)


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit("usage: grpc_client.py HOST:PORT MODEL HxWxC IMAGES DECODED")
    main(*sys.argv[1:])
