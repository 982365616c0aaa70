"""The frozen estimates: three steps of every estimator, sampler, chunk and storage.

``python tests/references/estimates.py`` wrote estimates.npz at the commit before the
redesign of 0.1.0 (f60bc2f), but for the four of aligned_projection, whose row 0 is
another since. ``--check`` compares to the bit; test_frozen_estimates.py
does so too where JAX and the machine's vector instructions are those of the file, and
elsewhere to rounding. ``--level`` is XLA's optimization level (0 compiles fastest),
``--file`` another file.
"""

import argparse
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import zojax
from zojax.perturbations import (
    aligned,
    coordinate,
    gaussian,
    lazy,
    low_rank,
    orthogonal,
    rademacher,
    restrict,
    simplex,
    sphere,
)

FILE = Path(__file__).with_name("estimates.npz")
MU, K, STEPS = 1e-2, 4, 3
SHAPES = {"b": (5,), "layers": (2, 3, 3), "s": (), "w": (3, 4)}
PARAMS = {
    name: np.cos(np.arange(np.prod(shape, dtype=int)) + i).reshape(shape) / 2
    for i, (name, shape) in enumerate(SHAPES.items())
}
MASK = {"b": True, "layers": True, "s": False, "w": True}
STACKED = {"b": False, "layers": True, "s": False, "w": True}


def objective(params):
    """Uses matrices whole, a layer at a time, elementwise and transposed."""
    params = zojax.materialize(params)
    x = jnp.linspace(-1, 1, 6, dtype=jnp.float32).reshape(2, 3)
    for i in range(2):
        x = jnp.tanh(x @ params["layers"][i] + params["s"])
    out = x @ params["w"]
    return jnp.sum((out - 0.5) ** 2) + jnp.sum(jnp.sin(params["b"]))


def guide():
    return {
        name: jnp.asarray(np.sin(3 * leaf), jnp.float32)
        for name, leaf in ((name, PARAMS[name]) for name in SHAPES)
    }


SAMPLERS = {
    "gaussian": gaussian,
    "sphere": sphere,
    "rademacher": rademacher,
    "coordinate": coordinate,
    "orthogonal": orthogonal,
    "simplex": simplex,
    "lazy": lambda: lazy(rademacher()),
    "lazy stacked": lambda: lazy(gaussian(), STACKED),
    "low_rank": lambda: low_rank(1),
    "low_rank 2": lambda: low_rank(2, rademacher()),
    "restrict": lambda: restrict(gaussian(), MASK),
    "restrict lazy": lambda: restrict(lazy(gaussian(), STACKED), MASK),
    "restrict low_rank": lambda: restrict(low_rank(1), MASK),
    "aligned": lambda: aligned(guide()),
    "aligned fixed": lambda: aligned(guide(), sphere(), fixed_length=True),
    "aligned restrict": lambda: aligned(guide(), restrict(rademacher(), MASK)),
}


def cases():
    """Name -> a function that makes the estimator."""
    found = {}

    def add(name, factory, *args, chunks=(None, 1), **options):
        for chunk in chunks:
            found[f"{name}, chunk_size={chunk}"] = functools.partial(
                factory, MU, *args, key=7, chunk_size=chunk, **options
            )

    def deferred(factory, *args, sampler=None, base=None, **options):
        """Samplers are made late: they may hold arrays."""
        made = {"sampler": sampler, "base": base}
        made = {name: make() for name, make in made.items() if make is not None}
        return factory(*args, **made, **options)

    two_point = functools.partial(deferred, zojax.two_point)
    for name, sampler in SAMPLERS.items():
        options = {"sampler": sampler, "difference": "central"}
        add(f"central, {name}", two_point, K, chunks=(None, 3), **options)
    options = {"sampler": rademacher, "difference": "central"}
    add("central, in turns", two_point, K, chunks=(1,), **options)
    for kind in ("forward", "mean", "leave_one_out"):
        for name, chunk in (("gaussian", None), ("rademacher", 3), ("low_rank", None)):
            options = {"sampler": SAMPLERS[name], "difference": kind}
            add(f"{kind}, {name}", two_point, K, chunks=(chunk,), **options)
    add("mean, simplex", two_point, K, sampler=simplex, difference="mean")
    add("forward, clip", two_point, K, clip=0.5)
    add("central, one", two_point, 1, difference="central", chunks=(None, 1))
    add("forward, more than d", two_point, 44, sampler=orthogonal, chunks=(None,))

    zoar = functools.partial(deferred, zojax.zoar)
    for name in ("gaussian", "rademacher", "lazy stacked", "low_rank", "restrict"):
        for storage in ("sums", "replay"):
            options = {"sampler": SAMPLERS[name], "storage": storage, "history_size": 2}
            chunk = None if name in ("gaussian", "low_rank") else 3
            add(f"zoar, {name}, {storage}", zoar, K, chunks=(chunk,), **options)
    add("zoar, symmetric", zoar, K, symmetric=True, leave_one_out=True)
    add("zoar, no history", zoar, K, history_size=0, leave_one_out=True)

    dap = functools.partial(deferred, zojax.dap)
    add("dap", dap, K)
    add("dap, average of both", dap, 5, combine="average", split=0.4)
    add("dap, central", dap, K, difference="central", base=rademacher)
    add("dap, updates", dap, K, guide="updates", fixed_length=True)
    add("dap, restrict", dap, K, guide="updates", base=SAMPLERS["restrict"])
    add("dap, running guide", dap, K, guide="average", base=sphere)
    replay = {"storage": "replay", "sampler": SAMPLERS["lazy"]}
    stacked = {"storage": "replay", "sampler": SAMPLERS["lazy stacked"]}
    add("dap, replay", dap, K, base=SAMPLERS["lazy stacked"], **stacked)
    add(
        "dap, replay, averaged",
        dap,
        K,
        combine="average",
        base=SAMPLERS["lazy"],
        fixed_length=True,
        **replay,
    )

    for kind in ("forward", "central"):
        add(f"projection, {kind}", zojax.aligned_projection, K, difference=kind)

    reinforce = functools.partial(deferred, zojax.reinforce)
    for baseline in ("value", "mean", "leave_one_out", "optimal"):
        add(f"reinforce, {baseline}", reinforce, K, baseline=baseline, chunks=(3,))
    add("reinforce, sphere", reinforce, K, search="sphere", chunks=(None, 1))

    found["mezo"] = functools.partial(zojax.mezo, 1.0, MU, key=7)
    found["mezo, lazy"] = lambda: zojax.mezo(1.0, MU, key=7, sampler=lazy(gaussian()))
    found["spsa"] = functools.partial(zojax.spsa, 1.0, MU, key=7, num_directions=3)
    return found


def run(make, level=0) -> np.ndarray:
    """The estimates of three steps, f32[3, 36], leaves in the order of their names."""
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
    opt = make()

    @functools.partial(
        jax.jit, compiler_options={"xla_backend_optimization_level": level}
    )
    def step(params, state, updates):
        return opt.update(updates, state, params, value_fn=objective)

    state, rows = opt.init(params), []
    for n in range(STEPS):
        incoming = jax.tree.map(lambda g, n=n: g * (n + 1), guide())
        updates, state = step(params, state, incoming)
        leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(updates)]
        rows.append(np.concatenate(leaves))
        # Moved by numpy, so that all steps start from the same bits.
        params = jax.tree.map(lambda p, n=n: p + np.float32(0.01 * (n + 1)), params)
    return np.stack(rows)


def machine() -> str:
    """What decides about the last bit beside the program: JAX and vector width."""
    flags = ""
    try:
        text = Path("/proc/cpuinfo").read_text()
        flags = next(line for line in text.splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        pass
    known = [name for name in ("avx2", "fma", "avx512f", "amx_tile") if name in flags]
    return " ".join([jax.__version__, *known])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--level", type=int, default=0)
    args = parser.parse_args()
    found = {name: run(make, args.level) for name, make in cases().items()}
    if not args.check:
        np.savez_compressed(args.file, machine=machine(), **found)
        print(f"{len(found)} cases written on {machine()}")
        return 0
    frozen = np.load(args.file)
    print(f"{len(found)} cases; the file is of {frozen['machine']}, here {machine()}")
    differ = [n for n in found if not np.array_equal(found[n], frozen[n])]
    for name in differ:
        far = np.abs(found[name] - frozen[name]).max() / np.abs(frozen[name]).max()
        print(f"{name}: {far:.1e} of the largest entry")
    print(f"{len(differ)} differ")
    return bool(differ) or set(found) != set(frozen.files) - {"machine"}


if __name__ == "__main__":
    sys.exit(main())
