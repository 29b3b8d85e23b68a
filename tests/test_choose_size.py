"""The command choose_size: its rule by hand, and a run that is stopped and goes on."""

import json

import numpy as np
import pytest
from helpers import one_line
from matplotlib.image import imread

from tf_isvae.commands import choose_size


def size(bound, kl_bits):
    return choose_size.Size(str(bound), 100.0, 80.0, kl_bits * np.log(2), kl_bits, bound, bound, bound)


def test_the_rule():
    """8 of 8 and 30 of 32 bits are full; 40 of 64 and 41 of 128 are not: the smaller is enough, in any order."""
    found = [size(8, 8.0), size(128, 41.0), size(64, 40.0), size(32, 30.0)]
    assert choose_size.choose(found).size == "64"
    assert choose_size.choose(found[:1]).size == "8"  # none has room
    assert choose_size.choose(found[:1] + found[3:]).size == "32"


def test_what_is_shown(tmp_path):
    found = [size(8, 8.0), size(64, 40.0)]
    lines = choose_size.table(found).splitlines()
    assert lines[-1] == "| 64 | 100.00 | 80.00 | 27.73 | 40.0 | 64.0 | 64.0 | 64 |"
    assert len({line.count("|") for line in lines}) == 1
    choose_size.draw(found, tmp_path / "sizes.png")
    image = imread(tmp_path / "sizes.png")
    assert image.shape[1] > 1000 and len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 10


def test_bad_sizes(script, tmp_path):
    for wrong, parts in (
        (["--model", "fc_vae"], ["fc_vae", "real numbers"]),
        (["--model", "fc_bva"], ["'fc_bva'", "fc_bvae"]),
        (["--sizes", 4, 4], ["4 twice"]),
        (["--sizes", 0], ["latent_dim is '0'"]),
        (["--epochs", "none"], ["epochs is 'none'"]),
        (["--validation-split", "2"], ["validation_split is 2"]),
    ):
        status, output, errors = script("choose_size.py", "--dataset", "digits", *wrong)
        assert (status, output) == (2, "")
        one_line(errors, *parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.all
def test_it_goes_on(script, tmp_path):
    """What is trained is not trained again; the figures are those of the runs, on images that no run has seen."""
    command = ["choose_size.py", "--dataset", "digits", "--image-size", 8, "--epochs", 1, "--validation-split", 0.2]
    status, output, errors = script(*command, "--run-dir", "sizes", "--sizes", 2, 3)
    assert (status, errors) == (0, "")
    written = (tmp_path / "sizes" / "2" / "model.keras").stat().st_mtime_ns
    status, output, errors = script(*command, "--run-dir", "sizes", "--sizes", 5, 3, 2)
    assert (status, errors) == (0, "")
    assert output.count("epoch 1/1") == 1 and "\nsizes/5\n" in output
    assert (tmp_path / "sizes" / "2" / "model.keras").stat().st_mtime_ns == written
    assert {"sizes.md", "sizes.png", "2", "3", "5"} == {path.name for path in (tmp_path / "sizes").iterdir()}
    table = (tmp_path / "sizes" / "sizes.md").read_text()
    assert table in output
    for name in ("2", "3", "5"):
        metrics = json.loads((tmp_path / "sizes" / name / "metrics.json").read_text())
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
        assert row.split(" | ")[1:4] == [
            f"{metrics['val_loss']:.2f}",
            f"{-metrics['val_log_likelihood']:.2f}",
            f"{metrics['val_kl']:.2f}",
        ]
    command[command.index("--epochs") + 1] = 2
    status, output, errors = script(*command, "--run-dir", "sizes", "--sizes", 2)
    assert status == 2
    one_line(errors, "epochs is 1 in the run and 2 now")
