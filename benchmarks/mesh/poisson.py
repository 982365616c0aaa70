"""The Poisson equation on triangles, in JAX: -Laplace(u) = 1, u = 0 on the boundary.

P1 elements: u is linear on each triangle. Everything is a pure function of the points,
so that a batch of moved meshes is solved by one vmapped program, and exact gradients by
autodiff are there to compare with. Which vertex belongs to which triangle never changes
and is NumPy, made by scikit-fem.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import skfem

OUTSIDE = -1e-12  # barycentric coordinates above it count as inside


class Mesh(NamedTuple):
    """Which vertices make which triangle, and where they lie at the start."""

    points: np.ndarray  # f64[V, 2]
    triangles: np.ndarray  # i32[T, 3], vertices counter-clockwise
    neighbours: np.ndarray  # i32[T, 3], across the edge opposite to a vertex, or itself
    is_boundary: np.ndarray  # bool[V]


def unit_square(cells: int) -> Mesh:
    """Returns cells x cells squares, each cut into two triangles along a diagonal."""
    ticks = np.linspace(0, 1, cells + 1)
    grid = skfem.MeshTri.init_tensor(ticks, ticks)
    below = cells**2  # so many triangles lie below their diagonal; these come first
    mesh = skfem.MeshTri(grid.p, np.roll(grid.t, below, axis=1))
    own = np.arange(mesh.nelements)
    owners = mesh.f2t[:, mesh.t2f]  # of the edges between vertices 0 1, 1 2 and 0 2
    across = np.where(owners[1] < 0, own, owners.sum(axis=0) - own)[[1, 2, 0]]
    triangles, neighbours = np.stack([mesh.t, across]).transpose(0, 2, 1).astype("i4")
    for table in (triangles, neighbours):  # scikit-fem sorts vertices by number
        table[below:] = table[below:, [0, 2, 1]]
    is_boundary = np.isin(np.arange(mesh.nvertices), mesh.boundary_nodes())
    return Mesh(mesh.p.T.copy(), triangles, neighbours, is_boundary)


def _slopes(points: jax.Array, triangles: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Twice the signed areas f[T], and the hat functions' gradients times them."""
    corners = points[triangles]
    after, before = jnp.roll(corners, -1, axis=1), jnp.roll(corners, 1, axis=1)
    edge = before - after  # opposite to each corner
    turned = jnp.stack([-edge[..., 1], edge[..., 0]], axis=-1)
    double_area = jnp.sum(turned[:, 0] * (corners[:, 0] - after[:, 0]), axis=-1)
    return double_area, turned


def signed_areas(points: jax.Array, triangles: np.ndarray) -> jax.Array:
    """Areas f[T], negative where a triangle is inverted."""
    return _slopes(points, triangles)[0] / 2


def solve(points: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns u f[V] at points f[V, 2], which leave no triangle inverted.

    Solves K u = b at the interior vertices,

        K_ij = sum over triangles of area * (grad phi_i . grad phi_j),
        b_i = sum over triangles of area / 3.
    """
    interior = np.flatnonzero(~mesh.is_boundary)
    n = len(interior)
    place = np.full(len(mesh.points), n)  # boundary: a row to throw away
    place[interior] = np.arange(n)
    corners = place[mesh.triangles]
    row, column = np.broadcast_arrays(corners[:, :, None], corners[:, None, :])
    kept = (row < n) & (column <= row)
    width = max(1, int((row - column)[kept].max()))
    # Of K: band[j, k] = K[j + k, j].
    first = np.where(kept, column, n)
    below = np.where(kept, row - column, 0)

    double_area, turned = _slopes(points, mesh.triangles)
    local = jnp.einsum("tid,tjd->tij", turned, turned)
    local = local / (2 * double_area)[:, None, None]
    band = jnp.zeros((n + 1, width + 1), points.dtype).at[first, below].add(local)
    load = jnp.zeros(n + 1, points.dtype).at[corners].add(double_area[:, None] / 6)
    inner = _solve_band(band[:n], load[:n])
    return jnp.zeros(len(mesh.points), points.dtype).at[interior].set(inner)


def _solve_band(band: jax.Array, b: jax.Array) -> jax.Array:
    """Solves A x = b, A symmetric positive definite, band[j, k] = A[j + k, j].

    Elimination column by column. For a batch of narrow bands it takes half the time of
    JAX's dense Cholesky on a CPU, and two programs may run at once: there, batched
    calls of LAPACK can wait for each other for ever (JAX 0.10.2, two cores).
    """
    width, dtype = band.shape[1] - 1, band.dtype
    # pairs[i, k] = i + 1 + k: where column 1 + i of the rest meets entry k of this one.
    pairs = np.add.outer(np.arange(1, width + 1), np.arange(width + 1))

    def eliminate(carry, row):
        change, rhs_change = carry  # to the next columns
        column, rhs = row[0] + change[0], row[1] + rhs_change[0]
        factors = column[1:] / column[0]
        padded = jnp.append(column, jnp.zeros(width, dtype))
        change = jnp.append(change[1:], jnp.zeros((1, width + 1), dtype), axis=0)
        rhs_change = jnp.append(rhs_change[1:], 0)
        carry = change - factors[:, None] * padded[pairs], rhs_change - factors * rhs
        return carry, (factors, rhs / column[0])

    def substitute(later, row):
        factors, y = row
        x = y - factors @ later
        return jnp.append(x, later[:-1]), x

    carry = jnp.zeros((width, width + 1), dtype), jnp.zeros(width, dtype)
    _, rows = jax.lax.scan(eliminate, carry, (band, b))
    return jax.lax.scan(substitute, jnp.zeros(width, dtype), rows, reverse=True)[1]


def _barycentric(points: jax.Array, triangles: jax.Array, at: jax.Array) -> jax.Array:
    """Coordinates f[P, 3] of at f[P, 2] in triangles i[P, 3]."""
    a, b, c = (points[triangles[:, i]] - at for i in range(3))
    cross = lambda p, q: p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]
    parts = jnp.stack([cross(b, c), cross(c, a), cross(a, b)], axis=1)
    return parts / parts.sum(axis=1, keepdims=True)


def locate(
    points: jax.Array, mesh: Mesh, at: np.ndarray, start: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """Finds the triangles that hold points at f[P, 2], walking from start i[P].

    Each step leaves a triangle through an edge beyond which the point lies; where there
    are two, turns are taken irregularly, since a fixed rule can walk in circles.

    Returns:
      (triangles i[P], whether each was found bool[P]); a walk ends without success
      after four times as many steps as there are triangles.
    """
    triangles, neighbours = jnp.asarray(mesh.triangles), jnp.asarray(mesh.neighbours)

    def look(where):
        coordinates = _barycentric(points, triangles[where], at)
        return coordinates, coordinates.min(axis=1) >= OUTSIDE

    def go_on(carry):
        _, _, found, steps = carry
        return ~found.all() & (steps < 4 * len(triangles))

    def step(carry):
        where, coordinates, found, steps = carry
        # Multiples of the golden ratio: spread over (0, 1), without a period.
        preference = (0.618034 * (3 * steps + 1 + jnp.arange(3))) % 1 + 0.05
        edge = jnp.argmin(coordinates * preference, axis=1)
        where = jnp.where(found, where, neighbours[where, edge])
        return where, *look(where), steps + 1

    where = jnp.asarray(start, jnp.int32)
    where, _, found, _ = jax.lax.while_loop(go_on, step, (where, *look(where), 0))
    return where, found


def interpolate(
    points: jax.Array, mesh: Mesh, u: jax.Array, at: np.ndarray, where: jax.Array
) -> jax.Array:
    """Values f[P] at points at f[P, 2] that lie in triangles where i[P]."""
    corners = jnp.asarray(mesh.triangles)[where]
    return jnp.sum(_barycentric(points, corners, at) * u[corners], axis=1)


def exact_solution(at: np.ndarray, terms: int = 100) -> np.ndarray:
    """The solution u f64[P] on the unit square at points f[P, 2].

        u = x(1-x)/2 - 4/pi^3 sum over odd n of
            sin(n pi x)/n^3 [sinh(n pi y) + sinh(n pi (1-y))] / sinh(n pi)

    Its error after so many terms is below 1e-6 at the sides y = 0 and y = 1, and below
    rounding a tenth away from them.
    """
    x, y = at.T
    n = np.pi * np.arange(1, 2 * terms, 2)[:, None]
    # sinh(n y) / sinh(n), without overflow.
    ratio = lambda y: np.exp(n * (y - 1)) * np.expm1(-2 * n * y) / np.expm1(-2 * n)
    parts = np.sin(n * x) / n**3 * (ratio(y) + ratio(1 - y))
    return x * (1 - x) / 2 - 4 * parts.sum(axis=0)
