"""How well the bits of trained models find images of the same class, beside ITQ.

    python scripts/compare_retrieval.py fc_bvae_mnist cnn_bvae_mnist --itq 16 32 64
    python scripts/compare_retrieval.py runs/hash --held-out                     for tuning: no test image is looked at

The gallery is all training images, the queries the first 1,000 test images; with --held-out, the queries are the last
1,000 training images, and the gallery the others. mAP is that of the whole ranking, and ties count as their mean over
all orders (tf_isvae.evaluation.ranking). "expected" is the mean Hamming distance over q(z|x) of the query. Entropies,
in bits: of each bit of the codes over the gallery; of q(z|x), averaged over images. Dependence: the mean absolute
correlation of two bits.
"""

import argparse
from pathlib import Path

from tf_isvae.commands import command_line

QUERIES = 1000


def make_parser() -> command_line.Parser:
    parser = command_line.Parser(__doc__)
    add = parser.add_argument
    add("models", nargs="*", default=[], metavar="MODEL", help="trained models, .keras files or run directories")
    add("--itq", nargs="+", type=int, default=[], metavar="BITS", help="also ITQ of so many bits")
    add("--dataset", default="mnist", help="as scripts/train.py takes; default mnist")
    add("--data-dir", default=None, help="where TFDS keeps its data sets")
    add("--held-out", action="store_true", default=False, help="queries from the training images")
    add("--to", help="a Markdown file to write the table to as well")
    return parser


def prepare(arguments: argparse.Namespace) -> tuple:
    """What to measure by its name, the images and labels of gallery and queries, and the file to write or None."""
    from tf_isvae import checks, evaluation, search, zoo

    command_line.exact_float32()

    if not arguments.models and not arguments.itq:
        raise ValueError("there is nothing to measure; name a model, or give --itq.")
    to = getattr(arguments, "to", None)
    if to and not Path(to).resolve().parent.is_dir():
        raise FileNotFoundError(f"--to is {to}; it must lie in a folder that exists: make it, or choose another.")
    models = {name: zoo.load(name) for name in arguments.models}
    for name, model in models.items():
        search.Index(model, name)  # refuses a model without bits
    shapes = {model.image_shape for model in models.values()}
    if len(shapes) > 1:
        raise ValueError(f"the models take images of the shapes {sorted(shapes)}; they must take the same.")
    like = next(iter(models.values()), None) or zoo.build("fc_bvae")

    def images(split):
        found = evaluation.images_for(like, arguments.dataset, split, arguments.data_dir)
        if found[1] is None:
            raise ValueError(f"{arguments.dataset} has no labels; it must have some, to say what is found.")
        return found

    gallery = images("train")
    if arguments.held_out:
        queries = tuple(part[-QUERIES:] for part in gallery)
        gallery = tuple(part[:-QUERIES] for part in gallery)
        if not len(gallery[0]):
            raise ValueError(f"{arguments.dataset} has {len(queries[0])} images; it must have more than {QUERIES}.")
    else:
        queries = tuple(part[:QUERIES] for part in images("test"))
    for bits in arguments.itq:
        checks.integer("--itq", bits, 1, gallery[0][0].size + 1)
    return models, arguments.itq, gallery, queries, to


def work(prepared: tuple) -> None:

    from tf_isvae import evaluation, files, search

    models, itq, (gallery, labels), (queries, query_labels), to = prepared
    lines = [
        "| codes | bits | mAP | P@100 | mAP, expected | P@100, expected | entropy of a bit | of q | dependence |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def show(name, codes, found, expected=None, entropy=None):
        shares = codes.mean(axis=0)
        entropies = [f"{_entropy(shares).mean():.3f}", "-" if entropy is None else f"{entropy:.1f}"]
        figures = [f"{value:.3f}" for value in found.values()]
        figures += ["-", "-"] if expected is None else [f"{value:.3f}" for value in expected.values()]
        cells = [name, str(codes.shape[1]), *figures, *entropies, f"{_dependence(codes):.3f}"]
        lines.append(f"| {' | '.join(cells)} |")

    for name, model in models.items():
        codes, means = search.encode(model, gallery)
        query_codes, query_means = search.encode(model, queries)
        found = evaluation.ranking(codes, labels, query_codes, query_labels)
        expected = evaluation.ranking(codes, labels, query_means, query_labels)
        show(name, codes, found, expected, _entropy(means).sum(axis=1).mean())
    for bits in itq:
        encode = evaluation.iterative_quantization(gallery, bits)
        codes = encode(gallery)
        show("ITQ", codes, evaluation.ranking(codes, labels, encode(queries), query_labels))
    table = "\n".join(lines)
    print(table)
    if to:
        with files.atomic_write(to) as temporary:
            temporary.write_text(table + "\n")


def _entropy(shares):
    """In bits, of Bernoulli variables that are 1 with these probabilities."""
    import numpy as np
    from scipy.special import entr

    shares = np.asarray(shares, np.float64)
    return (entr(shares) + entr(1 - shares)) / np.log(2)


def _dependence(codes) -> float:
    import numpy as np

    varying = codes[:, codes.std(axis=0) > 0]
    correlations = np.abs(np.corrcoef(varying.T))
    return float((correlations.sum() - len(correlations)) / max(1, len(correlations) * (len(correlations) - 1)))
