"""Memory of an estimator's step, as XLA plans it."""

from benchmarks import studies

command = studies.command(__name__, ("steps",))
