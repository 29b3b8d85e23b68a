"""plotting: the figures are read back, and their pixels compared with what was to be drawn."""

import os
import warnings

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from tf_isvae import plotting

BLUE, ORANGE, GREEN = (np.round(255 * np.array(to_rgb(c))) for c in ("#0072B2", "#D55E00", "#009E73"))


def read(path):
    """The picture as bytes, (height, width, 3)."""
    return np.round(255 * imread(path)[..., :3]).astype(np.uint8)


def has_colour(picture, colour):
    return np.any(np.all(picture == colour, axis=-1))


def random_images(*shape):
    # Never white, so that a tile differs from the gaps around it.
    return np.random.default_rng(0).uniform(0.0, 0.9, shape).astype(np.float32)


def runs_of(used):
    """Start and end of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], used.astype(int), [0]])))
    return list(zip(edges[::2], edges[1::2], strict=True))


def tiles(picture):
    """The tiles of a mosaic without text, row after row."""
    used = np.any(picture != 255, axis=-1)
    rows, columns = runs_of(used.any(axis=1)), runs_of(used.any(axis=0))
    cut = [picture[top:bottom, left:right] for top, bottom in rows for left, right in columns]
    return [tile for tile in cut if np.any(tile != 255)]


def shrink(tile, height, width):
    """Undoes a whole-number enlargement, after checking that it was one, and square."""
    factor = tile.shape[0] // height
    assert tile.shape[:2] == (factor * height, factor * width)
    small = tile[::factor, ::factor]
    np.testing.assert_array_equal(tile, small.repeat(factor, axis=0).repeat(factor, axis=1))
    return small


def as_bytes(image):
    return np.round(255 * np.broadcast_to(image, (*image.shape[:2], 3))).astype(np.uint8)


def history(epochs, **changes):
    e = np.arange(1, epochs + 1)
    loss, kl = 124 + 100 / e, 25 - 20 / e
    columns = {"loss": loss, "kl": kl, "log_likelihood": kl - loss, "val_loss": loss + 2, "val_kl": kl}
    return {"epoch": list(range(1, epochs + 1)), **{k: list(v) for k, v in columns.items()}, **changes}


@pytest.mark.parametrize("n, columns, rows", [(1, 10, 1), (7, 3, 3), (10, 5, 2), (3, 10, 1)])
@pytest.mark.parametrize("shape", [(28, 28, 1), (5, 9, 3), (1, 1, 1), (12, 4, 1)])
def test_a_grid_shows_every_pixel_of_every_image(tmp_path, n, columns, rows, shape):
    images = random_images(n, *shape)
    plotting.image_grid(images, tmp_path / "grid.png", columns=columns)
    picture = read(tmp_path / "grid.png")
    found = tiles(picture)
    assert len(found) == n
    assert len(runs_of(np.any(picture != 255, axis=(1, 2)))) == rows
    for tile, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(shrink(tile, *shape[:2]), as_bytes(image))


def test_other_channels_are_averaged(tmp_path):
    images = random_images(2, 6, 6, 2)
    plotting.image_grid(images, tmp_path / "grid.png")
    for tile, image in zip(tiles(read(tmp_path / "grid.png")), images, strict=True):
        np.testing.assert_array_equal(shrink(tile, 6, 6), as_bytes(image.mean(axis=-1, keepdims=True)))


def test_pictures_suit_a_page(tmp_path):
    path = tmp_path / "grid.png"
    plotting.image_grid(random_images(100, 28, 28, 1), path)
    assert 800 <= read(path).shape[1] <= 1200
    plotting.image_grid(random_images(4, 50, 1500, 1), path)  # too large to show whole: thinned
    assert 2000 <= read(path).shape[1] <= 4100


def test_a_title_adds_a_line_and_widens_a_narrow_picture(tmp_path):
    images = random_images(1, 20, 1, 1)
    plotting.image_grid(images, tmp_path / "bare.png")
    plotting.image_grid(images, tmp_path / "titled.png", "a title much wider than this one image")
    bare, titled = read(tmp_path / "bare.png"), read(tmp_path / "titled.png")
    assert titled.shape[0] > bare.shape[0] and titled.shape[1] > bare.shape[1]
    assert np.all(titled[:, -5:] == 255) and np.all(titled[:5] == 255)  # nothing is cut off


@pytest.mark.parametrize("n, columns", [(1, 10), (5, 3), (10, 10)])
def test_each_reconstruction_stands_below_its_input(tmp_path, n, columns):
    images = random_images(n, 7, 5, 3) * [1, 0, 0]  # red above green: text is grey
    reconstructions = random_images(n, 7, 5, 3) * [0, 1, 0]
    images[..., 0] += 0.1
    reconstructions[..., 1] += 0.1
    plotting.reconstructions(images, reconstructions, tmp_path / "pairs.png", columns=columns)
    picture = read(tmp_path / "pairs.png").astype(int)
    coloured = np.ptp(picture, axis=-1) > 20
    rows, across = runs_of(coloured.any(axis=1)), runs_of(coloured.any(axis=0))
    assert len(rows) == 2 * -(-n // columns) and len(across) == min(n, columns)
    for i in range(n):
        left, right = across[i % columns]
        for (top, bottom), image in zip(rows[2 * (i // columns) :], (images[i], reconstructions[i]), strict=False):
            np.testing.assert_array_equal(shrink(picture[top:bottom, left:right], 7, 5), as_bytes(image))
    # Each row has a label to its left.
    for top, bottom in rows:
        assert np.any(picture[top:bottom, : across[0][0]] < 128)


@pytest.mark.parametrize("epochs", [1, 2, 300])
def test_training_curves_show_train_and_test(tmp_path, epochs):
    plotting.training_curves(history(epochs), tmp_path / "curves.png", "a run")
    picture = read(tmp_path / "curves.png")[:-80]  # without the legend
    assert has_colour(picture, BLUE) and has_colour(picture, ORANGE)


def test_there_is_a_panel_for_each_column_given(tmp_path):
    widths = []
    for columns in (("loss", "kl"), ("loss", "kl", "log_likelihood"), ("loss", "kl", "log_likelihood", "v")):
        run = {k: v for k, v in history(3).items() if k in ("epoch", *columns)}
        if "v" in columns:
            run["gradient_variance"] = [1.0, 0.1, 0.0]
        plotting.training_curves(run, tmp_path / "curves.png")
        picture = read(tmp_path / "curves.png")
        assert not has_colour(picture, ORANGE)  # no test data
        widths.append(picture.shape[1])
    assert widths == sorted(set(widths))


def test_a_colour_for_each_run(tmp_path):
    runs = {
        "_one": history(30),
        "two": history(20),
        "three": history(10),
    }  # each is seen past the end of the next
    plotting.compare_curves(runs, tmp_path / "curves.png")
    curves, legend = read(tmp_path / "curves.png")[:-60], read(tmp_path / "curves.png")[-60:]
    for colour in (BLUE, ORANGE, GREEN):
        assert has_colour(curves, colour) and has_colour(legend, colour)


def test_more_runs_than_named_colours(tmp_path):
    runs = {f"run {i}": history(5) for i in range(12)}
    plotting.compare_curves(runs, tmp_path / "curves.png")
    assert read(tmp_path / "curves.png").size


@pytest.mark.parametrize(
    "bad", [[np.nan] * 3, [1.0, np.inf, 2.0], [np.nan, np.nan, -np.inf], [0.0, 0.0, 0.0], [1e38, 0, 1]]
)
def test_numbers_that_cannot_be_drawn_are_left_out(tmp_path, bad):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plotting.training_curves(history(3, loss=bad, val_kl=bad, gradient_variance=bad), tmp_path / "curves.png")
    assert has_colour(read(tmp_path / "curves.png"), BLUE)


def test_a_variance_that_falls_to_zero_at_once(tmp_path):
    variance = [1.0, 0.1] + [0.0] * 98  # positive only in the epochs that do not set the limits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plotting.training_curves({"epoch": range(1, 101), "gradient_variance": variance}, tmp_path / "curves.png")
    assert has_colour(read(tmp_path / "curves.png")[:-80], BLUE)


@pytest.mark.parametrize("n", [1, 3, 10])
def test_rows_of_images_of_different_sizes_stand_below_each_other(tmp_path, n):
    shapes = ((7, 5, 3), (4, 2, 3), (7, 5, 3))
    rows = {f"row {i}": random_images(n, *shape) * [1, 0, 0] + [0.1, 0, 0] for i, shape in enumerate(shapes)}
    plotting.image_rows(rows, tmp_path / "rows.png")  # all red: text is grey
    picture = read(tmp_path / "rows.png").astype(int)
    red = np.ptp(picture, axis=-1) > 20
    down = runs_of(red.any(axis=1))
    assert len(down) == len(rows)
    for (top, bottom), images in zip(down, rows.values(), strict=True):
        across = runs_of(red[top:bottom].any(axis=0))
        assert len(across) == n
        for (left, right), image in zip(across, images, strict=True):
            np.testing.assert_array_equal(shrink(picture[top:bottom, left:right], *image.shape[:2]), as_bytes(image))
        assert np.any(picture[top:bottom, : across[0][0]] < 128)  # a label
    # What belongs together has one centre.
    centres = [np.mean(runs_of(red[top:bottom].any(axis=0)), axis=1) for top, bottom in down]
    np.testing.assert_allclose(centres[1], centres[0], atol=1)


DRAW = {
    "training_curves": lambda path: plotting.training_curves(history(2), path),
    "compare_curves": lambda path: plotting.compare_curves({"a": history(2)}, path),
    "reconstructions": lambda path: plotting.reconstructions(np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2, 1)), path),
    "image_grid": lambda path: plotting.image_grid(np.zeros((1, 2, 2, 1)), path),
    "image_rows": lambda path: plotting.image_rows({"row": np.zeros((1, 2, 2, 1))}, path),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_whole_or_not_at_all(tmp_path, draw):
    draw(str(tmp_path / "figure.png"))  # a string will do
    assert os.listdir(tmp_path) == ["figure.png"]
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError):
        draw(tmp_path / "folder.png")  # fails at the very last step
    assert sorted(os.listdir(tmp_path)) == ["figure.png", "folder.png"]
