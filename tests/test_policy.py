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


@installed
def test_step_sizes_are_chosen_by_other_seeds():
    from benchmarks.policy import returns

    rows = []
    for step_size, tuned, judged in ((0.01, 5.0, 50.0), (0.03, 9.0, 10.0)):
        for seed in range(2 * returns.SEEDS):
            judges = seed >= returns.SEEDS
            for generation in (1, 2):
                rows.append(
                    {
                        "task": "t",
                        "method": f"{returns.OURS}m",
                        "step_size": step_size,
                        "judges": judges,
                        "seed": seed,
                        "generation": generation,
                        "env_steps": 100 * generation,
                        "return": (judged if judges else tuned) + generation,
                        "seconds": 1.0,
                        "compile_seconds": 1.0,
                    }
                )
    frame = pd.DataFrame(rows)
    theirs = frame.assign(method="evosax x", **{"return": frame["return"] - 3})
    both = pd.concat([frame, theirs])
    end = returns.ends(both)
    # 0.03 is best for those who tune, though not for those who judge.
    assert list(end["step_size"]) == [0.03, 0.03]
    np.testing.assert_allclose(end["whole"], [11.5, 8.5])
    assert "ahead" in returns.findings(both)[0]
    assert returns.tables(both)[0].row_count == 2
    returns.figure(both)


@installed
def test_a_policy_that_does_nothing_in_the_mountain_car():
    """No force costs nothing, and never arrives: a return of exactly 0."""
    import jax
    import jax.numpy as jnp

    from benchmarks.policy import tasks

    init, mean_return = tasks.make(tasks.TASKS[2])
    params = jax.tree.map(jnp.zeros_like, init(jax.random.key(0)))
    assert (
        float(jax.jit(mean_return, static_argnums=2)(params, jax.random.key(1), 3)) == 0
    )


@installed
def test_a_tiny_run(tmp_path, monkeypatch):
    from benchmarks.__main__ import main
    from benchmarks.policy import methods, returns, tasks

    short = tasks.TASKS[0]._replace(length=10)
    monkeypatch.setattr(returns, "TASKS", (short,))
    monkeypatch.setattr(returns, "QUICK", 2)
    monkeypatch.setattr(returns, "SEEDS", 1)
    some = ("zojax pairs, ranks", "evosax Open_ES", "evosax SNES")
    chosen = {name: methods.METHODS[name] for name in some}
    monkeypatch.setattr(returns, "METHODS", chosen)
    assert main(["policy", f"--output={tmp_path}"]) == 0
    frame = pd.read_csv(tmp_path / "returns" / "returns.csv")
    assert len(frame) == 3 * 3 * 2 * 2
    assert frame["return"].between(1, 10).all()
