"""Encodes and decodes images with an exported LiteRT file, as a phone does: LiteRT and NumPy are all it needs.

    pip install ai-edge-litert numpy
    python examples/litert_encode.py digits.tflite images.f32 decoded.f32

images.f32 holds (n, H, W, C) float32 numbers in [0, 1], as NumPy's images.tofile(path) writes them. Prints the code of
each image on a line of its own; writes the images decoded from the codes to decoded.f32, in the same form.
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main(model_path, images_path, decoded_path):
    try:
        model = Interpreter(model_path)
    except ValueError as error:
        sys.exit(f"litert_encode.py: {model_path} cannot be loaded: {' '.join(str(error).split())}")
    encode = model.get_signature_runner("encode")
    shape = encode.get_input_details()["images"]["shape"][1:]
    try:
        images = np.fromfile(images_path, np.float32).reshape(-1, *shape)
    except (OSError, ValueError) as error:
        sys.exit(f"litert_encode.py: {images_path} cannot be read as images of {tuple(map(int, shape))}: {error}")
    codes = encode(images=images)["codes"]
    for code in codes:
        print(*code)
    model.get_signature_runner("decode")(codes=codes)["images"].tofile(decoded_path)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: litert_encode.py FILE.tflite IMAGES DECODED")
    main(*sys.argv[1:])
