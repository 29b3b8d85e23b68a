"""Who imports whom: one direction in the package, no script from another, and nothing slow before it is used."""

import ast

import pytest
from conftest import ROOT

# A module imports only from those above it.
ORDER = (
    *("checks", "files", "_private_apis", "posteriors", "latents", "likelihoods", "estimators"),
    *("priors", "networks", "model", "fitting", "precision"),
    *("keras_files", "zoo", "optimizers", "datasets", "evaluation", "callbacks", "plotting", "training"),
    *("wrappers", "search", "export"),
)
# The same within export/.
EXPORT = ("bad_input", "signatures", "versions", "serving", "litert", "formats", "card", "saved_model", "folder")
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tf_isvae").rglob("*.py"))
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "scripts").glob("*.py"))


def imported(path):
    """The full names of what a file imports, wherever in it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", [path for path in MODULES if path != "tf_isvae/__init__.py"])
def test_a_module_imports_only_from_those_above_it(path):
    room = path.split("/")[1].removesuffix(".py")
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("tf_isvae.")}
    assert rooms <= set(ORDER[: ORDER.index(room) + 1])


@pytest.mark.parametrize("room", EXPORT)
def test_a_room_of_export_uses_only_those_above_it(room):
    names = [name.split(".") for name in imported(f"tf_isvae/export/{room}.py") if name.startswith("tf_isvae.export.")]
    assert {name[2] for name in names} <= set(EXPORT[: EXPORT.index(room)])
    assert {path.split("/")[2] for path in MODULES if "/export/" in path} == {
        "__init__.py",
        *(f"{r}.py" for r in EXPORT),
    }


def runs_alone(path):
    return "__main__" in (ROOT / path).read_text()


@pytest.mark.parametrize("path", SCRIPTS)
def test_no_script_imports_another(path):
    scripts = {other.split("/")[1].removesuffix(".py") for other in SCRIPTS if runs_alone(other)}
    assert "train" in scripts and not scripts & {name.partition(".")[0] for name in imported(path)}


@pytest.mark.all
def test_importing_the_package_imports_nothing_slow(fresh_python):
    """TFDS, LiteRT and the like are imported when they are used; what Keras itself imports costs nothing."""
    done = fresh_python("tests/programs/new_modules.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["tf_isvae"]
