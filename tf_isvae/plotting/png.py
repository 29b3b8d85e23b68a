"""Figures as PNG files, each whole or not there at all."""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.figure import Figure

from tf_isvae import files


def check_path(path: str | os.PathLike) -> Path:
    """`path` as a Path.

    Raises:
        ValueError: it does not end in .png.
        FileNotFoundError: its folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path is {str(path)!r}; it must end in .png: figures are PNG files.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path is {str(path)!r}; it must lie in a folder that exists: create {path.parent}.")
    return path


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a matplotlib figure in its own resolution to a PNG file.

    Args:
        figure: a matplotlib Figure, made without pyplot.
        path: the PNG to write, in a folder that exists.

    Raises:
        ValueError, FileNotFoundError: as `check_path`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from matplotlib.figure import Figure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plotting.save(Figure(), Path(folder) / "empty.png")
        ...     print([path.name for path in Path(folder).iterdir()])
        ['empty.png']
    """
    with files.atomic_write(check_path(path)) as temporary:
        figure.savefig(temporary, dpi=figure.dpi)
