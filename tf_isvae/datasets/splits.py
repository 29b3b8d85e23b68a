"""Which images a split is: its name, a slice of it, and what is held out of "train" for validation."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from tf_isvae import checks
from tf_isvae.datasets import noise

VALIDATION = "validation"
_TRAIN = "train"
_BOUND = r"(-?\d+(?:\.\d+)?)?(%)?"
_SLICE = re.compile(rf"([^\[\]+]+)\[{_BOUND}:{_BOUND}\]")


@dataclasses.dataclass(frozen=True)
class Split:
    """What `parse` reads.

    text       as given
    name       of the split that the source itself must have
    begin, end of the slice: (number, whether it is per cent), or None for the end that it stands for
    share      of the images of "train" that is held out; None: all are there
    held_out   whether these are the images that are held out, or the others
    seed       which images are held out depends on it, and on how many there are
    """

    text: str
    name: str
    begin: tuple[float, bool] | None = None
    end: tuple[float, bool] | None = None
    share: float | None = None
    held_out: bool = False
    seed: int = 0

    def rows(self, count: int) -> np.ndarray | None:
        """The indices, among the `count` images of the source's own split, in its order; None for all."""
        if self.share is None and self.begin is None and self.end is None:
            return None
        rows = np.arange(count)
        if self.share is not None:
            bits = np.random.Generator(np.random.PCG64([noise.HELD_OUT, self.seed]))
            order = np.argsort(bits.random(count), kind="stable")
            held_out = self._held_out_of(count)
            rows = np.sort(order[:held_out] if self.held_out else order[held_out:])
        begin, end = self._bounds(len(rows))
        if end <= begin:
            raise ValueError(f"split is {self.text!r}; it must have at least 1 image: this one is empty.")
        return rows[begin:end]

    def in_tfds(self, count: Callable[[str], int]) -> str:
        """The split as TFDS takes it; `count` gives the number of images of one of its splits.

        TFDS prepares its data sets in a random order, so that the last images are as good a choice as any. They can be
        left out without reading them.
        """
        if self.share is None:
            return self.text
        whole = count(self.name)
        held_out = self._held_out_of(whole)
        first, last = (whole - held_out, whole) if self.held_out else (0, whole - held_out)
        begin, end = self._bounds(last - first)
        return f"{self.name}[{first + begin}:{first + end}]"

    def _held_out_of(self, count: int) -> int:
        if count < 2:
            raise ValueError(f"validation_split is {self.share}; it must be None for a single training image.")
        return min(max(round(self.share * count), 1), count - 1)

    def _bounds(self, count: int) -> tuple[int, int]:
        """The first and the one after the last of the slice, rounded as TFDS does: per cent to the nearest image."""

        def place(bound, otherwise):
            if bound is None:
                return otherwise
            number, per_cent = bound
            place = int(round(number * count / 100.0)) if per_cent else int(number)
            if abs(place) > count or (per_cent and abs(number) > 100):
                raise ValueError(f"split is {self.text!r}; it must lie within the {count} images that there are.")
            return place + count if place < 0 else place

        return place(self.begin, 0), place(self.end, count)


def parse(text: str, validation_split: float | None = None, validation_seed: int = 0) -> Split:
    """Reads "name", or a slice as TFDS writes it: "name[10:50]", "name[:90%]", "name[-100:]".

    What is neither (TFDS knows more) is taken for a name.

    Raises:
        ValueError: `text` is no text, or validation_split is given with a split that is neither "train" nor a slice of
            one; or a wrong share or seed.
    """
    if not isinstance(text, str):
        raise ValueError(f'split is {text!r}; it must be the name of a split, such as "train" or "test".')
    match = _SLICE.fullmatch(text)
    name, begin, end = text, None, None
    if match and (match[2] or match[4]):
        per_cent = bool(match[3] or match[5])  # as TFDS: of both, if one says so
        if per_cent or not any("." in bound for bound in (match[2] or "", match[4] or "")):
            name = match[1]
            begin, end = ((float(bound), per_cent) if bound else None for bound in (match[2], match[4]))
    if validation_split is None:
        return Split(text, name, begin, end)
    share = checks.share("validation_split", validation_split)
    seed = checks.integer("validation_seed", validation_seed, 0, 2**63)
    if "+" in name or "[" in name:
        raise ValueError(
            f'split is {text!r}; with validation_split it must be the name of one, or a slice, such as "train[:90%]".'
        )
    if name.lower() not in (_TRAIN, VALIDATION):
        return Split(text, name, begin, end)
    return Split(text, _TRAIN, begin, end, share, name.lower() == VALIDATION, seed)
