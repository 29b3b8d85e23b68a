"""networks: the paper's table 1 layer by layer, and images of any shape."""

import math

import keras
import numpy as np
import pytest
from keras import layers

from tf_isvae import likelihoods, networks
from tf_isvae.precision import layers_in

MNIST = (28, 28, 1)
BUILDERS = {
    "dense_encoder": lambda shape, units=4: networks.dense_encoder(shape, units),
    "dense_decoder": lambda shape, units=4: networks.dense_decoder(units, shape),
    "conv_encoder": lambda shape, units=4: networks.conv_encoder(shape, units),
    "conv_decoder": lambda shape, units=4: networks.conv_decoder(units, shape),
}


def kinds(network):
    return [type(layer) for layer in network.layers]


def activations(network):
    return [layer.activation.__name__ for layer in network.layers if hasattr(layer, "activation")]


def dense(inputs, outputs):
    return inputs * outputs + outputs


def conv(inputs, outputs):
    return 3 * 3 * inputs * outputs + outputs


@pytest.mark.parametrize("c", [50, 100])
def test_table_1_dense(c):
    encoder = networks.dense_encoder(MNIST, c)
    assert kinds(encoder) == [layers.Flatten, layers.Dense, layers.Dense]
    assert [layer.units for layer in encoder.layers[1:]] == [1024, c]
    assert activations(encoder) == ["relu", "linear"]
    assert encoder.count_params() == dense(784, 1024) + dense(1024, c)

    decoder = networks.dense_decoder(c, MNIST)
    assert kinds(decoder) == [layers.Dense, layers.Dense, layers.Reshape]
    assert [layer.units for layer in decoder.layers[:2]] == [1024, 784]
    assert activations(decoder) == ["relu", "linear"]
    assert decoder.count_params() == dense(c, 1024) + dense(1024, 784)
    assert (encoder.output_shape, decoder.output_shape) == ((None, c), (None, *MNIST))


@pytest.mark.parametrize("c", [50, 100])
def test_table_1_conv_encoder(c):
    encoder = networks.conv_encoder(MNIST, c)
    assert kinds(encoder) == [*[layers.Conv2D] * 4, layers.Flatten, layers.Dense]
    convolutions = encoder.layers[:4]
    assert [layer.filters for layer in convolutions] == [32, 64, 64, 128]
    assert [layer.output.shape[1:3] for layer in convolutions] == [(14, 14), (7, 7), (4, 4), (2, 2)]
    for layer in convolutions:
        assert (layer.kernel_size, layer.strides, layer.padding) == ((3, 3), (2, 2), "same")
    assert activations(encoder) == [*["relu"] * 4, "linear"]
    expected = conv(1, 32) + conv(32, 64) + conv(64, 64) + conv(64, 128) + dense(2 * 2 * 128, c)
    assert encoder.count_params() == expected


@pytest.mark.parametrize("c, grid_channels", [(50, 13), (100, 25), (1, 1), (4, 1), (5, 2)])
def test_table_1_conv_decoder(c, grid_channels):
    """c is rounded up to fill the 2x2 grid: 50 becomes 52 = 2 * 2 * 13."""
    decoder = networks.conv_decoder(c, MNIST)
    assert kinds(decoder) == [layers.Dense, layers.Reshape, *[networks.Conv2DTranspose] * 4]
    assert decoder.layers[0].units == 4 * grid_channels
    assert decoder.layers[1].output.shape[1:] == (2, 2, grid_channels)
    convolutions = decoder.layers[2:]
    assert [layer.filters for layer in convolutions] == [64, 64, 32, 1]
    assert [layer.output.shape[1:3] for layer in convolutions] == [(4, 4), (7, 7), (14, 14), (28, 28)]
    for layer in convolutions:
        assert (layer.kernel_size, layer.strides, layer.padding) == ((3, 3), (2, 2), "same")
    assert activations(decoder) == [*["relu"] * 4, "linear"]
    expected = dense(c, 4 * grid_channels) + conv(grid_channels, 64) + conv(64, 64) + conv(64, 32) + conv(32, 1)
    assert decoder.count_params() == expected


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 3), (32, 32, 3), (33, 20, 2), (1, 50, 1)], ids=str)
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_any_image_shape(kind, shape):
    encoder = BUILDERS[f"{kind}_encoder"](shape, 6)
    decoder = BUILDERS[f"{kind}_decoder"](shape, 6)
    assert encoder.input_shape == (None, *shape) and encoder.output_shape == (None, 6)
    assert decoder.input_shape == (None, 6) and decoder.output_shape == (None, *shape)
    # The shapes that Keras infers are those that come out.
    eta = encoder(np.random.default_rng(0).uniform(size=(2, *shape)).astype(np.float32))
    assert eta.shape == (2, 6)
    assert decoder(eta).shape == (2, *shape)


@pytest.mark.parametrize("shape", [(33, 20, 2), (5, 7, 3)], ids=str)
def test_conv_decoder_retraces_the_grids_of_the_encoder(shape):
    down = [layer.output.shape[1:3] for layer in networks.conv_encoder(shape, 6).layers[:4]]
    decoder = networks.conv_decoder(6, shape)
    up = [layer.output.shape[1:3] for layer in decoder.layers[1:]]
    assert up == [*down[::-1], shape[:2]]
    assert down[0] == tuple(math.ceil(n / 2) for n in shape[:2])


def test_every_pixel_of_the_decoder_depends_on_z():
    """If a transposed convolution were cropped or padded wrongly, border pixels would be constant."""
    keras.utils.set_random_seed(0)
    decoder = networks.conv_decoder(50, MNIST)
    images = decoder(np.random.default_rng(0).normal(size=(64, 50)).astype(np.float32)).numpy()
    assert images.std(0).min() > 0


def test_hidden_layers_are_a_parameter():
    encoder = networks.dense_encoder((2, 2, 1), 3, hidden=(7, 5))
    decoder = networks.dense_decoder(3, (2, 2, 1), hidden=())
    assert encoder.count_params() == dense(4, 7) + dense(7, 5) + dense(5, 3)
    assert decoder.count_params() == dense(3, 4)


@pytest.mark.parametrize("name", list(BUILDERS))
def test_plain_keras_round_trip(name, tmp_path):
    network = BUILDERS[name]((5, 7, 3))
    network.save(tmp_path / "m.keras")
    copy = keras.models.load_model(tmp_path / "m.keras")
    x = np.random.default_rng(0).uniform(size=(2, *network.input_shape[1:])).astype(np.float32)
    np.testing.assert_array_equal(network(x), copy(x))


@pytest.mark.parametrize("build", [networks.conv_encoder, lambda shape, units: networks.conv_decoder(units, shape)])
def test_small_convolutions_in_bfloat16_are_refused(build):
    """Their gradients on a 1x1 grid hold uninitialised memory (oneDNN), which no test could catch reliably."""
    with layers_in("mixed_bfloat16"):
        with pytest.raises(ValueError, match="float32") as error:
            build((8, 8, 1), 3)
        build((9, 8, 1), 3)
    assert "8x8" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("likelihood", [None, likelihoods.Bernoulli(), likelihoods.Gaussian(0.5)], ids=str)
@pytest.mark.parametrize("name", ["dense", "conv"])
def test_start_at_mean(name, likelihood):
    """With the other weights of the last layer at 0, the output is that of the mean image, for any z."""
    mean = np.random.default_rng(0).uniform(0.05, 0.95, (8, 9, 2)).astype(np.float32)
    decoder = (networks.dense_decoder if name == "dense" else networks.conv_decoder)(3, (8, 9, 2))
    networks.start_at_mean(decoder, mean, *([] if likelihood is None else [likelihood]))
    last = [layer for layer in decoder.layers if layer.weights][-1]
    last.kernel.assign(np.zeros(last.kernel.shape))
    output = decoder(np.ones((1, 3))).numpy()[0]
    images = output if isinstance(likelihood, likelihoods.Gaussian) else 1 / (1 + np.exp(-output))
    expected = mean if name == "dense" else np.broadcast_to(mean.mean(axis=(0, 1)), mean.shape)
    np.testing.assert_allclose(images, expected, rtol=1e-5)
