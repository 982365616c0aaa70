"""The accelerators benchmark: what the TPU compiler plans, where it is installed."""

import importlib.util
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure

import zojax
from benchmarks.__main__ import main
from benchmarks.accelerators import compiled, models, vectors
from benchmarks.memory import programs
from zojax.perturbations import lazy, low_rank, rademacher


@pytest.fixture
def libtpu(monkeypatch):
    """Skips without it; it ends a process that has XLA flags it does not know."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip('libtpu is not installed: pip install -e ".[accelerators]"')
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # What was compiled for a chip that is not there cannot be read back.
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def test_without_libtpu_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["accelerators", f"--output={tmp_path / 'new'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "libtpu is missing" in line
    assert not (tmp_path / "new").exists()


def test_unknown_topologies_are_one_line(capsys):
    assert main(["accelerators", "--topology=v5e:1x1,abacus"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "abacus" in line
    assert "v6e:2x2" in line


def test_loops_and_collectives_are_counted_by_hand():
    text = """
      %w = (f32[2]) while(%t), condition=%c, body=%b
      %s = f32[2] all-reduce-start(%x), to_apply=%add
      %d = f32[2] all-reduce-done(%s)
      %g = f32[4] all-gather(%x), dimensions={0}
      ROOT %f = f32[2] fusion(%x), calls=%while_body
    """
    program = types.SimpleNamespace(as_text=lambda: text)
    assert compiled.operations(program) == {"loops": 1, "collectives": 2}


def made_up():
    """The gaussian one needs a copy at least."""
    row = {"topology": "v5e:1x1", "problem": "p", "loops": 2, "collectives": 0}
    return pd.DataFrame(
        row | {"estimator": name, "chunk": chunk, "temporary": copies, "jax": "0"}
        for name, copies in (("a", 0.0), ("b, gaussian", 2.5))
        for chunk in ("all at once", "1 at a time")
    )


def test_tables_findings_and_figure():
    frame = made_up()
    (table,) = vectors.tables(frame).values()
    assert table.loc["b, gaussian"].tolist() == [2.5, 2.5]
    whole, single = vectors.findings(frame)
    for said in (whole, single):
        assert "from 0.00 temporary copies of params (a, p) to 2.50" in said
    assert isinstance(vectors.figure(frame), Figure)


def test_tables_findings_and_figure_of_models():
    row = {"topology": "v5e:1x1", "model": "m", "layout": "one chip", "forward": 2e9}
    row |= {"forward_collectives": 0, "loops": 2, "collectives": 0, "jax": "0"}
    frame = pd.DataFrame(
        [
            row | {"step": "backprop, SGD", "bytes": 8e9, "fits": False},
            row | {"step": "all, signs", "bytes": 2.1e9, "fits": True},
            row | {"step": "LoRA, signs", "bytes": 2.02e9, "fits": True},
        ]
    ).assign(over_forward=lambda rows: rows["bytes"] / rows["forward"])
    (table,) = models.tables(frame).values()
    expected = ["does not fit", "1.050", "1.010"]
    assert table["over forward"].tolist() == expected
    (sentence,) = models.findings(frame)
    assert (
        "at most 1.050 of the forward pass (m, one chip, all, signs); all" in sentence
    )
    assert isinstance(models.figure(frame), Figure)


def test_what_a_compiler_refuses_has_its_size():
    error = "RESOURCE_EXHAUSTED: ... Used 20.50G of 15.75G hbm. Exceeded hbm capacity"
    assert models.needed(RuntimeError(error)) == 20.5 * 2**30
    assert np.isnan(models.needed(RuntimeError("no size")))


def test_every_step_and_layout_of_a_case_is_known():
    for number in (1, 4, 8, 64):
        where = {"one chip", "params", "batch", "directions"}
        where |= {"params, batch", "params, directions"}
        for full in (False, True):
            for model, layout, steps in models.cases(number, full):
                assert layout in where
                assert model in models.MODELS
                assert set(steps) <= set(models.STEPS)


def test_plans_of_a_tpu(libtpu, tmp_path, monkeypatch, capsys):
    """Gaussian directions one at a time need no vector; nothing travels on one chip."""
    some = ("two_point, gaussian", "zoar, sums")
    chosen = {name: programs.ESTIMATORS[name] for name in some}
    monkeypatch.setattr(vectors, "ESTIMATORS", chosen)
    monkeypatch.setattr(vectors, "QUICK", (1_000_000,))
    monkeypatch.setattr(vectors, "WIDTH", 256)
    command = ["accelerators", "--studies=vectors", "--topology=v5e:1x1"]
    command.append(f"--output={tmp_path}")
    assert main(command) == 0
    assert "\n- v5e:1x1, all at once" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "vectors" / "vectors.csv")
    assert len(frame) == 8
    assert (frame["collectives"] == 0).all()
    single = frame[frame["chunk"] == "1 at a time"]
    of_vector = single[single["problem"].str.startswith("vector")]
    by_name = of_vector.set_index("estimator")["temporary"]
    assert by_name["two_point, gaussian"] < 0.1


def on_chip(tree):
    """The same shapes, on one v5e."""
    (chip,) = compiled.devices("v5e:1x1")
    place = jax.sharding.SingleDeviceSharding(chip)
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    return jax.tree.map(like, tree)


@pytest.mark.parametrize("sampler", [rademacher(), lazy(rademacher()), low_rank(1)])
def test_two_sides_are_no_loop(libtpu, sampler):
    """On a CPU they are one, where a row that is held would be drawn for each."""
    opt = zojax.mezo(1e-3, key=0, sampler=sampler)
    params = jax.ShapeDtypeStruct((256, 512), jnp.float32)
    args = jax.eval_shape(opt.init, params), params
    calls = []

    def value_fn(w):
        calls.append(w)
        return jnp.sum(zojax.materialize(w) ** 2)

    step = jax.jit(lambda s, w: opt.update(None, s, w, value_fn=value_fn))
    program = step.lower(*on_chip(args)).compile()
    assert compiled.operations(program)["loops"] == 0
    assert len(calls) == 1


def test_few_replayed_directions_are_not_summed_beside_params(libtpu):
    """ZoAR's past directions are fused with the update: no float32 sum of bf16 params.

    It was 2 copies of params, which smaller ones hide in fast memory.
    """
    sampler = lazy(rademacher(), stacked=True)
    zoar = zojax.zoar(
        1e-3, 1, key=0, sampler=sampler, storage="replay", chunk_size=1, history_size=5
    )
    opt = optax.chain(zoar, optax.sgd(1e-6))
    body = lambda x, w: (jnp.tanh(x @ zojax.materialize(w)), None)
    x = jnp.ones((16, 2048), jnp.bfloat16)
    value_fn = lambda w: jnp.sum(jax.lax.scan(body, x, w)[0].astype(jnp.float32))
    params = jax.ShapeDtypeStruct((8, 2048, 2048), jnp.bfloat16)

    def step(params, state):
        updates, state = opt.update(None, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    args = on_chip((params, jax.eval_shape(opt.init, params)))
    program = jax.jit(step, donate_argnums=(0, 1)).lower(*args).compile()
    copies = program.memory_analysis().temp_size_in_bytes / programs.num_bytes(params)
    assert copies < 0.1


# Temporary copies of params, one direction at a time; of signs that were laid out
# otherwise there were 4 of a vector, and 7 of layers that are drawn lazily.
LIMITS = [
    ("two_point", "vector", 0.1),
    ("zoar, sums", "vector", 2.1),
    ("MeZO, lazy", "layers", 0.2),
]


@pytest.mark.parametrize(("estimator", "kind", "limit"), LIMITS)
def test_signs_lie_as_their_leaf_does(libtpu, estimator, kind, limit):
    problem = {"vector": programs.vector(10**6), "layers": programs.layers(1024)}[kind]
    rows = vectors.measure("v5e:1x1", problem, estimator, lambda share: None)
    (single,) = (row for row in rows if row["chunk"] == "1 at a time")
    assert single["temporary"] <= limit
    assert single["collectives"] == 0


def test_nothing_is_gathered_where_signs_are_sharded(libtpu):
    """The values of a chunk are summed, and nothing else: signs are drawn in place."""
    problem = programs.vector(2**20)
    rows = vectors.measure("v5e:2x4", problem, "two_point", lambda share: None)
    for row in rows:
        assert row["collectives"] <= 2


def test_values_and_one_sum_travel_between_chips(libtpu):
    mesh = Mesh(np.array(compiled.devices("v5e:2x4")), ("queries",))
    place = lambda tree: jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec())
        ),
        tree,
    )
    opt = zojax.two_point(
        1e-3, 8, key=0, sampler=rademacher(), chunk_size=1, axis_name="queries"
    )
    x = jax.ShapeDtypeStruct((10**5,), jnp.float32)
    args = place((x, jax.eval_shape(opt.init, x)))
    step = jax.jit(
        lambda x, s: opt.update(None, s, x, value_fn=lambda x: jnp.sum(x**2))
    )
    with jax.set_mesh(mesh):
        program = step.lower(*args).compile()
    sizes = re.findall(r"f32\[([\d,]*)\]\S* all-reduce(?:-start)?\(", program.as_text())
    assert sorted(sizes) == ["100000", "8,1"]
    assert compiled.operations(program)["collectives"] == 2


@pytest.mark.parametrize(
    ("topology", "model", "layout"),
    [("v5e:1x1", "OPT-1.3b", "one chip"), ("v5e:2x4", "OPT-13b", "params")],
)
def test_all_parameters_at_the_memory_of_a_forward_pass(
    libtpu, topology, model, layout
):
    """16 x 64 tokens, two-sided; no collective that the forward pass has not."""
    case = topology, model, layout, "all, signs"
    row = models.measure(*case, lambda share: None)
    assert row["over_forward"] <= 1.05
    assert row["collectives"] <= row["forward_collectives"] * 2


def test_a_chip_that_libtpu_does_not_know(libtpu):
    with pytest.raises(compiled.UsageError, match="cannot compile for v5e:3x5x7"):
        compiled.devices("v5e:3x5x7")
