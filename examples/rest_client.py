"""Encodes and decodes images with a model in TensorFlow Serving, over REST, with Python's standard library alone.

    python examples/rest_client.py http://localhost:8501 digits 28x28x1 images.f32 decoded.f32

images.f32 holds (n, H, W, C) float32 numbers in [0, 1], as NumPy's images.tofile(path) writes them. Prints the code of
each image on a line of its own; writes the images decoded from the codes to decoded.f32, in the same form.
"""

import array
import json
import math
import sys
import urllib.error
import urllib.request


def predict(server, model, request):
    """What the model answers to a request of TensorFlow Serving's predict API."""
    url = f"{server}/v1/models/{model}:predict"
    try:
        with urllib.request.urlopen(url, json.dumps(request).encode(), timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:  # 400: a bad request; 404: no such model
        sys.exit(f"rest_client.py: {url} answers {error.code}: {' '.join(error.read().decode().split())}")
    except (OSError, ValueError) as error:
        sys.exit(f"rest_client.py: {url} does not answer as TensorFlow Serving does: {error}")


def nested(numbers, shape):
    """A flat sequence of numbers as nested lists of this shape, whose first size may be anything."""
    for size in reversed(shape[1:]):
        numbers = [list(numbers[i : i + size]) for i in range(0, len(numbers), size)]
    return numbers


def flat(value):
    return [number for item in value for number in flat(item)] if isinstance(value, list) else [value]


def main(server, model, shape, images_path, decoded_path):
    shape = [int(size) for size in shape.split("x")]
    try:
        with open(images_path, "rb") as file:
            numbers = array.array("f", file.read())
    except (OSError, ValueError) as error:
        sys.exit(f"rest_client.py: {images_path} cannot be read: {error}")
    if not numbers or len(numbers) % math.prod(shape):
        sys.exit(f"rest_client.py: {images_path} holds {len(numbers)} numbers; an image has {math.prod(shape)}")
    images = nested(numbers, [-1, *shape])

    # By rows: a list with an item for each image, in the request and in the answer.
    answer = predict(server, model, {"signature_name": "encode", "instances": [{"images": image} for image in images]})
    codes = [row["codes"] for row in answer["predictions"]]
    for code in codes:
        print(*code)

    # By columns: one tensor for each name, in the request and in the answer.
    answer = predict(server, model, {"signature_name": "decode", "inputs": {"codes": codes}})
    with open(decoded_path, "wb") as file:
        array.array("f", flat(answer["outputs"]["images"])).tofile(file)


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit("usage: rest_client.py http://HOST:PORT MODEL HxWxC IMAGES DECODED")
    main(*sys.argv[1:])
