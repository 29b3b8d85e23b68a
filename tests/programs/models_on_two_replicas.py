"""Models that two replicas train, and what one device makes of the same batches."""

import contextlib

import keras
import numpy as np
import tensorflow as tf
import test_model

from tf_isvae import callbacks, estimators, evaluation


def train(strategy, images, batch_size, regulariser):
    """One epoch of SGD: the weights after it and the logs, and those of an evaluation."""
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = test_model.build(exact=True)
        if regulariser:
            model.encoder.layers[-1].kernel_regularizer = keras.regularizers.L2(0.1)
        model.compile(keras.optimizers.SGD(0.5), run_eagerly=not strategy)  # eagerly: nothing to trace
    logs = model.fit(images, batch_size=batch_size, shuffle=False, verbose=0).history
    evaluated = {}
    if len(images) > batch_size:
        evaluated = model.evaluate(images, batch_size=batch_size, verbose=0, return_dict=True)
    weights = np.concatenate([w.numpy().ravel() for w in model.trainable_variables])
    return {"weights": weights, "logs": {k: v[0] for k, v in logs.items()}, "evaluated": evaluated}


def step_by_hand(images, seeds):
    """The mean of the gradients of one SGD step from these images once with each seed, and whether they differ."""
    model = test_model.build()
    gradients = []
    for seed in seeds:
        with tf.GradientTape() as tape:
            posterior = model.latent.posterior(model.encoder(images))
            z = posterior.sample(1, seed=seed)
            log_p = model.likelihood.log_prob(model.decoder(z[0]), images)
            weight = tf.stop_gradient(log_p) * posterior.log_prob(z)[0]
            loss = tf.reduce_mean(model.latent.kl(posterior) - log_p - weight)
        gradients.append(tape.gradient(loss, model.trainable_variables))
    differ = bool(np.max(np.abs(gradients[0][0] - gradients[1][0])) > 1e-3)
    return [-0.5 * (a + b) / 2 for a, b in zip(*gradients, strict=True)], differ


def measure(model, images):
    """The evaluation of gradients, and annealing."""
    measured = callbacks.GradientVariance(images, draws=3), callbacks.KLAnnealing(4.0, 2)
    logs = model.fit(images, batch_size=2, shuffle=False, verbose=0, callbacks=[*measured]).history
    bias = evaluation.estimator_bias(model, images, reference=estimators.LeaveOneOut(2), draws=3)
    return {"variance": evaluation.gradient_variance(model, images, 3), "logged": logs["gradient_variance"], **bias}


def flat(arrays):
    return np.concatenate([np.ravel(array) for array in arrays])


def main(cases, rest=True):
    """Results of the named cases of DISTRIBUTED and, with `rest`, of everything else that test_model asks."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    results = {}
    for name in cases:
        n, batch_size, regulariser = test_model.DISTRIBUTED[name]
        images = test_model.random_images(n)
        results[name] = [train(where, images, batch_size, regulariser) for where in (None, strategy)]
    if not rest:
        return results

    with strategy.scope():
        model = test_model.build()
        model.compile(keras.optimizers.SGD(0.5))
    seeds = strategy.experimental_local_results(strategy.run(lambda: model.noise_seed(3)))
    results["seeds"] = [seed.numpy().tolist() for seed in seeds]
    results["seed of one"] = test_model.build().noise_seed(3).numpy().tolist()

    # The default estimator, whose noise differs between the replicas: a step from 4 images, twice the same 2.
    images = test_model.random_images(2)
    before = [w.numpy() for w in model.trainable_variables]
    seeds = strategy.experimental_local_results(strategy.run(lambda: model.noise_seed(0)))
    model.fit(np.concatenate([images, images]), batch_size=4, shuffle=False, verbose=0)
    expected, results["halves differ"] = step_by_hand(images, seeds)
    moved = [w.numpy() - b for w, b in zip(model.trainable_variables, before, strict=True)]
    results["noisy"] = flat(moved), flat(expected)

    weights, step = model.get_weights(), model.optimizer.iterations.numpy()
    results["outside"] = measure(model, images)
    model.set_weights(weights)
    model.optimizer.iterations.assign(step)
    with strategy.scope():
        results["inside"] = measure(model, images)
    results["annealing"] = float(model.kl_annealing.numpy())

    results["refused"] = {}
    for option in ("clipnorm", "global_clipnorm", "clipvalue", "gradient_accumulation_steps"):
        with strategy.scope():
            model.compile(keras.optimizers.SGD(0.5, **{option: 2}))
        try:
            model.fit(images, batch_size=2, verbose=0)
        except ValueError as error:
            results["refused"][option] = str(error)
    return results
