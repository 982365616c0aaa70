"""Black-box attack: change a digit until a classifier takes it for the next one.

The attacker sees the classifier's log-probabilities and no gradient. The objective of
an image is (largest other log-probability) - (the target's), negative once the attack
holds, target = (label + 1) mod 10. The perturbation theta is clipped to +-0.2 and the
image to [0, 1] inside the objective, so that every point that a method asks about is an
image that keeps to the bounds. All methods get the same images, keys, smoothing, number
of directions, optimizer (R-AdaZO) and number of queries. Setting: arXiv 2506.14460,
Section 5.

Whether an iterate fools the classifier is looked up after every step, to measure; that
look is not counted as a query.
"""

from benchmarks.attack.command import add_arguments, run

__all__ = ["add_arguments", "run"]
