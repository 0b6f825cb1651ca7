"""Models of sounds and series, as small as they come."""

from __future__ import annotations

from tests.zoo.texts import IDS, SMALL, Settings

WAVES: Settings = SMALL | {
    "conv_dim": [8, 8],
    "conv_kernel": [4, 4],
    "conv_stride": [4, 4],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 20,
    "feat_extract_norm": "layer",
    "mask_time_prob": 0.0,
    "tdnn_dim": [8, 8],
    "tdnn_kernel": [2, 2],
    "tdnn_dilation": [1, 1],
    "xvector_output_dim": 8,
    "classifier_proj_size": 8,
}
HEARS = (
    "Model",
    "ForCTC",
    "ForSequenceClassification",
    "ForAudioFrameClassification",
    "ForXVector",
)

#: Raw samples.
SOUNDS: dict[str, tuple[Settings, tuple[str, ...]]] = {
    "Wav2Vec2": (WAVES, HEARS),
    "Wav2Vec2Conformer": (WAVES, HEARS),
    "Hubert": (WAVES, HEARS),
    "WavLM": (WAVES, HEARS),
    "UniSpeech": (WAVES, HEARS),
    "UniSpeechSat": (WAVES, HEARS),
    "Data2VecAudio": (
        WAVES | {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3},
        HEARS,
    ),
    "SEW": (WAVES | {"squeeze_factor": 2}, HEARS),
    "SEWD": (WAVES | {"squeeze_factor": 2}, HEARS),
}

#: Spectra: the keyword and its shape with the settings.
SPECTRA: dict[str, tuple[Settings, tuple[str, ...], str, tuple[int, ...]]] = {
    "AST": (
        SMALL
        | {
            "patch_size": 4,
            "max_length": 16,
            "num_mel_bins": 8,
            "frequency_stride": 4,
            "time_stride": 4,
        },
        ("Model", "ForAudioClassification"),
        "input_values",
        (16, 8),
    ),
    "Whisper": (
        IDS
        | {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "num_mel_bins": 8,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_source_positions": 8,
            "max_target_positions": 16,
            "decoder_start_token_id": 2,
        },
        ("Model", "ForConditionalGeneration", "ForAudioClassification"),
        "input_features",
        (8, 16),
    ),
    "Speech2Text": (
        IDS
        | {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "input_feat_per_channel": 8,
            "conv_channels": 16,
            "decoder_start_token_id": 2,
        },
        ("Model", "ForConditionalGeneration"),
        "input_features",
        (16, 8),
    ),
    "Wav2Vec2Bert": (
        SMALL
        | {
            "feature_projection_input_dim": 8,
            "vocab_size": 20,
            "mask_time_prob": 0.0,
            "tdnn_dim": [8, 8],
            "tdnn_kernel": [2, 2],
            "tdnn_dilation": [1, 1],
            "xvector_output_dim": 8,
        },
        HEARS,
        "input_features",
        (16, 8),
    ),
    "PatchTST": (
        {
            "num_input_channels": 2,
            "context_length": 16,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 16,
            "prediction_length": 4,
            "num_targets": 3,
        },
        ("Model", "ForPrediction", "ForClassification", "ForRegression"),
        "past_values",
        (16, 2),
    ),
    "PatchTSMixer": (
        {
            "num_input_channels": 2,
            "context_length": 16,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 16,
            "num_layers": 2,
            "prediction_length": 4,
            "num_targets": 3,
        },
        ("Model", "ForPrediction", "ForTimeSeriesClassification", "ForRegression"),
        "past_values",
        (16, 2),
    ),
}
