"""Models of images, videos, sounds, series and pairs, as small as they come."""

from __future__ import annotations

from tests.zoo.texts import WORDS, Settings

SIZE = 32
PIXELS: Settings = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SIZE,
    "patch_size": 8,
}
STAGES: Settings = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
RESNET: Settings = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
LOOKS = ("Model", "ForImageClassification")

IMAGES: dict[str, tuple[Settings, tuple[str, ...]]] = {
    "ViT": (PIXELS, (*LOOKS, "ForMaskedImageModeling")),
    "DeiT": (PIXELS, (*LOOKS, "ForImageClassificationWithTeacher")),
    "Beit": (PIXELS, LOOKS),
    "Data2VecVision": (PIXELS, LOOKS),
    "Dinov2": (PIXELS, LOOKS),
    "Dinov2WithRegisters": (PIXELS, LOOKS),
    "DINOv3ViT": (PIXELS, LOOKS),
    "DINOv3ConvNext": ({"hidden_sizes": [8, 16], "depths": [1, 1]}, LOOKS),
    "IJepa": (PIXELS, LOOKS),
    "ViTMSN": (PIXELS, LOOKS),
    "Swin": (STAGES | {"image_size": SIZE, "patch_size": 4, "window_size": 4}, LOOKS),
    "Swinv2": (STAGES | {"image_size": SIZE, "patch_size": 4, "window_size": 4}, LOOKS),
    "DonutSwin": (STAGES | {"image_size": SIZE, "window_size": 4}, LOOKS),
    "ConvNext": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, LOOKS),
    "ConvNextV2": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, LOOKS),
    "ResNet": (RESNET | {"layer_type": "basic"}, LOOKS),
    "RegNet": (RESNET | {"groups_width": 8}, LOOKS),
    "Bit": (RESNET | {"num_groups": 4}, LOOKS),
    "MobileNetV1": ({"depth_multiplier": 0.25, "min_depth": 4}, LOOKS),
    "MobileNetV2": ({"depth_multiplier": 0.25, "min_depth": 4}, LOOKS),
    "MobileViT": (
        {
            "image_size": SIZE,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": 2,
            "neck_hidden_sizes": [4, 8, 8, 16, 16, 16, 32],
        },
        LOOKS,
    ),
    "Levit": (
        {
            "image_size": SIZE,
            "hidden_sizes": [16, 16, 16],
            "depths": [1, 1, 1],
            "num_attention_heads": [2, 2, 2],
            "key_dim": [8, 8, 8],
            "patch_size": 16,
        },
        (*LOOKS, "ForImageClassificationWithTeacher"),
    ),
    "Segformer": (
        {
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 16,
            "num_attention_heads": [1, 1, 2, 2],
        },
        (*LOOKS, "ForSemanticSegmentation"),
    ),
    "PoolFormer": ({"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}, LOOKS),
    "Pvt": (
        {
            "image_size": SIZE,
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
        },
        LOOKS,
    ),
    "PvtV2": (
        {
            "image_size": SIZE,
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
        },
        LOOKS,
    ),
    "FocalNet": (
        {
            "image_size": SIZE,
            "embed_dim": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "focal_levels": [1, 1],
            "focal_windows": [3, 3],
        },
        LOOKS,
    ),
    "Hiera": (
        {
            "image_size": [SIZE, SIZE],
            "patch_size": [7, 7],
            "patch_stride": [4, 4],
            "patch_padding": [3, 3],
            "masked_unit_size": [8, 8],
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "query_stride": [2, 2],
            "num_query_pool": 1,
            "mask_unit_size": [4, 4],
        },
        LOOKS,
    ),
    "SwiftFormer": (
        {"image_size": SIZE, "embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
        LOOKS,
    ),
    "TextNet": (
        {
            "conv_layer_kernel_sizes": [[[3, 3]]] * 4,
            "conv_layer_strides": [[1]] * 4,
            "hidden_sizes": [8, 8, 8, 8, 8],
            "stem_out_channels": 8,
        },
        LOOKS,
    ),
    "HGNetV2": (
        {
            "stem_channels": [3, 8, 8],
            "stage_in_channels": [8, 8],
            "depths": [1, 1],
            "stage_mid_channels": [8, 8],
            "stage_out_channels": [8, 8],
            "stage_num_blocks": [1, 1],
            "stage_downsample": [False, True],
            "stage_light_block": [False, True],
            "stage_kernel_size": [3, 3],
            "stage_numb_of_layers": [2, 2],
            "hidden_sizes": [8, 8],
            "embedding_size": 8,
        },
        LOOKS,
    ),
    "CLIPVision": (PIXELS, ("Model", "ModelWithProjection")),
    "SiglipVision": (PIXELS, ("Model",)),
    "Aimv2Vision": (PIXELS, ("Model",)),
    "Yolos": (
        PIXELS | {"image_size": [SIZE, SIZE], "num_detection_tokens": 4},
        ("Model", "ForObjectDetection"),
    ),
    "DPT": (
        PIXELS
        | {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 8,
            "reassemble_factors": [4, 2, 1, 0.5],
            "is_hybrid": False,
        },
        ("Model", "ForDepthEstimation", "ForSemanticSegmentation"),
    ),
    "GLPN": (
        {
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 8,
            "num_attention_heads": [1, 1, 2, 2],
        },
        ("Model", "ForDepthEstimation"),
    ),
    "UperNet": (
        {
            "backbone_config": {
                "model_type": "resnet",
                **RESNET,
                "layer_type": "basic",
                "hidden_sizes": [8, 8, 16, 16],
                "depths": [1, 1, 1, 1],
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "hidden_size": 8,
            "use_auxiliary_head": False,
            "pool_scales": [1, 2],
        },
        ("ForSemanticSegmentation",),
    ),
    "Detr": (
        {
            "backbone_config": {
                "model_type": "resnet",
                **RESNET,
                "layer_type": "basic",
                "out_features": ["stage2"],
            },
            "use_timm_backbone": False,
            "backbone": None,
            "use_pretrained_backbone": False,
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_queries": 4,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
        },
        ("Model", "ForObjectDetection"),
    ),
    "Swin2SR": (
        {
            "image_size": SIZE,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
        ("Model", "ForImageSuperResolution"),
    ),
}

VIDEO: Settings = PIXELS | {"num_frames": 4, "tubelet_size": 2}

VIDEOS: dict[str, tuple[Settings, tuple[str, ...]]] = {
    "VideoMAE": (VIDEO, ("Model", "ForVideoClassification")),
    "Timesformer": (VIDEO, ("Model", "ForVideoClassification")),
    "Vivit": (VIDEO | {"tubelet_size": [2, 8, 8]}, ("Model", "ForVideoClassification")),
}

TWO: Settings = {
    "text_config": WORDS | {"projection_dim": 16},
    "vision_config": PIXELS,
    "projection_dim": 16,
}

#: A text and an image a row.
PAIRS: dict[str, tuple[Settings, tuple[str, ...]]] = {
    "CLIP": (TWO, ("Model",)),
    "Siglip": (TWO, ("Model",)),
    "ChineseCLIP": (TWO, ("Model",)),
    "AltCLIP": (TWO, ("Model",)),
    "MetaClip2": (TWO, ("Model",)),
    "Blip": (TWO, ("Model", "ForImageTextRetrieval")),
    "GroupViT": (
        {
            "text_config": WORDS,
            "vision_config": PIXELS
            | {
                "depths": [1, 1, 1],
                "num_hidden_layers": 3,
                "num_group_tokens": [4, 2, 0],
                "num_output_groups": [4, 2, 0],
                "hidden_size": 32,
            },
            "projection_dim": 16,
            "projection_intermediate_dim": 16,
        },
        ("Model",),
    ),
    "CLIPSeg": (
        TWO
        | {
            "extract_layers": [0, 1],
            "reduce_dim": 8,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 16,
        },
        ("Model", "ForImageSegmentation"),
    ),
    "OwlViT": (TWO, ("Model",)),
    "Vilt": (
        PIXELS | WORDS | {"max_image_length": -1, "num_labels": 2},
        (
            "ForQuestionAnswering",
            "ForMaskedLM",
            "ForTokenClassification",
        ),  # else random
    ),
    "Git": (WORDS | {"vision_config": PIXELS}, ("Model", "ForCausalLM")),
}
