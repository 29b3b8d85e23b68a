"""Files that are written whole or not at all: under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path to write to; renames it to `path` at the end, or removes it if anything fails.

    The temporary name keeps the suffix, from which writers such as Keras's choose their format.

    Raises:
        OSError: nothing was written, or `path` cannot be replaced, for example because it is a folder.

    Example:
        >>> from tf_isvae import files
        >>> with files.atomic_write("note.txt") as temporary:
        ...     characters = temporary.write_text("whole")
        >>> open("note.txt").read()
        'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """True if the name is one that `atomic_write` makes: a process was killed while it wrote, and left the file."""
    return re.fullmatch(r"\.[0-9a-f]{32}(\.\w+)?", path.name) is not None


def write_json(path: str | os.PathLike, value: dict) -> None:
    """Writes `value` as indented JSON. Raises TypeError if JSON cannot hold it."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def write_csv(path: str | os.PathLike, rows: list[dict]) -> None:
    """Writes rows as CSV with a header line. Raises ValueError if their keys are not those of the first."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: str | os.PathLike) -> list[dict[str, float]]:
    """The rows of a CSV file of numbers with a header line, as `write_csv` writes it."""
    with open(path, newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
