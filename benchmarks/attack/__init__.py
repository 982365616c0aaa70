"""Black-box attack: change a digit until a classifier takes it for the next one.

The attacker sees the classifier's log-probabilities and no gradient. The objective of
an image is (largest other log-probability) - (the target's), negative once the attack
holds, target = (label + 1) mod 10. The perturbation theta is clipped to +-0.2 and the
image to [0, 1] inside the objective, so that every point that a method asks about is an
image that keeps to the bounds. All methods get the same images, keys, smoothing, number
of directions, optimizer (R-AdaZO) and number of queries. Setting: arXiv 2506.14460,
Section 5.

The learning rate is not the paper's 0.01, at which nine tenths of theta's entries end
up beyond the bounds, where the objective is flat: every method broke more digits at
0.003. The smoothing is the paper's, 0.05; no value is the best for all methods. Broken
of 100 digits with 2,000 queries, seed 0, learning rate 0.003 but for the last line:

    smoothing   vanilla   mean baseline   ZoAR   two-stage DAP
    0.01          42           52          22         39
    0.05          36           57          44         27
    0.1           31           58          53         17
    0.2           23           57          54         13
    0.05          28           36           3         22        learning rate 0.01

Whether an iterate fools the classifier is looked up after every step, to measure; that
look is not counted as a query.
"""

from benchmarks.attack.command import add_arguments, run

__all__ = ["add_arguments", "run"]
