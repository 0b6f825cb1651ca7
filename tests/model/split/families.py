"""Hugging Face families, as small as they come."""

from __future__ import annotations

from typing import Any

import torch

from dask_infer.model.shapes.trace_errors import Example

TEXT = Example("int64", (None,))
IMAGE = Example("floating", (3, 32, 32))

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
WORDS = {**SMALL, "vocab_size": 100, "pad_token_id": 0}
LLAMA = {**WORDS, "num_key_value_heads": 2}
PIXELS = {**SMALL, "image_size": 32, "patch_size": 8}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
T5 |= {"vocab_size": 100, "decoder_start_token_id": 0}

FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "BertForSequenceClassification": (WORDS, "text"),
    "DistilBertForSequenceClassification": (
        {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64, "vocab_size": 100},
        "text",
    ),
    "DebertaV2ForSequenceClassification": (
        {
            **WORDS,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "type_vocab_size": 0,
        },
        "text",
    ),
    "GPT2LMHeadModel": (
        {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 100, "n_positions": 64,
         "bos_token_id": 0, "eos_token_id": 0},
        "text",
    ),
    "LlamaForCausalLM": (LLAMA, "text"),
    "Qwen2ForCausalLM": (LLAMA, "text"),
    "MixtralForCausalLM": ({**LLAMA, "num_local_experts": 4}, "text"),
    "OPTForCausalLM": (
        {**WORDS, "ffn_dim": 64, "word_embed_proj_dim": 32,
         "max_position_embeddings": 64},
        "text",
    ),
    "T5EncoderModel": (T5, "text"),
    "T5ForConditionalGeneration": (T5, "both"),
    "MambaForCausalLM": (
        {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 100,
         "state_size": 8, "pad_token_id": 0},
        "text",
    ),
    "ViTForImageClassification": (PIXELS, "image"),
    "ResNetForImageClassification": (
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2],
         "layer_type": "basic"},
        "image",
    ),
    "SwinForImageClassification": (
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 2],
         "num_heads": [2, 2], "window_size": 4},
        "image",
    ),
    "ConvNextForImageClassification": (
        {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2}, "image",
    ),
    "CLIPVisionModel": (PIXELS, "image"),
}  # fmt: skip


def build(name: str) -> Any:
    """Build the model with random weights."""
    import transformers

    kind = getattr(transformers, name)
    config = kind.config_class(**FAMILIES[name][0])
    return kind(config).eval()


def examples(name: str) -> dict[str, Example]:
    """Return one row of each argument."""
    kind = FAMILIES[name][1]
    if kind == "image":
        return {"pixel_values": IMAGE}
    texts = {"input_ids": TEXT, "attention_mask": TEXT}
    return {**texts, "decoder_input_ids": TEXT} if kind == "both" else texts


def batch(name: str, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Return a batch, padded on the right where it is text."""
    kind = FAMILIES[name][1]
    if kind == "image":
        return {"pixel_values": torch.randn(rows, 3, 32, 32)}
    ids = torch.randint(1, 100, (rows, length))
    mask = torch.ones_like(ids)
    for row in range(rows - 1):
        mask[row, length - 1 - row % 3 :] = 0
    texts = {"input_ids": ids * mask, "attention_mask": mask}
    return {**texts, "decoder_input_ids": ids} if kind == "both" else texts
