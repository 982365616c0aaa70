"""COCO's noisy functions: called on the host, judged without their noise."""

import os
import tempfile
from typing import Any

import cocoex
import jax
import jax.numpy as jnp
import numpy as np

FUNCTIONS = tuple(range(101, 131))
# In threes by noise: f101, f104, ... gaussian, then uniform, then Cauchy.
NOISES = ("gaussian", "uniform", "Cauchy")
FAR = 1e6  # points beyond are failures; the functions are made for [-5, 5]
REPEATS = 9


def noise_of(function: int) -> str:
    """The kind of its noise, which is moderate up to f106."""
    return "moderate" if function <= 106 else f"severe {NOISES[(function - 101) % 3]}"


def _sibling(function: int) -> int:
    """The function that differs in its noise alone, which is Cauchy's."""
    return function - (function - 101) % 3 + 2


def _optimum(problem: Any) -> np.ndarray:
    """Where it is least, which COCO writes to a file of the folder that it is in."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            problem._best_parameter("print")
            return np.loadtxt("._bbob_problem_best_parameter.txt").reshape(-1)
        finally:
            os.chdir(before)


def _without_noise(sibling: Any, x: np.ndarray) -> float:
    """f and a constant: Cauchy's noise strikes a fifth of the calls at most.

    The others all have the same value, the most frequent one.
    """
    values, counts = np.unique([sibling(x) for _ in range(REPEATS)], return_counts=True)
    return float(values[counts.argmax()])


class Problems:
    """Some problems of one dimension, by number: asked by jitted programs.

    The noise is one stream of the process, begun anew with each list of problems, so
    that a list has to be used alone.
    """

    def __init__(self, dimension: int, pairs: list[tuple[int, int]]):
        self.dimension, self.pairs, self.num_calls = dimension, pairs, 0
        listed = lambda numbers: ",".join(map(str, sorted(numbers)))
        functions = {g - 100 for f, _ in pairs for g in (f, _sibling(f))}
        # The problems live as long as their suite, whose noise begins anew.
        self.suite = cocoex.Suite(
            "bbob-noisy",
            f"instances: {listed({i for _, i in pairs})}",
            f"dimensions: {dimension} function_indices: {listed(functions)}",
        )
        every = [self.suite.get_problem(i) for i in range(len(self.suite))]
        opened = {(p.id_function, p.id_instance): p for p in every}
        self.problems = [opened[pair] for pair in pairs]
        self.siblings = [opened[_sibling(f), i] for f, i in pairs]
        self.lowest = np.array([_without_noise(p, _optimum(p)) for p in self.siblings])

    def _call(self, which: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Values [...] of points [..., d] of the problems which [...].

        Less their least one, so that float32 does not round their differences; no
        method here uses more than these.
        """
        shape, out = which.shape, []
        points = np.asarray(points, float).reshape(-1, self.dimension)
        good = (np.abs(points) < FAR).all(axis=1)  # a NaN is not
        for i, ok, x in zip(np.ravel(which).tolist(), good, points, strict=True):
            out.append(self.problems[i](x) - self.lowest[i] if ok else np.nan)
        self.num_calls += len(out)
        with np.errstate(over="ignore"):
            return np.array(out, np.float32).reshape(shape)

    def value_fn(self, x: jax.Array, which: jax.Array, query_key: jax.Array) -> Any:
        """A value_fn of jitted programs; the key tells calls at one point apart."""

        def on_host(x, which, words):
            return self._call(np.asarray(which), np.asarray(x))

        shape = jax.ShapeDtypeStruct((), jnp.float32)
        words = jax.random.key_data(query_key)
        return jax.pure_callback(
            on_host, shape, x, which, words, vmap_method="broadcast_all"
        )

    def gaps(self, which: np.ndarray, points: np.ndarray) -> np.ndarray:
        """f - min f without noise, of points [n, d] of the problems which [n]."""
        found = [
            _without_noise(self.siblings[i], x) - self.lowest[i]
            if (np.abs(x) < FAR).all()
            else np.inf
            for i, x in zip(which, np.asarray(points, float), strict=True)
        ]
        return np.maximum(found, 0.0)
