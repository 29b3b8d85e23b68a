"""scripts/compare_estimators.py --start-at-mean, one step at a rate at which nothing moves; returns its row."""

from tf_isvae.commands import compare_estimators


def main(folder):
    given = ["--categorical", "3x4", "--start-at-mean", "--learning-rate", "1e-9", "--estimators", "ReinMax:1"]
    given += ["--steps", "1", "--evaluate-every", "1", "--run-dir", str(folder)]
    arguments, shared = compare_estimators.prepare(compare_estimators.make_parser().parse_args(given))
    (row,) = compare_estimators.run("ReinMax:1", shared, arguments)
    return row
