"""How a card's files are used: Python that runs in its folder, one block a format."""

from __future__ import annotations

KERAS = """\
import numpy as np
from tf_isvae import zoo

model = zoo.load({keras!r})
images = np.zeros((2, {shape}), np.float32)  # your own
{codes} = model.encode(images)
pictures = model.decode({codes})
"""

LAYER = """\
import keras
import numpy as np

encode = keras.layers.TFSMLayer({version!r})
images = np.zeros((2, {shape}), np.float32)  # your own
codes = encode(images)["codes"]
"""

SAVED_MODEL = """\
import numpy as np
import tensorflow as tf

signatures = tf.saved_model.load({version!r}).signatures
images = np.zeros((2, {shape}), np.float32)  # your own
codes = signatures["encode"](images=tf.constant(images)){taken}
pictures = signatures["decode"]({given})["images"]
"""

LITERT = """\
import numpy as np
from ai_edge_litert.interpreter import Interpreter

model = Interpreter({litert!r})
images = np.zeros((2, {shape}), np.float32)  # your own
codes = model.get_signature_runner("encode")(images=images){taken}
pictures = model.get_signature_runner("decode")({given})["images"]
"""


def snippets(
    version: int, image_shape: list[int], keras: list[str], litert: list[str], features: bool = False
) -> list[tuple[str, str]]:
    """Pairs of a heading and Python, of the formats whose files are there; `features`: codes have features beside."""
    names = {
        "version": str(version),
        "shape": ", ".join(map(str, image_shape)),
        "keras": next(iter(keras), None),
        "litert": next(iter(litert), None),
        "codes": "codes, features" if features else "codes",
        "taken": "" if features else '["codes"]',
        "given": 'codes=codes["codes"], features=codes["features"]' if features else "codes=codes",
    }
    blocks = [
        ("SavedModel, in TensorFlow without tf_isvae", SAVED_MODEL),
        ("The same as a layer of Keras", LAYER),
        *([("Keras, with tf_isvae", KERAS)] if keras else []),
        *([("LiteRT", LITERT)] if litert else []),
    ]
    return [(heading, block.format(**names)) for heading, block in blocks]
