"""The papers' synthetic experiments side by side, their calls of f counted."""

from benchmarks import studies

STUDIES = (
    *("variance", "sparsity", "convergence", "reproduction"),
    *("equivalence", "reuse", "projection"),
)
ON_DEMAND = {"rival": "times a PyTorch loop and needs PyTorch"}
command = studies.command(__name__, STUDIES, ON_DEMAND)
