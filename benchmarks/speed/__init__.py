"""Time of an estimator's step: beside others', by d, K, sampler and rank.

Programs that are compared take turns, so that a change of the machine's speed falls on
all of them.
"""

from benchmarks import studies

STUDIES = ("rivals", "scaling", "noise", "low-rank", "compiling")
command = studies.command(__name__, STUDIES)
