"""How a card's files are used: Python that runs in its folder, one block a format."""

from __future__ import annotations

import json

KERAS = """\
import numpy as np
from tf_isvae import zoo

model = zoo.load({keras})
images = np.zeros((2, {shape}), np.float32)  # your own
{codes} = model.encode(images)
pictures = model.decode({codes})
"""

LAYER = """\
import keras
import numpy as np

encode = keras.layers.TFSMLayer({version})
images = np.zeros((2, {shape}), np.float32)  # your own
codes = encode(images)["codes"]
"""

SAVED_MODEL = """\
import numpy as np
import tensorflow as tf

signatures = tf.saved_model.load({version}).signatures
images = np.zeros((2, {shape}), np.float32)  # your own
codes = signatures["encode"](images=tf.constant(images)){taken}
pictures = signatures["decode"]({given})["images"]
"""

LITERT = """\
import numpy as np
from ai_edge_litert.interpreter import Interpreter

model = Interpreter({litert})
images = np.zeros((2, {shape}), np.float32)  # your own
codes = model.get_signature_runner("encode")(images=images){taken}
pictures = model.get_signature_runner("decode")({given})["images"]
"""


def snippets(
    version: int, image_shape: list[int], keras: list[str], litert: list[str], features: bool = False
) -> list[tuple[str, str]]:
    """Pairs of a heading and Python, of the formats whose files are there; `features`: codes have features beside."""
    names = {
        "version": _literal(str(version)),
        "shape": ", ".join(map(str, image_shape)),
        "keras": _literal(next(iter(keras), "")),
        "litert": _literal(next(iter(litert), "")),
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


def _literal(text: str) -> str:
    """Python for this text, with the double quotes that formatters want."""
    return json.dumps(text, ensure_ascii=False)
