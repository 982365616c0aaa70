"""Labelled sentences as a model reads them: template, label words, tokens, splits."""

import csv
import html
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from benchmarks import UsageError
from benchmarks.language.transformer import Text

LABELS = ("negative", "positive")
WORDS = (" terrible", " great")
TEMPLATE = "{} It was"
CLEAR = 0.5  # least |score| of a movie review that is kept


class Sentence(NamedTuple):
    """A sentence and its label, 0 or 1, or a rating."""

    text: str
    label: float


class Splits(NamedTuple):
    """Sentences to train on, to choose settings by, and to report."""

    train: list[Sentence]
    validation: list[Sentence]
    test: list[Sentence]


class Batch(NamedTuple):
    """What a step sees.

    ``inputs`` are tokens i32[B, T] padded on the right; of the template's end alone
    where the ``text`` before it was run once, and then f[B, T, D] if that is what
    layers below the tuned ones answered.
    """

    inputs: Any
    last: Any  # i32[B], index of the last token
    labels: Any  # i32[B], or f32[B] of ratings
    text: Text | None = None

    def take(self, rows: Any) -> Self:
        """Takes some of the sentences."""
        return jax.tree.map(lambda field: field[rows], self)

    def cut(self, rows: Any, width: int) -> Self:
        """Takes rows whose sentences have at most ``width`` tokens to be run."""
        some = self.take(rows)
        if some.text is None:
            return some._replace(inputs=some.inputs[:, :width])
        k, v, length = some.text
        return some._replace(text=Text(k[:, :, :width], v[:, :, :width], length))


def _read(path: Path, **options: Any) -> pd.DataFrame:
    """A table whose columns are separated by tabs, with texts as they are."""
    usual = {"sep": "\t", "quoting": csv.QUOTE_NONE, "keep_default_na": False}
    return pd.read_csv(path, **usual | options)


def _shuffled(sentences: Sequence[Sentence]) -> list[Sentence]:
    order = np.random.default_rng(0).permutation(len(sentences))
    return [sentences[i] for i in order]


def _scored(path: Path) -> list[Sentence]:
    """Lines (number, score, text) of a file of vaderSentiment."""
    try:
        lines = _read(path, header=None, names=["number", "score", "text"])
        pairs = zip(lines["text"].str.strip(), map(float, lines["score"]), strict=True)
        return [Sentence(text, score) for text, score in pairs]
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path} is damaged ({error}): `python -m benchmarks language setup`"
            " fetches it again"
        ) from None


def _split(sentences: list[Sentence]) -> Splits:
    """A fixed one: 200 to validate, 500 to test."""
    shuffled = _shuffled(sentences)
    return Splits(shuffled[700:], shuffled[:200], shuffled[200:700])


def movie_reviews(path: Path) -> Splits:
    """Reads rated sentences, positive where the mean of their ratings is.

    Those rated nearly neutral are left out.
    """
    clear = [some for some in _scored(path) if abs(some.label) >= CLEAR]
    return _split([Sentence(text, int(score > 0)) for text, score in clear])


def rated(path: Path) -> Splits:
    """Reads texts whose labels are the mean of their ratings; none is left out."""
    return _split([Sentence(html.unescape(text), x) for text, x in _scored(path)])


def read_tsv(path: Path) -> list[Sentence]:
    """Reads a TSV with columns ``sentence`` and ``label`` (0 or 1), as SST-2 has."""
    try:
        rows = _read(path, dtype=str)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    if not {"sentence", "label"} <= {*rows} or not rows["label"].isin(["0", "1"]).all():
        raise UsageError(f"{path} needs the columns sentence and label (0 or 1)")
    pairs = zip(rows["sentence"].str.strip(), rows["label"].astype(int), strict=True)
    return [Sentence(text, int(label)) for text, label in pairs]


def sst2(folder: Path | None) -> Splits:
    """SST-2 from a folder with train.tsv and dev.tsv, or from `datasets`' cache.

    The test file has no labels: as in the papers, 1,000 sentences to train on and 500
    to validate come from train.tsv, 1,000 to test from dev.tsv.
    """
    if folder is not None:
        train, test = (read_tsv(folder / f"{name}.tsv") for name in ("train", "dev"))
    else:
        train, test = _from_datasets()
    if len(train) < 3 or not test:
        raise UsageError(
            f"{len(train)} training and {len(test)} test sentences: at least 3 and 1"
            " are needed"
        )
    train, test = _shuffled(train), _shuffled(test)
    validation = min(500, len(train) // 3)  # a third of a smaller set
    return Splits(train[validation:][:1000], train[:validation], test[:1000])


def _from_datasets() -> tuple[list[Sentence], ...]:
    if importlib.util.find_spec("datasets") is None:
        raise UsageError(
            "SST-2: pass --data FOLDER with train.tsv and dev.tsv, or install datasets"
            " and load nyu-mll/glue, sst2 with it once"
        )
    # Read when the packages are imported; nothing is to be downloaded.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    import datasets

    try:
        loaded = datasets.load_dataset("nyu-mll/glue", "sst2")
    except Exception as error:
        raise UsageError(f"datasets has no copy of SST-2: {error}") from None
    return tuple(
        [Sentence(row["sentence"].strip(), row["label"]) for row in loaded[name]]
        for name in ("train", "validation")
    )


def word_ids(tokenizer: Tokenizer) -> np.ndarray:
    """The tokens of the label words, which must be one token each."""
    ids = [tokenizer.encode(word, add_special_tokens=False).ids for word in WORDS]
    for word, tokens in zip(WORDS, ids, strict=True):
        if len(tokens) != 1:
            raise UsageError(f"the label word {word!r} has {len(tokens)} tokens, not 1")
    if ids[0] == ids[1]:
        raise UsageError(f"the label words {WORDS} are one token to this tokenizer")
    return np.asarray(ids, np.int32)[:, 0]


def template_end(tokenizer: Tokenizer) -> list[int]:
    """The tokens of what follows the sentence in the template."""
    return tokenizer.encode(TEMPLATE.split("{}")[1], add_special_tokens=False).ids


def encode(
    tokenizer: Tokenizer,
    sentences: Sequence[Sentence],
    longest: int,
    *,
    truncate: bool = False,
) -> Batch:
    """Fills the template and tokenizes, in the order of the sentences.

    Sentences of more than ``longest`` tokens with the template are left out, or cut so
    that the template's end stays.
    """
    before, end = TEMPLATE.split("{}")[0], template_end(tokenizer)
    rows, labels = [], []
    for text, label in sentences:
        ids = tokenizer.encode(before + text).ids
        if truncate or len(ids) + len(end) <= longest:
            rows.append([*ids[: longest - len(end)], *end])
            labels.append(label)
    tokens = np.zeros((len(rows), longest), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    last = np.asarray([len(ids) - 1 for ids in rows], np.int32)
    kind = np.float32 if any(isinstance(x, float) for x in labels) else np.int32
    return Batch(tokens, last, np.asarray(labels, kind))
