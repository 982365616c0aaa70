"""Reading models: GGUF files and Hugging Face folders of safetensors.

Both end as (Config, params) of :mod:`benchmarks.language.transformer`: matrices are
stored as [inputs, outputs], layers stacked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import UsageError
from benchmarks.language.transformer import Config, Params

__all__ = ["find_folder", "load_folder", "load_gguf"]

# Our name of a layer's part: its name in a checkpoint. Biases may be absent.
LLAMA = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
OPT = {
    "attention_norm": "self_attn_layer_norm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "mlp_norm": "final_layer_norm",
    "up": "fc1",
    "down": "fc2",
}
GGUF = {
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}

Tensors = Mapping[str, Callable[[], np.ndarray]]  # name -> reads it


def _build(
    tensors: Tensors,
    layers: int,
    layer_name: Callable[[int, str], str],
    parts: Mapping[str, str],
    top: Mapping[str, str],
    dtype: Any,
    optional: Sequence[str] = (),
) -> Params:
    """Stacks layers; what must be there and is not raises a UsageError."""

    def read(name, needed=True):
        if name not in tensors:
            if needed:
                raise UsageError(f"the checkpoint has no tensor {name}")
            return None
        array = tensors[name]()
        return array.T if array.ndim == 2 else array

    def stacked(part, kind, needed):
        first = read(f"{layer_name(0, part)}.{kind}", needed)
        if first is None:
            return None
        # One layer at a time, so that no second copy of the model is held.
        whole = np.empty((layers, *first.shape), np.dtype(dtype))
        for i in range(layers):
            layer = read(f"{layer_name(i, part)}.{kind}")
            if layer.shape != first.shape:
                raise UsageError(f"the layers' {part} have shapes that differ")
            whole[i] = layer
        return jnp.asarray(whole)

    found = {}
    for ours, part in parts.items():
        found[ours] = stacked(part, "weight", True)
        found[ours + "_bias"] = stacked(part, "bias", False)
    params = {"layers": {name: x for name, x in found.items() if x is not None}}
    for ours, theirs in top.items():
        # A norm's bias and the head of tied embeddings may be absent.
        array = read(theirs, needed=ours not in optional)
        if array is not None:
            # Tables keep a row for each token or position.
            table = ours in ("embed", "head", "positions")
            params[ours] = jnp.asarray(array.T if table else array, dtype)
    return params


# -- GGUF ------------------------------------------------------------------------------


def load_gguf(path: Path, dtype: Any = jnp.float32) -> tuple[Config, Params]:
    """Reads a Llama model from a GGUF file, dequantised.

    Args:
      path: the file.
      dtype: of the params.

    Returns:
      (config, params).

    Raises:
      UsageError: for a file that is not GGUF, or another architecture.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    field = lambda name: reader.get_field(name).contents()
    architecture = field("general.architecture")
    if architecture != "llama":
        raise UsageError(f"{path} holds {architecture!r}: only llama can be read")
    heads = field("llama.attention.head_count")
    kv_heads = field("llama.attention.head_count_kv")
    size = field("llama.embedding_length") // heads

    def reading(tensor):
        def read():
            array = gguf.dequantize(tensor.data, tensor.tensor_type)
            count = {"q": heads, "k": kv_heads}.get(
                tensor.name.removesuffix(".weight").partition("attn_")[2]
            )
            if count is None:
                return array
            # llama.cpp interleaves the halves that rotary positions pair.
            halves = array.reshape(count, size // 2, 2, -1)
            return halves.swapaxes(1, 2).reshape(array.shape)

        return read

    tensors = {tensor.name: reading(tensor) for tensor in reader.tensors}
    params = _build(
        tensors,
        field("llama.block_count"),
        lambda i, part: f"blk.{i}.{part}",
        GGUF,
        {
            "embed": "token_embd.weight",
            "norm": "output_norm.weight",
            "head": "output.weight",
        },
        dtype,
        optional=("head",),
    )
    config = Config(
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        epsilon=field("llama.attention.layer_norm_rms_epsilon"),
        rope_base=field("llama.rope.freq_base"),
    )
    return config, params


# -- Hugging Face ----------------------------------------------------------------------


def find_folder(name: str) -> Path:
    """A folder of a model: as it is, or the hub's cache of that name, never fetched."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    repository = hub / ("models--" + name.replace("/", "--"))
    snapshots = [
        file.parent
        for file in repository.glob("snapshots/*/config.json")
        if list(file.parent.glob("*.safetensors"))
    ]
    if not snapshots:
        raise UsageError(
            f"{name!r} is neither a folder nor a model in the hub's cache {hub} with a"
            " config.json and safetensors files (save_pretrained of transformers writes"
            " such a folder)"
        )
    main = repository / "refs" / "main"
    revision = main.read_text().strip() if main.is_file() else None
    chosen = [folder for folder in snapshots if folder.name == revision]
    return (chosen or sorted(snapshots))[0]


def load_folder(folder: Path, dtype: Any = jnp.float32) -> tuple[Config, Params]:
    """Reads OPT or Llama from a folder with config.json and safetensors files.

    Args:
      folder: the folder; the weights may be sharded over several files.
      dtype: of the params.

    Returns:
      (config, params).

    Raises:
      UsageError: where files or tensors are missing, or for another architecture.
    """
    try:
        settings = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {folder / 'config.json'}: {error}") from None
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind not in ("llama", "opt"):
        raise UsageError(f"{folder} holds a model of type {kind!r}: not opt or llama")
    tensors = _safetensors(folder)
    try:
        config = _llama(settings) if kind == "llama" else _opt(settings)
        layers = settings["num_hidden_layers"]
    except KeyError as error:
        raise UsageError(f"{folder / 'config.json'} lacks {error}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(f"{folder / 'config.json'} is odd: {error}") from None
    if kind == "llama":
        root, parts = _root(tensors, "model.", "embed_tokens.weight"), LLAMA
        names = {"embed": "embed_tokens.weight", "norm": "norm.weight"}
    else:
        root = _root(tensors, "model.decoder.", "embed_tokens.weight")
        parts = OPT
        names = {
            "embed": "embed_tokens.weight",
            "positions": "embed_positions.weight",
        }
        if settings.get("word_embed_proj_dim", 0) not in (0, settings["hidden_size"]):
            names |= {"project_in": "project_in.weight"}
            names |= {"project_out": "project_out.weight"}
        if config.pre_norm:
            names |= {"norm": "final_layer_norm.weight"}
            names |= {"norm_bias": "final_layer_norm.bias"}
    top = {ours: root + theirs for ours, theirs in names.items()}
    if not settings.get("tie_word_embeddings", kind == "opt"):
        top["head"] = "lm_head.weight"
    layer_name = lambda i, part: f"{root}layers.{i}.{part}"
    return config, _build(tensors, layers, layer_name, parts, top, dtype)


def _root(tensors: Tensors, root: str, name: str) -> str:
    """Checkpoints of the bare model leave the first part of the names out."""
    shorter = root.partition(".")[2]
    return root if root + name in tensors else shorter


def _safetensors(folder: Path) -> Tensors:
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UsageError(f"{folder} has no safetensors file")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            needed = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"cannot read {index}: {error}") from None
        missing = sorted(needed - {file.name for file in files})
        if missing:
            raise UsageError(f"{folder} lacks {', '.join(missing)}")
    tensors = {}
    for file in files:
        try:
            opened = safe_open(file, framework="flax")
        except (OSError, SafetensorError) as error:
            raise UsageError(f"cannot read {file}: {error}") from None
        for name in opened.keys():  # noqa: SIM118 (not a mapping)
            # Read one at a time; numpy has no bfloat16 of its own, ml_dtypes has.
            tensors[name] = lambda name=name, opened=opened: np.asarray(
                opened.get_tensor(name)
            )
    return tensors


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
        heads=heads,
        kv_heads=settings.get("num_key_value_heads") or heads,
        head_size=settings.get("head_dim") or settings["hidden_size"] // heads,
        epsilon=settings["rms_norm_eps"],
        rope_base=float(base),
    )


def _opt(settings: Mapping[str, Any]) -> Config:
    activation = settings.get("activation_function", "relu")
    if activation != "relu":
        raise UsageError(f"OPT with activation {activation!r}: only 'relu' can be run")
    heads = settings["num_attention_heads"]
    return Config(
        heads=heads,
        kv_heads=heads,
        head_size=settings["hidden_size"] // heads,
        epsilon=1e-5,
        rope_base=None,
        pre_norm=settings.get("do_layer_norm_before", True),
        position_offset=2,
    )


def cached(
    path: Path, source: str, read: Callable[[], tuple[Config, Params]]
) -> tuple[Config, Params]:
    """Keeps what ``read`` returns in a safetensors file, since that is slow to read.

    ``source`` says what it was read from; a file made from something else is replaced.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.flax import load_file, save

    try:
        with safe_open(path, framework="flax") as opened:
            found = opened.metadata()
        if found["source"] == source:
            config = Config(**json.loads(found["config"]))
            return config, _nested(load_file(path))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError):
        pass  # made afresh
    config, params = read()
    flat = {
        jax.tree_util.keystr(key, simple=True, separator="."): leaf
        for key, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    metadata = {"source": source, "config": json.dumps(config._asdict())}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(save(flat, metadata))
        os.replace(part, path)
    except OSError:  # a full or read-only disk: slower the next time, no more
        part.unlink(missing_ok=True)
    return config, params


def _nested(flat: Mapping[str, jax.Array]) -> Params:
    params: Params = {"layers": {}}
    for name, leaf in flat.items():
        group, _, rest = name.partition(".")
        if rest:
            params[group][rest] = leaf
        else:
            params[group] = leaf
    return params
