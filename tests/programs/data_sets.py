"""What data sets need, and give, in a process of their own; what it prints as an error goes into a file."""

import hashlib
import os
import resource
import sys

import numpy as np
import tensorflow as tf

from tf_isvae import datasets


def peak():
    """The most memory that the process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def from_disk(folder):
    """How far the peak rises while all images of a folder pass, in MB."""
    limit, datasets.MEMORY_LIMIT = datasets.MEMORY_LIMIT, 0
    dataset = datasets.load(folder / "links", batch_size=2, seed=0)
    next(iter(dataset))
    before = peak()
    assert sum(len(batch) for batch in dataset) == 800
    datasets.MEMORY_LIMIT = limit
    return peak() - before


def from_memory():
    """How far ten iterators over an array raise the peak, in MB."""
    dataset = datasets.load(np.ones((50_000, 32, 32, 3), np.uint8), batch_size=100, seed=0)
    next(iter(dataset))
    before = peak()
    iterators = [iter(dataset) for _ in range(10)]
    batches = [next(iterator) for iterator in iterators]
    assert len(batches) == 10
    return peak() - before


def digest(images):
    """A digest of the images of two epochs."""
    tf.random.set_seed(4)
    dataset = datasets.load(images, batch_size=100, seed=1, binarize="dynamic")
    return hashlib.sha256(b"".join(b.tobytes() for _ in range(2) for b in dataset.as_numpy_iterator())).hexdigest()


def on_two_replicas():
    """The numbers of the images in three epochs: on one device, and on two from inside and outside the scope."""
    from test_datasets import numbered, numbers_of

    def load():
        return datasets.load(numbered(301), batch_size=40, seed=0)

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    plain = load()
    results = {"plain": [[numbers_of(batch) for batch in plain] for _ in range(3)]}
    with strategy.scope():
        inside = load()
    for name, dataset in (("outside", load()), ("inside", inside)):
        results[name] = []
        distributed = strategy.experimental_distribute_dataset(dataset)
        for _ in range(3):
            parts = [strategy.experimental_local_results(batch) for batch in distributed]
            assert [len(p) for p in parts] == [2] * 8
            results[name].append([sum((numbers_of(x) for x in p if len(x)), []) for p in parts])
    return results


def main(folder, with_mnist):
    with open(folder / "stderr.txt", "w") as file:
        os.dup2(file.fileno(), 2)
    results = {"from disk": from_disk(folder), "from memory": from_memory()}
    results["sha256"] = digest(np.load(folder / "images.npy"))
    results["tfds"] = "tensorflow_datasets" in sys.modules
    if with_mnist:
        print("loads", file=sys.stderr)
        for _ in datasets.load("mnist", "test", batch_size=1000, seed=0):
            pass
        print("loaded", file=sys.stderr)
    return results | on_two_replicas()
