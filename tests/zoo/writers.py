"""Models of transformers that write texts, as small as they come."""

from __future__ import annotations

from tests.zoo.texts import BART, GPT, GROUPED, HEADED, IDS, T5, WORDS, Settings

WRITES = ("Model", "ForCausalLM", "LMHeadModel", "ForSequenceClassification")

DECODERS: dict[str, tuple[Settings, tuple[str, ...]]] = {
    "GPT2": (GPT, (*WRITES, "ForTokenClassification")),
    "GPTNeo": (
        IDS
        | {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "window_size": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
        },
        WRITES,
    ),
    "GPTNeoX": (WORDS, WRITES),
    "GPTJ": (GPT | {"rotary_dim": 8}, WRITES),
    "CodeGen": (GPT | {"rotary_dim": 8, "n_head": 4}, WRITES),
    "GPTBigCode": (GPT, WRITES),
    "OpenAIGPT": (GPT, WRITES),
    "CTRL": (GPT | {"dff": 48}, WRITES),
    "Llama": (GROUPED, (*WRITES, "ForTokenClassification", "ForQuestionAnswering")),
    "Mistral": (HEADED | {"sliding_window": 4}, WRITES),
    "Ministral": (HEADED | {"sliding_window": 4}, WRITES),
    "Qwen2": (GROUPED, (*WRITES, "ForTokenClassification")),
    "Qwen3": (HEADED, WRITES),
    "Gemma": (HEADED, WRITES),
    "Gemma2": (HEADED | {"sliding_window": 4}, WRITES),
    "Gemma3": (HEADED | {"sliding_window": 4}, ("TextModel", "ForCausalLM")),
    "Phi": (WORDS, WRITES),
    "Phi3": (GROUPED, WRITES),
    "OPT": (
        WORDS | {"ffn_dim": 48, "word_embed_proj_dim": 32},
        (*WRITES, "ForQuestionAnswering"),
    ),
    "Bloom": (IDS | {"hidden_size": 32, "n_layer": 2, "n_head": 2}, WRITES),
    "Falcon": (WORDS, WRITES),
    "Mpt": (
        IDS | {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
        WRITES,
    ),
    "StableLm": (GROUPED, WRITES),
    "Starcoder2": (GROUPED | {"sliding_window": None}, WRITES),
    "Cohere": (GROUPED, WRITES),
    "Cohere2": (GROUPED | {"sliding_window": 4}, WRITES),
    "Olmo": (GROUPED, WRITES),
    "Olmo2": (GROUPED, WRITES),
    "Olmo3": (GROUPED | {"sliding_window": 4}, WRITES),
    "Granite": (GROUPED, WRITES),
    "BioGpt": (WORDS, WRITES),
    "XGLM": (
        IDS
        | {
            "d_model": 32,
            "num_layers": 2,
            "attention_heads": 2,
            "ffn_dim": 48,
            "max_position_embeddings": 64,
        },
        WRITES,
    ),
    "Persimmon": (WORDS, WRITES),
    "SmolLM3": (GROUPED, WRITES),
    "Glm": (HEADED, WRITES),
    "Glm4": (HEADED, WRITES),
    "Helium": (HEADED, WRITES),
    "Nemotron": (GROUPED, WRITES),
    "Ernie4_5": (HEADED, WRITES),
    "Exaone4": (GROUPED | {"sliding_window": 4, "sliding_window_pattern": 2}, WRITES),
    "Arcee": (GROUPED, WRITES),
    "SeedOss": (HEADED, WRITES),
    "DiffLlama": (WORDS | {"num_key_value_heads": 2}, WRITES),
}

EXPERTS: Settings = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
LATENT: Settings = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 2,
}

MIXTURES: dict[str, tuple[Settings, tuple[str, ...]]] = {
    "Mixtral": (GROUPED | EXPERTS, WRITES),
    "Qwen2Moe": (GROUPED | EXPERTS, WRITES),
    "Qwen3Moe": (HEADED | EXPERTS, WRITES),
    "Olmoe": (GROUPED | EXPERTS, WRITES),
    "GptOss": (HEADED | EXPERTS | {"sliding_window": 4}, WRITES),
    "Phimoe": (GROUPED | EXPERTS, WRITES),
    "JetMoe": (
        GROUPED | EXPERTS | {"kv_channels": 16, "num_key_value_heads": 1},
        WRITES,
    ),
    "GraniteMoe": (GROUPED | EXPERTS, WRITES),
    "DeepseekV2": (WORDS | EXPERTS | LATENT, WRITES),
    "DeepseekV3": (WORDS | EXPERTS | LATENT, WRITES),
    "Dots1": (HEADED | EXPERTS | LATENT, WRITES),
    "Ernie4_5_Moe": (GROUPED | EXPERTS | {"moe_num_experts": 4, "moe_k": 2}, WRITES),
}

MAMBA: Settings = IDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}

STATES: dict[str, tuple[Settings, tuple[str, ...]]] = {
    "Mamba": (MAMBA, WRITES),
    "Mamba2": (
        MAMBA | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
        WRITES,
    ),
    "FalconMamba": (MAMBA, WRITES),
    "Rwkv": (MAMBA | {"attention_hidden_size": 32, "context_length": 64}, WRITES),
    "RecurrentGemma": (
        HEADED | {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8},
        WRITES,
    ),
    "Jamba": (
        GROUPED
        | EXPERTS
        | {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
        WRITES,
    ),
    "Bamba": (
        GROUPED
        | {
            "attn_layer_indices": [1],
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
        WRITES,
    ),
    "Lfm2": (GROUPED | {"layer_types": ["conv", "full_attention"]}, WRITES),
    "FalconH1": (
        HEADED
        | {
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
            "mamba_n_groups": 1,
        },
        WRITES,
    ),
    "Qwen3Next": (
        HEADED
        | EXPERTS
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        WRITES,
    ),
}

BOTH = ("Model", "ForConditionalGeneration", "ForSequenceClassification")

TRANSLATORS: dict[str, tuple[Settings, tuple[str, ...]]] = {
    "T5": (T5, BOTH),
    "MT5": (T5, BOTH),
    "UMT5": (T5, BOTH),
    "LongT5": (T5 | {"local_radius": 4}, BOTH),
    "SwitchTransformers": (
        T5
        | {
            "num_experts": 4,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "num_decoder_layers": 2,
        },
        BOTH,
    ),
    "Bart": (BART, BOTH),
    "MBart": (BART, BOTH),
    "PLBart": (BART, BOTH),
    "Marian": (BART, ("Model", "MTModel")),
    "Pegasus": (BART, BOTH),
    "PegasusX": (BART | {"block_size": 8, "num_global_tokens": 4}, BOTH),
    "BigBirdPegasus": (BART | {"attention_type": "original_full"}, BOTH),
    "M2M100": (BART, BOTH),
    "NllbMoe": (
        BART | {"num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
        BOTH,
    ),
    "Blenderbot": (BART, BOTH),
    "BlenderbotSmall": (BART, BOTH),
    "LED": (
        BART
        | {
            "attention_window": 8,
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
        },
        BOTH,
    ),
    "Mvp": (BART, BOTH),
    "ProphetNet": (
        IDS
        | {
            "hidden_size": 32,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 2,
            "num_decoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 64,
            "decoder_start_token_id": 2,
        },
        BOTH,
    ),
    "FSMT": (
        IDS
        | {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "langs": ["en", "de"],
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "src_vocab_size": 100,
            "tgt_vocab_size": 100,
            "decoder_start_token_id": 2,
        },
        BOTH,
    ),
}
