"""Where the docs answer a mistake: what the message of an error ends with."""

from typing import NamedTuple


class Place(NamedTuple):
    """A heading of a page, by names that hold wherever the docs are read."""

    page: str  # notebooks/PAGE.md or notebooks/PAGE.ipynb
    heading: str

    def __str__(self) -> str:
        """The words for it."""
        return f'see "{self.heading}" in the docs ({self.page})'


EXTERNAL = Place("external", "When JAX cannot call it")
RUN_DIRECTORY = Place("external", "A run that goes on")
TIME_LIMITS = Place("external", "Failures and time limits")
FROZEN = Place("optax", "Frozen parameters")
EXTRA_ARGS = Place("optax", "Extra arguments")
NUMBERS = Place("optax", "Numbers that change")
RESUMING = Place("optax", "Saving and resuming")
SMOOTHING = Place("choosing", "Smoothing")
MESH = Place("devices", "Several devices")
REPLAYED = Place("estimators", "A guide that is drawn again")
NNX = Place("07_recipes", "flax.nnx with BatchNorm and Dropout")
EQUINOX = Place("07_recipes", "equinox")
TRAINER = Place("07_recipes", "A trainer that calls `update(model, grads)`")
LAZY = Place("07_recipes", "Lazy leaves in modules that do not know them")
MANY_RUNS = Place("sweeps", "Many runs at once")
