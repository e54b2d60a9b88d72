"""Values of DefectDiffu (ECCV 2024), from the text of the paper and from its public code."""

COMMON = {
    "text_vector": "projected",  # the sentence vector of CLIP
    "split": (10, 10, 8),  # section 4.1
    "mask_weight": 0.2,  # lambda, section 4.1
    "drop_defect": 0.2,  # p_2
    "weight_cap": 1.0,  # eq. 11 has no weight by noise level
    "region_fraction": 0.0,
    "canvas": "whole",
    "residual": False,
    "start": "noise",
    "paste": False,
    "mask_dilation": None,
    "mask_average_fraction": 0.1,  # the last 100 of 1000 steps
    # The following are in the public code only.
    "epochs": 1501,
    "learning_rate": 1e-5,
    "added_learning_rate": 1e-5,
    "schedule": "constant",
    "max_grad_norm": None,
    "batch_size": 2,
    "weight_decay": 1e-8,
    "sampling_steps": 50,
    "strength_range": (0.5, 2.5),
}
VALUES = {
    "paper": {
        **COMMON,
        "dit": "facebook/DiT-XL-2-512",  # section 4.1: 512 x 512
        "text": "openai/clip-vit-large-patch14",  # which CLIP is not stated
        "drop_product": 0.2,  # p_1
        "alpha": 1e-3,
        "guidance": "three_branch",  # eq. 4
        "detach_ratio": True,  # not stated
    },
    "official": {
        **COMMON,
        "dit": "facebook/DiT-XL-2-256",  # the default of the code
        "text": "timm/resnet50_clip.openai",  # CLIP RN50
        "drop_product": 0.0,  # the default mode drops the defect only
        "alpha": 1e-4,
        "guidance": "two_branch",
        "detach_ratio": False,
    },
}
