"""The synthetic benchmark: functions, closed forms, runs and the command."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

import zojax
from benchmarks import functions
from benchmarks.__main__ import main
from benchmarks.synthetic import (
    STUDIES,
    convergence,
    equivalence,
    estimates,
    projection,
    reproduction,
    reuse,
    runs,
    sparsity,
    variance,
)
from zojax import perturbations

# -- functions -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("quadratic", [3.0, -4.0], 12.5),
        ("rosenbrock", [0.0, 0.0, 2.0], 1 + 400 + 1),
        ("rosenbrock", [1.0, 1.0, 1.0], 0),
        # w = 0 for x = -3: sin^2(0) + (1 + 10 sin^2 1) + 1.
        ("levy", [-3.0, -3.0], 2 + 10 * np.sin(1) ** 2),
        ("levy", [1.0, 1.0, 1.0], 0),
        # Cosines are 1, so the ripples are e: 20 (1 - exp(-0.2)).
        ("ackley", [1.0, -1.0], 20 * (1 - np.exp(-0.2))),
        ("ackley", [0.0, 0.0], 0),
        ("rastrigin", [0.5, 1.0], 0.25 + 20 + 1),
        ("product", [2.0, -3.0, 4.0], -24),
    ],
)
def test_functions_by_hand(name, x, expected):
    np.testing.assert_allclose(
        getattr(functions, name)(jnp.array(x)), expected, rtol=1e-5, atol=1e-5
    )


def test_cos_turns():
    x = jnp.linspace(-3, 3, 100_001)
    expected = np.cos(2 * np.pi * np.asarray(x, float))
    np.testing.assert_allclose(functions.cos_turns(x), expected, atol=1e-6)
    # And its slope, -2 pi sin(2 pi x), for the exact gradient.
    slopes = jax.vmap(jax.grad(functions.cos_turns))(x)
    expected = -2 * np.pi * np.sin(2 * np.pi * np.asarray(x, float))
    np.testing.assert_allclose(slopes, expected, atol=2e-5)


def test_torch_functions_are_ours():
    torch = pytest.importorskip("torch")
    from benchmarks.rivals import zoar_torch

    x = np.random.default_rng(0).normal(size=12).astype(np.float32)
    for name, f in zoar_torch.FUNCTIONS.items():
        ours = functions.FUNCTIONS[name](jnp.asarray(x))
        np.testing.assert_allclose(f(torch.tensor(x)), ours, rtol=1e-5)


def test_torch_steps_are_the_mean_over_the_history():
    torch = pytest.importorskip("torch")
    from benchmarks.rivals import zoar_torch

    for step, records in ((zoar_torch.loop_step, 6), (zoar_torch.batched_step, 2)):
        run = zoar_torch.start(5, records, 0)
        for _ in range(2):
            before = run.m.clone()
            step(run, zoar_torch.quadratic, 3, 0.1, 1e-3)
        u = torch.cat([u.reshape(-1, 5) for u, _ in run.history]).numpy()
        y = torch.cat([y.reshape(-1) for _, y in run.history]).numpy()
        expected = ((y - y.mean()) @ u) / 0.1 / 6
        found = (run.m.numpy() - 0.9 * before.numpy()) / 0.1
        np.testing.assert_allclose(found, expected, rtol=1e-4)


# -- estimates and closed forms --------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["sphere", "Rademacher, leave-one-out", "exact DAP, gaussian"]
)
def test_first_rows_are_the_estimator_of_that_many_directions(name):
    problem, method = estimates.PROBLEMS["quadratic"], estimates.METHODS[name]
    trials = estimates.draw_trials(problem, jax.random.key(3), 2)
    key = jax.random.key(4)
    found = estimates.estimates(problem, method, (3, 8), trials, key)[3]
    difference = "leave_one_out" if method.leave_one_out else "forward"
    with jax.enable_x64(True):
        for i, noise_key in enumerate(jax.random.split(key, 2)):
            x, data, gradient = jax.tree.map(lambda leaf, i=i: leaf[i], trials)
            # The estimator folds its step into the key; the study has but one step.
            draw = method.rows(gradient)
            row = lambda _, k, n, p, draw=draw, key=noise_key: draw(key, k, n, p)
            sampler = perturbations.from_rows(row)
            opt = zojax.two_point(
                estimates.SMOOTHING, 3, key=0, sampler=sampler, difference=difference
            )
            f = lambda x, data=data: problem.f(x, data)
            expected, _ = opt.update(None, opt.init(x), x, value_fn=f)
            # Differences of f at mu = 1e-8 keep about seven digits.
            np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)


def test_errors_by_hand():
    gradient = np.array([[3.0, 0.0, 4.0], [0.0, 0.0, 1e-3]])
    estimate = np.array([[2.0, 1.0, 6.0], [0.0, 0.0, 2e-3]])
    method = estimates.METHODS["Rademacher"]
    found = estimates.errors(estimate, gradient, 0.5, method, 2)
    np.testing.assert_allclose(found["error"][0], [6 / 25, 1])
    np.testing.assert_allclose(found["tau_error"][0], [5 / 25])  # the second has none
    # (d - 1) / K in all, and (|g|^2 - g_i^2) / K on entries 0 and 2.
    np.testing.assert_allclose(found["error"][1], [1, 1])
    np.testing.assert_allclose(found["tau_error"][1], [(16 + 9) / 2 / 25])


@pytest.mark.parametrize("name", estimates.METHODS)
@pytest.mark.parametrize("problem", estimates.PROBLEMS)
def test_closed_forms(problem, name):
    method = estimates.METHODS[name]
    rows = estimates.measure(
        estimates.PROBLEMS[problem], method, (4,), jax.random.key(1)
    )
    known = {row["measure"]: row["z"] for row in rows if row["z"] == row["z"]}
    expected = {"tau_error", "error"} if method.theory else set()
    assert set(known) == expected - ({"tau_error"} if method.theory_of_sum else set())
    assert all(z <= 3 for z in known.values()), known


def test_a_wrong_closed_form_is_found():
    """Wrong by two units of d: the sphere is not the gaussian."""
    wrong = estimates.METHODS["sphere"]._replace(
        theory=estimates.METHODS["gaussian"].theory
    )
    rows = estimates.measure(
        estimates.PROBLEMS["quadratic"], wrong, (4,), jax.random.key(1)
    )
    (row,) = (row for row in rows if row["measure"] == "error")
    assert row["z"] > 3
    assert row["trials"] == 10 * estimates.TRIALS


# -- runs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["vanilla", "ZoAR N = 5", "recommended", "fast preset, half", "exact, cosine"],
)
def test_curves_are_those_of_a_plain_loop(name):
    method, iterations, step_size, seed = runs.METHODS[name], 50, 3e-3, 2
    f = functions.rosenbrock
    size, steps = runs.Size(6, iterations), [1e-3, step_size]
    found = runs.curves(f, method, size, [1, seed], steps, {}, lambda share: None)
    start_key, noise_key = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(start_key, (6,))
    lr, betas = step_size, (0.9, 0.99)
    if name in ("recommended", "exact, cosine"):
        lr = lambda n: step_size * (1 + jnp.cos(jnp.pi * n / iterations)) / 2
    if name == "fast preset, half":
        betas = 0.0, 0.95
        lr = lambda n: step_size * jnp.exp(-8.8 * n / 50) * (n < 12.5)
    opt = optax.chain(method.build(noise_key), zojax.radazo(lr, *betas))
    state, losses = opt.init(x), [f(x)]
    update = jax.jit(lambda s, x: opt.update(None, s, x, value_fn=f))
    for _ in range(iterations):
        updates, state = update(state, x)
        x = optax.apply_updates(x, updates)
        losses.append(f(x))
    rows = pd.DataFrame(found).query("seed == @seed and step_size == @step_size")
    assert rows["iteration"].tolist() == list(range(iterations + 1))
    np.testing.assert_allclose(rows["loss"], losses, rtol=2e-3)


def test_half_a_budget_stands_still_after_it():
    half, tick = runs.METHODS["recommended, half"], lambda share: None
    size = runs.Size(4, 100)
    found = runs.curves(functions.quadratic, half, size, [0], [1e-2], {}, tick)
    losses = pd.DataFrame(found)["loss"]
    assert losses[25] < losses[0]
    assert losses[24] != losses[25]
    assert (losses[26:] == losses[25]).all()


def test_noise_is_fresh_and_normal():
    draw = jax.jit(jax.vmap(reuse.fresh_noise, (0, None)))
    x = jnp.arange(4000.0)[:, None] * jnp.array([1.0, 1e-3])
    one, other = draw(x, jax.random.key(0)), draw(x, jax.random.key(1))
    assert len(np.unique(one)) == len(one)
    for sample in (one, other, (one * other)):
        assert abs(float(sample.mean())) < 4 / np.sqrt(len(x))
    assert abs(float(one.var()) - 1) < 4 * np.sqrt(2 / len(x))
    # Entries that change places are another point.
    swapped = reuse.fresh_noise(x[7, ::-1], jax.random.key(0))
    assert swapped != one[7]


def test_a_faster_bowl_is_farther_away():
    loss = lambda speed: reuse.mean_loss(reuse.SPEED, 0, 8, 200, 0, speed, 1e-2)
    losses = jax.jit(jax.vmap(loss))(jnp.array([0.0, 0.1]))
    assert losses[0] < 1
    # In the second half the centre is 10 to 20 away in each of 8 coordinates, and no
    # coordinate can follow faster than the step size: at least 8 (10 - 200 lr)^2 / 2.
    assert losses[1] > 8 * (10 - 200 * 1e-2 * 1.5) ** 2 / 2


def test_comparison_with_the_authors_by_hand():
    row = {"function": "levy", "method": "ZoAR N = 5", "iteration": 500}
    frame = pd.DataFrame([row | {"loss": 5400.0}, row | {"loss": 5450.0}])
    found = reproduction.comparison(frame)
    assert len(found) == 1
    # Mean 5425, deviation 50 / sqrt(2), of one more run sqrt(1 + 1 / 2) times that.
    expected = (5418.06 - 5425) / (50 / np.sqrt(2) * np.sqrt(1.5))
    np.testing.assert_allclose(found["z"], expected)


def test_queries_to_a_target_by_hand():
    rows = [
        {
            "function": "quadratic",
            "method": "vanilla",
            "step_size": 0.1,
            "seed": seed,
            "iteration": iteration,
            "loss": loss,
        }
        for seed in (0, 1)
        for iteration, loss in ((0, 8.0), (10, 4.0 + seed), (20, 1.0))
    ]
    found = convergence.Runs(pd.DataFrame(rows))
    assert found.queries_to(4.5, "vanilla", 0.1) == 110
    assert found.queries_to(4.4, "vanilla", 0.1) == 220
    assert np.isnan(found.queries_to(0.5, "vanilla", 0.1))
    assert found.best_step["vanilla"] == 0.1


# -- the command -----------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Every study at a size of seconds."""
    size = runs.Size(10, 10, 5)
    quadratic = {"quadratic": estimates.PROBLEMS["quadratic"]}
    few = lambda chunk_size, every=projection.estimators: {
        name: every(chunk_size)[name]
        for name in (projection.SPHERE, projection.DAP, projection.SIGNS)
    }
    for module, changes in {
        estimates: {"TRIALS": estimates.CHUNK},
        variance: {"QUICK_SIZES": (4, 32), "PROBLEMS": quadratic},
        sparsity: {"SIZES": (1, 2), "DENSITIES": (0.25,)},
        convergence: {"QUICK": size, "FUNCTIONS": {"quadratic": functions.quadratic}},
        reproduction: {"QUICK": (runs.Size(10, 500, 1), 2)},
        equivalence: {"QUICK": size},
        reuse: {"QUICK": (10, 20), "HISTORIES": dict.fromkeys(reuse.AMOUNTS, (0, 20))},
        projection: {"QUICK": (100,), "ENTRIES": 10_000, "estimators": few},
    }.items():
        for name, value in changes.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(projection, "REPEATS", 1)


@pytest.mark.parametrize("name", STUDIES)
def test_study(name, small, tmp_path, capsys):
    assert main(["synthetic", f"--studies={name}", f"--output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    study = importlib.import_module(f"benchmarks.synthetic.{name}").STUDY
    assert f"{name}.png" in printed
    assert "\n- " in printed
    frame = pd.read_csv(tmp_path / name / f"{name}.csv")
    assert list(dict.fromkeys(frame["cell"])) == list(study.cells(False, 0))
    assert (tmp_path / name / f"{name}.png").stat().st_size > 5_000
    if name == "equivalence":  # finite differences are policy gradients
        assert equivalence.compared(frame)["gap"].max() < 1e-4


def test_a_missing_rival_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("benchmarks.rivals.zoar_torch", "benchmarks.synthetic.rival"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert main(["synthetic", "--studies=rival", f"--output={tmp_path}"]) == 1
    assert capsys.readouterr().err == (
        'benchmarks: torch is missing: pip install -e ".[rivals]"\n'
    )
