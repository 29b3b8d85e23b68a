"""callbacks.FirstEstimator. The others are tested beside what they are for."""

import keras
import numpy as np
import pytest
from helpers import one_line

from tf_isvae import BernoulliLatent, CategoricalLatent, DiscreteVAE, callbacks, networks

SHAPE = (2, 2, 1)
IMAGES = np.random.default_rng(0).uniform(size=(12, *SHAPE)).astype(np.float32)


def tiny(latent, estimator):
    """A compiled model, with the same weights for each estimator."""
    encoder = networks.dense_encoder(SHAPE, latent.encoder_units, (4,))
    decoder = networks.dense_decoder(latent.units, SHAPE, (4,))
    rng = np.random.default_rng(1)
    for network in (encoder, decoder):
        network.set_weights([rng.normal(size=w.shape) for w in network.get_weights()])
    model = DiscreteVAE(encoder, latent, decoder, estimator=estimator, seed=7)
    model.compile(keras.optimizers.Adam(0.01))
    return model


def test_the_first_estimator_trains_alone_and_then_not_at_all():
    """Weights as with the first one alone, bit for bit; validation as with the model's own."""
    latent, options = BernoulliLatent(3), {"batch_size": 4, "shuffle": False, "verbose": 0}
    alone, switched = tiny(latent, "ReinMax"), tiny(latent, "DisARM:5")
    alone.fit(IMAGES, epochs=2, **options)
    first = callbacks.FirstEstimator("ReinMax", epochs=2)
    logs = switched.fit(IMAGES, epochs=2, callbacks=[first], validation_data=(IMAGES,), **options).history
    for one, other in zip(alone.get_weights(), switched.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    own = switched.evaluate(IMAGES, batch_size=4, verbose=0, return_dict=True)
    assert logs["val_loss"][-1] == pytest.approx(own["loss"], rel=1e-5)
    assert switched.phase.estimator is None and switched.estimator.num_pairs == 5

    # In three fifths of the epochs, counted from the first of the run.
    used = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: used.append(switched.phase.estimator is not None)
    )
    first = callbacks.FirstEstimator("ReinMax")
    switched.fit(IMAGES, epochs=5, initial_epoch=1, callbacks=[first, look], **options)
    assert used == [True, True, False, False]
    alone.fit(IMAGES, epochs=4, **options)
    assert not np.array_equal(alone.encoder.get_weights()[0], switched.encoder.get_weights()[0])


def test_what_the_first_estimator_refuses():
    with pytest.raises(ValueError) as error:
        callbacks.FirstEstimator("ReinMax", epochs=0)
    one_line(error, "FirstEstimator: epochs is 0", "positive")
    with pytest.raises(TypeError) as error:
        tiny(CategoricalLatent(3), "Enumerated").fit(IMAGES, callbacks=[callbacks.FirstEstimator("DisARM")], verbose=0)
    one_line(error, "DisARM")
