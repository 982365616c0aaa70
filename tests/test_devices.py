"""Directions over a mesh axis, batches and parameters over others."""

import functools
import re
import socket
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import zojax
from zojax.perturbations import (
    gaussian,
    lazy,
    low_rank,
    orthogonal,
    rademacher,
    restrict,
    simplex,
    sphere,
)

MU, K = 1e-2, 8
DEVICES = (1, 2, 4, 8)

# Most of the time here goes into compiling small programs.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)

# Estimators over K directions; those with stages give each stage K of them.
CASES = {
    "forward": lambda **kw: zojax.two_point(MU, K, key=1, **kw),
    "central, lazy": lambda **kw: zojax.two_point(
        MU, K, key=1, difference="central", sampler=lazy(rademacher()), **kw
    ),
    "simplex": lambda **kw: zojax.two_point(
        MU, K, key=1, difference="mean", sampler=simplex(), **kw
    ),
    "leave one out": lambda **kw: zojax.two_point(
        MU, K, key=1, difference="leave_one_out", sampler=orthogonal(), **kw
    ),
    "frozen": lambda **kw: zojax.two_point(
        MU, K, key=1, sampler=restrict(gaussian(), {"w": True, "b": False}), **kw
    ),
    "dap": lambda **kw: zojax.dap(MU, 2 * K, key=1, **kw),
    "dap, average": lambda **kw: zojax.dap(MU, K, key=1, guide="average", **kw),
    "aligned projection": lambda **kw: zojax.aligned_projection(MU, K, key=1, **kw),
    "zoar": lambda **kw: zojax.zoar(MU, K, key=1, history_size=2, **kw),
    "zoar, replay": lambda **kw: zojax.zoar(
        MU, K, key=1, history_size=2, storage="replay", symmetric=True, **kw
    ),
    "reinforce": lambda **kw: zojax.reinforce(
        MU, K, key=1, baseline="optimal", search="sphere", sampler=sphere(), **kw
    ),
}

# Each way through queries once, where a case costs seconds of compilation.
SOME = ["central, lazy", "aligned projection", "zoar", "zoar, replay"]


def mesh_of(shape, names, kind=AxisType.Auto):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names), devices=devices)


def params_of():
    return {"w": jnp.linspace(-1, 1, 32).reshape(4, 8), "b": jnp.linspace(0, 1, 4)}


BATCH = jnp.linspace(-1, 2, 64).reshape(8, 8)


def loss(params, batch):
    params = zojax.materialize(params)
    return jnp.mean((batch @ params["w"].T - params["b"]) ** 2)


def steps(opt, params, batch, number=3, value_fn=loss):
    """Runs a few steps under jit: (params, state, estimate of the last one)."""

    @quick_jit
    def step(params, state, batch):
        updates, state = opt.update(None, state, params, value_fn=value_fn, batch=batch)
        moved = jax.tree.map(lambda p, u: p - 1e-2 * u, params, updates)
        return moved, state, updates

    state = opt.init(params)
    for _ in range(number):
        params, state, updates = step(params, state, batch)
    return params, state, updates


def assert_same(found, expected):
    """Same query values, to the last bit; estimates equal to 1e-6 of their norm."""
    for name in ("query_mean", "num_nonfinite"):
        assert optax.tree.get(found[1], name) == optax.tree.get(expected[1], name)
    distance = optax.tree.norm(optax.tree.sub(*jax.device_get((found[2], expected[2]))))
    assert float(distance) <= 1e-6 * float(optax.tree.norm(expected[2]))


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_that_of_one_device(name):
    """1, 2, 4 and 8 devices; one step, since rounding grows over steps."""
    expected = steps(CASES[name](chunk_size=1), params_of(), BATCH, 1)
    # Every count for one case, two for the others, to save compilations.
    for n in DEVICES if name == "forward" else (2, 8):
        with jax.set_mesh(mesh_of((n,), ("queries",))):
            opt = CASES[name](chunk_size=1, axis_name="queries")
            assert_same(steps(opt, params_of(), BATCH, 1), expected)


@pytest.mark.parametrize("name", SOME)
def test_all_at_once_and_with_data_and_parameters_sharded(name):
    """Three steps without chunks, on a mesh of queries x data x model."""
    expected = steps(CASES[name](), params_of(), BATCH)
    mesh = mesh_of((2, 2, 2), ("queries", "data", "model"))
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    params = params_of()
    params = {"w": place(params["w"], None, "model"), "b": place(params["b"])}
    with jax.set_mesh(mesh):
        opt = CASES[name](axis_name="queries")
        found = steps(opt, params, place(BATCH, "data"))
    chex.assert_trees_all_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    assert found[0]["w"].sharding.spec == P(None, "model")


@pytest.mark.parametrize("name", SOME)
def test_inside_shard_map_with_a_batch_axis(name):
    """The loss averages over the data axis by hand; replicas share the noise."""
    expected = steps(CASES[name](), params_of(), BATCH)
    opt = CASES[name](axis_name="queries")
    value_fn = lambda params, batch: jax.lax.pmean(loss(params, batch), "data")

    def step(params, state, batch):
        updates, state = opt.update(None, state, params, value_fn=value_fn, batch=batch)
        return jax.tree.map(lambda p, u: p - 1e-2 * u, params, updates), state

    sharded = quick_jit(
        jax.shard_map(
            step,
            mesh=mesh_of((4, 2), ("queries", "data")),
            in_specs=(P(), P(), P("data")),
            out_specs=P(),
        )
    )
    params = params_of()
    state = opt.init(params)
    for _ in range(3):
        params, state = sharded(params, state, BATCH)
    chex.assert_trees_all_close(params, expected[0], rtol=1e-4, atol=1e-5)


# -- what travels ----------------------------------------------------------------------


def compiled(opt, params, mesh, batch=BATCH):
    def step(params, state, batch):
        updates, state = opt.update(None, state, params, value_fn=loss, batch=batch)
        return jax.tree.map(lambda p, u: p - 1e-2 * u, params, updates), state

    with jax.set_mesh(mesh):
        jitted = jax.jit(step, donate_argnums=(0, 1))
        return jitted.lower(params, opt.init(params), batch).compile()


COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)


def collectives(program):
    """(name, entries that a device sends) of each collective."""
    sizes = lambda shapes: sum(
        int(np.prod([int(n) for n in found.split(",") if n]))
        for found in re.findall(r"\w+\[([\d,]*)\]", re.sub(r"\{.*?\}", "", shapes))
    )
    return sorted(
        (kind, sizes(shapes)) for shapes, kind in COLLECTIVE.findall(program.as_text())
    )


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_values_and_one_sum_are_all_that_travels(chunk_size):
    """K scalars, and the leaves of the estimate in one collective."""
    mesh = mesh_of((8,), ("queries",))
    d = 36
    for number in (8, 32):
        opt = zojax.two_point(
            MU, number, key=0, axis_name="queries", chunk_size=chunk_size
        )
        program = compiled(opt, params_of(), mesh)
        assert collectives(program) == [("all-reduce", number), ("all-reduce", d)]


def test_each_history_and_stage_adds_its_own():
    """A replayed history is one more sum, a second stage another pair."""
    mesh = mesh_of((8,), ("queries",))
    found = {
        name: len(collectives(compiled(CASES[name](axis_name="queries"), *where)))
        for name, where in {
            "zoar": (params_of(), mesh),
            "zoar, replay": (params_of(), mesh),
            "dap": (params_of(), mesh),
        }.items()
    }
    # XLA may join the two sums of the replayed history.
    assert found["zoar"] == 2
    assert found["zoar, replay"] in (2, 3)
    assert found["dap"] == 4


def test_a_device_holds_only_its_own_directions():
    """K = 8 on 8 devices: the noise and the perturbed copy of one direction each."""
    n = 64 * 1024
    value_fn = lambda x: jnp.sum(jnp.sin(x) ** 2)

    def temporary(devices):
        opt = zojax.two_point(MU, 8, key=0, axis_name="queries", sampler=gaussian())
        x = jnp.ones(n)
        with jax.set_mesh(mesh_of((devices,), ("queries",))):
            step = jax.jit(lambda x, s: opt.update(None, s, x, value_fn=value_fn))
            program = step.lower(x, opt.init(x)).compile()
        return program.memory_analysis().temp_size_in_bytes / (4 * n)

    alone, spread = temporary(1), temporary(8)
    assert alone >= 8
    # One direction, its random words and uniforms, one copy, the sum and its result.
    assert spread <= 4.5
    assert spread <= alone / 3


@pytest.mark.parametrize("spec", [P("model", None), P(None, "model")])
@pytest.mark.parametrize(
    "sampler",
    [
        *(gaussian(), rademacher(), sphere(), orthogonal(), simplex()),
        *(lazy(rademacher()), lazy(rademacher(), True)),
    ],
    ids=[
        *("gaussian", "rademacher", "sphere", "orthogonal", "simplex"),
        *("lazy", "lazy, stacked"),
    ],
)
def test_noise_is_drawn_where_the_shard_lives(sampler, spec):
    """No gather, only scalars summed; memory of a shard; the result stays sharded."""
    mesh = mesh_of((8,), ("model",))
    shape = (256, 512)
    x = jax.device_put(jnp.ones(shape), NamedSharding(mesh, spec))
    opt = zojax.two_point(
        MU, 4, key=0, sampler=sampler, difference="mean", chunk_size=1
    )
    value_fn = lambda x: jnp.sum(zojax.materialize(x) ** 2)
    step = jax.jit(lambda x, s: opt.update(None, s, x, value_fn=value_fn))
    program = step.lower(x, opt.init(x)).compile()
    assert {kind for kind, _ in collectives(program)} == {"all-reduce"}
    assert all(size == 1 for _, size in collectives(program))
    assert program.output_shardings[0].is_equivalent_to(x.sharding, 2)
    # Gaussian: a shard's words, uniforms, noise and copy. Rademacher's words, 1/32 of
    # the leaf, are drawn on every device.
    # XLA of JAX 0.12 plans 0.88 for the sphere.
    share = 0.9 if jax.__version_info__ >= (0, 12) else 0.85
    assert program.memory_analysis().temp_size_in_bytes <= share * 4 * x.size
    V = zojax.Directions(sampler, 0, 4, chunk_size=1)
    add = jax.jit(lambda x: zojax.combine(jnp.ones(4), x, V))
    found, alone = jax.device_get((add(x), add(jnp.ones(shape))))
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-5)


def test_directions_and_shards_together_travel_as_shards():
    """The one sum over queries is of a shard, not of the whole parameter."""
    mesh = mesh_of((4, 2), ("queries", "model"))
    x = {
        "w": jax.device_put(jnp.ones((32, 64)), NamedSharding(mesh, P("model"))),
        "b": jax.device_put(jnp.ones(32), NamedSharding(mesh, P("model"))),
    }
    for chunk_size in (None, 1):
        opt = zojax.two_point(MU, 8, key=0, axis_name="queries", chunk_size=chunk_size)
        program = compiled(opt, x, mesh, jnp.ones((2, 64)))
        found = collectives(program)
        assert {kind for kind, _ in found} == {"all-reduce"}
        assert max(size for _, size in found) == (32 * 64 + 32) // 2


# -- arguments and states --------------------------------------------------------------


def test_aux_is_that_of_the_first_query():
    def value_fn(x):
        return jnp.sum(x), {"first": x[0], "large": x[0] > -10.0, "n": jnp.sum(x > 0)}

    x = jnp.linspace(0, 1, 6)
    like = jax.eval_shape(value_fn, x)[1]
    results = []
    for axis_name in (None, "queries"):
        opt = zojax.zoar(
            MU, 8, key=3, has_aux=True, aux_like=like, axis_name=axis_name, chunk_size=1
        )
        with jax.set_mesh(mesh_of((8,), ("queries",))):
            results.append(opt.update(None, opt.init(x), x, value_fn=value_fn)[1])
    chex.assert_trees_all_equal(results[0].log.aux, results[1].log.aux)
    assert results[1].log.aux["large"].dtype == bool


def test_wrong_axes_are_named():
    x = jnp.ones(4)
    update = lambda opt: opt.update(None, opt.init(x), x, value_fn=jnp.sum)
    with pytest.raises(ValueError, match="axis_name must be the name of a mesh axis"):
        zojax.two_point(MU, 8, key=0, axis_name=3)
    opt = zojax.two_point(MU, 8, key=0, axis_name="queries")
    with pytest.raises(ValueError, match=r"jax\.set_mesh"):
        update(opt)
    with (
        jax.set_mesh(mesh_of((8,), ("queries",))),
        pytest.raises(ValueError, match="multiple of the 8 devices"),
    ):
        update(zojax.two_point(MU, 12, key=0, axis_name="queries"))
    with (
        jax.set_mesh(mesh_of((8,), ("queries",), AxisType.Explicit)),
        pytest.raises(ValueError, match=r"AxisType\.Auto"),
    ):
        update(opt)


def test_explicit_axes_change_no_sign():
    """On an explicit mesh an update is placed as params are; V^T w is the same."""
    sampler = rademacher()
    opt = zojax.two_point(MU, 4, key=0, sampler=sampler, chunk_size=1)
    value_fn = lambda x: jnp.sum(x**2)
    V = zojax.Directions(sampler, 0, 4, chunk_size=1)
    add = jax.jit(lambda x: zojax.combine(jnp.ones(4), x, V))
    expected = jax.device_get(add(jnp.ones(64)))
    with jax.set_mesh(mesh_of((8,), ("model",), AxisType.Explicit)):
        x = jax.device_put(jnp.ones(64), P("model"))
        step = jax.jit(lambda x, s: opt.update(None, s, x, value_fn=value_fn))
        updates, _ = step(x, opt.init(x))
        assert updates.sharding.is_equivalent_to(x.sharding, 1)
        np.testing.assert_array_equal(jax.device_get(add(x)), expected)
    assert np.abs(expected).max() == 4  # signs added, all four of them somewhere


# Each kind of sampler, and each estimator whose state lies where params lie. So large a
# mu that the rounding of f, a sum over devices, weighs little.
EXPLICIT = {
    "gaussian": lambda: zojax.two_point(0.5, K, key=0),
    "signs": lambda: zojax.two_point(0.5, K, key=0, sampler=rademacher()),
    "orthogonal": lambda: zojax.two_point(
        0.5, K, key=0, sampler=orthogonal(), chunk_size=1
    ),
    "lazy": lambda: zojax.two_point(
        0.5, K, key=0, sampler=lazy(rademacher()), chunk_size=1
    ),
    "low rank": lambda: zojax.two_point(0.5, K, key=0, sampler=low_rank(1)),
    "zoar": lambda: optax.chain(
        zojax.zoar(0.5, K, key=0, history_size=2, chunk_size=1), zojax.radazo(1e-2)
    ),
    "dap": lambda: zojax.dap(0.5, K, key=0, guide="average", chunk_size=1),
    "dap, replay": lambda: zojax.dap(
        0.5,
        K,
        key=0,
        sampler=lazy(rademacher()),
        base=lazy(rademacher()),
        storage="replay",
        chunk_size=1,
    ),
    "aligned projection": lambda: zojax.aligned_projection(0.5, K, key=0, chunk_size=1),
}


@pytest.mark.parametrize("name", EXPLICIT)
def test_explicit_axes_for_parameters(name):
    """As on automatic axes: the same steps, in no more memory, with no gather."""
    opt = EXPLICIT[name]()
    value_fn = lambda x: jnp.sum(jnp.cos(zojax.materialize(x)) ** 2)

    def run(x, state):
        def step(carry, _):
            x, state = carry
            g, state = opt.update(None, state, x, value_fn=value_fn)
            return (x - 1e-3 * g, state), None

        return jax.lax.scan(step, (x, state), length=3)[0]

    def on(kind):
        with jax.set_mesh(mesh_of((8,), ("model",), kind)):
            x = jax.device_put(jnp.linspace(0, 1, 2**14).reshape(32, -1), P("model"))
            program = jax.jit(run).lower(x, opt.init(x)).compile()
            moved, state = program(x, opt.init(x))
        assert "all-gather" not in program.as_text()
        assert "f32[32,512]" not in program.as_text()  # a whole leaf
        listed = optax.tree.get(state, "query_values")  # f[K, 1], of no parameter
        assert listed.sharding.is_fully_replicated
        for leaf in jax.tree.leaves((moved, state)):
            placed = leaf.ndim >= 2 and leaf is not listed
            assert not placed or leaf.sharding.spec[leaf.ndim - 2] == "model"
        return program.memory_analysis().temp_size_in_bytes / x.nbytes, moved

    (automatic, expected), (explicit, found) = map(
        on, (AxisType.Auto, AxisType.Explicit)
    )
    assert explicit < automatic + 0.1
    # Sums over entries may be taken in another order.
    np.testing.assert_allclose(
        jax.device_get(found), jax.device_get(expected), rtol=1e-4, atol=1e-5
    )


def test_directions_inside_shard_map_with_explicit_axes_for_parameters():
    """Directions over a manual axis, parameters over an explicit one; as on one."""
    value_fn = lambda x: jnp.sum(x**2)
    step = lambda opt, x: opt.update(None, opt.init(x), x, value_fn=value_fn)[0]
    x = jnp.linspace(0, 1, 64).reshape(8, 8)
    expected = jax.jit(functools.partial(step, zojax.two_point(0.5, 4, key=0)))(x)
    opt = zojax.two_point(0.5, 4, key=0, axis_name="queries")
    with jax.set_mesh(mesh_of((2, 4), ("queries", "model"), AxisType.Explicit)):
        spread = jax.shard_map(
            functools.partial(step, opt),
            in_specs=P(),
            out_specs=P(),
            axis_names={"queries"},
        )
        found = jax.jit(spread)(jax.device_put(x, P("model")))
    assert found.sharding.spec == P("model", None)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_explicit_axes_without_their_mesh_in_force():
    """No placement is promised then, but the estimate is the same."""
    opt = zojax.two_point(0.5, 4, key=0)
    step = lambda x: opt.update(None, opt.init(x), x, value_fn=jnp.sum)[0]
    x = jnp.linspace(0, 1, 64).reshape(8, 8)
    placed = jax.device_put(
        x, NamedSharding(mesh_of((8,), ("model",), AxisType.Explicit), P("model"))
    )
    for run in (step, jax.jit(step)):
        np.testing.assert_allclose(run(placed), run(x), rtol=1e-4, atol=1e-4)


def test_orbax_saves_on_eight_devices_and_restores_on_two(tmp_path):
    """A run goes on, bit-equal, on another number of devices."""
    checkpoint = pytest.importorskip("orbax.checkpoint")
    opt = zojax.zoar(MU, 4, key=0, history_size=2, chunk_size=1)
    value_fn = lambda x: jnp.sum(x**2)

    @jax.jit
    def step(x, state):
        updates, state = opt.update(None, state, x, value_fn=value_fn)
        return x - 1e-3 * updates, state

    def placed(tree, n):
        mesh = mesh_of((n,), ("model",))
        spec = lambda leaf: P(*[None] * (leaf.ndim - 1), "model")
        fits = lambda leaf: leaf.ndim and leaf.shape[-1] == 16
        return jax.tree.map(
            lambda leaf: NamedSharding(mesh, spec(leaf) if fits(leaf) else P()), tree
        )

    x = jnp.linspace(0, 1, 16)
    carry = x, opt.init(x)
    carry = jax.device_put(carry, placed(carry, 8))
    for _ in range(3):
        carry = step(*carry)
    with checkpoint.StandardCheckpointer() as saver:
        saver.save(tmp_path / "run", carry)
        saver.wait_until_finished()
        like = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            ),
            carry,
            placed(carry, 2),
        )
        restored = saver.restore(tmp_path / "run", like)
    assert len(restored[0].sharding.device_set) == 2
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(carry))
    chex.assert_trees_all_close(
        jax.device_get(step(*restored)[0]), jax.device_get(step(*carry)[0]), rtol=1e-6
    )


PROCESS = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import jax.numpy as jnp, numpy as np, zojax
assert jax.device_count() == 4 and jax.local_device_count() == 2
mesh = jax.make_mesh((4,), ("queries",), axis_types=(jax.sharding.AxisType.Auto,))
opt = zojax.zoar(0.01, 8, key=1, history_size=2, axis_name="queries", chunk_size=1)
x = jnp.linspace(-1, 1, 12)
state = opt.init(x)
with jax.set_mesh(mesh):
    f = lambda x: jnp.sum(x**4)
    step = jax.jit(lambda x, s: opt.update(None, s, x, value_fn=f))
    for _ in range(3):
        updates, state = step(x, state)
        x = jax.jit(lambda x, u: x - 1e-3 * u)(x, updates)
print("RESULT", *np.asarray(x.addressable_data(0)).tolist())
"""


def test_two_processes_agree_with_one(tmp_path):
    """jax.distributed over two processes of two devices each, on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    environment = {"JAX_PLATFORMS": "cpu", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), address, str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(2)
    ]
    found = []
    for process in running:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-2000:]
        line = next(line for line in out.splitlines() if line.startswith("RESULT"))
        found.append(np.array(line.split()[1:], float))
    np.testing.assert_array_equal(*found)

    opt = zojax.zoar(0.01, 8, key=1, history_size=2, chunk_size=1)
    x = jnp.linspace(-1, 1, 12)
    state = opt.init(x)
    for _ in range(3):
        updates, state = opt.update(None, state, x, value_fn=lambda x: jnp.sum(x**4))
        x = x - 1e-3 * updates
    np.testing.assert_allclose(found[0], x, rtol=1e-5)
