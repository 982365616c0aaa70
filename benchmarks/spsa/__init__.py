"""SPSA as its users know it: beside noisyopt's, and on COCO's noisy functions.

COCO's functions (coco-experiment) are host functions, called from jitted steps; ours
and evosax's make the same number of calls, with step sizes from grids of one size.
"""

from benchmarks import studies

command = studies.command(__name__, ("reference", "coco"))
