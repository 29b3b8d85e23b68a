"""Who imports whom: one direction in the package, no script from another, and nothing slow before it is used."""

import ast
import platform
import re
import sys

import pytest
from conftest import ROOT

# A module imports only from those above it.
ORDER = (
    *(
        "_lazy",
        "checks",
        "recipes",
        "files",
        "_private_apis",
        "chunks",
        "posteriors",
        "latents",
        "products",
        "likelihoods",
        "estimators",
    ),
    *("priors", "networks", "distortion", "refinement", "objective", "model", "fitting", "precision"),
    *("keras_files", "zoo", "optimizers", "datasets", "evaluation", "callbacks", "plotting", "training"),
    *("speed", "wrappers", "search", "export", "commands"),
)
# The same within export/.
EXPORT = (
    "bad_input",
    "signatures",
    "versions",
    "serving",
    "litert",
    "formats",
    "picture",
    "usage",
    "card",
    "saved_model",
    "folder",
)
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tf_isvae").rglob("*.py"))
COMMANDS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tf_isvae" / "commands").glob("[a-z]*.py"))


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


@pytest.mark.parametrize("path", COMMANDS)
def test_no_command_imports_another(path):
    of_commands = {name for name in imported(path) if name.startswith("tf_isvae.commands.")}
    assert of_commands == ({"tf_isvae.commands.command_line"} if "command_line" not in path else set())


@pytest.mark.parametrize("script", [path.split("/")[-1][:-3] for path in COMMANDS if "command_line" not in path])
def test_help_does_not_wait(fresh_python, script):
    """--help imports nothing that takes long, and has the same options by either name."""
    show = "import sys; sys.argv[1:] = [{!r}, '--help']; import tf_isvae_command\n"
    show += "try: tf_isvae_command.main()\nfinally: assert not {{'numpy', 'keras', 'tensorflow'}} & {{*sys.modules}}"
    command, done = fresh_python("-c", show.format(script)), fresh_python(f"scripts/{script}.py", "--help")
    assert (command.returncode, done.returncode, command.stderr + done.stderr) == (0, 0, "")
    assert command.stdout.startswith(f"usage: tf_isvae {script} ")
    options = r"^  --[a-z-]+.*"
    assert re.findall(options, command.stdout, re.M) == re.findall(options, done.stdout, re.M)
    assert "python scripts/" not in command.stdout and "python scripts/" in done.stdout


def test_another_backend_of_keras(fresh_python):
    done = fresh_python("-c", "import tf_isvae", environment={"KERAS_BACKEND": "jax"})
    assert done.stderr.splitlines()[-1].startswith("ImportError: KERAS_BACKEND is jax; tf_isvae needs it to be tensor")


@pytest.mark.all
def test_importing_the_package_imports_nothing_slow(fresh_python):
    """TFDS, LiteRT and the like are imported when they are used; what Keras itself imports costs nothing."""
    done = fresh_python("tests/programs/new_modules.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["tf_isvae"]


@pytest.mark.all
def test_large_blocks_stay_with_the_process(fresh_python):
    """A block of 20 MB is not mapped anew, and its pages so not faulted in again, each time it is needed (glibc)."""
    program = (
        "import ctypes, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "if not hasattr(libc, 'mallinfo2'): sys.exit(print('not glibc'))\n"
        "class Info(ctypes.Structure):\n"
        "    _fields_ = [(name, ctypes.c_size_t) for name in 'arena ordblks smblks hblks'.split()]\n"
        "    _fields_ += [(name, ctypes.c_size_t) for name in 'hblkhd usmblks fsmblks u f keepcost'.split()]\n"
        "libc.mallinfo2.restype = Info\n"
        "libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]\n"
        "import tf_isvae\n"
        "mapped = libc.mallinfo2().hblks\n"
        "libc.malloc(20 << 20)\n"
        "print(libc.mallinfo2().hblks - mapped)\n"
    )
    done = fresh_python("-c", program)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.strip()
    if printed == "not glibc":
        pytest.skip("this is not glibc 2.33 or newer")
    assert printed == "0"


@pytest.mark.all
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN is asked for on x86 only")
@pytest.mark.parametrize(
    "first, given, then",
    [
        ("pass", None, "1 True"),
        ("pass", "0", "0 False"),
        ("import tensorflow", "0", "0 False"),
        ("import keras", None, "None"),
    ],
)
def test_onednn_is_on_unless_the_user_says_no(fresh_python, first, given, then):
    """Whatever instructions the processor has. Once TensorFlow is imported, it stays as it is."""
    program = (
        f"{first}\n"
        "import os, tf_isvae\n"
        "from tensorflow.python.util import _pywrap_util_port\n"
        "print(os.environ.get('TF_ENABLE_ONEDNN_OPTS'), _pywrap_util_port.IsMklEnabled())\n"
    )
    done = fresh_python("-c", program, environment={"TF_ENABLE_ONEDNN_OPTS": given})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(then)


@pytest.mark.all
@pytest.mark.skipif(sys.platform != "linux", reason="counts the page faults of Linux")
@pytest.mark.parametrize("data", [[], ["generator"]])
def test_a_step_of_training_takes_no_new_memory(fresh_python, data):
    """What a step frees serves the next one, whatever the data set does to glibc. (Without oneDNN it took 65,000 page
    faults, and 2.2 times as long; now 200, and up to 4,000 with a generator.)"""
    done = fresh_python("tests/programs/page_faults.py", *data, environment={"TF_ENABLE_ONEDNN_OPTS": "0"})
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 10_000
