"""The mesh benchmark: its solver, its objective, its runs and its command."""

import functools
import importlib

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
    pictures,
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


def estimate(method, num_directions, key, params, chunk_size=None):
    """The estimate at params of the RMS error's gradient, and the state after it."""
    value_fn = lambda params: problem.rms_error(params, SMALL)
    opt = runs.METHODS[method].build(num_directions, key, chunk_size)
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


@pytest.mark.parametrize("cells", [3, 10, 20])
@pytest.mark.parametrize("name", solver.MESHES)
def test_solver_agrees_with_scikit_fem(name, cells):
    mesh = poisson.unit_square(cells)
    points = jnp.asarray(mesh.points)
    if name == "bent":
        points = solver.bent(mesh)
    if name == "shaken":
        points = solver.shaken(mesh, cells, jax.random.key(cells))
    found = poisson.solve(points, mesh)
    expected, _ = external.solve_with_scikit_fem(np.asarray(points), mesh.triangles)
    assert jnp.abs(found).max() > 0.05
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_solver_converges_at_second_order(monkeypatch):
    monkeypatch.setattr(solver, "QUICK", (8, 16))
    rows = [row for cell in solver.cells(False, 0).values() for row in cell(None)]
    frame = pd.DataFrame(rows)
    for name in ("uniform", "bent"):
        assert 1.9 < solver.order(frame, name) < 2.1
    assert frame["difference"].max() < 1e-10


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
    points = solver.shaken(mesh, 6, jax.random.key(seed))
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
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", runs.METHODS)
def test_rejected_probes_are_counted_and_left_out(name, monkeypatch):
    """Probes of a third of a cell invert triangles now and then, not always."""
    monkeypatch.setattr(runs, "SMOOTHING", 0.05 if name == "coordinate" else 0.08)
    updates, state = estimate(name, 16, 3, shaken(0))
    assert 0 < optax.tree.get(state, "num_nonfinite") < 16
    assert not updates["boundary"].any()
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
    small = {"interior": step + 1e-3, "boundary": jnp.zeros_like(params["boundary"])}
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


@pytest.mark.parametrize("name", runs.METHODS)
def test_boundary_is_frozen_and_solves_are_as_many_as_claimed(name):
    value_fn, calls = external.black_box(SMALL)
    method, iterations, points = runs.METHODS[name], 2, 1
    run = runs.make_descent(
        value_fn,
        SMALL,
        lambda key: method.build(4, key, None),
        optax.sgd,
        iterations,
        points,
    )
    start = problem.start(SMALL)
    found = run(start, jax.random.key(0), 1.0)
    # Beside the steps, a look at each point of the curve and at the start.
    assert len(calls) == iterations * runs.cost(name, 4) + points + 1
    np.testing.assert_array_equal(found.params["boundary"], start["boundary"])
    assert (found.params["interior"] != start["interior"]).any()
    assert found.values.shape == (2,)


def test_descent_is_a_plain_loop():
    method = runs.METHODS["sphere"]
    value_fn = jax.jit(lambda params: problem.rms_error(params, SMALL))
    build = lambda key: method.build(4, key, None)
    run = runs.make_descent(value_fn, SMALL, build, optax.sgd, 6, 3)
    found = run(problem.start(SMALL), jax.random.key(7), 2.0)
    opt, params = build(jax.random.key(7)), problem.start(SMALL)
    state, values = opt.init(params), [value_fn(params)]
    update = jax.jit(lambda s, p: opt.update(None, s, p, value_fn=value_fn))
    for _ in range(6):
        gradient, state = update(state, params)
        params = jax.tree.map(lambda p, g: p - 2.0 * g, params, gradient)
        values.append(value_fn(params))
    assert found.iterations.tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(found.values, values[::2], rtol=1e-9)
    assert found.values[-1] < found.values[0]


def test_chunks_do_not_change_the_estimate():
    found, expected = (
        estimate("dap", 8, 5, shaken(2), chunk_size)[0]["interior"]
        for chunk_size in (3, None)
    )
    # Differences of f at mu = 1e-5 keep about ten digits.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@functools.cache
def measured():
    """Rows of four steps with K = 8 orthogonal directions."""
    return runs.measure(
        SMALL,
        "orthogonal",
        8,
        4,
        num_points=2,
        step_sizes=[1.0, 3.0],
        seeds=[4, 5],
        cosine=True,
    )


def test_rows_are_those_of_a_plain_loop():
    """Of the second step size and seed; the step decays by (1 + cos(pi n / 4)) / 2."""
    rows = measured()
    value_fn = lambda params: problem.rms_error(params, SMALL)
    opt = runs.METHODS["orthogonal"].build(8, jax.random.key(5), None)
    update = jax.jit(lambda s, p: opt.update(None, s, p, value_fn=value_fn))
    params = problem.start(SMALL)
    state, values = opt.init(params), [value_fn(params)]
    for n in range(4):
        gradient, state = update(state, params)
        step = 3.0 * (1 + np.cos(np.pi * n / 4)) / 2
        params = jax.tree.map(lambda p, g, step=step: p - step * g, params, gradient)
        values.append(value_fn(params))
    last = rows[-3:]
    assert [(row["step_size"], row["seed"]) for row in last] == [(3.0, 5)] * 3
    np.testing.assert_allclose([row["rms"] for row in last], values[::2], rtol=1e-7)
    # The true error: to the series, by scikit-fem's interpolation.
    points = np.asarray(problem.vertices(params, SMALL))
    u, basis = external.solve_with_scikit_fem(points, SMALL.coarse.triangles)
    error = basis.probes(SMALL.at.T) @ u - poisson.exact_solution(SMALL.at)
    expected = np.sqrt((error**2).sum() / len(SMALL.fine.points))
    np.testing.assert_allclose(last[-1]["true_rms"], expected, rtol=1e-6)


def test_pictures_show_the_rows():
    rows = measured()
    assert len(rows) == 2 * 2 * 3
    last = rows[2]
    points = pictures.moved(SMALL, last["vertices"])
    assert points.shape == SMALL.coarse.points.shape
    field = pictures.error_field(SMALL, points)
    # Positions are kept with six decimals.
    np.testing.assert_allclose(np.sqrt(np.mean(field**2)), last["rms"], rtol=1e-4)
    assert "vertices" not in rows[5]  # the second seed's
    assert last["solves"] == 4 * 9


# -- the command -----------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    for module in (paper, budget):
        monkeypatch.setattr(module, "CELLS", (3, 6))
        monkeypatch.setattr(module, "NUM_POINTS", 2)
    monkeypatch.setattr(paper, "NUM_DIRECTIONS", 8)
    monkeypatch.setattr(paper, "ITERATIONS", 4)
    monkeypatch.setattr(budget, "STEP_SIZES", {4: (1.0, 3.0), 8: (1.0, 3.0)})
    monkeypatch.setattr(budget, "QUICK", (40, 2, (4,)))
    few = {name: runs.METHODS[name] for name in ("sphere", "dap")}
    for module in (paper, budget):
        monkeypatch.setattr(module, "METHODS", few)
    monkeypatch.setattr(external, "QUICK", (3, 6, 4, 10))
    monkeypatch.setattr(solver, "QUICK", (2, 4))


@pytest.mark.parametrize("name", STUDIES)
def test_study(name, small, tmp_path, capsys):
    flags = ["mesh", f"--studies={name}", f"--output={tmp_path}", "--jobs=2"]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    study = importlib.import_module(STUDIES[name]).STUDY
    assert f"{name}.png" in printed
    assert "\n- " in printed
    path = tmp_path / name / f"{name}.csv"
    frame = pd.read_csv(path)
    assert list(dict.fromkeys(frame["cell"])) == list(study.cells(False, 0))
    assert (tmp_path / name / f"{name}.png").stat().st_size > 5_000
    if name == "external":  # differences at mu = 1e-5 multiply rounding by 1e5 a step
        assert external.gap(frame) < 1e-7
        theirs = frame[frame["solver"] == "scikit-fem"]
        assert (theirs["calls"] == 10 * 5 + 10 + 1).all()
    if study.timed:
        return
    # Resumed, the cell that is missing is the same again.
    whole = path.read_text()
    last = frame["cell"].iloc[-1]
    frame[frame["cell"] != last].to_csv(path, index=False)
    assert main([*flags, "--resume"]) == 0
    assert path.read_text() == whole


def test_best_step_sizes_by_hand():
    row = {"num_directions": 8, "rejected": 0, "true_rms": 0.5}
    lines = [
        ("sphere", 1.0, 0, (4.0, 3.0, 2.0)),
        ("sphere", 1.0, 1, (4.0, 3.9, 3.0)),
        ("sphere", 3.0, 0, (4.0, 4.0, 1.0)),
        ("sphere", 3.0, 1, (4.0, 3.5, 3.0)),
    ]
    frame = pd.DataFrame(
        [
            row
            | {"method": m, "step_size": s, "seed": seed, "solves": 9 * i, "rms": rms}
            for m, s, seed, curve in lines
            for i, rms in enumerate(curve)
        ]
    )
    (line,) = budget._summary(frame.assign(iteration=0)).itertuples()
    assert (line.step_size, line.mean, line.factor) == (3.0, 2.0, 2.0)
    # Means 4, 3.75, 2: nine tenths of 4 are passed at the third point.
    assert line.needed == 18
    assert line.at_end


def test_findings_by_hand():
    """A is 1 below B and 0.1 below C, give or take 0.2 from seed to seed."""
    finals = {
        "sphere": (2.0, 3.0, 4.0),
        "dap": (3.1, 3.9, 5.0),
        "simplex": (2.3, 2.9, 4.1),
        "exact": (1.0,),
    }
    frame = pd.DataFrame(
        [
            {
                "method": name,
                "num_directions": 8,
                "step_size": 1.0,
                "seed": seed,
                "iteration": n,
                "solves": 9 * n,
                "rms": rms,
                "rejected": 0,
                "true_rms": 1.0,
            }
            for name, ends in finals.items()
            for seed, end in enumerate(ends)
            for n, rms in enumerate((6.0, end))
        ]
    )
    lowest, ranking = budget.findings(frame)
    assert "sphere with K = 8, 3000.0000e-3, a factor of 2.000" in lowest
    assert "autodiff with about as many steps 1000.0000e-3" in lowest
    assert "(paired by seed): simplex 3100.0000; farther behind: DAP, ref" in ranking


@pytest.mark.parametrize(("final", "limited"), [(5.02, True), (5.5, False)])
def test_the_step_is_blamed_only_where_all_follow_autodiff(final, limited):
    """Autodiff gains 1; both methods are alike, 0.02 or 0.5 behind it."""
    ends = {"exact": [5.0], "sphere": [final] * 2, "dap": [final] * 2}
    frame = pd.DataFrame(
        [
            {"method": name, "seed": seed, "iteration": n, "rms": rms}
            for name, finals in ends.items()
            for seed, end in enumerate(finals)
            for n, rms in enumerate((6.0, end))
        ]
    )
    assert any("limited by the step" in text for text in paper.findings(frame)) == (
        limited
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--studies=meshes"], "unknown study 'meshes'"), (["--jobs=0"], "--jobs")],
)
def test_bad_arguments_are_one_line(flags, words, tmp_path, capsys):
    assert main(["mesh", *flags, f"--output={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
