"""scripts/compare_estimators.py in one call, and in three of which one is stopped; returns the rows of both."""

import signal

from tf_isvae import files, training
from tf_isvae.commands import compare_estimators


def main(folder, categorical):
    def compare(name, steps, evaluate_every):
        given = ["--estimators", "LeaveOneOut:2", "--run-dir", str(folder / name), *categorical]
        given += ["--steps", str(steps), "--evaluate-every", str(evaluate_every)]
        compare_estimators.work(compare_estimators.prepare(compare_estimators.make_parser().parse_args(given)))
        (history,) = (folder / name).glob("*/history.csv")
        return files.read_csv(history)

    on_train_batch_end = training.Recorder.on_train_batch_end

    def and_stop(self, batch, logs=None):
        if self.step == 8:
            signal.raise_signal(signal.SIGINT)
        on_train_batch_end(self, batch, logs)

    whole = compare("whole", 12, 12)
    compare("parts", 4, 4)
    training.Recorder.on_train_batch_end = and_stop
    try:
        compare("parts", 12, 6)
    except training.Interrupted as stopped:
        assert "the same command goes on" in str(stopped)
    training.Recorder.on_train_batch_end = on_train_batch_end
    return whole, compare("parts", 12, 6)
