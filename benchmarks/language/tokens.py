"""Tokenizers, from a GGUF file's metadata or a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)

from benchmarks import UsageError

__all__ = ["from_folder", "from_gguf"]

CONTROL = 3  # a token type of GGUF


def from_gguf(path: Path) -> Tokenizer:
    """Rebuilds the byte-level BPE of SmolLM2 from the metadata of a GGUF file."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    field = lambda name: reader.get_field("tokenizer.ggml." + name).contents()
    kind = (field("model"), field("pre"))
    if kind != ("gpt2", "smollm"):
        raise UsageError(f"{path} has a tokenizer of kind {kind}: not gpt2, smollm")
    words = field("tokens")
    vocabulary = {word: i for i, word in enumerate(words)}
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # Numbers are split into digits; no space is put before the text.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        AddedToken(word, special=True)
        for word, kind in zip(words, field("token_type"), strict=True)
        if kind == CONTROL
    ]
    tokenizer.add_special_tokens(special)
    return tokenizer


def from_folder(folder: Path) -> Tokenizer:
    """Reads tokenizer.json, or OPT's vocab.json and merges.txt."""
    whole = folder / "tokenizer.json"
    try:
        if whole.is_file():
            return Tokenizer.from_file(str(whole))
        vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
        bpe = models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise UsageError(f"cannot read a tokenizer in {folder}: {error}") from None
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # OPT begins every text with </s>.
    start = tokenizer.token_to_id("</s>")
    if start is not None:
        tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="</s> $A", special_tokens=[("</s>", start)]
        )
    return tokenizer
