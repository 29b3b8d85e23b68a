"""The package as scikit-learn estimators: images to hash codes, to clusters, to outlier scores.

    hashes = wrappers.HashingTransformer("fc_bvae", latent_dim=32).fit_transform(images)
    labels = wrappers.CodeClusterer("fc_cvae", latent_dim=10).fit_predict(images)
    is_inlier = wrappers.OutlierDetector("fc_bvae").fit(images).predict(others)

They work in a Pipeline, in a grid search, and under clone, pickle and joblib. Not imported by `import tf_isvae`, which
leaves scikit-learn alone: `from tf_isvae import wrappers`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, OutlierMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from tf_isvae import checks, evaluation, training, zoo
from tf_isvae.chunks import parts_of
from tf_isvae.model import DiscreteVAE

# Settings of a run that are no parameters here: paths, the machine, and how images are read, since X holds them.
_OF_A_RUN = {
    *("model", "dataset", "run_dir", "data_dir", "image_size", "channels"),
    *("strategy", "deterministic", "gradient_variance", "validation_split"),
}
_SETTINGS = {field.name: field for field in dataclasses.fields(training.Config) if field.name not in _OF_A_RUN}


def _constructor(model: str, **own) -> Callable:
    """An __init__ that keeps its parameters as attributes, as scikit-learn wants it: `own`, and the settings of a run.

    scikit-learn reads the parameters from its signature, which is made here, so that every estimator has all settings
    of a run.
    """
    defaults = {"model": model, "image_shape": None, **own, "verbose": 0}
    defaults |= {name: field.default for name, field in _SETTINGS.items()}
    kinds = {"self": inspect.Parameter.POSITIONAL_ONLY, "model": inspect.Parameter.POSITIONAL_OR_KEYWORD}
    parameters = [inspect.Parameter("self", kinds["self"])]
    for name, default in defaults.items():
        kind = kinds.get(name, inspect.Parameter.KEYWORD_ONLY)
        parameters.append(inspect.Parameter(name, kind, default=default))
    signature = inspect.Signature(parameters)

    def __init__(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        for name in defaults:
            setattr(self, name, bound.arguments[name])

    __init__.__signature__ = signature
    return __init__


class _Wrapper(BaseEstimator):
    """What the estimators share: X as images, and a model that is trained on them or was trained before."""

    __init__ = _constructor("fc_bvae")

    def _fit_model(self, X) -> np.ndarray:
        """Sets `model_`, `image_shape_` and `n_features_in_`; returns X as images."""
        trained = self._trained_model()
        image_shape = self.image_shape if trained is None else trained.image_shape
        images = self._images(X, image_shape, reset=True)
        if trained is not None:
            self.model_ = trained
            return images
        config = training.Config(model=self.model, **{name: getattr(self, name) for name in _SETTINGS})
        self._check_latent(zoo.MODELS[config.model].latent(config.latent_dim))
        self.model_ = training.fit(config, images, verbose=self.verbose)
        return images

    def _trained_model(self) -> DiscreteVAE | None:
        """The model, if it was trained before; None if it is a row of the zoo, to be trained."""
        if isinstance(self.model, str) and self.model in zoo.MODELS:
            return None
        for name, field in _SETTINGS.items():
            if getattr(self, name) != field.default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be left out for a model that is trained already."
                )
        model = self.model if isinstance(self.model, DiscreteVAE) else zoo.load(self.model)
        if self.image_shape is not None and tuple(self.image_shape) != model.image_shape:
            raise ValueError(f"image_shape is {self.image_shape!r}; it must be that of the model, {model.image_shape}.")
        self._check_latent(model.latent)
        return model

    def _check_latent(self, latent) -> None:
        """Raises ValueError if the codes of this latent are of no use here."""

    def _images(self, X, image_shape=None, reset: bool = False) -> np.ndarray:
        """X, (n, H, W, C) or (n, features), as images float32 (n, H, W, C) in [0, 1]."""
        given = np.shape(X) if hasattr(X, "shape") else ()
        if len(given) == 4:
            image_shape = image_shape or given[1:] if reset else self.image_shape_
            if given[1:] != tuple(image_shape):
                raise ValueError(f"X has shape {given}; it must be (n, {', '.join(map(str, image_shape))}).")
            X = np.reshape(X, (given[0], int(np.prod(given[1:]))))
        # TensorFlow computes in float32, whatever comes.
        X = validate_data(self, X, reset=reset, dtype=np.float32)
        if reset:
            self.image_shape_ = tuple(image_shape or (1, X.shape[1], 1))
            if len(self.image_shape_) != 3 or np.prod(self.image_shape_) != X.shape[1]:
                raise ValueError(
                    f"image_shape is {self.image_shape_}; it must be (H, W, C) with H * W * C = {X.shape[1]}, the "
                    "number of features of X."
                )
        return self._checked(X.reshape(-1, *self.image_shape_))

    def _checked(self, images: np.ndarray) -> np.ndarray:
        return checks.images("X", images, self.image_shape_)

    def _fitted_images(self, X) -> np.ndarray:
        check_is_fitted(self)
        return self._images(X)


class HashingTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Wrapper):
    """Images to bits, whose Hamming distance compares images.

    Args:
        model: what is trained, a row of `zoo.MODELS` whose latent has bits; or a trained model: a DiscreteVAE, one of
            `zoo.names()` or a path as `zoo.load` takes it, which `fit` leaves as it is.
        image_shape: (H, W, C) of the images in the rows of a two-dimensional X; default: one row of pixels,
            (1, features, 1).
        packed: 8 bits a byte, as FAISS's IndexBinary takes them, the last byte filled up with zeros.
        verbose: of the training, as of keras.Model.fit.
        others: any setting of a run, such as latent_dim, recipe, epochs or seed: see training.Config.

    Attributes:
        model_: the DiscreteVAE. image_shape_: (H, W, C). n_features_in_: H * W * C.

    Example:
        >>> images = np.random.default_rng(0).random((64, 4, 4, 1))
        >>> hashing = wrappers.HashingTransformer("fc_bvae", latent_dim=12, epochs=1, packed=True)
        >>> codes = hashing.fit_transform(images)
        >>> codes.shape, codes.dtype
        ((64, 2), dtype('uint8'))
    """

    __init__ = _constructor("fc_bvae", packed=False)

    def fit(self, X, y=None) -> HashingTransformer:
        """Trains on the images X, (n, H, W, C) or (n, features), in [0, 1]. `y` is ignored.

        Raises:
            TypeError, ValueError: X, or a parameter, is not as described. FileNotFoundError: there is no such model.
        """
        checks.flag("packed", self.packed)
        self._fit_model(X)
        bits = self.model_.latent.code_units
        self._n_features_out = -(-bits // 8) if self.packed else bits
        return self

    def transform(self, X) -> np.ndarray:
        """The bits, uint8 (n, bits) of 0 and 1; if packed, uint8 (n, bits / 8, rounded up)."""
        images = self._fitted_images(X)
        bits = self.model_.latent.bits(parts_of(self.model_.encode(images))[0]).astype(np.uint8)
        return np.packbits(bits, axis=1) if self.packed else bits

    def _check_latent(self, latent):
        if latent.bits(np.zeros((1, latent.code_units), latent.code_dtype)) is None:
            raise ValueError(
                f"model is {self.model!r}, whose codes are no bits; it must have a BernoulliLatent, as fc_bvae and "
                "cnn_bvae have."
            )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags


class CodeClusterer(ClusterMixin, _Wrapper):
    """Images to clusters: those whose categories are the same.

    Args:
        model: what is trained, a row of `zoo.MODELS` whose latent has few categories (latent_dim says how many); or
            a trained model: a DiscreteVAE, one of `zoo.names()` or a path, which `fit` leaves as it is.
        image_shape, verbose, others: as of HashingTransformer.

    Attributes:
        labels_: int (n,), of the images in `fit`.
        codes_: int32 (clusters, variables): the clusters' codes, whose templates are `model_.decode(codes_)`.
            A category without an image of `fit` is no cluster.
        model_, image_shape_, n_features_in_: as of HashingTransformer.

    Example:
        >>> images = np.random.default_rng(0).random((64, 4, 4, 1))
        >>> clusterer = wrappers.CodeClusterer("fc_cvae", latent_dim=3, epochs=1)
        >>> clusterer.fit_predict(images).shape
        (64,)
    """

    __init__ = _constructor("fc_cvae")

    def fit(self, X, y=None) -> CodeClusterer:
        """Trains on the images X, (n, H, W, C) or (n, features), in [0, 1]. `y` is ignored.

        Raises:
            TypeError, ValueError: X, or a parameter, is not as described. FileNotFoundError: there is no such model.
        """
        codes = self.model_codes(self._fit_model(X))
        self.codes_, labels = np.unique(codes, axis=0, return_inverse=True)
        self.labels_ = labels.ravel().astype(np.int64)
        return self

    def predict(self, X) -> np.ndarray:
        """The cluster of each image, int (n,); -1 for a category that no image of `fit` is in."""
        codes = self.model_codes(self._fitted_images(X))
        rows = {tuple(code): label for label, code in enumerate(self.codes_.tolist())}
        return np.array([rows.get(tuple(code), -1) for code in codes.tolist()], np.int64)

    def model_codes(self, images: np.ndarray) -> np.ndarray:
        """The codes of images (n, H, W, C) that are clusters, int32 (n, variables)."""
        return self.model_.latent.clusters(parts_of(self.model_.encode(images))[0])

    def _check_latent(self, latent):
        if latent.clusters(np.zeros((1, latent.code_units), latent.code_dtype)) is None:
            raise ValueError(
                f"model is {self.model!r}, whose codes are no clusters; it must have a CategoricalLatent of at most "
                "4,096 codes, as fc_cvae and cnn_cvae have."
            )


class OutlierDetector(OutlierMixin, _Wrapper):
    """Images that are unlike those of the training.

    Args:
        model: what is trained, a row of `zoo.MODELS`; or a trained model: a DiscreteVAE, one of `zoo.names()` or a
            path, which `fit` leaves as it is.
        image_shape, verbose, others: as of HashingTransformer.
        score, num_samples, steps: as of evaluation.typicality.
        contamination: the share of outliers among the training images, above 0 and at most 0.5, from which the
            threshold follows.

    Attributes:
        offset_: the threshold of the scores; below it is an outlier.
        model_, image_shape_, n_features_in_: as of HashingTransformer.

    Example:
        >>> images = np.random.default_rng(0).random((64, 4, 4, 1))
        >>> detector = wrappers.OutlierDetector("fc_bvae", latent_dim=4, epochs=1, contamination=0.25).fit(images)
        >>> int((detector.predict(images) == -1).sum())
        16
    """

    __init__ = _constructor("fc_bvae", score="log_likelihood", num_samples=None, steps=200, contamination=0.1)

    def fit(self, X, y=None) -> OutlierDetector:
        """Trains on the images X, (n, H, W, C) or (n, features), in [0, 1]. `y` is ignored.

        Raises:
            TypeError, ValueError: X, or a parameter, is not as described. FileNotFoundError: there is no such model.
        """
        checks.one_of("score", self.score, evaluation.SCORES)
        checks.integer("steps", self.steps)
        if self.num_samples is not None:
            checks.integer("num_samples", self.num_samples)
        if checks.positive("contamination", self.contamination) > 0.5:
            raise ValueError(f"contamination is {self.contamination!r}; it must be above 0 and at most 0.5.")
        images = self._fit_model(X)
        self.offset_ = float(np.percentile(self._score(images), 100 * self.contamination))
        return self

    def score_samples(self, X) -> np.ndarray:
        """float64 (n,), nats or the share of overlap: the higher, the more an image is like those of the training."""
        return self._score(self._fitted_images(X))

    def decision_function(self, X) -> np.ndarray:
        """float64 (n,): score_samples(X) - offset_, below 0 for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X) -> np.ndarray:
        """int (n,): -1 for outliers, 1 for the others."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _score(self, images):
        scores = evaluation.typicality(self.model_, images, self.score, self.num_samples, self.steps, self.seed)
        return scores.astype(np.float64)  # as scikit-learn's detectors have it
