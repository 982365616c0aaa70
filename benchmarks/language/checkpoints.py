"""Models as they are stored: GGUF files, Hugging Face folders of safetensors.

Both end as (Config, params) of :mod:`benchmarks.language.transformer`: matrices are
stored as [inputs, outputs], layers stacked; and as a tokenizer.
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
from gguf import MODEL_ARCH, MODEL_TENSOR, GGUFReader
from safetensors import SafetensorError, safe_open
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
)

from benchmarks import UsageError
from benchmarks.language.transformer import Config, Params

# Our name of a layer's part: its name in a checkpoint. Biases may be absent.
SHARED = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"}
PARTS = {
    "llama": SHARED
    | {"o": "self_attn.o_proj", "attention_norm": "input_layernorm"}
    | {"mlp_norm": "post_attention_layernorm"}
    | {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"},
    "opt": SHARED
    | {"o": "self_attn.out_proj", "attention_norm": "self_attn_layer_norm"}
    | {"mlp_norm": "final_layer_norm", "up": "fc1", "down": "fc2"},
}
TABLES = ("embed", "head", "positions")  # keep a row for each token or position
CONTROL = 3  # a token type of GGUF

Tensors = Mapping[str, Callable[[], Any]]  # name -> reads it


def _build(tensors, layers, parts, top, dtype):
    """Stacks layers; what must be there and is not raises a UsageError."""

    def read(name):
        if name not in tensors:
            raise UsageError(f"the checkpoint has no tensor {name}")
        return np.asarray(tensors[name]())

    def stacked(part):
        # One layer at a time, so that no second copy of the model is held.
        first = read(f"layers.0.{part}").T
        whole = np.empty((layers, *first.shape), np.dtype(dtype))
        for i in range(layers):
            whole[i] = read(f"layers.{i}.{part}").T
        return jnp.asarray(whole)

    of_layers = {}
    for ours, part in parts.items():
        of_layers[ours] = stacked(f"{part}.weight")
        if f"layers.0.{part}.bias" in tensors:
            of_layers[ours + "_bias"] = stacked(f"{part}.bias")
    params: Params = {"layers": of_layers}
    for ours, theirs in top.items():
        array = read(theirs)
        params[ours] = jnp.asarray(array if ours in TABLES else array.T, dtype)
    return params


def _bare(name: str) -> str:
    """The name in a checkpoint of the bare model, which leaves the first parts out."""
    return name.removeprefix("model.").removeprefix("decoder.")


# -- GGUF ------------------------------------------------------------------------------


def open_gguf(path: Path) -> GGUFReader:
    """Opens a GGUF file, for the model and the tokenizer in it."""
    try:
        return GGUFReader(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None


def of_gguf(reader: GGUFReader) -> tuple[Config, Params]:
    """The Llama model of a GGUF file, dequantised to float32."""
    field = lambda name: reader.get_field(name).contents()
    if field("general.architecture") != "llama":
        raise UsageError(f"{field('general.architecture')!r}: only llama can be read")
    heads = field("llama.attention.head_count")
    kv_heads = field("llama.attention.head_count_kv")
    size = field("llama.embedding_length") // heads
    counts = {MODEL_TENSOR.ATTN_Q: heads, MODEL_TENSOR.ATTN_K: kv_heads}

    def read(tensor, count):
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        if count is None:
            return array
        # llama.cpp interleaves the halves that rotary positions pair.
        halves = array.reshape(count, size // 2, 2, -1)
        return halves.swapaxes(1, 2).reshape(array.shape)

    stored = {tensor.name: tensor for tensor in reader.tensors}
    layers = field("llama.block_count")
    names = gguf.get_tensor_name_map(MODEL_ARCH.LLAMA, layers).mapping
    tensors = {
        _bare(f"{name}.weight"): functools.partial(
            read, stored[f"{theirs}.weight"], counts.get(kind)
        )
        for name, (kind, theirs) in names.items()
        if f"{theirs}.weight" in stored
    }
    top = {"embed": "embed_tokens.weight", "norm": "norm.weight"}
    if "lm_head.weight" in tensors:
        top["head"] = "lm_head.weight"
    epsilon = field("llama.attention.layer_norm_rms_epsilon")
    config = Config(heads, kv_heads, size, epsilon, field("llama.rope.freq_base"))
    return config, _build(tensors, layers, PARTS["llama"], top, jnp.float32)


def tokenizer_of_gguf(reader: GGUFReader) -> Tokenizer:
    """The byte-level BPE of SmolLM2, from the metadata of a GGUF file."""
    field = lambda name: reader.get_field("tokenizer.ggml." + name).contents()
    kind = (field("model"), field("pre"))
    if kind != ("gpt2", "smollm"):
        raise UsageError(f"a tokenizer of kind {kind}: not gpt2, smollm")
    words = field("tokens")
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    vocabulary = {word: i for i, word in enumerate(words)}
    # Numbers are split into digits.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer = _byte_level(models.BPE(vocab=vocabulary, merges=merges), digits)
    kinds = zip(words, field("token_type"), strict=True)
    special = [AddedToken(word, special=True) for word, n in kinds if n == CONTROL]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _byte_level(model: models.BPE, *before: Any) -> Tokenizer:
    """A tokenizer that puts no space before the text."""
    tokenizer = Tokenizer(model)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


# -- Hugging Face ----------------------------------------------------------------------


def find_folder(name: str) -> Path:
    """A folder of a model: as it is, or the hub's cache of that name, never fetched."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        raise UsageError(
            f"{name!r} is neither a folder nor a model in the hub's cache"
            " (save_pretrained of transformers writes such a folder)"
        ) from None


def load_folder(folder: Path, dtype: Any = jnp.float32) -> tuple[Config, Params]:
    """Reads OPT or Llama from a folder with config.json and safetensors files."""
    try:
        settings = json.loads((folder / "config.json").read_text())
        kind = settings["model_type"]
        if kind not in PARTS:
            raise UsageError(f"{folder} holds a model of type {kind!r}: not opt, llama")
        config = _llama(settings) if kind == "llama" else _opt(settings)
        top = _top(settings, config)
        tied = settings.get("tie_word_embeddings", kind == "opt")
        top |= {} if tied else {"head": "lm_head.weight"}
        tensors, layers = _safetensors(folder), settings["num_hidden_layers"]
        return config, _build(tensors, layers, PARTS[kind], top, dtype)
    except KeyError as error:
        raise UsageError(f"{folder / 'config.json'} lacks {error}") from None
    except (OSError, SafetensorError, TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(f"cannot read {folder}: {error}") from None


def _safetensors(folder: Path) -> Tensors:
    """The tensors of one or several files; each is read when it is asked for."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        opened = safe_open(file, framework="flax")  # numpy has no bfloat16 of its own
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            tensors[_bare(name)] = functools.partial(opened.get_tensor, name)
    return tensors


def _top(settings: Mapping[str, Any], config: Config) -> dict[str, str]:
    """Names of what stands before and after the layers."""
    top = {"embed": "embed_tokens.weight"}
    if config.rope_base is not None:
        return top | {"norm": "norm.weight"}
    top["positions"] = "embed_positions.weight"
    if settings.get("word_embed_proj_dim", 0) not in (0, settings["hidden_size"]):
        top |= {name: f"{name}.weight" for name in ("project_in", "project_out")}
    if config.pre_norm:
        top |= {"norm": "final_layer_norm.weight", "norm_bias": "final_layer_norm.bias"}
    return top


def _llama(settings: Mapping[str, Any]) -> Config:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    activation = settings.get("hidden_act", "silu")
    if scaling != "default" or activation != "silu":
        raise UsageError(
            f"Llama with rope type {scaling!r} and activation {activation!r}: only"
            " 'default' and 'silu' can be run"
        )
    heads = settings["num_attention_heads"]
    base = rope.get("rope_theta", settings.get("rope_theta", 10_000.0))
    return Config(
        heads,
        settings.get("num_key_value_heads") or heads,
        settings.get("head_dim") or settings["hidden_size"] // heads,
        settings["rms_norm_eps"],
        float(base),
    )


def _opt(settings: Mapping[str, Any]) -> Config:
    activation = settings.get("activation_function", "relu")
    if activation != "relu":
        raise UsageError(f"OPT with activation {activation!r}: only 'relu' can be run")
    heads = settings["num_attention_heads"]
    size = settings["hidden_size"] // heads
    pre_norm = settings.get("do_layer_norm_before", True)
    return Config(heads, heads, size, 1e-5, None, pre_norm, position_offset=2)


def tokenizer_of_folder(folder: Path) -> Tokenizer:
    """Reads tokenizer.json, or OPT's vocab.json and merges.txt."""
    try:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        files = (str(folder / name) for name in ("vocab.json", "merges.txt"))
        tokenizer = _byte_level(models.BPE.from_file(*files))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise UsageError(f"cannot read a tokenizer in {folder}: {error}") from None
    start = tokenizer.token_to_id("</s>")
    if start is not None:  # OPT begins every text with it
        tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
        tokenizer.post_processor = processors.TemplateProcessing(
            single="</s> $A", special_tokens=[("</s>", start)]
        )
    return tokenizer
