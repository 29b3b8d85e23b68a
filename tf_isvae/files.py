"""Files written whole or not at all: under a temporary name beside their place, then renamed."""

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
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """True if the name is one of `atomic_write`'s temporary names: left by a process that was killed while writing."""
    return re.fullmatch(r"\.[0-9a-f]{32}(\.\w+)?", path.name) is not None


def write_json(path: str | os.PathLike, value: dict) -> None:
    """`value` as indented JSON."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def write_csv(path: str | os.PathLike, rows: list[dict]) -> None:
    """Rows with the same keys as CSV with a header line."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: str | os.PathLike) -> list[dict[str, float]]:
    """The rows of a CSV file of numbers with a header line, as `write_csv` writes it."""
    with open(path, newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
