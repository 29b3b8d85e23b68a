"""Exports at once, and exports that are killed.

They happen in children of this process, in which TensorFlow has not started its threads yet.
"""

import os
import random
import signal
import time

from tf_isvae import BernoulliLatent, DiscreteVAE, export, networks


def begin(folder, exports):
    """Starts a child that exports a model `exports` times; gives its process number."""
    child = os.fork()
    if child:
        return child
    encoder = networks.dense_encoder((2, 2, 1), 2, ())
    model = DiscreteVAE(encoder, BernoulliLatent(2), networks.dense_decoder(2, (2, 2, 1), ()))
    for _ in range(exports):
        export.saved_model(model, folder)
    os._exit(0)


def main(folder):
    random_ = random.Random(0)
    pair = [begin(folder, 3), begin(folder, 3)]
    codes = [os.waitpid(child, 0)[1] for child in pair]
    at_once = sorted(path.name for path in folder.iterdir())
    unfinished = 0
    before = set(folder.iterdir())
    for _ in range(20):
        child = begin(folder, 1000)
        # From the moment when it begins to write, on: into the next export.
        while not [path for path in folder.glob("unfinished-*") if path not in before]:
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.001)
        time.sleep(random_.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        before = set(folder.iterdir())
        unfinished += any(path.name.startswith("unfinished") for path in before)
    return codes, at_once, unfinished, sorted(path.name for path in folder.iterdir())
