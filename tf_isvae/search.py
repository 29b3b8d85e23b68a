"""Visual search: images found by the Hamming distance of their codes.

    index = search.Index(zoo.load("fc_bvae_mnist"), "fc_bvae_mnist")
    search.extend(index, datasets.image_files("photos"), "photos.index")     # goes on where it was stopped
    positions, distances = search.load("photos.index").nearest(images, neighbours=10)

The engine is FAISS: `pip install faiss-cpu`. Up to a million codes are compared with every query (IndexBinaryFlat);
beyond, codes are kept in lists of near ones, and a query is compared with those in the lists that are nearest to it
(IndexBinaryIVF), which finds most of the nearest in a small part of the time. docs/guides/search.md has figures. Not
imported by `import tf_isvae`.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tf_isvae import checks, datasets, files, zoo
from tf_isvae.model import CHUNK, DiscreteVAE, check_model

DISTANCES = ("hamming", "expected")
LARGEST_FLAT = 1_000_000
"""Above so many codes, they are kept in lists. (Not to be changed after a search.)"""

LISTS = 4096
"""How many lists there are; fewer if they would hold fewer than 40 codes each."""
PROBES = 64
"""How many lists a search looks through; more if it is asked for more than a quarter of what they hold."""

_FORMAT = 1
_SAVE_AFTER_SECONDS = 30
_FEWEST_IN_A_LIST = 40  # what FAISS wants for the k-means that makes the lists
_TO_LEARN_FROM = 200_000  # codes
_FEWEST_CANDIDATES = 1000  # whose expected distance is computed if the codes are in lists


class Index:
    """Codes of images, packed into whole bytes, and the paths of the images.

    Threads may search it at once, but not while one of them adds or removes images.

    Args:
        model: a DiscreteVAE whose latent has bits.
        name: how `load` finds the model: one of `zoo.names()`, or a path as `zoo.load` takes it.

    Attributes:
        paths: those of the images, in the order in which they were added.
        codes: uint8 (images, bits / 8, rounded up); the last byte of each is filled up with zeros.

    Raises:
        TypeError, ValueError: the model is no DiscreteVAE, or its codes are no bits.

    Example:
        >>> images = np.random.default_rng(0).random((20, 4, 4, 1))
        >>> index = search.Index(zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=30), "an example")
        >>> index.add([f"{i}.png" for i in range(20)], images)
        >>> positions, distances = index.nearest(images[7:9], neighbours=3)
        >>> distances[:, 0].tolist(), index.codes.shape
        ([0, 0], (20, 4))
    """

    def __init__(self, model: DiscreteVAE, name: str):
        check_model(model)
        latent = model.latent
        if latent.bits(np.zeros((1, latent.code_units), latent.code_dtype)) is None:
            raise ValueError(
                f"the codes of the model {name} are no bits; it must have a BernoulliLatent, as fc_bvae_mnist has."
            )
        self.model = model
        self.name = name
        self.bits = latent.code_units
        self.paths: list[str] = []
        self._parts = [np.empty((0, -(-self.bits // 8)), np.uint8)]
        self._engine = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        own = {"paths": list(self.paths), "_parts": list(self._parts)}  # which `add` changes
        return {**self.__dict__, **own, "_engine": None, "_lock": None}  # the last two cannot be copied

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def codes(self) -> np.ndarray:
        self._parts = [np.concatenate(self._parts)] if len(self._parts) > 1 else self._parts
        return self._parts[0]

    def add(self, paths: Sequence[str], images) -> None:
        """Adds images (n, H, W, C) in [0, 1] under these n paths. If there are lists, they are kept, and get the codes.

        Raises ValueError if the images are not as described, or there are not as many paths.
        """
        if len(paths) != len(images):
            raise ValueError(f"paths are {len(paths)}; they must be {len(images)}, one for each image.")
        self._append(paths, np.packbits(encode(self.model, images)[0].astype(np.uint8), axis=1))

    def _append(self, paths: Sequence[str], codes: np.ndarray) -> None:
        engine, self._engine = self._engine if len(self) > LARGEST_FLAT else None, None  # none, if stopped meanwhile
        self.paths += map(str, paths)
        self._parts.append(codes)
        if engine is not None:
            engine.add(codes)
            self._engine = engine

    def remove(self, paths: Sequence[str]) -> int:
        """Removes the images of these paths, and all below a path that is a folder; returns how many there were.

        Raises ValueError if the index has no image of one of the paths.
        """
        leaving = np.zeros(len(self), bool)
        for path in map(str, paths):
            found = [own == path or own.startswith(path.rstrip(os.sep) + os.sep) for own in self.paths]
            if not any(found):
                raise ValueError(f"{path} is not in the index, nor is anything below it.")
            leaving |= found
        self._parts = [self.codes[~leaving]]
        self.paths = [path for path, leaves in zip(self.paths, leaving, strict=True) if not leaves]
        self._engine = None
        return int(leaving.sum())

    def nearest(self, images, neighbours: int = 10, distance: str = "hamming") -> tuple[np.ndarray, np.ndarray]:
        """The images of the index that are nearest to each of `images`.

        Args:
            images: (n, H, W, C) in [0, 1].
            neighbours: how many for each, at most as many as the index has.
            distance: "hamming", in how many bits the codes differ; or "expected", the mean of that over q(z|x) of the
                query, sum_b |q_b - code_b|: it needs no more storage, and orders images whose codes are equally far.
                With more than a million codes it orders the nearest 1,000, or ten times as many as asked for.

        Returns:
            Positions in `paths`, int64 (n, neighbours), nearest first; and the distances, int32, or
            float32 if expected.

        Raises:
            ValueError: an argument is not as described. ImportError: FAISS is not installed.
        """
        checks.one_of("distance", distance, DISTANCES)
        neighbours = checks.integer("neighbours", neighbours)
        if not len(self):
            raise ValueError("the index has no images; add some.")
        if neighbours > len(self):
            raise ValueError(
                f"neighbours is {neighbours}; it must be at most {len(self)}, the number of images in the index."
            )
        codes, means = encode(self.model, images)
        packed = np.packbits(codes.astype(np.uint8), axis=1)
        if distance == "hamming":
            return self._search(packed, neighbours)
        if len(self) <= LARGEST_FLAT:
            everywhere = np.arange(len(self))
            found = [_order(everywhere, _expected(mean, self.codes), neighbours) for mean in means]
        else:
            candidates, _ = self._search(packed, min(len(self), max(_FEWEST_CANDIDATES, 10 * neighbours)))
            found = [
                _order(row, _expected(mean, self.codes[row]), neighbours)
                for mean, row in zip(means, candidates, strict=True)
            ]
        positions, distances = zip(*found, strict=True)
        return np.stack(positions), np.stack(distances)

    def _search(self, packed: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:  # how many lists it looks through is set in the engine, which the threads share
            engine = self._ready_engine()
            if len(self) > LARGEST_FLAT:
                lists = engine.nlist
                engine.nprobe = min(lists, max(PROBES, -(-4 * neighbours * lists // len(self))))
                distances, positions = engine.search(packed, neighbours)
                few = (positions < 0).any(axis=1)  # the lists of these queries held too few
                if few.any():
                    engine.nprobe = lists
                    distances[few], positions[few] = engine.search(packed[few], neighbours)
                return positions, distances
        distances, positions = engine.search(packed, neighbours)
        return positions, distances

    def _ready_engine(self):
        """FAISS's index of the codes."""
        if self._engine is None:
            make = flat if len(self) <= LARGEST_FLAT else in_lists
            self._engine = make(self.codes)
        return self._engine

    def save(self, path: str | os.PathLike) -> None:
        """Writes the index to one file, whole or not at all. `load` reads it.

        Raises OSError if it cannot be written, and ImportError if the codes must be in lists without FAISS.
        """
        self._write(path, engine=len(self) > LARGEST_FLAT)  # which takes minutes to make

    def _write(self, path: str | os.PathLike, engine: bool) -> None:
        header = {"format": _FORMAT, "bits": self.bits, "images": len(self), "model": self.name}
        header["digest"] = _digest(self.model)
        arrays = {"header": _to_bytes(header), "paths": _to_bytes(self.paths), "codes": self.codes}
        if engine:
            with self._lock:  # a search may be making it
                arrays["engine"] = _faiss().serialize_index_binary(self._ready_engine())
        with files.atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)


def load(path: str | os.PathLike, model: DiscreteVAE | None = None) -> Index:
    """The index that `Index.save` wrote.

    Args:
        path: the file.
        model: the DiscreteVAE that made its codes; default: found by the name that the index has kept.

    Raises:
        FileNotFoundError: there is no such file, or no model of that name.
        ValueError: the file is damaged or of another kind, or the model is not the one that made the codes.
        ImportError: the codes are in lists, and FAISS is not installed.

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=30)
        >>> search.Index(model, "an example").save("empty.index")
        >>> len(search.load("empty.index", model))
        0
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give an index that search.py index wrote.")
    if not zipfile.is_zipfile(path):
        if not os.access(path, os.R_OK):
            raise PermissionError(f"{path} may not be read; change its permissions.")
        raise ValueError(f"{path} is of another kind, or only a part; it must be an index that search.py index wrote.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            header, paths, codes = _from_bytes(stored["header"]), _from_bytes(stored["paths"]), stored["codes"]
            lists = stored["engine"] if "engine" in stored.files and len(codes) > LARGEST_FLAT else None
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']}")
        shape = (header["images"], -(-header["bits"] // 8))
        if codes.shape != shape or codes.dtype != np.uint8 or len(paths) != len(codes):
            raise ValueError(f"{len(paths)} paths and codes of shape {codes.shape}, not {shape}")
        engine = None
        if lists is not None:
            engine = _faiss().deserialize_index_binary(lists)
            found = (type(engine).__name__, engine.ntotal, engine.d)
            if found != ("IndexBinaryIVF", len(codes), 8 * codes.shape[1]):
                raise ValueError(f"its lists are {found}")
    except (PermissionError, ImportError, MemoryError):
        raise
    except Exception as error:  # a damaged file may fail anywhere in zipfile, NumPy and json
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} is damaged, or of another kind ({reason}); it must be an index that search.py index wrote."
        ) from None
    name = str(header["model"])
    model = zoo.load(name) if model is None else model
    index = Index(model, name)
    if index.bits != header["bits"] or _digest(model) != header["digest"]:
        raise ValueError(
            f"{path} was made by another model of {header['bits']} bits, {name} as it was then, and this one has "
            f"{index.bits}; it must be searched with that model: name it, or make the index anew."
        )
    index.paths, index._parts, index._engine = list(map(str, paths)), [codes], engine
    return index


def extend(
    index: Index,
    images: Sequence[str | os.PathLike],
    path: str | os.PathLike,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Adds the image files that the index does not have yet, and writes it to `path`.

    The images are read in chunks. Every half minute, and if it is stopped or an image is broken, what is done is kept
    in a hidden file beside `path`; the same call goes on from there. It is removed at the end.

    Args:
        index: where to add them.
        images: paths of PNG or JPEG images. They are stored as absolute paths.
        path: the file to write.
        progress: called with (images done, images in all) after each chunk.

    Returns:
        How many images were added, those of an earlier call that was stopped included.

    Raises:
        FileExistsError: what an earlier call has left is not of this index.
        OSError: an image cannot be read, or the index cannot be written.
        ImportError: the codes must be in lists, and FAISS is not installed.

    Example:
        >>> index = search.Index(zoo.build("fc_bvae", image_shape=(8, 8, 1), latent_dim=30), "an example")
        >>> plotting.image_grid(np.zeros((1, 4, 4, 1)), "black.png")
        >>> search.extend(index, ["black.png"], "photos.index"), len(index)
        (1, 1)
    """
    path, before = Path(path), len(index)
    partial = path.with_name(f".{path.name}.partial")
    if partial.exists():
        try:
            kept = load(partial, index.model)
        except ValueError as error:
            raise FileExistsError(
                f"{partial}, which another call has left, is not of this index; remove it. ({error})"
            ) from None
        if kept.paths[:before] != index.paths:
            raise FileExistsError(f"{partial}, which another call has left, is not of this index; remove it.")
        index._append(kept.paths[before:], kept.codes[before:])
    known = set(index.paths)
    wanted = [name for name in dict.fromkeys(map(os.path.abspath, images)) if name not in known]
    begin, in_all = len(index) - before, len(index) - before + len(wanted)
    saved = time.monotonic()
    try:
        for i in range(0, len(wanted), CHUNK):
            chunk = wanted[i : i + CHUNK]
            index.add(chunk, datasets.read_images(chunk, index.model.image_shape))
            if progress is not None:
                progress(begin + i + len(chunk), in_all)
            if time.monotonic() - saved > _SAVE_AFTER_SECONDS:
                index._write(partial, engine=False)
                saved = time.monotonic()
        if len(index) > LARGEST_FLAT and index._engine is None:
            index._write(partial, engine=False)  # before the minutes that lists take
        index.save(path)
    except KeyboardInterrupt:
        del index.paths[len(index.codes) :]  # if it was stopped within `add`
        index._write(partial, engine=False)
        raise KeyboardInterrupt(
            f"stopped after {len(index) - before} images, which the same command goes on from"
        ) from None
    except ValueError as error:
        index._write(partial, engine=False)
        raise OSError(f"{error} {len(index) - before} images are kept, which the same command goes on from") from None
    partial.unlink(missing_ok=True)
    return len(index) - before


def encode(model: DiscreteVAE, images) -> tuple[np.ndarray, np.ndarray]:
    """The bits of images (n, H, W, C) in [0, 1], and q(z = 1|x): int32 and float32 (n, bits).

    Example:
        >>> model = zoo.build("fc_bvae", image_shape=(4, 4, 1), latent_dim=30)
        >>> bits, means = search.encode(model, np.zeros((2, 4, 4, 1)))
        >>> bool((bits == (means > 0.5)).all())
        True
    """
    images = checks.images("images", images, model.image_shape)
    codes, means = [], []
    for i in range(0, len(images), CHUNK):
        q = model.latent.posterior(model.encoder(images[i : i + CHUNK], training=False))
        codes.append(model.latent.bits(model.latent.to_codes(q.mode()).numpy()))
        means.append(q.mean().numpy())
    return np.concatenate(codes), np.concatenate(means)


def flat(codes: np.ndarray):
    """FAISS's index of packed codes, uint8 (n, bytes), that compares a query with all of them."""
    engine = _faiss().IndexBinaryFlat(8 * codes.shape[1])
    engine.add(codes)
    return engine


def in_lists(codes: np.ndarray):
    """FAISS's index of packed codes, uint8 (n, bytes), in lists of near ones."""
    faiss, width = _faiss(), 8 * codes.shape[1]
    lists = min(LISTS, max(1, len(codes) // _FEWEST_IN_A_LIST))
    engine = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(width), width, lists)
    engine.train(codes[:: max(1, len(codes) // _TO_LEARN_FROM)])
    engine.nprobe = PROBES
    engine.add(codes)
    return engine


def _expected(mean: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """sum_b |q_b - code_b| of one query's q(z = 1|x) (bits,) to packed codes (n, bytes): float32 (n,)."""
    padded = np.zeros(8 * codes.shape[1])
    padded[: len(mean)] = 1.0 - 2.0 * mean
    # What each value of a byte adds, so that no code need be unpacked.
    values = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    tables = padded.reshape(-1, 8) @ values.T
    distances = np.full(len(codes), mean.sum(dtype=np.float64))
    for table, column in zip(tables, codes.T, strict=True):
        distances += table[column]
    return distances.astype(np.float32)


def _order(positions: np.ndarray, distances: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    nearest = np.argsort(distances, kind="stable")[:neighbours]
    return positions[nearest], distances[nearest]


def _digest(model: DiscreteVAE) -> str:
    """What identifies the codes that a model gives: SHA-256 of its encoder and latent, in hexadecimal digits."""
    config = {"shape": model.image_shape, "latent": model.latent.get_config(), "encoder": model.encoder.get_config()}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for weight in model.encoder.get_weights():
        digest.update(np.ascontiguousarray(weight))
    return digest.hexdigest()


def _to_bytes(value) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _from_bytes(stored: np.ndarray):
    return json.loads(stored.tobytes())


def _faiss():
    try:
        import faiss
    except ImportError:
        raise ImportError("searching needs FAISS, which is not installed: pip install faiss-cpu.") from None
    return faiss
