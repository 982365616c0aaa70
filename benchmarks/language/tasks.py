"""Labelled sentences as a model reads them: template, label words, tokens, splits."""

from __future__ import annotations

import csv
import html
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from benchmarks import UsageError

__all__ = [
    "LABELS",
    "TEMPLATE",
    "WORDS",
    "Examples",
    "Sentence",
    "Splits",
    "encode",
    "movie_reviews",
    "rated",
    "read_tsv",
    "sst2",
    "template_end",
    "word_ids",
]

LABELS = ("negative", "positive")
WORDS = (" terrible", " great")
TEMPLATE = "{} It was"
CLEAR = 0.5  # least |score| of a movie review that is kept


class Sentence(NamedTuple):
    """A sentence and its label, 0 or 1."""

    text: str
    label: int


class Splits(NamedTuple):
    """Sentences to train on, to choose settings by, and to report."""

    train: list[Sentence]
    validation: list[Sentence]
    test: list[Sentence]


class Examples(NamedTuple):
    """Tokens padded on the right, the index of each last one, labels."""

    tokens: np.ndarray  # i32[N, T]
    last: np.ndarray  # i32[N]
    labels: np.ndarray  # i32[N]

    def take(self, rows: np.ndarray) -> Examples:
        return Examples(*(field[rows] for field in self))


def _scored(path: Path) -> list[tuple[str, float]]:
    """Lines (number, score, text) of a file of vaderSentiment: texts and scores."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        parts = [line.split("\t", 2) for line in lines]
        return [(text.strip(), float(score)) for _, score, text in parts]
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} is damaged ({error}): `python -m benchmarks language setup`"
            " fetches it again"
        ) from None


def _split(sentences: list[Sentence]) -> Splits:
    """A fixed one: 200 to validate, 500 to test."""
    order = np.random.default_rng(0).permutation(len(sentences))
    shuffled = [sentences[i] for i in order]
    return Splits(shuffled[700:], shuffled[:200], shuffled[200:700])


def movie_reviews(path: Path) -> Splits:
    """Reads rated sentences (number, score, text); 200 to validate, 500 to test.

    A sentence is positive where the mean of its ratings is; those rated nearly neutral
    are left out. The split is fixed.
    """
    scored = [(text, score) for text, score in _scored(path) if abs(score) >= CLEAR]
    return _split([Sentence(text, int(score > 0)) for text, score in scored])


def rated(path: Path) -> tuple[Splits, np.ndarray]:
    """Reads texts with the mean of their ratings, from -4 to 4; none is left out.

    Returns:
      (Texts split as movie reviews are, the label of each its number in the file;
      ratings f32[N] by that number).
    """
    scored = _scored(path)
    texts = [Sentence(html.unescape(text), i) for i, (text, _) in enumerate(scored)]
    return _split(texts), np.asarray([score for _, score in scored], np.float32)


def read_tsv(path: Path) -> list[Sentence]:
    """Reads a TSV with columns ``sentence`` and ``label`` (0 or 1), as SST-2 has."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    sentences = []
    for number, row in enumerate(rows, 2):
        text, label = row.get("sentence"), row.get("label")
        if not (text and text.strip()) or label not in ("0", "1"):
            raise UsageError(
                f"{path}, line {number}: needs the columns sentence and label (0 or 1)"
            )
        sentences.append(Sentence(text.strip(), int(label)))
    if not sentences:
        raise UsageError(f"{path} holds no sentences")
    return sentences


def sst2(
    folder: Path | None, sizes: tuple[int, int, int] = (1000, 500, 1000)
) -> Splits:
    """SST-2 from a folder with train.tsv and dev.tsv, or from `datasets`' cache.

    The test file has no labels: as in the papers, training and validation sentences
    come from train.tsv and test sentences from dev.tsv.
    """
    if folder is not None:
        train, held_out = (
            read_tsv(folder / f"{name}.tsv") for name in ("train", "dev")
        )
    else:
        train, held_out = _from_datasets()
    # Of a smaller set a third validates.
    if len(train) < 3:
        raise UsageError(f"{len(train)} training sentences: at least 3 are needed")
    validation = min(sizes[1], len(train) // 3)
    rng = np.random.default_rng(0)
    train = [train[i] for i in rng.permutation(len(train))]
    held_out = [held_out[i] for i in rng.permutation(len(held_out))[: sizes[2]]]
    return Splits(train[validation:][: sizes[0]], train[:validation], held_out)


def _from_datasets() -> tuple[list[Sentence], list[Sentence]]:
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


def word_ids(tokenizer: Tokenizer, words: Sequence[str] = WORDS) -> np.ndarray:
    """The tokens of the label words, which must be one token each."""
    ids = [tokenizer.encode(word, add_special_tokens=False).ids for word in words]
    for word, tokens in zip(words, ids, strict=True):
        if len(tokens) != 1:
            raise UsageError(f"the label word {word!r} has {len(tokens)} tokens, not 1")
    if len({tokens[0] for tokens in ids}) < len(words):
        raise UsageError(f"the label words {words} are one token to this tokenizer")
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
) -> Examples:
    """Fills the template and tokenizes.

    Args:
      tokenizer: of the model.
      sentences: texts and labels.
      longest: T, tokens with the template; longer sentences are left out.
      truncate: keep longer sentences, cut so that the template's end stays.

    Returns:
      :class:`Examples`, in the order of the sentences.
    """
    before, end = TEMPLATE.split("{}")[0], template_end(tokenizer)
    rows = []
    for text, label in sentences:
        ids = tokenizer.encode(before + text).ids
        if len(ids) + len(end) > longest:
            if not truncate:
                continue
            ids = ids[: longest - len(end)]
        rows.append(([*ids, *end], label))
    tokens = np.zeros((len(rows), longest), np.int32)
    for row, (ids, _) in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    last = np.asarray([len(ids) - 1 for ids, _ in rows], np.int32)
    return Examples(tokens, last, np.asarray([label for _, label in rows], np.int32))
