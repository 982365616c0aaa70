"""Black-box attack: change a digit until a classifier takes it for something else.

The attacker sees log-probabilities and no gradient, and moves pixels by 0.2 at most.
All methods get the same images, keys, smoothing, optimizer (R-AdaZO), number of queries
and learning rates; each is judged at the one that is best for it on other images, and
at the paper's, 0.01. Setting: arXiv 2506.14460, Section 5.
"""

import math

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


def rates(ctx: click.Context, param: click.Option, given: list[float]) -> list[float]:
    """Each once, in order; a range lets NaN and infinity through."""
    if not all(map(math.isfinite, given)):
        raise click.BadParameter("must be finite", ctx, param)
    return sorted(set(given))


OPTIONS = (
    some("--goals", GOALS, "targeted"),
    some("--methods", METHODS, "four"),
    click.Option(
        ["--images"],
        type=click.IntRange(2, 900),
        help="to attack; by default 50, with --full 100",
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
        callback=rates,
        help="of R-AdaZO, once for each of the grid",
    ),
    click.Option(
        ["--start"],
        type=click.Choice(["zero", "normal"]),
        default="zero",
        help="of the perturbation; normal, N(0, I), is the paper's",
    ),
)

command = studies.command(__name__, ("comparison",), options=OPTIONS)
