"""What a trained model is worth: gradient noise and bias of estimators, use of the codes, clusters, retrieval.

`evaluate` measures all of it on a data set.
"""

from tf_isvae.evaluation.clusters import Template, clustering, compare_clusterings, templates
from tf_isvae.evaluation.codes import code_statistics
from tf_isvae.evaluation.gradients import (
    estimator_bias,
    gradient_variance,
    gradient_variance_function,
    variance_by_certainty,
)
from tf_isvae.evaluation.neighbours import retrieval, share_like_one_class
from tf_isvae.evaluation.outliers import SCORES, typicality
from tf_isvae.evaluation.ranking import iterative_quantization, ranking
from tf_isvae.evaluation.report import data_for, detail, evaluate, images_for

__all__ = [
    "SCORES",
    "Template",
    "clustering",
    "code_statistics",
    "compare_clusterings",
    "data_for",
    "detail",
    "estimator_bias",
    "evaluate",
    "gradient_variance",
    "gradient_variance_function",
    "images_for",
    "iterative_quantization",
    "ranking",
    "retrieval",
    "share_like_one_class",
    "templates",
    "typicality",
    "variance_by_certainty",
]
