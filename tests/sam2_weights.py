"""A SAM 2 for video with random weights at minimum width, saved as the published ones are."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Sam2VideoConfig, Sam2VideoModel

SIDE_PX = 128
WIDTH, MEMORY_WIDTH = 128, 64  # the class has the second fixed, and wants the first to be a multiple of it


def write_sam2(folder: Path, *, seed: int = 0) -> Path:
    """Pictures of 128 px, logits of 32; three memories and four object pointers."""
    torch.manual_seed(seed)
    config = Sam2VideoConfig(
        image_size=SIDE_PX,
        initializer_range=0.2,  # wide enough that what is remembered shows in the masks
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "image_size": [SIDE_PX, SIDE_PX],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 24, 32],
                "num_attention_heads_per_stage": [1, 1, 1, 1],
                "window_size_per_stage": [4, 2, 2, 2],
                "window_positional_embedding_background_size": [4, 4],
                "global_attention_blocks": [3],
            },
            "backbone_channel_list": [32, 24, 16, 8],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": WIDTH,
        },
        prompt_encoder_config={"hidden_size": WIDTH, "image_size": SIDE_PX, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": WIDTH,
            "mlp_dim": 16,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
            "num_hidden_layers": 2,
        },
        memory_attention_hidden_size=WIDTH,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=16,
        memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=WIDTH,
        memory_encoder_output_channels=MEMORY_WIDTH,
        mask_downsampler_embed_dim=WIDTH,
        memory_fuser_embed_dim=WIDTH,
        memory_fuser_intermediate_dim=16,
        num_maskmem=3,
        max_object_pointers_in_encoder=4,
    )
    model = Sam2VideoModel(config)
    torch.nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 5.0)  # the object is always in sight
    model.save_pretrained(folder)
    return folder
