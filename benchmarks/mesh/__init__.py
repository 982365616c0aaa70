"""Mesh optimisation without gradients: vertices move until a PDE is solved better."""

from benchmarks import studies

STUDIES = ("solver", "paper", "budget", "external")
command = studies.command(__name__, STUDIES)
