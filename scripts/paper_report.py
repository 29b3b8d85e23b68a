"""The text of docs/results.md, which reproduce_paper.py writes: tables of the results, and the paper's claims.

A result is what docs/results/<experiment>.json holds: `config`, `recipe_epochs`, `metrics`, `evaluation`, `history`.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator

# Name of the picture of the curves -> (heading, the experiments on its axes).
GROUPS = {
    "fc": (
        "FC BVAE and FC CVAE on MNIST (figures 6, 7 and 8)",
        ("fc_bvae_paper", "fc_bvae_best", "fc_cvae_paper", "fc_cvae_best", "fc_vae"),
    ),
    "cnn": (
        "CNN BVAE and CNN CVAE on MNIST (figures 9, 10 and 11)",
        ("cnn_bvae_paper", "cnn_bvae_best", "cnn_cvae_paper", "cnn_cvae_10_samples", "cnn_cvae_best"),
    ),
    "fashion": (
        "Fashion-MNIST (figures 12 and 13)",
        ("fc_bvae_fashion_paper", "fc_bvae_fashion_best", "cnn_bvae_fashion_best"),
    ),
    "hybrid": ("A hybrid latent on MNIST (the hope of section 7)", ("fc_hvae",)),
}
PICTURES = ("reconstructions", "prior_samples")


def render(results: dict[str, dict], experiments: Iterable[str]) -> str:
    """The text of results.md, from the results by name, of those experiments that are finished."""
    missing = [name for name in experiments if name not in results]
    parts = [
        "# The paper's experiments, run again\n",
        "Written by `scripts/reproduce_paper.py` from `results/*.json`, which hold the settings, metrics and history "
        "of the runs; not edited by hand. A name ending in `_paper` is the paper's recipe (importance sampling with "
        "one sample, Adam 1e-3, batch 2048), `_10_samples` the same with ten, `_best` is ours "
        "(`tf_isvae.training.RECIPES`), `fc_vae` the conventional VAE with 50 Gaussians. Nats per image.\n",
        *figures(results),
        *categories(results),
        *bits(results),
        "## The paper's claims\n",
        "Verdicts follow from the figures by the rules in brackets. Runs of fewer epochs than their recipe's, bold in "
        "the first table, count as they are.\n",
        *(claim(number, function, results) for number, function in enumerate(CLAIMS, start=1)),
        "## Ours beside the paper's\n",
        gains(results),
        *pictures(results),
        *([f"Not run yet: {', '.join(missing)}.\n"] if missing else []),
    ]
    return "\n".join(parts)


def table(header: str, rows: list[tuple]) -> str:
    columns = len(re.split(r"(?<!\\)\|", header))
    lines = [f"| {header} |", "|" + "---|" * columns, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]
    return "\n".join(lines) + "\n"


def epochs(result: dict) -> str:
    """How many were run, in bold with those of the recipe if they are fewer."""
    done, full = result["metrics"]["epochs"], result["recipe_epochs"]
    return str(done) if done == full else f"**{done} of {full}**"


def figures(results: dict[str, dict]) -> list[str]:
    rows, settings = [], []
    for name, result in results.items():
        metrics, e, config = result["metrics"], result["evaluation"], result["config"]
        rows.append(
            (
                name,
                epochs(result),
                f"{metrics['seconds']:,.0f}",
                f"{metrics['loss']:.2f}",
                f"{metrics['val_loss']:.2f}",
                f"{metrics['val_log_likelihood']:.2f}",
                f"{metrics['val_kl']:.2f}",
                f"{e['test_ln_p']:.2f} ({e['test_ln_p_kind']})",
                f"{e['gradient_variance']:.2e}",
                e["active_units"],
                f"{e['codes_used']:,} of {e['test_images']:,} images",
            )
        )
        fewer = "" if metrics["epochs"] == result["recipe_epochs"] else f" --epochs {metrics['epochs']}"
        settings.append(
            (
                name,
                f"{config['model']}, {config['dataset']}, {config['seed']}",
                config["estimator"],
                config["batch_size"],
                config["precision"],
                f"`python scripts/reproduce_paper.py {name}{fewer}`",
            )
        )
    parts = [
        "## Figures\n",
        table(
            "experiment | epochs | seconds | train -ELBO | test -ELBO | E_q[ln p(x\\|z)] | KL | ln p(x) | "
            "gradient variance | active units | codes used",
            rows,
        ),
        "The columns from test -ELBO on are of the test images, where -ELBO and its two parts are estimated with "
        "codes drawn once for each image; train -ELBO is the mean over the last epoch. ln p(x) "
        "is exact for categorical codes, and otherwise the importance-weighted bound of 100 samples, which lies below "
        "it. The gradient variance (nats squared per encoder parameter) is that of the model's own estimator on the "
        "first 1,000 test images. Active units: entries of the posterior mean with a variance over the images above "
        "0.01. Codes used: different codes among the test images. Seconds are those on the clock from the start of the "
        "training to its end. Where the gradient variance was measured, they include that. Other programs ran on the "
        "same machine, some runs were interrupted, and not all are of one machine: compare them roughly.\n",
        table("experiment | model, data, seed | estimator | batch | precision | command", settings),
    ]
    unmeasured = [name for name, result in results.items() if "gradient_variance" not in result["history"]]
    if unmeasured:
        parts.append(
            f"Made before the gradient variance was measured while training, and without it: {', '.join(unmeasured)}. "
            "Their commands now measure it as well, which takes longer.\n"
        )
    return parts


def categories(results: dict[str, dict]) -> list[str]:
    rows = [
        (
            name,
            e["cluster_clusters"],
            f"{e['perplexity']:.1f}",
            f"{e['cluster_classes_found']} of {e['classes']}",
            f"{e['cluster_accuracy']:.3f}",
            f"{e['cluster_nmi']:.3f}",
        )
        for name, e in evaluations(results, "cluster_nmi")
    ]
    if not rows:
        return []
    return [
        "### Categories as clusters\n",
        table("experiment | categories used | perplexity | classes with a template | purity | NMI", rows),
        "A class has a template if its label is the commonest among the test images of some category; purity is "
        "the share of images whose label is the commonest of their category.\n",
    ]


def bits(results: dict[str, dict]) -> list[str]:
    columns = ("sure_bits", "unsure_bits", "retrieval_map_100", "samples_like_one_class", "test_like_one_class")
    rows = [
        (name, *(f"{e[column]:.3f}" if column in e else "" for column in columns))
        for name, e in evaluations(results, "sure_bits")
    ]
    if not rows:
        return []
    return [
        "### Bits\n",
        table(
            "experiment | share of sure bits | of unsure bits | mAP@100 of Hamming retrieval | "
            "prior samples like one class | test images like one class",
            rows,
        ),
        "Sure: q below 0.01 or above 0.99; unsure: q from 0.25 to 0.75. Retrieval: 1,000 test images among 10,000 "
        "training images. Like one class: at least 9 of the 10 nearest training images, in pixels, have the same "
        "label.\n",
    ]


def gains(results: dict[str, dict]) -> str:
    rows = []
    for paper in (name for name in results if name.endswith("_paper")):
        best = paper.removesuffix("paper") + "best"
        if best in results:
            pair = [results[name] for name in (paper, best)]
            elbos = [result["metrics"]["val_loss"] for result in pair]
            rows.append(
                (
                    paper.removesuffix("_paper"),
                    *(f"{elbo:.2f} ({epochs(r)} epochs)" for elbo, r in zip(elbos, pair, strict=True)),
                    f"{elbos[0] - elbos[1]:.2f}",
                    " / ".join(f"{result['metrics']['seconds']:,.0f}" for result in pair),
                )
            )
    header = "model | test -ELBO, paper's recipe | ours | better by | seconds, paper's / ours"
    return table(header, rows) if rows else "No pair of runs is finished yet.\n"


def pictures(results: dict[str, dict]) -> list[str]:
    parts = ["## Pictures\n"]
    for group, (heading, names) in GROUPS.items():
        present = [name for name in names if name in results]
        if not present:
            continue
        rows = [
            (name, *(f"![{name}: {picture}](figures/{name}_{picture}.png)" for picture in PICTURES)) for name in present
        ]
        parts += [
            f"### {heading}\n",
            f"![Training curves of {', '.join(present)}](figures/curves_{group}.png)\n",
            "Training images; the gradient variance is that of each run's own estimator. One that is exact has the "
            "variance 0, which the logarithmic axis does not show.\n",
            table("experiment | test images, each above its reconstruction | samples of the prior", rows),
        ]
    return parts


# --- The paper's claims. The text of each function is the claim, with the rule by which it holds in brackets. From the
# results it yields (experiment, whether it holds there, the evidence); None if the evidence decides nothing.

Finding = tuple[str, bool | None, str]


def claim(number: int, function: Callable[[dict], Iterator[Finding]], results: dict[str, dict]) -> str:
    """The paragraphs of one claim: its words, the verdict, and the evidence."""
    findings = list(function(results))
    lines = [f"**{number}. {' '.join(function.__doc__.split())}** {verdict(findings)}\n"]
    if findings:
        lines.append("\n".join(f"- {name}: {evidence}" for name, _, evidence in findings) + "\n")
    return "\n".join(lines)


def verdict(findings: list[Finding]) -> str:
    outcomes = [(name, holds) for name, holds, _ in findings if holds is not None]
    failing = [name for name, holds in outcomes if not holds]
    if not outcomes:
        return "Not run yet."
    if not failing:
        return "Holds."
    return "Does not hold." if len(failing) == len(outcomes) else f"Holds, but not for {', '.join(failing)}."


def of_paper(results: dict[str, dict]) -> Iterator[tuple[str, dict]]:
    """The runs with the paper's recipe."""
    return ((name, result) for name, result in results.items() if name.endswith("_paper"))


def evaluations(results: dict[str, dict], figure: str) -> Iterator[tuple[str, dict]]:
    """The evaluations that have this figure."""
    return ((name, r["evaluation"]) for name, r in results.items() if figure in r["evaluation"])


def steady_loss(results):
    """The loss falls steadily, without oscillation."""
    for name, result in of_paper(results):
        loss = result["history"]["loss"]
        lowest, rise, at = loss[0], 0.0, 1
        for epoch, value in zip(result["history"]["epoch"], loss, strict=True):
            lowest = min(lowest, value)
            rise, at = max((rise, at), (value - lowest, epoch))
        allowed = 0.01 * (loss[0] - lowest)
        yield (
            name,
            rise <= allowed,
            f"from {loss[0]:.1f} after the first epoch to {loss[-1]:.1f} after {epochs(result)}; at no epoch "
            f"more than {rise:.2f} above the lowest before it (epoch {at}; holds: up to 1% of the whole fall, "
            f"{allowed:.2f}).",
        )


def variance_over_training(results):
    """The variance of the gradient falls during training. (Holds: the end is below the beginning.)"""
    for name, result in of_paper(results):
        history = result["history"]
        pairs = zip(history["epoch"], history.get("gradient_variance", ()), strict=False)
        measured = [(epoch, value) for epoch, value in pairs if value is not None]
        if len(measured) < 2:
            continue
        (first, begin), (last, end) = measured[0], measured[-1]
        peak_epoch, peak = max(measured, key=lambda pair: pair[1])
        yield (
            name,
            end < begin,
            f"{begin:.2e} after epoch {first}, at most {peak:.2e} (epoch {peak_epoch}), {end:.2e} at the end "
            f"(epoch {last}): {end / peak:.2f} of the largest.",
        )


def variance_of_sure_bits(results):
    """The variance of the paper's gradient falls as q nears 0 or 1. (It is q(1 - q) ((1 - q) a + q b)^2 in theory.)"""
    for name, e in evaluations(results, "eta_variance_sure"):
        if "eta_variance_unsure" not in e:
            continue
        sure, unsure = e["eta_variance_sure"], e["eta_variance_unsure"]
        yield (
            name,
            sure < unsure,
            f"the gradient with respect to eta has a variance of {sure:.3g} nats squared for bits with q within 0.01 "
            f"of 0 or 1 ({e['sure_bits']:.0%} of the bits) and {unsure:.3g} for those with q from 0.25 to 0.75 "
            f"({e['unsure_bits']:.0%}), a ratio of {sure / unsure:.1e}.",
        )


def cvae_is_worse(results):
    """FC CVAE is worse than FC BVAE, because H <= ln 100."""
    metrics = {name: result["metrics"] for name, result in results.items()}
    for bvae, cvae in (("fc_bvae_paper", "fc_cvae_paper"), ("fc_bvae_best", "fc_cvae_best")):
        if bvae in results and cvae in results:
            elbos = [metrics[name]["val_loss"] for name in (bvae, cvae)]
            likelihoods = [metrics[name]["val_log_likelihood"] for name in (bvae, cvae)]
            yield (
                cvae,
                elbos[0] < elbos[1] and likelihoods[0] > likelihoods[1],
                f"test -ELBO {elbos[1]:.1f} against {elbos[0]:.1f} of {bvae}, E_q[ln p(x|z)] "
                f"{likelihoods[1]:.1f} against {likelihoods[0]:.1f}.",
            )
    for name, result in results.items():
        if result["config"]["model"] == "fc_cvae":
            kl, limit = metrics[name]["val_kl"], math.log(100)
            yield name, None, f"its codes carry {kl:.2f} nats, {kl / limit:.0%} of ln 100 = {limit:.2f}."
    if "fc_cvae_paper" in results and "fc_cvae_best" in results:
        paper, best = (metrics[name]["val_loss"] for name in ("fc_cvae_paper", "fc_cvae_best"))
        yield (
            "fc_cvae_best",
            None,
            "the limit of ln 100 is not the whole reason: with our recipe the same network with the same 100 codes "
            f"reaches {best:.1f}, so {paper - best:.1f} nats of the paper's figure come from its training.",
        )


def codes_are_clusters(results):
    """The CVAE's codes are clusters, with at least one template for each class of digits."""
    for name, e in evaluations(results, "cluster_nmi"):
        if results[name]["config"]["model"].endswith("hvae"):  # of claim 10
            continue
        yield (
            name,
            e["cluster_classes_found"] == e["classes"],
            f"{e['cluster_classes_found']} of {e['classes']} classes have a template, in "
            f"{e['cluster_clusters']} categories; purity {e['cluster_accuracy']:.3f}, NMI {e['cluster_nmi']:.3f}.",
        )


def reconstructions(results):
    """BVAE reconstructions are close to the input, the CVAE's are blurred and sometimes of another class."""
    for bvae, cvae in (("fc_bvae_paper", "fc_cvae_paper"), ("cnn_bvae_paper", "cnn_cvae_paper")):
        if bvae in results and cvae in results:
            kept = [results[name]["evaluation"]["detail_kept"] for name in (bvae, cvae)]
            flipped = 1 - results[cvae]["evaluation"]["cluster_accuracy"]
            yield (
                cvae,
                kept[0] > kept[1],
                f"reconstructions keep {kept[1]:.0%} of the squared differences of neighbouring pixels, and "
                f"{kept[0]:.0%} in {bvae}; {flipped:.0%} of the images are in a category whose commonest class is "
                "another.",
            )


def samples(results):
    """Samples of the BVAE look like digits or mixtures of them. (By this measure: some, at least 5%, are like one
    class, but fewer than of the test images. The pictures below decide.)"""
    for name, e in evaluations(results, "sure_bits"):
        if results[name]["config"]["dataset"] == "mnist" and "samples_like_one_class" in e:
            yield (
                name,
                0.05 <= e["samples_like_one_class"] < e["test_like_one_class"],
                f"9 of the 10 nearest training images are of one class for {e['samples_like_one_class']:.0%} of the "
                f"samples, and for {e['test_like_one_class']:.0%} of test images. The others lie between classes.",
            )


def cnns_alike(results):
    """The CNNs give similar results. (By this measure: at least 10 codes are in use.)"""
    for name, result in results.items():
        if name.startswith("cnn") and name.endswith(("_paper", "_samples")):
            e = result["evaluation"]
            evidence = (
                f"test -ELBO {result['metrics']['val_loss']:.1f} after {epochs(result)} epochs, {e['codes_used']:,} "
                f"codes for {e['test_images']:,} test images, {e['active_units']} active units."
            )
            if name.endswith("_samples"):
                evidence += (
                    " The paper's recipe with one difference, 10 samples in place of 1: docs/estimators.md has other "
                    "seeds of both, and the other differences that were tried."
                )
            yield name, e["codes_used"] >= 10 and e["active_units"] > 0, evidence


def fashion(results):
    """On Fashion-MNIST shapes are reconstructed, details like texture are lost."""
    for name, result in of_paper(results):
        if result["config"]["dataset"] == "fashion_mnist":
            kept, carried = result["evaluation"]["detail_kept"], result["metrics"]["val_kl"] / math.log(2)
            yield (
                name,
                kept < 0.5,
                f"reconstructions keep {kept:.0%} of the squared differences of neighbouring pixels (holds: less than "
                f"half); the codes carry {carried:.1f} of 50 bits.",
            )


def hybrids(results):
    """With some continuous latent variables beside the category, the generative capabilities increase considerably,
    and the model is a powerful one for nonlinear clustering (a hope of section 7). (Holds: test -ELBO at least 10 nats
    below fc_cvae_best; and, a category for a class, at least 0.80 of the images in the category of their class.)"""
    for name, result in results.items():
        config, e = result["config"], result["evaluation"]
        if not config["model"].endswith("hvae") or "cluster_matched_accuracy" not in e or "fc_cvae_best" not in results:
            continue
        if config["dataset"] != "mnist":
            continue
        elbo, other = (results[one]["metrics"]["val_loss"] for one in (name, "fc_cvae_best"))
        accuracy = e["cluster_matched_accuracy"]
        yield (
            f"{name}, as a generator",
            other - elbo >= 10,
            f"test -ELBO {elbo:.1f} against {other:.1f} of fc_cvae_best; {e['samples_like_one_class']:.0%} of its "
            f"samples are like one class, {e['test_like_one_class']:.0%} of test images.",
        )
        yield (
            f"{name}, as a clustering",
            accuracy >= 0.8,
            f"accuracy {accuracy:.3f}, purity {e['cluster_accuracy']:.3f}, NMI {e['cluster_nmi']:.3f} of "
            f"{e['cluster_clusters']} categories.",
        )


CLAIMS = (
    steady_loss,
    variance_over_training,
    variance_of_sure_bits,
    cvae_is_worse,
    codes_are_clusters,
    reconstructions,
    samples,
    cnns_alike,
    fashion,
    hybrids,
)
