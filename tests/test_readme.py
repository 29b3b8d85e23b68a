"""The README's Python blocks run as printed, in one process, in order."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_readme_has_blocks():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"README block {number + 1}", "exec"), {"__name__": "__main__"})


def test_every_file_it_shows_exists():
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README.read_text())
    assert links
    for link in links:
        assert (README.parent / link).exists(), link


def test_every_option_it_names_exists():
    options = set(re.findall(r"(?<![-|])--[a-z][a-z-]*", README.read_text())) - {"--help"}
    scripts = "".join(path.read_text() for path in (README.parent / "scripts").glob("*.py"))
    assert options
    assert {option for option in options if f'"{option}"' not in scripts} == set()
