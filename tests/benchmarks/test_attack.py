"""The attack benchmark: its objective, its count of queries and its command."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

import zojax
from benchmarks.__main__ import main
from benchmarks.attack import comparison, engine, victim

TARGETED, UNTARGETED = engine.GOALS.values()


# -- the objective and the loop --------------------------------------------------------


def test_perturb_by_hand():
    theta = jnp.array([0.1, 0.5, -0.5, 3.0, -3.0])
    image = jnp.array([0.5, 0.5, 0.5, 0.9, 0.1])
    expected = [0.6, 0.7, 0.3, 1.0, 0.0]
    np.testing.assert_allclose(engine.perturb(theta, image), expected, atol=1e-6)


@pytest.mark.parametrize(("target", "expected"), [(0, 2.0), (1, -2.0), (2, 2.5)])
def test_goals_by_hand(target, expected):
    """Targeted: the target's rival minus the target; untargeted: the reverse."""
    classify = lambda image: jnp.array([-2.5, -0.5, -3.0])
    at = jnp.zeros(2), jnp.zeros(2), target
    np.testing.assert_allclose(engine.objective(TARGETED, classify)(*at), expected)
    np.testing.assert_allclose(engine.objective(UNTARGETED, classify)(*at), -expected)
    assert TARGETED.asked(np.array([0, 9])).tolist() == [1, 0]
    assert UNTARGETED.asked(np.array([0, 9])).tolist() == [0, 9]


class Spy:
    """A classifier that never says class 2, and notes what it is asked about."""

    def __init__(self):
        self.asked = []

    def __call__(self, image):
        jax.debug.callback(lambda x: self.asked.append(np.array(x)), image)
        return jax.nn.log_softmax(jnp.array([image[0], image[1], -50.0]))


STARTS = itertools.cycle(["zero", "normal"])  # which no method looks at


@pytest.mark.parametrize(
    ("name", "start"), list(zip(engine.METHODS, STARTS, strict=False))
)
def test_probe_points_keep_to_the_bounds_and_are_as_many_as_claimed(name, start):
    """Smoothing 3 throws raw probes far out; what the classifier sees stays inside."""
    images = jnp.array([[0.0, 0.1, 0.5, 0.95], [1.0, 0.9, 0.5, 0.05]])
    spy, method, queries = Spy(), engine.METHODS[name], 63
    state = engine.attack(
        method,
        engine.objective(TARGETED, spy),
        images,
        jnp.array([2, 2]),
        jax.random.split(jax.random.key(3)),
        queries=queries,
        smoothing=3.0,
        learning_rates=[0.01, 0.02],
        start=start,
    )
    jax.effects_barrier()
    asked = np.stack(spy.asked)
    assert asked.min() == 0
    assert asked.max() == 1
    near = np.abs(asked[:, None] - np.asarray(images)).max(axis=-1)
    assert near.min(axis=1).max() <= engine.BOUND + 1e-6
    assert near.min(axis=1).max() >= engine.BOUND - 1e-6

    extra = name == "dap" or name.startswith("vanilla")
    cost = 8 if name == "simplex" else 10 + extra
    steps = queries // cost
    # Beside the queries of two learning rates, a look at each iterate and at the start.
    assert len(asked) == len(images) * (2 * (steps * cost + steps) + 1)
    assert not state.success.any()
    assert state.queries.tolist() == [[steps * cost] * 2] * 2


@pytest.mark.parametrize("goal", engine.GOALS)
def test_loop_agrees_with_one_image_at_a_time(goal):
    """First success, its queries and its image, by a plain loop over the images."""
    matrix = jax.random.normal(jax.random.key(8), (4, 9)) * 3
    classify = lambda image: jax.nn.log_softmax(matrix @ image.ravel())
    images = jax.random.uniform(jax.random.key(9), (6, 3, 3, 1))
    place = 2 if goal == "targeted" else 3  # the second largest, or the largest
    targets = jax.vmap(lambda x: jnp.argsort(classify(x))[place])(images)
    keys = jax.random.split(jax.random.key(10), 6)
    state = engine.attack(
        engine.Method(3, lambda mu, key: zojax.zoar(mu, 3, key=key)),
        engine.objective(engine.GOALS[goal], classify),
        images,
        targets,
        keys,
        queries=70,
        learning_rates=[0.1, 0.003],
    )
    adversarial = engine.perturb(state.theta, images[:, None])

    bounded = lambda theta, x: jnp.clip(x + jnp.clip(theta, -0.2, 0.2), 0, 1)

    def loss(theta, image, target):
        y = classify(bounded(theta, image))
        rival = jnp.max(jnp.delete(y, target, assume_unique_indices=True))
        return (rival - y[target]) * (1 if goal == "targeted" else -1)

    @jax.jit
    def step(theta, opt_state, image, target):
        updates, opt_state = optimizer(0).update(
            None, opt_state, theta, value_fn=loss, image=image, target=target
        )
        return optax.apply_updates(theta, updates), opt_state

    def optimizer(key):
        return optax.chain(zojax.zoar(0.05, 3, key=key), zojax.radazo(0.003))

    found = []
    for image, target, key in zip(images, targets, keys, strict=True):
        theta = jnp.zeros_like(image)
        opt_state = optimizer(jax.random.split(key)[1]).init(theta)
        seen, queries = False, 0
        while not seen and queries + 3 <= 70:
            queries += 3
            theta, opt_state = step(theta, opt_state, image, target)
            attacked = bounded(theta, image)
            is_target = int(np.argmax(classify(attacked))) == int(target)
            seen = is_target == (goal == "targeted")
        found.append((seen, queries, attacked))

    success, queries, attacked = zip(*found, strict=True)
    assert 0 < sum(success) < 6  # both endings are compared
    assert len(set(queries)) > 2
    assert state.success[:, 1].tolist() == list(success)
    assert state.queries[:, 1].tolist() == list(queries)
    np.testing.assert_allclose(adversarial[:, 1], np.stack(attacked), atol=1e-5)
    # The other learning rate has gone another way, with the same noise.
    assert (state.queries[:, 0] != state.queries[:, 1]).any()


def test_a_success_stays_counted():
    """The target wins near 0.6 alone; iterates that overshoot have succeeded."""
    classify = lambda x: jnp.array([0.0, 1 - ((x[0] - 0.6) / 0.02) ** 2])
    images = jnp.linspace(0.42, 0.56, 8)[:, None]
    state = engine.attack(
        engine.Method(2, lambda mu, key: zojax.zoar(mu, 2, key=key, history_size=0)),
        engine.objective(TARGETED, classify),
        images,
        jnp.ones(8, int),
        jax.random.split(jax.random.key(0), 8),
        queries=60,
        smoothing=0.02,
        learning_rates=[0.01],
    )
    found = engine.perturb(state.theta[:, 0], images)
    wins = jax.vmap(classify)(found).argmax(axis=-1) == 1
    success, queries = state.success[:, 0], state.queries[:, 0]
    assert wins.tolist() == success.tolist()
    assert (queries[success] < 60).sum() > 0


def test_white_box_reaches_what_the_bounds_allow():
    """Logits are two pixels: the target wins iff it is less than 0.4 behind."""
    classify = lambda image: jax.nn.log_softmax(10 * image)
    images = jnp.array([[0.8, 0.45], [0.8, 0.35], [0.5, 0.6], [0.1, 0.0]])
    targets = jnp.array([1, 1, 0, 1])
    loss = engine.objective(TARGETED, classify)
    found = engine.white_box(loss, images, targets)
    assert found.tolist() == [True, False, True, True]
    # The last one has but its own two pixels, 0.1 apart, to turn around.
    loss = engine.objective(UNTARGETED, classify)
    found = engine.white_box(loss, images, jnp.array([0, 0, 1, 0]))
    assert found.tolist() == [True, False, True, True]


def test_digits_are_always_the_same():
    training, held_out = victim.load()
    assert training.images.shape == (4000, 28, 28, 1)
    assert held_out.images.shape == (1000, 28, 28, 1)
    assert not set(training.rows) & set(held_out.rows)
    assert np.bincount(held_out.labels).min() > 70


# -- statistics ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        (50, 100, "50% [40, 60]"),
        (0, 10, "0% [0, 28]"),
        (81, 263, "31% [26, 37]"),  # Newcombe, 1998, Table I
    ],
)
def test_wilson(successes, trials, expected):
    queries = pd.Series([10.0] * successes + [np.inf] * (trials - successes))
    assert comparison.share(queries) == expected


def rows_of(queries, budget=100, **names):
    names = {"goal": "targeted", "method": "A", "learning_rate": 0.01} | names
    frame = pd.DataFrame({"queries": queries, "image": range(len(queries))})
    frame["queries"] = frame["queries"].astype(float).fillna(np.inf)
    return frame.assign(**names, budget=budget, cost=10)


def test_conclusion_is_computed_from_the_rows():
    """Means 50, 46 and 94 with failures at 100."""
    others = [
        rows_of([40] * 18 + [None] * 2, method="B"),
        rows_of([90] * 12 + [None] * 8, method="C"),
    ]
    text = comparison.conclusion(pd.concat([rows_of([50] * 20), *others]))
    assert text.startswith("B spent the fewest queries per image, 46 on average")
    # Against C the two common failures are ties; 18 to 2 and 18 to 0 are both clear.
    assert "clearly fewer than A (ahead on 18, behind on 2), C (ahead on 18, be" in text
    assert "not clearly" not in text
    text = comparison.conclusion(pd.concat([rows_of([30] * 8 + [60] * 12), *others]))
    assert "not clearly fewer than A (ahead on 10, behind on 10)" in text
    text = comparison.conclusion(rows_of([None]))
    assert text == "no method broke an image with 100 queries"


def test_tables_count_failures_beyond_the_budget():
    """Half of four images broken: the median is the second, the mean has the budget."""
    frame = rows_of([30, 100, None, None])
    for table in comparison.tables(frame).values():
        (row,) = table.itertuples(index=False, name=None)
        assert row == (10, 0.01, 0.01, "50% [15, 85]", 100, 82)


def test_learning_rates_are_chosen_on_the_other_half():
    """Rate 1 is best on images 0 and 2, rate 2 on images 1 and 3."""
    spent = {1.0: [10, 90, 10, None], 2.0: [80, 20, None, 30]}
    rows = [rows_of(queries, learning_rate=rate) for rate, queries in spent.items()]
    found = comparison.tuned(pd.concat(rows)).sort_values("image")
    assert found["image"].tolist() == [0, 1, 2, 3]
    assert found["learning_rate"].tolist() == [2.0, 1.0, 2.0, 1.0]
    assert np.isfinite(found["queries"]).tolist() == [True, True, False, False]


# -- the command -----------------------------------------------------------------------


@pytest.fixture
def few_digits(monkeypatch):
    """The command sees 500 digits to train on and 60 to attack."""
    parts = zip(victim.load(), (500, 60), strict=True)
    small = [victim.Images(*(leaf[:n] for leaf in part)) for part, n in parts]
    monkeypatch.setattr(victim, "load", lambda: small)
    monkeypatch.setattr(victim, "EPOCHS", 1)
    return small[1]


def test_results_are_consistent(few_digits, tmp_path, capsys):
    argv = ["--images=12", "--queries=421", "--methods=mean,simplex", "--jobs=1"]
    argv += ["--goals=targeted,untargeted", f"--output={tmp_path}"]
    assert main(["attack", *argv]) == 0
    said = capsys.readouterr().out
    assert "Untargeted: taken for any other class; learning rate the paper's" in said
    assert "The classifier knows" in said
    folder = tmp_path / "comparison"
    assert (folder / "comparison.png").stat().st_size > 5_000
    frame = pd.read_csv(folder / "comparison.csv")
    assert len(frame) == 2 * 2 * 3 * 12
    broken = np.isfinite(frame["queries"])
    assert broken.groupby(frame["goal"]).nunique().tolist() == [2, 2]
    assert (frame["queries"][broken] % frame["cost"][broken] == 0).all()
    assert (frame["queries"][broken] <= 421).all()
    assert set(frame["image"]) <= set(few_digits.rows)
    shown = frame.dropna(subset="picture")
    assert len(shown)
    asked = np.where(shown["goal"] == "targeted", (shown["label"] + 1) % 10, -1)
    assert ((shown["said"] == asked) | (asked == -1)).all()
    assert (shown["said"] != shown["label"]).all()
    # What is kept is shown again, without a cell.
    assert main(["attack", *argv, "--resume"]) == 0
    assert "4/4" in capsys.readouterr().out


@pytest.mark.parametrize(("full", "number", "images"), [(False, 4, 50), (True, 22, 57)])
def test_sizes(full, number, images, few_digits, monkeypatch):
    """By default what a newcomer should see; with --full all, of known digits."""
    monkeypatch.setattr(victim, "train", lambda *_: lambda x: jax.nn.one_hot(known, 10))
    known = few_digits.labels.copy()
    known[:3] = (known[:3] + 1) % 10
    options = {"goals": None, "methods": None, "images": None, "queries": 2000}
    study = comparison.study(**options, learning_rate=[0.01], start="zero")
    cells = study.cells(full, 0)
    assert len(cells) == number
    (_, victims, *_) = cells["targeted/vanilla"].args
    assert len(victims.labels) == images
    assert victims.rows[0] == few_digits.rows[3]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--images=-3", "--images"),
        ("--queries=10", "--queries"),
        ("--learning-rate=0", "--learning-rate"),
        ("--learning-rate=nan", "--learning-rate"),
        ("--goals=fame", "--goals: unknown 'fame'"),
        ("--methods=zoar,luck", "--methods: unknown 'luck'"),
        ("--start=end", "--start"),
    ],
)
def test_bad_arguments_get_one_line(flag, words, capsys, tmp_path):
    assert main(["attack", flag, f"--output={tmp_path / 'out'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", ["flax", "mlxtend.data", "seaborn"])
def test_missing_package_gets_one_line(module, monkeypatch, capsys, tmp_path):
    for name in [name for name in sys.modules if name.startswith("benchmarks.attack")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["attack", f"--output={tmp_path}"]) == 1
    package = module.partition(".")[0]
    expected = f'benchmarks: {package} is missing: pip install -e ".[bench]"\n'
    assert capsys.readouterr().err == expected
