"""Policies that are tuned by their returns alone, beside evolution strategies.

Environments are gymnax's and brax's, policies are flax's; ours and evosax's ask for the
same number of environment steps, with the same grid of step sizes and smoothings.
"""

from benchmarks import studies

command = studies.command(__name__, ("returns",))
