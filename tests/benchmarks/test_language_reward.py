"""Texts that a model writes, and the rule that scores them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models

import zojax
from benchmarks import UsageError
from benchmarks.language import checkpoints, generation, problem, reward
from benchmarks.language.decode import generate
from benchmarks.language.recipe import Recipe
from benchmarks.language.transformer import forward
from zojax.perturbations import low_rank

REFERENCES = Path(__file__).parent.parent / "references"
BEGIN = (3, 1, 4, 1, 5)
PROMPTS = ((7, 9), (2, 6, 5, 3), (8,))


def continued(config, params, prompt, number):
    """Greedy generation that runs everything anew for each token."""
    run = jax.jit(forward, static_argnums=0)
    texts = list(prompt)
    for _ in range(number):
        padded = np.zeros((1, 16), np.int32)  # what follows does not reach back
        padded[0, : len(texts)] = texts
        logits = run(config, params, padded)[0, len(texts) - 1]
        texts.append(int(jnp.argmax(logits)))
    return texts[len(prompt) :]


def padded(prompts):
    tokens = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, np.array([len(prompt) - 1 for prompt in prompts], np.int32)


@pytest.mark.parametrize("name", ["llama", "opt", "opt-post-norm"])
@pytest.mark.parametrize("begin", [BEGIN[:1], BEGIN])
def test_cached_generation_is_that_without_a_cache(name, begin):
    config, params = checkpoints.load_folder(REFERENCES / name)
    shared = np.array(begin, np.int32)
    write = jax.jit(generate, static_argnums=(0, 5))
    found = write(config, params, shared, *padded(PROMPTS), 5)
    expected = [continued(config, params, begin + prompt, 5) for prompt in PROMPTS]
    assert found.tolist() == expected
    one = write(config, params, shared, *padded(PROMPTS), 1)
    np.testing.assert_array_equal(one, found[:, :1])


def test_members_write_what_their_own_weights_would():
    """Of factors, all at once, beside each member's matrices formed and run alone."""
    config, params = checkpoints.load_folder(REFERENCES / "llama")
    sampler, key, mu, number = low_rank(1), jax.random.key(2), 0.05, 6
    vocabulary = len(params["embed"])

    def written(params):
        """Four tokens as one number, exact in float32."""
        shared, rest = np.array(BEGIN[:2], np.int32), padded([BEGIN[2:]])
        (text,) = generate(config, params, shared, *rest, 4)
        return text @ vocabulary ** jnp.arange(4).astype(jnp.float32)

    directions = zojax.Directions(sampler, key, number)
    found = jax.jit(lambda params: zojax.evaluate(written, params, directions, mu)[0])
    row = lambda k: sampler(key, k, number, params)
    member = lambda k: jax.tree.map(lambda p, v: p + mu * v, params, row(k))
    alone = jax.jit(lambda k: written(member(k)))
    expected = [float(alone(k)) for k in range(number)]
    np.testing.assert_array_equal(found(params)[:, 0], expected)
    assert len({*expected}) > 1


@pytest.mark.parametrize(
    ("text", "right"),
    [("67\n", True), ("67\n4", True), ("67", False), ("672", False), (" 67\n", False)],
)
def test_the_rule(text, right):
    assert reward.is_right(np.array([46, 21]), text) == right


@pytest.fixture(scope="module")
def model():
    """A random model that reads and writes single characters."""
    config, params = checkpoints.load_folder(REFERENCES / "llama")
    vocabulary = {char: i for i, char in enumerate("0123456789+=\n")}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return problem.Model(config, params, tokenizer)


def test_problems_are_all_sums_and_split_without_overlap(model):
    problems = reward.sums(model.tokenizer)
    assert len({tuple(pair) for pair in problems.numbers.tolist()}) == 40 * 40
    text = lambda ids: model.tokenizer.decode(ids.tolist())
    for (a, b), tokens, answer in zip(*problems.take(slice(5)), strict=True):
        assert text(tokens) == f"{a}+{b}="
        assert text(answer) == f"{a + b}\n"
    assert reward.TEST.stop == reward.VALIDATION.start


def test_a_reward_is_the_share_that_the_rule_accepts(model):
    """Four problems, of which the texts of two are right: in jit, and by hand."""
    problems = reward.sums(model.tokenizer).take(slice(4))
    written = problems.answers.copy()
    written[2] = written[2][::-1]
    written[3, 0] = 10  # a plus
    share = reward.share_right(model.tokenizer, written, problems.numbers)
    assert share == 0.5
    value = jax.jit(reward.reward_of(model))(model.params, problems)
    own = jax.jit(reward.writer(model))(model.params, problems.tokens)
    texts = [model.tokenizer.decode(row) for row in own.tolist()]
    right = [
        text == f"{a + b}\n"
        for (a, b), text in zip(problems.numbers, texts, strict=True)
    ]
    assert value == -np.mean(right)


def test_a_step_calls_python_once_and_shares_the_batch(model, monkeypatch):
    problems, calls = reward.sums(model.tokenizer).take(slice(8)), []

    def share_right(tokenizer, written, numbers):
        calls.append(written.shape)
        np.testing.assert_array_equal(numbers, problems.numbers)
        return float(np.mean(written == 7))

    monkeypatch.setattr(reward, "share_right", share_right)
    opt = reward.strategies(0)
    step = jax.jit(reward.make_step(model, opt, exact=False))
    out = step(model.params, opt.init(model.params), problems)
    jax.block_until_ready(out)
    assert calls == [(8, reward.ANSWER)] * reward.MEMBERS
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(out[0]))


def test_exact_gradients_learn_the_answers(model):
    """The other side of the comparison lowers what it is said to lower."""
    problems, opt = reward.sums(model.tokenizer).take(slice(8)), optax.adam(1e-2)
    step = jax.jit(reward.make_step(model, opt, exact=True))
    value_fn = jax.jit(reward.cross_entropy(model))
    params, state = model.params, opt.init(model.params)
    for _ in range(20):
        params, state = step(params, state, problems)
    example = reward.encode(model.tokenizer, [reward.EXAMPLE] * 8)
    texts = np.concatenate([example, problems.tokens, problems.answers], axis=1)
    logits = forward(model.config, model.params, texts)[:, -4:-1]
    log = np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64)
    picked = np.take_along_axis(log, problems.answers[..., None], axis=-1)
    before = value_fn(model.params, problems)
    assert before == pytest.approx(-picked.mean(), rel=1e-5)
    assert value_fn(params, problems) < 0.7 * before


def test_a_rule_is_learned_from_its_values_alone(model):
    """Thirty members on a random model: write sevens, of which it writes few."""
    problems = reward.sums(model.tokenizer).take(slice(8))
    write = reward.writer(model)
    rule = zojax.external.as_value_fn(lambda written: -np.mean(written == 7))
    value_fn = lambda params: rule(write(params, problems.tokens))
    opt = optax.chain(
        zojax.two_point(
            0.05,
            15,
            key=0,
            sampler=low_rank(1),
            difference="central",
            shaping=zojax.shaping.z_score,
        ),
        optax.sgd(5e-3),
    )

    @jax.jit
    def step(params, state):
        updates, state = opt.update(None, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    params, state = model.params, opt.init(model.params)
    before = value_fn(params)
    for _ in range(25):
        params, state = step(params, state)
    assert value_fn(params) < before - 0.2


def runs():
    """Two methods, two rates of one of them, three seeds, in hundredths by hand."""
    kinds = [
        (reward.ES, 1e-5, (0.5, 0.52, 0.54)),
        (reward.SUPERVISED, 1e-4, (0.9, 0.9, 0.9)),
        (reward.SUPERVISED, 1e-3, (0.2, 0.2, 0.2)),
    ]
    rows = []
    for name, rate, ends in kinds:
        for seed, end in enumerate(ends):
            common = {"name": name, "rate": rate, "seed": seed, "seconds": 60.0}
            first = {"step": 0, "validation": 0.2, "test": 0.2}
            middle = {"step": 4, "validation": 0.3}
            last = {"step": 8, "validation": end, "test": end}
            rows += [common | row for row in (first, middle, last)]
    return pd.DataFrame(rows)


def test_gains_are_told_at_the_best_rate():
    frame = runs()
    # 30, 32 and 34 points: mean 32, standard error 2 / sqrt(3).
    assert reward.findings(frame) == [
        "evolution strategies: +32.0 +- 1.2 points on the test problems.",
        "exact gradients: +70.0 +- 0.0 points on the test problems.",
    ]
    table, by_seed = reward.tables(frame).values()
    assert list(table["rate"]) == [1e-5, 1e-4]
    assert list(table["before"]) == pytest.approx([20, 20])
    assert list(table["after"]) == ["52.0 +- 1.2", "90.0 +- 0.0"]
    assert list(by_seed.loc[reward.ES]) == pytest.approx([50, 52, 54])
    reward.figure(frame)


@pytest.fixture
def tiny(model, monkeypatch):
    """The random model in the place of the default one."""
    monkeypatch.setattr(reward, "ready", lambda: (model, reward.sums(model.tokenizer)))


def test_a_run_is_validated_as_it_goes(tiny):
    rows = reward.tune(reward.SUPERVISED, 1e-3, 0, 5, lambda share: None)
    assert [row["step"] for row in rows] == [0, 4, 5]
    assert ["test" in row for row in rows] == [True, False, True]


def test_speed_of_generation_is_told_as_a_ratio(tiny):
    rows = generation.measure(2, lambda share: None)
    assert [row["program"] for row in rows] == ["one model", "8 members of rank 1"]
    one, many = (row["tokens_per_second"] for row in rows)
    assert one == pytest.approx(256 * 16 / (rows[0]["ms"] / 1e3))
    assert many > 0
    (table,) = generation.STUDY.tables(pd.DataFrame(rows)).values()
    assert {"tokens_per_second", "speed", "bytes"} <= set(table)


def test_accuracy_as_an_objective_counts_wrong_labels():
    config, params = checkpoints.load_folder(REFERENCES / "llama")
    tokens, last = padded(PROMPTS)
    batch = problem.Batch(tokens, last, np.array([0, 1, 1], np.int32))
    words, params = np.array([11, 12]), {"model": params, "adapter": {}}
    value = problem.loss(config, words, "accuracy")(params, batch)
    logits = jax.jit(forward, static_argnums=0)(config, params["model"], tokens)
    picked = np.asarray(logits)[np.arange(3), last][:, words]
    assert value == np.float32(np.mean(picked.argmax(1) != batch.labels))
    with pytest.raises(UsageError, match="accuracy has no gradient"):
        Recipe(objective="accuracy", estimator="first-order")
