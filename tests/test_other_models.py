"""Models of others, unchanged: of flax itself, and of packages if installed."""

import functools
import importlib
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import zojax
from zojax import cores
from zojax.perturbations import from_rows, low_rank

KEY = jax.random.key(7)
X = jax.random.normal(KEY, (6, 5, 12))
TOKENS = jax.random.randint(KEY, (6, 8), 0, 40)


def named(tree):
    """Leaves by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


# -- blocks of flax itself, whose kernels are [width, heads, size] ---------------------


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x):
        attend = linen.MultiHeadDotProductAttention(num_heads=3)
        x = x + attend(linen.LayerNorm()(x))
        return x + linen.Dense(12)(linen.gelu(linen.Dense(24)(x)))


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(12, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(3, 12, decode=False, rngs=rngs)
        self.up = nnx.Linear(12, 24, rngs=rngs)
        self.down = nnx.Linear(24, 12, rngs=rngs)

    def __call__(self, x):
        x = x + self.attend(self.norm(x))
        return x + self.down(nnx.gelu(self.up(x)))


def linen_block():
    module = LinenBlock()
    loss = lambda params, x: jnp.mean((module.apply(params, x) - 1.0) ** 2)
    return loss, module.init(KEY, X), X


def nnx_block():
    graph, params = nnx.split(NnxBlock(nnx.Rngs(0)))
    loss = lambda params, x: jnp.mean((nnx.merge(graph, params)(x) - 1.0) ** 2)
    return loss, params, X


# -- models of packages ----------------------------------------------------------------


def next_token_loss(logits, tokens):
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1], tokens[:, 1:]
    )
    return jnp.mean(losses)


SIZES = {
    "Llama": {
        "hidden_size": 12,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "max_position_embeddings": 16,
    },
    "GPT2": {"n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 16},
}


def of_transformers(family):
    """Its flax.linen models, which its versions 4 have."""
    os.environ.setdefault("USE_TORCH", "0")  # not needed, and slow to import
    transformers = pytest.importorskip("transformers")
    class_name = f"Flax{family}LMHeadModel"
    class_name = class_name if family == "GPT2" else f"Flax{family}ForCausalLM"
    if not hasattr(transformers, class_name):
        pytest.skip("this transformers has no flax models")
    config = getattr(transformers, f"{family}Config")(vocab_size=40, **SIZES[family])
    model = getattr(transformers, class_name)(config, seed=0)

    def loss(params, tokens):
        return next_token_loss(model(tokens, params=params).logits, tokens)

    return loss, model.params, TOKENS


def of_tunix():
    """google-tunix's Llama 3, a flax.nnx model with kernels of three axes."""
    pytest.importorskip("tunix")
    llama = importlib.import_module("tunix.models.llama3.model")
    config = llama.ModelConfig(
        num_layers=2,
        vocab_size=40,
        embed_dim=12,
        hidden_dim=24,
        num_heads=3,
        head_dim=4,
        num_kv_heads=3,
        norm_eps=1e-5,
        rope_theta=10_000,
    )
    graph, params = nnx.split(llama.Llama3(config, rngs=nnx.Rngs(0)))
    number, length = TOKENS.shape
    positions = jnp.broadcast_to(jnp.arange(length), TOKENS.shape)
    mask = jnp.broadcast_to(jnp.tri(length, dtype=bool), (number, length, length))

    def loss(params, tokens):
        logits, _ = nnx.merge(graph, params)(tokens, positions, None, mask)
        return next_token_loss(logits, tokens)

    return loss, params, TOKENS


# A model, and how many of its matrices are multiplied with: each gets a core.
MODELS = {
    "linen": (linen_block, 6),
    "nnx": (nnx_block, 6),
    "transformers' Llama": (functools.partial(of_transformers, "Llama"), 15),
    "transformers' GPT-2": (functools.partial(of_transformers, "GPT2"), 9),
    "tunix's Llama 3": (of_tunix, 15),
}


@functools.cache
def model(name):
    return MODELS[name][0]()


@functools.cache
def bases_of(name):
    loss, params, data = model(name)
    return cores.principal_bases(loss, params, data, rank=2)


def tuned_by(opt, value_fn, params, steps, **data):
    """Params after so many steps, as one program."""

    def body(carry, _):
        params, state = carry
        updates, state = opt.update(None, state, params, value_fn=value_fn, **data)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda p: jax.lax.scan(body, (p, opt.init(p)), length=steps)[0][0])
    return run(params)


@pytest.mark.parametrize("name", MODELS)
def test_all_matrices_but_tables_get_cores(name):
    model(name)  # skips where the package is missing
    found = named(cores.zeros(bases_of(name)))
    assert len(found) == MODELS[name][1]
    assert {core.shape for core in found.values()} == {(2, 2)}
    assert not any("norm" in path.lower() for path in found)


@pytest.mark.parametrize("name", MODELS)
def test_cores_tune_it_and_merge_into_it(name):
    loss, params, data = model(name)
    bases = bases_of(name)
    named_loss = lambda params, data: loss(params, data)
    run = cores.adapt(named_loss)
    value_fn = lambda tree, x: run(tree, frozen=params, bases=bases, data=x)
    start = cores.zeros(bases)
    before = loss(params, data)
    np.testing.assert_allclose(value_fn(start, data), before, rtol=1e-5)
    opt = optax.chain(zojax.two_point(1e-2, 4, key=0), optax.adam(0.2))
    tuned = tuned_by(opt, value_fn, start, 40, x=data)
    after = value_fn(tuned, data)
    assert after < before - 0.01
    np.testing.assert_allclose(
        loss(cores.merge(tuned, params, bases), data), after, rtol=1e-4
    )


@pytest.mark.parametrize("name", MODELS)
def test_low_rank_tunes_it(name):
    loss, params, data = model(name)
    value_fn = lambda params, x: loss(params, x)
    few = lambda sampler: zojax.evaluate(
        lambda params: loss(params, data),
        params,
        zojax.Directions(sampler, KEY, 4),
        1e-2,
    )[0]
    np.testing.assert_allclose(
        jax.jit(few, static_argnums=0)(low_rank(1)),
        jax.jit(few, static_argnums=0)(from_rows(low_rank(1).row)),
        rtol=2e-4,
    )
    estimator = zojax.two_point(1e-3, 8, key=0, sampler=low_rank(1))
    opt = optax.chain(estimator, optax.adam(1e-3))
    tuned = tuned_by(opt, value_fn, params, 20, x=data)
    assert loss(tuned, data) < loss(params, data) - 0.01


# -- matrices whose sides have several axes --------------------------------------------

ROWS = X.reshape(-1, 12) * jnp.linspace(0.3, 2.0, 12)
HEADS = ROWS.reshape(-1, 3, 4)


def kernel(*shape):
    return jax.random.normal(jax.random.fold_in(KEY, len(shape)), shape) / 3


# A product with a kernel of three axes, its shape, and the same with two axes.
PRODUCTS = {
    "over the first": (
        lambda w: jnp.einsum("bd,dnh->bnh", ROWS, w),
        (12, 3, 4),
        lambda w: ROWS @ w,
    ),
    "over the first two": (
        lambda w: jnp.einsum("bnh,nhd->bd", HEADS, w),
        (3, 4, 12),
        lambda w: ROWS @ w,
    ),
    "over the last two": (
        lambda w: jnp.einsum("bnh,dnh->bd", HEADS, w),
        (12, 3, 4),
        lambda w: ROWS @ w.T,
    ),
    "one head": (
        lambda w: jnp.einsum("bd,dnh->bnh", ROWS, w),
        (12, 1, 12),
        lambda w: ROWS @ w,
    ),
    "transposed": (
        lambda w: jnp.einsum("nhd,bd->bnh", jnp.transpose(w, (1, 2, 0)), ROWS),
        (12, 3, 4),
        lambda w: ROWS @ w,
    ),
    "flattened": (
        lambda w: ROWS @ w.reshape(12, 12),
        (12, 3, 4),
        lambda w: ROWS @ w,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_side_of_several_axes_counts_as_one(name):
    """Bases are those of the matrix with two axes, values those of merged cores."""
    function, shape, of_matrix = PRODUCTS[name]
    w = kernel(*shape)
    bases = cores.principal_bases(function, w, rank=(3, 2))
    wanted = cores.principal_bases(of_matrix, w.reshape(12, 12), rank=(3, 2))
    for found, expected in zip(bases, wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    core = cores.zeros(bases)
    core += jnp.linspace(-1.0, 1.0, core.size).reshape(core.shape)
    adapted = cores.adapt(function)(core, frozen=w, bases=bases)
    merged = function(cores.merge(core, w, bases))
    np.testing.assert_allclose(adapted, merged, rtol=1e-4, atol=1e-4)
    assert np.abs(adapted - function(w)).max() > 0.1


def test_each_matrix_of_a_stack_in_one_product_has_its_own():
    """Heads first, [heads, width, size]: a stack of matrices with the same inputs."""
    w = kernel(3, 12, 4)
    function = lambda w: jnp.einsum("bd,ndh->bnh", ROWS, w)
    found = cores.principal_bases(function, w, rank=2)
    assert found.a.shape == (3, 12, 2)
    assert found.b.shape == (3, 4, 2)
    for i in range(3):
        alone = cores.principal_bases(lambda w: ROWS @ w, w[i], rank=2)
        np.testing.assert_allclose(found.a[i], alone.a, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.b[i], alone.b, rtol=1e-3, atol=1e-4)


def test_kernels_of_layers_under_a_scan():
    layers = kernel(2, 12, 3, 4)

    def function(layers):
        body = lambda x, w: (
            jnp.tanh(jnp.einsum("bd,dnh->bnh", x, w)).reshape(x.shape),
            None,
        )
        return jax.lax.scan(body, ROWS, layers)[0]

    bases = cores.principal_bases(function, layers, rank=2)
    assert bases.a.shape == (2, 12, 2)
    assert bases.b.shape == (2, 12, 2)
    tree = cores.zeros(bases) + 0.3
    np.testing.assert_allclose(
        jax.jit(cores.adapt(function))(tree, frozen=layers, bases=bases),
        function(cores.merge(tree, layers, bases)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_side_that_is_too_long_has_no_core():
    """A kernel of 3 x 20,000 has none; what it is beside has."""
    params = {"long": jnp.ones((3, 100, 200)), "w": jnp.ones((12, 3))}
    function = lambda p: jnp.einsum("bd,dnh->bnh", ROWS @ p["w"], p["long"])
    found = cores.principal_bases(function, params)
    assert found["long"] is None
    assert found["w"] is not None


def attention_like(params):
    """Two kernels as flax's attention has them, given as matrices."""
    into = params["into"].reshape(512, 8, 64)
    out = params["out"].reshape(8, 64, 512)
    heads = jnp.tanh(jnp.einsum("bd,dnh->bnh", jnp.ones((2, 512)), into))
    return jnp.mean(jnp.einsum("bnh,nhd->bd", heads, out) ** 2)


def test_low_rank_forms_no_kernel_that_is_given_as_a_matrix():
    """16 members need far less than 16 matrices; values are those of whole ones."""
    w = jax.random.normal(KEY, (512, 512)) / 20
    params = {"into": w, "out": w.T}

    def evaluate(sampler):
        V = zojax.Directions(sampler, KEY, 16)
        return jax.jit(lambda p: zojax.evaluate(attention_like, p, V, 1e-1)[0])

    run = evaluate(low_rank(1))
    planned = run.lower(params).compile().memory_analysis().temp_size_in_bytes
    assert planned < 4 * w.nbytes
    whole = evaluate(from_rows(low_rank(1).row))
    np.testing.assert_allclose(run(params), whole(params), rtol=1e-4)


def test_example_of_the_guide():
    """The example that needs transformers runs, and its first step lowers the loss."""
    model("transformers' Llama")  # skips where the package is missing
    text = (Path(__file__).parent.parent / "notebooks" / "cores.md").read_text()
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "import transformers" in block
    )
    assert len([line for line in code.splitlines() if line]) <= 20
    names = {"functools": functools, "jax": jax, "optax": optax, "zojax": zojax}
    exec(compile(code, "cores.md", "exec"), names)
    value_fn, tokens = names["value_fn"], names["tokens"]
    before = value_fn(names["data"]["frozen"], tokens)
    assert value_fn(names["model"].params, tokens) < before
