"""Mesh optimisation: move the vertices of a coarse mesh until its solution is better.

The solution of the Poisson problem on the coarse mesh, interpolated linearly, is
compared with the one on a fine mesh at the fine mesh's vertices; the objective is the
RMS difference. Interior vertices move, those of the boundary stay. A mesh with an
inverted triangle has no solution: its value is inf, which estimators leave out.
Setting: arXiv 2510.19975, Section 5.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.mesh import poisson
from benchmarks.mesh.poisson import Mesh

Params = dict[str, jax.Array]
"""{"interior": f[n, 2]}, positions of coarse vertices; noise depends on the name."""

# Areas of triangles, as shares of the mean.
SMALLEST = 1e-4  # below it the objective refuses a mesh
MARGIN = 1e-2  # that a step leaves


class Problem(NamedTuple):
    """A coarse mesh, and what its solution should be at the fine one's vertices."""

    coarse: Mesh
    fine: Mesh
    at: np.ndarray  # f64[P, 2], interior vertices of the fine mesh
    reference: np.ndarray  # f64[P], the fine solution there
    nearby: np.ndarray  # i32[P], triangles of the coarse mesh that hold them at first


def make_problem(coarse_cells: int = 10, fine_cells: int = 20) -> Problem:
    """Solves on the fine mesh, in float64."""
    coarse, fine = poisson.unit_square(coarse_cells), poisson.unit_square(fine_cells)
    inside = ~fine.is_boundary
    at = fine.points[inside]
    with jax.enable_x64(True):
        reference = np.asarray(poisson.solve(jnp.asarray(fine.points), fine))[inside]
        nowhere = np.zeros(len(at), np.int32)
        nearby, _ = poisson.locate(jnp.asarray(coarse.points), coarse, at, nowhere)
    return Problem(coarse, fine, at, reference, np.asarray(nearby))


def start(problem: Problem) -> Params:
    """The interior vertices of the uniform coarse mesh."""
    return {"interior": jnp.asarray(problem.coarse.points[~problem.coarse.is_boundary])}


def vertices(params: Params, problem: Problem) -> jax.Array:
    """All vertices f[V, 2] in the order of the mesh."""
    points = jnp.asarray(problem.coarse.points, params["interior"].dtype)
    return points.at[~problem.coarse.is_boundary].set(params["interior"])


def rms_error(params: Params, problem: Problem) -> jax.Array:
    """RMS over the fine vertices of (coarse solution - fine solution): f[].

    Is inf, never NaN, where the mesh is not sound. On the boundary both solutions are
    0; its vertices count in the mean.
    """
    mesh = problem.coarse
    points = vertices(params, problem)
    areas = poisson.signed_areas(points, mesh.triangles)
    sound = areas.min() > SMALLEST / len(areas)
    points = jnp.where(sound, points, mesh.points)  # something that can be solved
    u = poisson.solve(points, mesh)
    where, found = poisson.locate(
        jax.lax.stop_gradient(points), mesh, problem.at, problem.nearby
    )
    difference = poisson.interpolate(points, mesh, u, problem.at, where)
    difference -= problem.reference
    rms = jnp.sqrt(jnp.sum(difference**2) / len(problem.fine.points))
    return jnp.where(sound & found.all(), rms, jnp.inf)


def shorten(params: Params, updates: Params, problem: Problem) -> Params:
    """Halves the steps of vertices that would squeeze a triangle; costs no solve.

    After the step every triangle has more than MARGIN of the mean area, out of reach of
    the next probes; where ten halvings do not achieve that, no vertex moves.
    """
    triangles, points = problem.coarse.triangles, vertices(params, problem)
    inside = ~problem.coarse.is_boundary
    steps = jnp.zeros_like(points).at[inside].set(updates["interior"])

    def squeezed(factors):
        areas = poisson.signed_areas(points + factors[:, None] * steps, triangles)
        return areas < MARGIN / len(triangles)

    def halve(carry):
        factors, bad, rounds = carry
        scale = jnp.where(bad, 0.5, 1.0).astype(factors.dtype)
        factors = factors * jnp.ones_like(factors).at[triangles].min(scale[:, None])
        return factors, squeezed(factors), rounds + 1

    factors = jnp.ones(len(points), points.dtype)
    factors, bad, _ = jax.lax.while_loop(
        lambda carry: carry[1].any() & (carry[2] < 10),
        halve,
        (factors, squeezed(factors), 0),
    )
    factors = jnp.where(bad.any(), 0, factors)[inside]
    return {"interior": factors[:, None] * updates["interior"]}
