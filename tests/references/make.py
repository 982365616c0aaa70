"""Writes the references of test_language.py: what transformers' PyTorch models answer.

Needs torch, transformers, accelerate and the default model (``language setup``); run
from the repository's root: ``python tests/references/make.py``. Written with torch
2.13.0 and transformers 5.23.0.
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from benchmarks.language import assets

HERE = Path(__file__).parent
TEXTS = [
    "The gorgeously elaborate continuation of 1987's trilogy is so huge that words"
    " cannot describe it. It was",
    "Effective but too-tepid biopic, n'est-ce pas? It was",
]
OPT = {
    "vocab_size": 48,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
    "word_embed_proj_dim": 16,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
TINY = {
    "opt": (OPTForCausalLM, OPTConfig(**OPT)),
    # As OPT-350m: norms after attention and MLP, narrower embeddings.
    "opt-post-norm": (
        OPTForCausalLM,
        OPTConfig(**OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 8}),
    ),
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=48,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            rope_theta=5000.0,
        ),
    ),
}


def tiny() -> None:
    """Random models, small enough to keep: folders as the hub has them."""
    for name, (kind, config) in TINY.items():
        torch.manual_seed(0)
        model = kind(config).eval()
        with torch.no_grad():
            for tensor in model.parameters():  # norms and biases must matter too
                tensor += 0.2 * torch.randn_like(tensor)
            tokens = torch.randint(3, 48, (2, 12))
            logits = model(tokens, attention_mask=torch.ones_like(tokens)).logits
        model.save_pretrained(HERE / name)
        (HERE / name / "generation_config.json").unlink(missing_ok=True)
        np.savez(HERE / name / "reference.npz", tokens=tokens, logits=logits)


def smollm2() -> None:
    """The default model: every 64th logit, and the largest, at each position."""
    folder, name = assets.cache_folder(), assets.ASSETS["model"].file
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    out = {}
    for i, text in enumerate(TEXTS):
        tokens = tokenizer(text)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0]
        out[f"text_{i}"] = text
        out[f"tokens_{i}"] = np.asarray(tokens, np.int32)
        out[f"logits_{i}"] = logits[:, ::64].numpy()
        out[f"argmax_{i}"] = logits.argmax(-1).numpy().astype(np.int32)
        out[f"logsumexp_{i}"] = torch.logsumexp(logits, -1).numpy()
    np.savez_compressed(HERE / "smollm2.npz", **out)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    tiny()
    smollm2()
