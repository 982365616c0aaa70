"""The mesh benchmark: its solver, its objective, its runs and its command."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from benchmarks.__main__ import main
from benchmarks.mesh import (
    STUDIES,
    budget,
    external,
    paper,
    poisson,
    problem,
    runs,
    solver,
)


@pytest.fixture(autouse=True)
def float64():
    # For the whole process: callbacks run in threads of their own.
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


SMALL = problem.make_problem(4, 8)  # 9 interior vertices, d = 18


def shaken(seed, small=SMALL):
    """Params whose interior vertices have moved by up to a fifth of a cell."""
    params = problem.start(small)
    size = 0.2 / 4
    noise = jax.random.uniform(
        jax.random.key(seed), params["interior"].shape, minval=-size, maxval=size
    )
    return params | {"interior": params["interior"] + noise}


def squeezed(small=SMALL):
    """Params with an inverted triangle: one vertex lies beyond its neighbour."""
    params = problem.start(small)
    return params | {"interior": params["interior"].at[4].add(jnp.array([0.4, 0.0]))}


def estimate(method, num_directions, key, params):
    """The estimate at params of the RMS error's gradient, and the state after it."""
    value_fn = lambda params: problem.rms_error(params, SMALL)
    opt = runs.build(method, num_directions, key)
    update = jax.jit(lambda s, p: opt.update(None, s, p, value_fn=value_fn))
    return update(opt.init(params), params)


# -- the solver ------------------------------------------------------------------------


def test_one_unknown_by_hand():
    """Two cells a side: K = 4 (the five-point stencil) and b = h^2 = 1/4."""
    mesh = poisson.unit_square(2)
    u = poisson.solve(jnp.asarray(mesh.points), mesh)
    np.testing.assert_allclose(u, [0, 0, 0, 0, 1 / 16, 0, 0, 0, 0])


def test_areas_by_hand():
    points = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, -1.0]])
    triangles = np.array([[0, 1, 2], [0, 2, 1], [0, 3, 1]])
    found = poisson.signed_areas(points, triangles)
    np.testing.assert_allclose(found, [3, -3, 1])


def test_neighbours_share_an_edge():
    """Two squares of two triangles each way: every inner edge has two owners."""
    mesh = poisson.unit_square(2)
    assert (poisson.signed_areas(jnp.asarray(mesh.points), mesh.triangles) > 0).all()
    edges = 0
    for t, others in enumerate(mesh.neighbours):
        for i, other in enumerate(others):
            edge = set(mesh.triangles[t]) - {mesh.triangles[t][i]}
            assert edge <= set(mesh.triangles[other])
            edges += other != t
    assert edges == 2 * 8


@pytest.mark.parametrize("cells", [3, 20])
def test_solver_agrees_with_scikit_fem(cells):
    for row in solver.measure(cells, cells, None):
        assert row["difference"] < 1e-10


def test_exact_solution():
    """Its value in the middle is in the literature; -Laplace(u) = 1 by differences."""
    middle = poisson.exact_solution(np.array([[0.5, 0.5]]))
    np.testing.assert_allclose(middle, 0.0736713532815, rtol=1e-10)
    edge = np.array([[0.0, 0.3], [1.0, 0.7], [0.2, 0.0], [0.9, 1.0]])
    np.testing.assert_allclose(poisson.exact_solution(edge), 0, atol=1e-7)
    h, at = 1e-3, np.array([[0.3, 0.6], [0.8, 0.25]])
    steps = h * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    around = sum(poisson.exact_solution(at + step) for step in steps)
    laplace = (around - 4 * poisson.exact_solution(at)) / h**2
    np.testing.assert_allclose(-laplace, 1, atol=1e-4)


def brute_force(points, triangles, at):
    """Barycentric coordinates in every triangle f[P, T, 3], by a linear solve."""
    corners = points[triangles]
    system = np.concatenate([corners, np.ones((*corners.shape[:2], 1))], axis=2)
    rhs = np.concatenate([at, np.ones((len(at), 1))], axis=1)
    return np.einsum("tij,pi->ptj", np.linalg.inv(system), rhs)


@pytest.mark.parametrize("seed", range(4))
def test_points_are_found_wherever_the_walk_begins(seed):
    mesh = poisson.unit_square(6)
    points = solver.meshes(6, jax.random.key(seed))[1]["shaken"]
    rng = np.random.default_rng(seed)
    at, start = rng.uniform(size=(50, 2)), rng.integers(len(mesh.triangles), size=50)
    where, found = poisson.locate(points, mesh, at, start)
    assert found.all()
    coordinates = brute_force(np.asarray(points), mesh.triangles, at)
    chosen = coordinates[np.arange(50), where]
    assert chosen.min() >= -1e-9
    # Interpolation is exact for linear functions.
    u = 2 * points[:, 0] - 3 * points[:, 1] + 1
    values = poisson.interpolate(points, mesh, u, at, where)
    np.testing.assert_allclose(values, 2 * at[:, 0] - 3 * at[:, 1] + 1, atol=1e-12)


def test_a_point_outside_is_not_found():
    mesh = poisson.unit_square(3)
    at = np.array([[0.5, 0.5], [1.5, 0.5]])
    _, found = poisson.locate(jnp.asarray(mesh.points), mesh, at, np.zeros(2, int))
    assert found.tolist() == [True, False]


# -- the objective ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_objective_agrees_with_scikit_fem(seed):
    value_fn, calls = external.black_box(SMALL)
    params = shaken(seed)
    expected = value_fn(params)
    assert len(calls) == 1
    np.testing.assert_allclose(
        problem.rms_error(params, SMALL), expected, rtol=0, atol=1e-10
    )


def test_exact_gradient_is_the_slope():
    params, h = shaken(5), 1e-6
    f = jax.jit(lambda params: problem.rms_error(params, SMALL))
    slope = jax.jit(jax.grad(f))(params)["interior"]
    for i, j in np.ndindex(slope.shape):
        step = jnp.zeros_like(slope).at[i, j].set(h)
        ahead, back = (
            f(params | {"interior": params["interior"] + sign * step})
            for sign in (1, -1)
        )
        np.testing.assert_allclose(slope[i, j], (ahead - back) / (2 * h), atol=1e-8)


@pytest.mark.parametrize("solve", ["JAX", "scikit-fem"])
def test_an_inverted_triangle_has_no_value(solve):
    value_fn = jax.jit(lambda params: problem.rms_error(params, SMALL))
    if solve == "scikit-fem":
        value_fn, _ = external.black_box(SMALL)
    assert value_fn(squeezed()) == np.inf
    if solve == "JAX":
        gradient = jax.jit(jax.grad(value_fn))(squeezed())
        assert np.isfinite(gradient["interior"]).all()


@pytest.mark.parametrize("name", runs.METHODS)
def test_rejected_probes_are_counted_and_left_out(name, monkeypatch):
    """Probes of a third of a cell invert triangles now and then, not always."""
    monkeypatch.setattr(runs, "SMOOTHING", 0.05 if name == "coordinate" else 0.08)
    updates, state = estimate(name, 16, 3, shaken(0))
    assert 0 < optax.tree.get(state, "num_nonfinite") < 16
    # Left out, not merely clipped: as large as an estimate of probes that all count.
    monkeypatch.setattr(runs, "SMOOTHING", 1e-3)
    whole, state = estimate(name, 16, 3, shaken(0))
    assert optax.tree.get(state, "num_nonfinite") == 0
    size = lambda tree: float(jnp.linalg.norm(tree["interior"]))
    assert 0.1 * size(whole) < size(updates) < 10 * size(whole)


@pytest.mark.parametrize("name", ["orthogonal", "simplex"])
def test_as_many_directions_as_unknowns_give_the_exact_gradient(name):
    num_directions = {"orthogonal": 18, "simplex": 32}[name]
    found, _ = estimate(name, num_directions, 0, shaken(1))
    slope = jax.jit(jax.grad(lambda params: problem.rms_error(params, SMALL)))
    expected = slope(shaken(1))["interior"]
    np.testing.assert_allclose(
        found["interior"], expected, atol=2e-3 * float(jnp.abs(expected).max())
    )


def test_steps_are_shortened_where_they_would_squeeze():
    params = problem.start(SMALL)
    step = jnp.zeros_like(params["interior"])
    small = {"interior": step + 1e-3}
    found = problem.shorten(params, small, SMALL)
    np.testing.assert_array_equal(found["interior"], small["interior"])

    # Vertex 4, the middle, may go up to a cell, 0.25, to the right: 0.4 is halved.
    # Vertex 0, whose triangles are not touched, moves as it was told to.
    big = small | {"interior": step.at[4, 0].set(0.4).at[0].set(1e-3)}
    found = problem.shorten(params, big, SMALL)
    np.testing.assert_allclose(
        found["interior"], step.at[4, 0].set(0.2).at[0].set(1e-3)
    )

    hopeless = small | {"interior": step + 1e6}
    assert not problem.shorten(params, hopeless, SMALL)["interior"].any()


# -- the runs --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sphere", "DAP, refined", "simplex"])
def test_solves_are_as_many_as_claimed(name, monkeypatch):
    monkeypatch.setattr(runs, "NUM_POINTS", 1)
    value_fn, calls = external.black_box(SMALL)
    run = runs.make_descent(value_fn, SMALL, name, 4, 2)
    start = problem.start(SMALL)
    seen, values, last = run(start, jax.random.key(0), 1.0)
    # Beside the steps, a look at each point of the curve and at the start.
    assert len(calls) == 2 * runs.cost(name, 4) + 2
    assert (last["interior"] != start["interior"]).any()
    assert (seen, len(values)) == ([0, 2], 2)


def test_chunks_do_not_change_the_estimate(monkeypatch):
    expected, _ = estimate("DAP, refined", 8, 5, shaken(2))
    monkeypatch.setattr(runs, "CHUNK", 3)
    found, _ = estimate("DAP, refined", 8, 5, shaken(2))
    # Differences of f at mu = 1e-5 keep about ten digits.
    np.testing.assert_allclose(
        found["interior"], expected["interior"], rtol=1e-6, atol=1e-9
    )


def test_rows_are_those_of_a_plain_loop(monkeypatch):
    """Of the second step size and seed; the step decays by (1 + cos(pi n / 4)) / 2."""
    monkeypatch.setattr(runs, "CELLS", (4, 8))
    monkeypatch.setattr(runs, "NUM_POINTS", 2)
    rows = runs.measure("orthogonal", 8, 4, [1.0, 3.0], True, [4, 5])
    value_fn = lambda params: problem.rms_error(params, SMALL)
    opt = runs.build("orthogonal", 8, jax.random.key(5))
    update = jax.jit(lambda s, p: opt.update(None, s, p, value_fn=value_fn))
    params = problem.start(SMALL)
    state, values = opt.init(params), [value_fn(params)]
    for n in range(4):
        gradient, state = update(state, params)
        step = 3.0 * (1 + np.cos(np.pi * n / 4)) / 2
        params = jax.tree.map(lambda p, g, step=step: p - step * g, params, gradient)
        values.append(value_fn(params))
    assert len(rows) == 2 * 2 * 3
    last = rows[-3:]
    assert [(row["step_size"], row["seed"]) for row in last] == [(3.0, 5)] * 3
    assert [row["solves"] for row in last] == [0, 2 * 9, 4 * 9]
    np.testing.assert_allclose([row["rms"] for row in last], values[::2], rtol=1e-7)
    # The true error: to the series, by scikit-fem's interpolation.
    points = np.asarray(problem.vertices(params, SMALL))
    exact = SMALL._replace(reference=poisson.exact_solution(SMALL.at))
    expected = np.sqrt(np.mean(external.error_field(points, exact) ** 2))
    np.testing.assert_allclose(last[-1]["true_rms"], expected, rtol=1e-6)
    # Positions are kept with six decimals.
    kept = np.array(last[-1]["vertices"].split(), float)
    np.testing.assert_allclose(kept, params["interior"].ravel(), atol=1e-6)


# -- the command -----------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_study(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runs, "CELLS", (3, 6))
    monkeypatch.setattr(runs, "NUM_POINTS", 2)
    monkeypatch.setattr(paper, "NUM_DIRECTIONS", 8)
    monkeypatch.setattr(paper, "ITERATIONS", 4)
    monkeypatch.setattr(budget, "STEP_SIZES", {4: (1.0, 3.0)})
    monkeypatch.setattr(budget, "QUICK", (40, 2, (4,)))
    for module in (paper, budget):
        monkeypatch.setattr(module, "METHODS", {"sphere": runs.METHODS["sphere"]})
    monkeypatch.setattr(external, "QUICK", (3, 6, 4, 10))
    monkeypatch.setattr(solver, "QUICK", (8, 16))
    flags = ["mesh", f"--studies={name}", f"--output={tmp_path}", "--jobs=2"]
    assert main(flags) == 0
    assert "\n- " in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / name / f"{name}.csv")
    assert (tmp_path / name / f"{name}.png").stat().st_size > 5_000
    if name == "solver":
        assert 1.9 < solver.order(frame, "uniform") < 2.1
    if name == "external":  # differences at mu = 1e-5 multiply rounding by 1e5 a step
        assert external.gap(frame) < 1e-7
        theirs = frame[frame["solver"] == "scikit-fem"]
        assert (theirs["calls"] == 10 * 5 + 2 + 1).all()


def test_tables_and_findings_by_hand():
    """A is 1 below B and 0.1 below C, give or take 0.2 from seed to seed."""
    finals = {
        ("sphere", 1.0): (2.0, 3.0, 4.0),
        ("sphere", 3.0): (2.5, 3.5, 4.5),  # not the best of its steps
        ("DAP, refined", 1.0): (3.1, 3.9, 5.0),
        ("simplex", 1.0): (2.3, 2.9, 4.1),
        ("autodiff", 1.0): (1.5,),
    }
    row = {"num_directions": 8, "true_rms": 1.0}
    frame = pd.DataFrame(
        [
            row
            | {"method": name, "step_size": step, "seed": seed}
            | {"solves": 9 * n, "rms": rms, "vertices": "0 0" if n else None}
            for (name, step), ends in finals.items()
            for seed, end in enumerate(ends)
            for n, rms in enumerate((6.0, end))
        ]
    )
    (table,) = budget.tables(frame).values()
    of_sphere = table.loc[(8, "sphere")]
    assert of_sphere["step size"] == 1.0
    assert of_sphere["initial / final"] == "2.000"
    assert of_sphere["gain of autodiff"] == "67%"  # 3 of 4.5
    (said,) = budget.findings(frame)
    near, behind = said.split("; farther behind: ")
    assert "sphere 3000.0000, simplex 3100.0000 (the lowest" in near
    assert behind == "DAP, refined 4000.0000."
