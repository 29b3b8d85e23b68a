"""The examples in the docstrings of tf_isvae run, and print what they say."""

import doctest
import importlib
import pkgutil
import textwrap
import warnings

import pytest

import tf_isvae

MODULES = [tf_isvae] + [
    importlib.import_module(module.name) for module in pkgutil.walk_packages(tf_isvae.__path__, "tf_isvae.")
]
# The imports with which every example begins, as the package's docstring says.
IMPORTS = textwrap.dedent(tf_isvae.__doc__.partition("begin with\n")[2])
NAMES = {}
exec(IMPORTS, NAMES)
EXAMPLES = {
    test.name: test
    for module in MODULES
    for test in doctest.DocTestFinder().find(module, module.__name__, globs=NAMES)
    if test.examples
}
# These train for seconds: in the second tier.
LONG = (
    *("callbacks.WarmStart", "callbacks.WaitingPrior", "fitting.fit_clusters", "fitting.fit_prior"),
    *("export.folder.to_folder", "training.run.finish", "training.run.train"),
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.all] if name.endswith(LONG) else []) for name in EXAMPLES],
)
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner, printed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), []
    runner.run(EXAMPLES[name], out=printed.append)
    assert not runner.failures, "".join(printed)


@pytest.mark.all
def test_the_reference_can_be_made(tmp_path):
    """As `make docs` makes it; a warning (a link that leads nowhere, an annotation that cannot be read) is an error."""
    pdoc = pytest.importorskip("pdoc")
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The constructors that Python makes for a NamedTuple or dataclass know nothing of the module's imports.
        warnings.filterwarnings("ignore", r"Error parsing type annotation .*\.__init__\. Import of")
        pdoc.pdoc(
            "tf_isvae", "tf_isvae.plotting", "tf_isvae.posteriors", "tf_isvae.training", output_directory=tmp_path
        )
    pages = {path.relative_to(tmp_path).with_suffix("").as_posix() for path in tmp_path.rglob("*.html")}
    assert {"index", "tf_isvae", "tf_isvae/evaluation", "tf_isvae/estimators", "tf_isvae/training"} <= pages
    assert "E_q[ln p(x|z)]" in (tmp_path / "tf_isvae" / "evaluation.html").read_text()
