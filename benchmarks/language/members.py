"""Members of one adapter as one batch: a sentence's text is run once for all of them.

Cores act on the template's words alone, so what comes before these is the same for all
members of a step. Two settings: the text is run in the step, and it was run before.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.language import beside, problem, tasks
from benchmarks.language.problem import Batch, Source
from benchmarks.language.recipe import PRESETS, matrix_names
from benchmarks.language.transformer import Adapter, Params, Text
from benchmarks.study import Row, Tick

MEMBERS = 16
BATCH, LENGTH = 16, 24  # sentences, and tokens of each
RECIPE = PRESETS["cores-zo"][1]


def adapters(layers: Params, number: int) -> tuple[Adapter, Adapter]:
    """(Cores of a number of members, their bases): what is in them costs nothing."""
    inside = 1 if RECIPE.predicting else RECIPE.rank
    full = lambda *shape: jnp.full(shape, 0.01)
    cores, bases = {}, {}
    for name in matrix_names(RECIPE):
        depth, inputs, outputs = layers[name].shape
        cores[name] = full(number, depth, inside, RECIPE.rank)
        b = full(depth, outputs, RECIPE.rank)
        bases[name] = {"a": full(depth, inputs, inside), "b": b}
    return cores, bases


def measure(turns: int, tick: Tick) -> list[Row]:
    """A row for each setting, and one member or many."""
    config, params, tokenizer = problem.load_model(Source())
    bottom = len(params["layers"]["q"]) - RECIPE.top
    upper = {**params, "layers": jax.tree.map(lambda x: x[bottom:], params["layers"])}
    value_fn = problem.loss(config, tasks.word_ids(tokenizer))
    end = len(tasks.template_end(tokenizer))
    start = LENGTH - end
    # Which tokens and labels does not matter either: all sentences are as long.
    tokens = np.ones((BATCH, LENGTH), np.int32)
    ends = np.tile(np.arange(start, LENGTH, dtype=np.int32), (BATCH, 1))

    def before(params):
        states, own = problem.run_before(config, params, tokens, ends, bottom=bottom)
        text = Text(own["k"], own["v"], jnp.full(BATCH, start, jnp.int32))
        return Batch(states, jnp.full(BATCH, end - 1), jnp.ones(BATCH, jnp.int32), text)

    def after(members, bases, upper, batch):
        adapter = lambda cores: {"cores": cores, "bases": bases}
        of = lambda cores: value_fn({"model": upper, "adapter": adapter(cores)}, batch)
        return jax.vmap(of)(members)

    def in_step(members, bases, upper, params):
        return after(members, bases, upper, before(params))

    batch = jax.jit(before)(params)
    settings = {"in the step": (in_step, params), "before": (after, batch)}
    rows = []
    for i, (name, (losses, last)) in enumerate(settings.items()):
        programs = {
            f"{number} members": (
                losses,
                (*adapters(upper["layers"], number), upper, last),
            )
            for number in (1, MEMBERS)
        }
        part = lambda share, i=i: tick((i + share) / len(settings))
        found = beside.measure(programs, turns, part)
        rows += [{"setting": f"text run {name}"} | row for row in found]
    return rows


STUDY = beside.study("Language: members", measure)
