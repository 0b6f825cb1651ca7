"""Text models of transformers, as small as they come."""

from __future__ import annotations

from typing import Any

Settings = dict[str, Any]

#: Ids from `FIRST` up are words; 1 is padding, where most libraries' default is 0.
VOCABULARY, PAD, FIRST = 100, 1, 4

SMALL: Settings = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
IDS: Settings = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
WORDS: Settings = SMALL | IDS
GROUPED: Settings = WORDS | {"num_key_value_heads": 1}
HEADED: Settings = GROUPED | {"head_dim": 16}
GPT: Settings = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64} | IDS
BART: Settings = IDS | {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
T5: Settings = IDS | {
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 2,
}
XLM: Settings = IDS | {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "n_words": 100}
XLM |= {"pad_index": PAD, "max_position_embeddings": 64}

READS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)

#: Classes' common prefix: settings, and what the classes end in.
ENCODERS: dict[str, tuple[Settings, tuple[str, ...]]] = {
    "Bert": (WORDS, (*READS, "ForNextSentencePrediction", "ForPreTraining")),
    "Roberta": (WORDS, READS),
    "XLMRoberta": (WORDS, READS),
    "Camembert": (WORDS, READS),
    "RobertaPreLayerNorm": (WORDS, READS[:3]),
    "Data2VecText": (WORDS, READS[:3]),
    "Albert": (WORDS | {"embedding_size": 16}, READS),
    "DistilBert": (
        IDS
        | {
            "dim": 32,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 48,
            "max_position_embeddings": 64,
        },
        READS,
    ),
    "Electra": (WORDS | {"embedding_size": 16}, (*READS, "ForPreTraining")),
    "Deberta": (
        WORDS | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        READS,
    ),
    "DebertaV2": (
        WORDS
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "type_vocab_size": 0,
        },
        READS,
    ),
    "MPNet": (WORDS, READS),
    "ModernBert": (
        WORDS
        | {
            "global_attn_every_n_layers": 2,
            "local_attention": 8,
            "cls_token_id": 2,
            "sep_token_id": 3,
        },
        READS,
    ),
    "RoFormer": (WORDS | {"embedding_size": 32}, READS),
    "Ernie": (WORDS, READS[:3]),
    "MegatronBert": (WORDS, READS[:3]),
    "RemBert": (
        WORDS | {"input_embedding_size": 16, "output_embedding_size": 16},
        READS,
    ),
    "IBert": (WORDS, READS[:3]),
    "Nystromformer": (
        WORDS | {"num_landmarks": 64, "segment_means_seq_len": 64},
        READS[:3],
    ),
    "SqueezeBert": (
        WORDS
        | {
            "embedding_size": 32,
            "q_groups": 1,
            "k_groups": 1,
            "v_groups": 1,
            "post_attention_groups": 1,
            "intermediate_groups": 1,
            "output_groups": 1,
        },
        READS,
    ),
    "MobileBert": (
        WORDS | {"embedding_size": 16, "intra_bottleneck_size": 16},
        READS,
    ),
    "ConvBert": (WORDS | {"embedding_size": 16, "conv_kernel_size": 3}, READS[:3]),
    "FNet": (WORDS, READS[:3]),
    "BigBird": (WORDS | {"attention_type": "original_full"}, READS[:3]),
    "Longformer": (WORDS | {"attention_window": 8}, READS[:3]),
    "Funnel": (
        IDS
        | {
            "d_model": 32,
            "n_head": 2,
            "d_head": 16,
            "d_inner": 48,
            "block_sizes": [1, 1],
        },
        READS,
    ),
    "LayoutLM": (WORDS, READS[:3]),
    "Lilt": (
        WORDS | {"hidden_size": 24, "channel_shrink_ratio": 2},
        ("Model", *READS[2:4]),
    ),
    "Esm": (WORDS | {"mask_token_id": 5}, READS[:4]),
    "XLNet": (
        IDS | {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
        ("Model", "LMHeadModel", "ForSequenceClassification", "ForTokenClassification"),
    ),
    "XLM": (XLM, ("Model", "WithLMHeadModel", "ForSequenceClassification")),
    "Flaubert": (XLM, ("Model", "WithLMHeadModel", "ForSequenceClassification")),
    "Canine": (
        SMALL
        | {
            "num_hash_buckets": 64,
            "num_hash_functions": 2,
            "local_transformer_stride": 8,
            "downsampling_rate": 2,
            "upsampling_kernel_size": 4,
            "pad_token_id": PAD,
        },
        ("Model", "ForSequenceClassification", "ForTokenClassification"),
    ),
    "Splinter": (WORDS | {"question_token_id": 5}, ("Model", "ForQuestionAnswering")),
    "EuroBert": (GROUPED, READS[:3]),
    "Xmod": (WORDS | {"languages": ["en_XX"], "default_language": "en_XX"}, READS[:3]),
    "DPRQuestion": (WORDS, ("Encoder",)),
    "DPRContext": (WORDS, ("Encoder",)),
    "CLIPText": (SMALL | IDS, ("Model", "ModelWithProjection")),
    "SiglipText": (SMALL | IDS, ("Model",)),
    "T5": (T5, ("EncoderModel", "ForTokenClassification")),
    "MT5": (T5, ("EncoderModel",)),
    "UMT5": (T5, ("EncoderModel", "ForTokenClassification")),
    "LongT5": (T5 | {"local_radius": 4}, ("EncoderModel",)),
}
