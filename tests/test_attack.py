"""The attack benchmark: its objective, its count of queries and its command."""

import csv
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import zojax
from benchmarks.__main__ import main
from benchmarks.attack import classifier, command, engine, report
from benchmarks.attack.results import Row

FLAGS = ["--images=12", "--queries=421", "--epochs=1"]
FILES = {"attack.csv", "settings.json", "classifier.msgpack"} | {
    *(f"adversarial-{name}.npy" for name in engine.METHODS),
    "examples.png",
    "success.png",
}


# -- the objective and the loop --------------------------------------------------------


def test_perturb_by_hand():
    theta = jnp.array([0.1, 0.5, -0.5, 3.0, -3.0])
    image = jnp.array([0.5, 0.5, 0.5, 0.9, 0.1])
    expected = [0.6, 0.7, 0.3, 1.0, 0.0]
    np.testing.assert_allclose(engine.perturb(theta, image), expected, atol=1e-6)


@pytest.mark.parametrize(("target", "expected"), [(0, 2.0), (1, -2.0), (2, 2.5)])
def test_margin_by_hand(target, expected):
    values = jnp.array([-2.5, -0.5, -3.0])
    np.testing.assert_allclose(engine.margin(values, target), expected)


class Spy:
    """A classifier that never says class 2, and notes what it is asked about."""

    def __init__(self):
        self.asked = []

    def __call__(self, image):
        jax.debug.callback(lambda x: self.asked.append(np.array(x)), image)
        return jax.nn.log_softmax(jnp.array([image[0], image[1], -50.0]))


@pytest.mark.parametrize("start", ["zero", "normal"])
@pytest.mark.parametrize("name", engine.METHODS)
def test_probe_points_keep_to_the_bounds_and_are_as_many_as_claimed(name, start):
    """Smoothing 3 throws raw probes far out; what the classifier sees stays inside."""
    images = jnp.array([[0.0, 0.1, 0.5, 0.95], [1.0, 0.9, 0.5, 0.05]])
    spy, method, directions, queries = Spy(), engine.METHODS[name], 4, 63
    state = engine.attack(
        method,
        spy,
        images,
        jnp.array([2, 2]),
        jax.random.split(jax.random.key(3)),
        queries=queries,
        smoothing=3.0,
        directions=directions,
        learning_rate=0.01,
        start=start,
    )
    jax.effects_barrier()
    asked = np.stack(spy.asked)
    assert asked.min() == 0
    assert asked.max() == 1
    near = np.abs(asked[:, None] - np.asarray(images)).max(axis=-1)
    assert near.min(axis=1).max() <= engine.BOUND + 1e-6
    assert near.min(axis=1).max() >= engine.BOUND - 1e-6

    cost = directions + (name in ("vanilla", "dap"))
    steps = queries // cost
    # Beside the queries, a look at each iterate and at the start.
    assert len(asked) == len(images) * (steps * cost + steps + 1)
    assert not state.success.any()
    assert state.queries.tolist() == [steps * cost] * 2


def test_loop_agrees_with_one_image_at_a_time():
    """First success, its queries and its image, by a plain loop over the images."""
    matrix = jax.random.normal(jax.random.key(8), (4, 9)) * 3
    classify = lambda image: jax.nn.log_softmax(matrix @ image.ravel())
    images = jax.random.uniform(jax.random.key(9), (6, 3, 3, 1))
    targets = jax.vmap(lambda x: jnp.argsort(classify(x))[2])(images)
    keys = jax.random.split(jax.random.key(10), 6)
    numbers = {"smoothing": 0.05, "directions": 3, "learning_rate": 0.003}
    state = engine.attack(
        engine.METHODS["zoar"], classify, images, targets, keys, queries=70, **numbers
    )

    bounded = lambda theta, x: jnp.clip(x + jnp.clip(theta, -0.2, 0.2), 0, 1)

    def loss(theta, image, target):
        y = classify(bounded(theta, image))
        return jnp.max(jnp.delete(y, target, assume_unique_indices=True)) - y[target]

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
            seen = int(np.argmax(classify(attacked))) == int(target)
        found.append((seen, queries, attacked))

    success, queries, attacked = zip(*found, strict=True)
    assert 0 < sum(success) < 6  # both endings are compared
    assert len(set(queries)) > 2
    assert state.success.tolist() == list(success)
    assert state.queries.tolist() == list(queries)
    np.testing.assert_allclose(state.adversarial, np.stack(attacked), atol=1e-5)


def test_a_success_stays_counted():
    """The target wins near 0.6 alone; iterates that overshoot have succeeded."""
    classify = lambda x: jnp.array([0.0, 1 - ((x[0] - 0.6) / 0.02) ** 2])
    images = jnp.linspace(0.42, 0.56, 8)[:, None]
    state = engine.attack(
        engine.METHODS["mean"],
        classify,
        images,
        jnp.ones(8, int),
        jax.random.split(jax.random.key(0), 8),
        queries=60,
        smoothing=0.02,
        directions=2,
        learning_rate=0.01,
    )
    wins = lambda images: jax.vmap(classify)(images).argmax(axis=-1) == 1
    left = state.success & ~wins(engine.perturb(state.theta, images))
    assert left.any()
    assert wins(state.adversarial).tolist() == state.success.tolist()
    assert (state.queries[left] < 60).all()


def test_white_box_reaches_what_the_bounds_allow():
    """Logits are two pixels: the target wins iff it is less than 0.4 behind."""
    classify = lambda image: jax.nn.log_softmax(10 * image)
    images = jnp.array([[0.8, 0.45], [0.8, 0.35], [0.5, 0.6], [0.1, 0.0]])
    found = engine.white_box(classify, images, jnp.array([1, 1, 0, 1]))
    assert found.tolist() == [True, False, True, True]


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
        Row("", i, 0, 1, q is not None, budget if q is None else q, 1.0, 0.2)
        for i, q in enumerate(queries)
    ]


def test_conclusion_is_computed_from_the_rows():
    labels = {"a": "A", "b": "B", "c": "C"}
    results = {
        "a": rows_of([50] * 20),
        "b": rows_of([40] * 18 + [None] * 2),
        "c": rows_of([90] * 12 + [None] * 8),
    }
    # Means 50, 46 and 94 with failures at 100.
    assert report.best_method(results, 100) == "b"
    text = report.conclusion(results, labels, 100)
    assert text.startswith("B spent the fewest queries per image, 46 on average")
    # Against C the two common failures are ties; 18 to 2 and 18 to 0 are both clear.
    assert "clearly fewer than A (ahead on 18, behind on 2), C (ahead on 18, be" in text
    assert "not clearly" not in text

    results["a"] = rows_of([30] * 8 + [60] * 12)
    text = report.conclusion(results, labels, 100)
    assert "not clearly fewer than A (ahead on 10, behind on 10)" in text


def test_failures_tie_whatever_was_left_of_the_budget():
    results = {"a": rows_of([None] * 9 + [5], 99), "b": rows_of([None] * 10, 100)}
    assert report.capped_queries(results["a"], 100).tolist() == [100] * 9 + [5]
    text = report.conclusion(results, {"a": "A", "b": "B"}, 100)
    assert "not clearly fewer than B (ahead on 1, behind on 0)" in text


def test_conclusion_without_a_success():
    text = report.conclusion({"a": rows_of([None])}, {"a": "A"}, 100)
    assert text == "No method broke a digit with 100 queries."


# -- the command -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def few_digits():
    """The command sees 500 digits to train on and 60 held out."""
    training, held_out = classifier.load_digits()
    cut = lambda part, n: classifier.Digits(*(x[:n] for x in part))
    small = cut(training, 500), cut(held_out, 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "load_digits", lambda: small)
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
    assert {path.name for path in finished.iterdir()} == FILES
    for name in ("examples.png", "success.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    settings = json.loads((finished / "settings.json").read_text())
    assert (settings["images"], settings["queries"]) == (12, 421)

    rows = read(finished)
    assert [row["method"] for row in rows] == [
        name for name in engine.METHODS for _ in range(12)
    ]
    _, held_out = few_digits
    params = serialization.from_bytes(
        classifier.init(0), (finished / "classifier.msgpack").read_bytes()
    )
    predict = lambda images: np.argmax(classifier.log_probs(params, images), axis=-1)
    place = {int(row): i for i, row in enumerate(held_out.rows)}
    for name, method in engine.METHODS.items():
        attacked = np.load(finished / f"adversarial-{name}.npy")
        own = [row for row in rows if row["method"] == name]
        chosen = [place[int(row["image"])] for row in own]
        images, labels = held_out.images[chosen], held_out.labels[chosen]
        assert len(set(chosen)) == 12
        assert [int(row["label"]) for row in own] == labels.tolist()
        assert predict(images).tolist() == labels.tolist()
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        cost = method.cost(10)
        for row, image, adversarial, seen in zip(
            own, images, attacked, predict(attacked), strict=True
        ):
            change, queries = adversarial - image, int(row["queries"])
            assert int(row["target"]) == (int(row["label"]) + 1) % 10
            assert (row["success"] == "1") == (seen == int(row["target"]))
            assert queries % cost == 0
            if row["success"] == "1":
                assert 0 < queries <= 421
                assert float(row["linf"]) <= engine.BOUND + 1e-6
                np.testing.assert_allclose(
                    [float(row["linf"]), float(row["l2"])],
                    [np.abs(change).max(), np.sqrt((change**2).sum())],
                    atol=1e-5,
                )
            else:
                assert queries == 421 // cost * cost
                assert row["linf"] == row["l2"] == ""
    # The checks above are about something.
    assert 0 < sum(row["success"] == "1" for row in rows) < len(rows)


def noting(ran):
    """The attack itself, noting which methods it is run with."""
    original = command.attack

    def attack(method, *args, **kwargs):
        ran.append(method.label)
        return original(method, *args, **kwargs)

    return attack


def test_resume_runs_what_is_missing(folder, monkeypatch, capsys):
    """Images of mean are gone, zoar has another image, the last row of dap is gone."""
    text, ran = (folder / "attack.csv").read_text(), []
    lines = text.replace("zoar,", "zoar,9", 1).splitlines(True)
    (folder / "attack.csv").write_text("".join(lines[:-1]))
    (folder / "adversarial-mean.npy").unlink()
    monkeypatch.setattr(command, "attack", noting(ran))
    monkeypatch.setattr(classifier, "train", None)  # the classifier is there
    assert main(["attack", *FLAGS, "--resume", "--output", str(folder)]) == 0
    assert ran == ["mean baseline", "ZoAR", "two-stage DAP"]
    assert (folder / "attack.csv").read_text() == text
    assert "\nConclusion (one classifier, one seed): " in capsys.readouterr().out


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
    argv = ["attack", *FLAGS, "--methods=mean,vanilla", "--output", str(folder)]
    assert main(argv) == 130
    line = one_line(capsys)
    assert "interrupted; kept" in line
    assert "vanilla" in line
    assert "mean" not in line
    names = {path.name for path in folder.iterdir()}
    assert not names & {"examples.png", "adversarial-zoar.npy"}
    assert read(folder) == rows[:12]
    assert main([*argv, "--resume"]) == 0
    assert calls == ["vanilla", "mean baseline", "mean baseline"]
    assert read(folder) == rows[:24]


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
        (["attack", "--learning-rate", "0"], "--learning-rate: must be a number > 0"),
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
    assert main(["attack", "--output", str(tmp_path / "file" / "results")]) == 2
    assert "cannot write" in one_line(capsys)


def test_too_many_images_gets_one_line(few_digits, tmp_path, capsys):
    argv = ["attack", *FLAGS, "--images=61", "--output", str(tmp_path)]
    assert main(argv) == 2
    assert "--images must be at most" in one_line(capsys)


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
