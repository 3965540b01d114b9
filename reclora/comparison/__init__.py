"""Honest comparison of two models: means come last, and no difference without its interval.

results table  ->  means     the mean of each model, with its interval
               ->  compare   the difference of two models, overall and per segment
"""

from reclora.comparison.means import means
from reclora.comparison.pairs import compare
from reclora.comparison.resampling import bootstrap_means, sign_flip_p
from reclora.comparison.verdicts import benjamini_hochberg

__all__ = ["benjamini_hochberg", "bootstrap_means", "compare", "means", "sign_flip_p"]
