"""Values of SeaS (Dai et al. 2025) and of its public code, written from the paper and the code.

Values that the paper does not state are those of the public code; the README says which.
"""

_BOTH = {
    "steps_per_defect": 800,  # app. A.3, both stages
    "schedule": "constant",
    "max_grad_norm": None,
    "learning_rate": 4e-6,  # app. A.3
    "token_learning_rate": 4e-5,  # app. A.3
    "weight_decay": 1e-2,
    "noise_weighting": "noise",  # eq. 4
    "balance": "image",  # eq. 4
    "alignment_weight": 1.0,  # eq. 4
    "anomaly_tokens": 4,  # app. A.3
    "normals": 60,  # sec. 4.1
    "canvas": "whole",
    "variants": None,
    "augmentation.rotation": 0.0,
    "augmentation.rotate90": True,
    "augmentation.flips": True,
    "mask_learning_rate": 5e-4,  # app. A.3
    "mask_width": 192,  # sec. 3.3
    "mask_layers": 4,  # sec. 3.3
    "mask_timestep_fraction": 1.0,
    "mask_norm": "batch",
    "mask_threshold": 0.2,  # table 18
    "mask_average": 3,  # sec. 3.4
    "sampling_steps": 25,  # app. A.3
    "ref_strength": 0.0,
    "guidance_scale": 8.0,
    "normal_guidance_scale": 8.0,
    "mask_dilation": None,
    "residual": False,
    "paste": False,
}
VALUES = {
    "paper": {
        **_BOTH,
        "batch_size": 2,  # app. A.3: 2 defect images and 2 normal images
        "moments": "fp32",
        "alignment": "paper",  # eq. 3
        "refinement": "paper",  # sec. 3.3
        "reference": "paper",  # app. A.3: t = 1500
    },
    "official": {
        **_BOTH,
        "batch_size": 4,  # 2, two batches accumulated
        "moments": "bf16",  # 8 bits
        "alignment": "official",
        "refinement": "official",
        "reference": "official",
    },
}
