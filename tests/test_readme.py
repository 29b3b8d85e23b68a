"""The README's Python blocks run as printed, in one process, in order; the commands of all documents are accepted."""

import ast
import importlib
import re
import shlex

import pytest
from conftest import ROOT

from tf_isvae import commands

README = ROOT / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_readme_has_blocks():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"README block {number + 1}", "exec"), {"__name__": "__main__"})
    assert not [record.getMessage() for record in caplog.records if "retracing" in record.getMessage()]


def test_every_file_it_shows_exists():
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README.read_text())
    assert links
    for link in links:
        assert (README.parent / link).exists(), link


DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        "*.md",
        "docs/*.md",
        "docs/guides/*.md",
        "exported_models/*/README.md",
        "scripts/*.py",
        "tf_isvae/commands/*.py",
    )
    for path in ROOT.glob(pattern)
)


@pytest.fixture
def parser(monkeypatch):
    """The parser of a command, or of a script that is none, by its name."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return lambda name: importlib.import_module(
        f"tf_isvae.commands.{name}" if name in commands.COMMANDS else name
    ).make_parser()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_its_commands_are_accepted(document, parser):
    """Options that exist, with values of the right kind. (What a shell would expand is left out.)"""
    text = (ROOT / document).read_text()
    if document.endswith(".py"):
        text = ast.get_docstring(ast.parse(text)) or ""
    names = "|".join([*commands.COMMANDS, "reproduce_paper"])
    command = rf"(?:python scripts/|tf_isvae )({names})(?:\.py)?\b([^`$\n]*)[`\n]"
    for name, arguments in re.findall(command, text.replace("\\\n", " ") + "\n"):
        # A remark stands behind a # or some blanks.
        arguments = re.split(r"#| {2,}", arguments)[0]
        parser(name).parse_args(shlex.split(arguments))


def test_every_option_it_names_exists(parser):
    options = set(re.findall(r"(?<![-|])--[a-z][a-z-]*", README.read_text()))
    scripts = [*commands.COMMANDS, "reproduce_paper"]
    assert options
    assert options <= {option for name in scripts for option in re.findall(r"--[a-z-]+", parser(name).format_help())}
