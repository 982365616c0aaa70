"""The policy benchmark: its choices by hand; a tiny run where gymnax is installed."""

import importlib.util

import numpy as np
import pandas as pd
import pytest

NEEDED = ("gymnax", "evosax")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
installed = pytest.mark.skipif(
    bool(MISSING), reason=f'{MISSING} not installed: pip install -e ".[rivals]"'
)
with_brax = pytest.mark.skipif(
    bool(MISSING) or importlib.util.find_spec("brax") is None,
    reason='not all installed: pip install -e ".[rivals]"',
)


@installed
def test_settings_are_chosen_by_other_seeds(monkeypatch):
    from benchmarks.policy import returns, tasks

    task = tasks.TASKS[0]

    def program(number, step_size, smoothing, keys):
        del number
        # Best for those who tune at 0.1 and 0.3, for those who judge at 0.3 and 1.
        tunes = (keys == first).all()
        wanted = np.array([0.1, 0.3]) if tunes else np.array([0.3, 1.0])
        off = abs(np.array([step_size, smoothing]) - wanted).sum()
        values = np.full((returns.SEEDS, 2), 9.0 - off)
        params = np.ones((returns.SEEDS, 3))
        return values, 0 * params, params

    import jax

    first = jax.random.split(jax.random.key(4), 2 * returns.SEEDS)[: returns.SEEDS]
    monkeypatch.setattr(returns, "compiled", lambda *args: program)
    rows = returns.measure(task, "zojax pairs, ranks", 2, 4, lambda share: None)
    frame = pd.DataFrame(rows)
    of_grid = len(returns.STEP_SIZES) * len(returns.SMOOTHINGS) * returns.SEEDS * 2
    judging = returns.judging(frame)
    assert len(frame) == of_grid + len(judging) == of_grid + 2 * returns.SEEDS
    assert set(judging["seed"]) == set(range(returns.SEEDS, 2 * returns.SEEDS))
    (end,) = returns.ends(frame).itertuples(index=False)
    np.testing.assert_allclose([end.step_size, end.smoothing], [0.1, 0.3], rtol=1e-6)
    np.testing.assert_allclose(end.whole, 9 - 0.9, rtol=1e-6)
    theirs = frame.assign(method="evosax x", **{"return": frame["return"] - 3})
    both = pd.concat([frame, theirs])
    found = returns.findings(both)
    assert "ahead" in found[0]
    assert found[-1].endswith("edge of the grid: none.")
    (table,) = returns.tables(both).values()
    assert table["return, all"].tolist() == ["8.1 ± 0.0", "5.1 ± 0.0"]
    row = returns.typical(both, task.name)
    assert (row["before"], row["after"]) == ("0 0 0", "1 1 1")


@installed
def test_best_half_has_the_utilities_of_snes():
    import jax.numpy as jnp

    from benchmarks.policy.methods import best_half

    values = jnp.array([[3.0, 1.0], [jnp.nan, 9.0], [2.0, 7.0]])
    # Of five, places 3, 1, 5, 2 and 4: log 3.5 - log place, where that is positive.
    wanted = [[np.log(3.5 / 3), np.log(3.5)], [np.nan, 0], [np.log(3.5 / 2), 0]]
    np.testing.assert_allclose(-best_half(values), wanted, atol=1e-6)


@installed
def test_a_method_among_others_leaves_their_states():
    import jax
    import jax.numpy as jnp

    from benchmarks.policy import methods

    def search(unit):
        return methods.Search(
            {unit: jnp.float32(len(unit))},
            lambda state, key: (state[unit] + key, {unit: state[unit] + 1}),
            lambda state, key, members, costs: (
                (),
                {unit: state[unit] + members * costs},
            ),
        )

    @jax.jit
    def step(number):
        one = methods.one_of(number, [search("a"), search("bb")])
        members, state = one.ask(one.state, 10.0)
        return members, one.tell(state, 0.0, members, 2.0)

    # State 2, members 2 + 10, state 3, then 3 + 12 * 2.
    found = jax.tree.map(float, step(1))
    assert found == (12.0, ((), ({"a": 1.0}, {"bb": 27.0})))


@installed
def test_a_policy_that_does_nothing():
    """No force costs nothing and never arrives; a pole that is pushed left falls."""
    import jax
    import jax.numpy as jnp

    from benchmarks.policy import pictures, tasks

    def still(task):
        init, episode = tasks.make(task)
        params = jax.tree.map(jnp.zeros_like, init(jax.random.key(0)))
        gained, film = jax.jit(episode)(params, jax.random.key(1))
        return float(gained), np.asarray(film)

    gained, film = still(tasks.TASKS[2])
    assert gained == 0
    assert film.shape == (1000, 1, 2, 2)
    assert np.isfinite(film).all()
    assert (abs(film[:, 0, 0, 0] + np.pi / 6) < 0.2).all()  # swings where it began
    gained, film = still(tasks.TASKS[0])
    assert 5 < gained < 15
    steps, states = pictures.snapshots(film, 4)
    assert (steps[0], steps[-1], len(steps)) == (0, gained, 4)
    tops = states[:, 1, 1] - states[:, 1, 0]
    assert tops[-1][0] > 0.2  # to the right of the cart
    np.testing.assert_allclose(np.hypot(*tops.T), 1, rtol=1e-5)


@with_brax
def test_the_hopper_is_four_capsules():
    import jax

    from benchmarks.policy import worlds

    world = worlds.of_brax("hopper")
    key = jax.eval_shape(lambda: jax.random.key(0))
    observation, state = jax.eval_shape(world.reset, key)
    assert observation.shape == (11,)
    assert jax.eval_shape(world.sketch, state).shape == (4, 2, 2)


@installed
def test_a_tiny_run(tmp_path, monkeypatch):
    from benchmarks.__main__ import main
    from benchmarks.policy import methods, returns, tasks

    short = tasks.TASKS[0]._replace(length=10)
    monkeypatch.setattr(returns, "TASKS", (short,))
    monkeypatch.setattr(returns, "QUICK", 2)
    monkeypatch.setattr(returns, "SEEDS", 1)
    monkeypatch.setattr(returns, "SMOOTHINGS", (0.1,))
    some = ("zojax pairs, ranks", "evosax Open_ES", "evosax SNES")
    chosen = {name: methods.METHODS[name] for name in some}
    monkeypatch.setattr(returns, "METHODS", chosen)
    assert main(["policy", f"--output={tmp_path}"]) == 0
    frame = pd.read_csv(tmp_path / "returns" / "returns.csv")
    assert len(frame) == 3 * (3 + 1) * 2
    assert frame["return"].between(1, 10).all()
    assert (tmp_path / "returns" / "returns.png").stat().st_size > 10_000
