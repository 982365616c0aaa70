"""The examples of README and guides run as they stand, and links lead somewhere."""

import functools
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import zojax
from zojax import _docs as docs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    page
    for pattern in ("*.md", "notebooks/**/*.md", "benchmarks/**/*.md")
    for page in ROOT.glob(pattern)
)


def examples(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_example():
    names = {}
    exec(compile(examples("README.md")[0], "README.md", "exec"), names)
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
    lines = [line for line in examples("README.md")[1].splitlines() if line]
    assert len(lines) <= 12
    script = tmp_path / "example.py"
    last = "    print(float(np.abs(end.params - 1).max()))"
    script.write_text("\n".join([*lines, last]))
    assert float(run_script(script).split()[-1]) < 0.1


def test_program_example(tmp_path):
    """At most 25 lines: a simulator that is a command, and fails now and then."""
    (example,) = examples("notebooks/external.md")
    assert len(example.splitlines()) <= 25
    (tmp_path / "simulate").write_text(
        f"#!{sys.executable} -IS\nimport json, os, sys\n"
        "assert sys.argv[1:] == ['--mesh', 'fine']\n"
        "assert int(os.environ['ZOJAX_QUERY_ID']) % 10, 'every tenth fails'\n"
        "print(sum((x - 1.0) ** 2 for x in json.load(sys.stdin)))\n"
    )
    (tmp_path / "simulate").chmod(0o755)
    script = tmp_path / "example.py"
    script.write_text(example.replace("400,", "20,"))
    last = run_script(script).splitlines()[-1].split()
    assert (last[0], last[2]) == ("20", "16")
    log = (tmp_path / "run" / "evaluations.jsonl").read_text()
    errors = [json.loads(line)["error"] for line in log.splitlines()]
    assert sum("every tenth fails" in (error or "") for error in errors) == 16


def test_lazy_example():
    """The model takes lazy params in a step, and plain ones under jax.grad."""
    names = {"functools": functools, "jax": jax, "jnp": jnp, "zojax": zojax}
    lazy_example, in_place_example = examples("notebooks/language.md")
    exec(compile(lazy_example, "language.md", "exec"), names)
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

    exec(compile(in_place_example, "language.md", "exec"), names)
    between = loss(params, **data)
    for n in range(20):
        params = names["step"](params, n, **data)
    assert loss(params, **data) < between

    gradient = jax.grad(loss)(params, **data)
    assert not gradient["embed"][5:].any()


def test_devices_example():
    """Directions, batch and parameters over a mesh of eight devices."""
    names = {"jax": jax, "jnp": jnp, "optax": optax, "zojax": zojax}
    step_example, add_example = examples("notebooks/devices.md")
    exec(compile(step_example, "devices.md", "exec"), names)
    params, loss = names["params"], names["loss"]
    assert params["w"].sharding.spec == jax.P(None, "model")
    after = loss(params, *names["batch"])
    assert after < loss({"w": 0 * params["w"]}, *names["batch"])
    exec(compile(add_example, "devices.md", "exec"), names)
    assert names["params"]["w"].sharding.spec == jax.P(None, "model")
    assert loss(names["params"], *names["batch"]) < after


def run_page(page, folder, monkeypatch):
    """What the examples of a page, one after the other, leave behind."""
    monkeypatch.chdir(folder)
    names = {}
    for example in examples(f"notebooks/{page}"):
        exec(compile(example, page, "exec"), names)
    return names


def test_frameworks_examples(tmp_path, monkeypatch, capsys):
    """Each framework's model is fitted, and holds what was found."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    names = run_page("frameworks.md", tmp_path, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    falls = [[float(word) for word in line.split(" to ")] for line in lines]
    assert len(falls) == 4
    assert all(after < before / 2 for before, after in falls)
    x, y = names["x"], names["y"]
    outputs = {
        0: names["model"](x)[:, 0],
        2: jax.vmap(names["mlp"])(x),
        3: names["network"](x)[:, 0],
    }
    for n, out in outputs.items():
        assert abs(float(jnp.mean((out - y) ** 2)) - falls[n][1]) < 0.01


def test_errors_that_the_frameworks_page_spares(monkeypatch):
    """A model in the place of its params, and variables in the place of arrays."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    nnx = pytest.importorskip("flax.nnx")
    keras = pytest.importorskip("keras")
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    tx = zojax.two_point(0.1, 2, key=0)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    loss = lambda model, x: jnp.sum(model(x))
    with pytest.raises(TypeError, match="not callable") as raised:
        optimizer.update(model, None, value_fn=loss, x=jnp.ones(2))
    assert any("put it together" in note for note in raised.value.__notes__)
    with pytest.raises(ValueError, match=r"params\[0\] must be an array.*its \.value"):
        tx.init([keras.Variable(jnp.ones(3))])


def test_checkpoints_examples(tmp_path, monkeypatch, capsys):
    """Resumed runs are equal to the bit; bfloat16 survives; the key is the state's."""
    names = run_page("checkpoints.md", tmp_path, monkeypatch)
    assert capsys.readouterr().out.split() == ["True", "True"]
    loss, batch, (params, state) = names["loss"], jnp.ones(20), names["run"]
    other = zojax.zoar(0.05, 8, key=5, history_size=4)
    updates = [
        opt.update(None, state[0], params, value_fn=loss, batch=batch)[0]["w"]
        for opt in (names["first"], other)
    ]
    assert jnp.array_equal(*updates)
    half = {"a": jnp.arange(3, dtype=jnp.bfloat16), "b": jnp.bfloat16(0.1)}
    names["save"]("half.npz", 7, half)
    n, back = names["load"]("half.npz", half)
    assert n == 7
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), half, back))


def test_rewards_example(tmp_path, monkeypatch):
    """A draw that never changes is learnt by heart."""
    names = run_page("rewards.md", tmp_path, monkeypatch)
    assert min(names["of_step"], names["of_direction"]) > 0.92
    assert names["of_run"] < 0.87


def test_sweeps_examples(tmp_path, monkeypatch):
    """Noise is drawn once for all step sizes, and once for each seed."""
    names = run_page("sweeps.md", tmp_path, monkeypatch)
    rates, losses = names["rates"], names["losses"]
    assert losses.min() < 40 < 150 < losses[0]
    assert jnp.array_equal(jax.vmap(names["loss"])(names["now"][0]), losses)
    assert names["loss"](names["params"]) < 10
    assert names["state"][0].hyperparams["smoothing"] < 0.3

    def draws_for_each(lowered, num_runs):
        bits = rf"tensor<([0-9x]+x)?{num_runs}x[0-9x]*ui32>"
        return re.search(bits, lowered.as_text())

    assert not draws_for_each(names["sweep"].lower(rates, 0.05, 0), 5)
    assert not draws_for_each(names["pieces"].lower(rates, names["now"]), 5)
    seeds = jnp.arange(13)
    assert draws_for_each(names["seeds"].lower(rates[0], 0.05, seeds), 13)


def test_compiling_examples(tmp_path):
    """A list from a stack is the same model; what is compiled ahead is not again."""
    names = {"jax": jax, "jnp": jnp, "optax": optax, "zojax": zojax}
    stack_example, ahead_example = examples("notebooks/compiling.md")
    exec(compile(stack_example, "compiling.md", "exec"), names)
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)
    one, other = names["loss"], names["value_fn"]
    assert one(names["layers"], x) == other(names["params"], x)
    before, names["folder"] = jax.config.jax_compilation_cache_dir, str(tmp_path)
    try:
        exec(compile(ahead_example, "compiling.md", "exec"), names)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert int(names["state"][0].count) == 1
    assert other(names["params"], jnp.ones((3, 4))) < one(names["layers"], jnp.ones(4))


def test_every_estimator_and_sampler_is_in_the_tables():
    from registry import ESTIMATORS, SAMPLERS

    for factory in [case.factory for case in ESTIMATORS.values()]:
        assert f"`{factory.__name__}" in README
    for name in SAMPLERS:
        assert f"`{name}(" in README
    assert zojax.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_reference_has_every_public_name():
    """And names nothing else; a name may stand in a submodule as well."""
    parts = ["cores", "external", "nnx", "perturbations", "queries"]
    parts += ["shaping", "weights"]
    texts = [page.read_text() for page in ROOT.glob("notebooks/reference/*.md")]
    paths = re.findall(r"^::: (\S+)$", "\n".join(texts), re.MULTILINE)
    assert len(paths) == len(set(paths))
    modules = [zojax, *(importlib.import_module(f"zojax.{part}") for part in parts)]
    public = {
        name
        for module in modules
        for name in module.__all__
        if not inspect.ismodule(getattr(module, name))
    }
    assert {path.rpartition(".")[2] for path in paths} == public


def test_two_minutes_to_read():
    assert len(README.splitlines()) <= 200


def anchors(page):
    """The headings of a page as links name them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    """Each link to a file or a heading of this repository leads there."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_places_that_errors_name():
    """Each is a heading of a page that the docs have, and some error ends with it."""
    places = {n: x for n, x in vars(docs).items() if isinstance(x, docs.Place)}
    package = Path(zojax.__file__).parent
    code = "".join(path.read_text() for path in package.rglob("*.py"))
    for name, place in places.items():
        (page,) = ROOT.glob(f"notebooks/{place.page}.*")
        text = page.read_text()
        if page.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            cells = [c["source"] for c in cells if c["cell_type"] == "markdown"]
            text = "\n".join("".join(source) for source in cells)
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert headings.count(place.heading) == 1, place
        assert f"{{docs.{name}}}" in code, place
    assert len(places) <= 20  # a pointer where a page answers, not everywhere


def test_each_example_of_a_guide_is_run():
    """Those above, and that of cores in test_other_models.py."""
    run = {"README.md": 2, "external.md": 1, "language.md": 2, "devices.md": 2}
    run |= {"frameworks.md": 5, "checkpoints.md": 2, "rewards.md": 1, "sweeps.md": 4}
    run["compiling.md"] = 2
    found = {page.name: len(examples(page)) for page in PAGES if examples(page)}
    assert found == {**run, "cores.md": 1}
