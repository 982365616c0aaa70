"""Black-box attack: change an image until a classifier takes it for something else.

The attacker sees the classifier's log-probabilities and no gradient. Targeted, the
objective of an image is (largest other log-probability) - (the target's) with target =
(label + 1) mod 10; untargeted, (the label's) - (largest other). It is negative once the
attack holds. The perturbation theta is clipped to +-0.2 and the image to [0, 1] inside
the objective, so that every point that a method asks about is an image that keeps to
the bounds. All methods get the same images, keys, smoothing, optimizer (R-AdaZO) and
number of queries, and the same grid of learning rates; each is judged at the one that
is best for it on other images, and at the paper's. Setting: arXiv 2506.14460, Section
5.

The paper's learning rate is 0.01, at which nine tenths of theta's entries end up beyond
the bounds, where the objective is flat: every method breaks more digits at 0.003. The
smoothing is the paper's, 0.05; no value is the best for all methods. Broken of 100
digits, targeted, 2,000 queries, seed 0, learning rate 0.003:

    smoothing   vanilla   mean baseline   ZoAR   two-stage DAP
    0.01          42           52          22         39
    0.05          36           57          44         27
    0.1           31           58          53         17
    0.2           23           57          54         13

Whether an iterate fools the classifier is looked up after every step, to measure; that
look is not counted as a query.
"""

from benchmarks.attack.command import add_arguments, run

__all__ = ["add_arguments", "run"]
