"""What a setting of a run accepts, how it is read from text, and how it is written.

A setting is a field of `Config` whose metadata says all there is to know of it; the command line, the checks, the
command on a model's card and the tests' table of wrong settings are made from that.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from tf_isvae import checks


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a setting accepts; this one accepts text and paths.

    `check(name, value)` gives the value to keep, or raises ValueError.
    `read(text)` gives the value that a text on the command line stands for. A text that is none is given back as it
    is: `check` says what it must be.
    `write(value)` gives that text.
    `is_flag`: it is True or False, and two options, --name and --no-name, stand for it.
    `form`: the value in the list of options.
    """

    is_flag = False
    form = "TEXT"

    def check(self, name: str, value: Any) -> Any:
        if not isinstance(value, (str, os.PathLike)):
            raise ValueError(f"{name} is {value!r}; it must be text or a path.")
        return os.fspath(value)

    def read(self, text: str) -> Any:
        return text

    def write(self, value: Any) -> str:
        return str(value)


@dataclasses.dataclass(frozen=True)
class Integer(Kind):
    """An integer of at least `minimum` and less than `below`."""

    minimum: int = 1
    below: int | None = None

    form = "N"

    def check(self, name, value):
        return checks.integer(name, value, self.minimum, self.below)

    def read(self, text):
        return _read_as(int, text)


@dataclasses.dataclass(frozen=True)
class Positive(Kind):
    """A positive number."""

    form = "NUMBER"

    def check(self, name, value):
        return checks.positive(name, value)

    def read(self, text):
        return _read_as(float, text)


@dataclasses.dataclass(frozen=True)
class Share(Kind):
    """A number above 0 and below 1; if `or_none`, also 0: what a recipe may set can then be switched off."""

    or_none: bool = False

    form = "NUMBER"

    def check(self, name, value):
        return checks.share(name, value, self.or_none)

    def read(self, text):
        return _read_as(float, text)


@dataclasses.dataclass(frozen=True)
class Flag(Kind):
    """True or False."""

    is_flag = True

    def check(self, name, value):
        return checks.flag(name, value)


@dataclasses.dataclass(frozen=True)
class OneOf(Kind):
    """One of some values."""

    choices: tuple

    @property
    def form(self) -> str:
        return f"{{{','.join(map(str, self.choices))}}}"

    def check(self, name, value):
        return checks.one_of(name, value, self.choices)

    def read(self, text):
        return next((choice for choice in self.choices if str(choice) == text), text)


@dataclasses.dataclass(frozen=True)
class Size(Kind):
    """A positive integer, or a pair of them, such as 24x4; if `always_pair`, one integer stands for both."""

    always_pair: bool = False

    form = "N or NxN"

    def check(self, name, value):
        size = checks.integer_or_pair(name, value)
        return (size, size) if self.always_pair and isinstance(size, int) else size

    def read(self, text):
        try:
            return checks.integer_or_pair("", text)
        except ValueError:
            return text

    def write(self, value):
        return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


@dataclasses.dataclass(frozen=True)
class Named(Kind):
    """What `get` of a room takes: a text, or an object. An object is kept as the text that `get` makes it from.

    One that has no such text, an estimator of one's own, is kept as Keras's serialisation of it, a dict.
    """

    room: str  # "estimators" or "likelihoods"

    @property
    def _room(self):
        from tf_isvae import estimators, likelihoods

        return {"estimators": estimators, "likelihoods": likelihoods}[self.room]

    def check(self, name, value):
        if isinstance(value, (str, dict)):
            self.make(value)
            return value
        import keras

        made = self._room.get(value)
        try:
            return self._room.name_of(made)
        except ValueError:
            return keras.saving.serialize_keras_object(made)

    def read(self, text):
        if not text.startswith("{"):
            return text
        try:
            return json.loads(text)
        except ValueError:
            return text

    def write(self, value):
        return json.dumps(value) if isinstance(value, dict) else str(value)

    def make(self, kept: str | dict):
        """The object that `check` keeps in this form. Raises ValueError if it stands for none."""
        if isinstance(kept, str):
            return self._room.get(kept)
        import keras

        try:
            return self._room.get(keras.saving.deserialize_keras_object(kept))
        except Exception as error:  # a config may be wrong anywhere
            reason, one = " ".join(str(error).split())[:200], self.room.removesuffix("s")
            raise ValueError(
                f"{one} is {str(kept)[:100]}; it must be the serialised form of "
                f"{'an' if one == 'estimator' else 'a'} {one} ({reason})."
            ) from None


@dataclasses.dataclass(frozen=True)
class Checked(Kind):
    """Whatever this function of the value accepts; it gives the value to keep."""

    function: Callable[[Any], Any]

    form = "NAME"

    def check(self, name, value):
        return self.function(value)


def setting(default: Any, kind: Kind, help: str, *, of_this_machine: bool = False) -> Any:
    """A field of `Config`. `of_this_machine`: a path or the like, which makes no difference to the model."""
    return dataclasses.field(default=default, metadata={"kind": kind, "help": help, "of_this_machine": of_this_machine})


def option(name: str) -> str:
    """The option of the command line that stands for a setting.

    Example:
        >>> training.option("batch_size")
        '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


def words(fields: Iterable[dataclasses.Field], values: dict[str, Any]) -> list[str]:
    """The options of a command line that give these values; None and what is of this machine are left out."""
    found = []
    for field in fields:
        value, kind = values.get(field.name), field.metadata["kind"]
        if value is None or field.metadata["of_this_machine"]:
            continue
        if kind.is_flag:
            found.append(option(field.name) if value else option(f"no_{field.name}"))
        else:
            found += [option(field.name), kind.write(value)]
    return found


def _read_as(kind: type, text: str):
    try:
        return kind(text)
    except ValueError:
        return text
