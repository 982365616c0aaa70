"""The README's examples run as they stand."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import zojax

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_example():
    names = {}
    exec(compile(EXAMPLES[0], "README.md", "exec"), names)
    final = names["loss"](names["params"], names["target"])
    assert float(final) <= 5


def run_script(script):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, script.name]
    where = {"cwd": script.parent, "env": environment}
    out = subprocess.run(command, capture_output=True, text=True, **where)
    assert out.returncode == 0, out.stderr[-2000:]
    return out.stdout


def test_simulator_example(tmp_path):
    """At most 12 lines: a numpy simulator in a process pool drives ZoAR."""
    lines = [line for line in EXAMPLES[1].splitlines() if line]
    assert len(lines) <= 12
    script = tmp_path / "example.py"
    last = "    print(float(np.abs(end.params - 1).max()))"
    script.write_text("\n".join([*lines, last]))
    assert float(run_script(script).split()[-1]) < 0.1


def test_program_example(tmp_path):
    """At most 25 lines: a simulator that is a command, and fails now and then."""
    lines = EXAMPLES[2].splitlines()
    assert len(lines) <= 25
    (tmp_path / "simulate").write_text(
        f"#!{sys.executable} -IS\nimport json, os, sys\n"
        "assert sys.argv[1:] == ['--mesh', 'fine']\n"
        "assert int(os.environ['ZOJAX_QUERY_ID']) % 10, 'every tenth fails'\n"
        "print(sum((x - 1.0) ** 2 for x in json.load(sys.stdin)))\n"
    )
    (tmp_path / "simulate").chmod(0o755)
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[2].replace("400,", "20,"))
    last = run_script(script).splitlines()[-1].split()
    assert (last[0], last[2]) == ("20", "16")
    log = (tmp_path / "run" / "evaluations.jsonl").read_text()
    errors = [json.loads(line)["error"] for line in log.splitlines()]
    assert sum("every tenth fails" in (error or "") for error in errors) == 16


def test_lazy_example():
    """The model takes lazy params in a step, and plain ones under jax.grad."""
    names = {"functools": functools, "jax": jax, "jnp": jnp, "zojax": zojax}
    lazy_example, in_place_example = EXAMPLES[3:5]
    exec(compile(lazy_example, "README.md", "exec"), names)
    opt, loss = names["opt"], names["loss"]
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape) / 2
    params = {"embed": draw(0, 9, 4), "layers": {"w": draw(1, 3, 4, 4)}}
    data = {"tokens": jnp.arange(5), "targets": jnp.ones(5)}

    def step(params, state):
        updates, state = opt.update(None, state, params, value_fn=loss, **data)
        return optax.apply_updates(params, updates), state

    state, before = opt.init(params), loss(params, **data)
    for _ in range(20):
        params, state = jax.jit(step)(params, state)
    assert loss(params, **data) < before

    exec(compile(in_place_example, "README.md", "exec"), names)
    between = loss(params, **data)
    for n in range(20):
        params = names["step"](params, n, **data)
    assert loss(params, **data) < between

    gradient = jax.grad(loss)(params, **data)
    assert not gradient["embed"][5:].any()


def test_devices_example():
    """Directions, batch and parameters over a mesh of eight devices."""
    names = {"jax": jax, "jnp": jnp, "optax": optax, "zojax": zojax}
    exec(compile(EXAMPLES[6], "README.md", "exec"), names)
    params, loss = names["params"], names["loss"]
    assert params["w"].sharding.spec == jax.P(None, "model")
    after = loss(params, *names["batch"])
    assert after < loss({"w": 0 * params["w"]}, *names["batch"])
    exec(compile(EXAMPLES[7], "README.md", "exec"), names)
    assert names["params"]["w"].sharding.spec == jax.P(None, "model")
    assert loss(names["params"], *names["batch"]) < after


def test_every_estimator_and_sampler_is_in_the_tables():
    from registry import ESTIMATORS, SAMPLERS

    for factory in [case.factory for case in ESTIMATORS.values()]:
        assert f"`{factory.__name__}" in README
    for name in SAMPLERS:
        assert f"`{name}(" in README
    assert (
        zojax.__version__ in (Path(__file__).parent.parent / "CHANGELOG.md").read_text()
    )
