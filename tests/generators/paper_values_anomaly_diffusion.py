"""Values of AnomalyDiffusion (Hu et al. 2024) and of its public code, written from the paper and the code.

Values that the paper does not state are those of the public code; the README says which.
"""

_BOTH = {
    "scope": "catalogue",  # sec. 3.2: the encoder is shared among all anomalies
    "canvas": "whole",
    "variants": None,
    "batch_size": 4,  # app. C.1
    "steps": 300_000,  # app. C.1
    "schedule": "constant",
    "max_grad_norm": None,
    "tune_denoiser": False,
    "weight_decay": 0.0,
    "spatial_tokens": 4,  # sec. 4.1
    "sampling_steps": 200,
    "eta": 1.0,
    "guidance_scale": 1.0,
    "paste": False,
    "masks": "generated",  # sec. 3.4
    "encoder.side": 256,
    "encoder.norm": "batch",
    "encoder.head_width": None,
    "augmentation.crop": True,  # app. B
    "augmentation.rotation": 20.0,
    "augmentation.rotate90": False,
    "augmentation.scale": 0.0,
    "augmentation.brightness": 0.0,
    "augmentation.contrast": 0.0,
    "augmentation.colour": 0.0,
    "augmentation.keep": 0.95,
    "mask_model.learning_rate": 5e-3,  # app. C.1
    "mask_model.guidance_scale": 5.0,  # eq. 10
    "mask_model.schedule": "constant",
    "mask_model.max_grad_norm": None,
    "mask_model.sampling_steps": 100,
    "mask_model.position": "sampled",
}
VALUES = {
    "paper": {
        **_BOTH,
        "anomaly_tokens": 8,  # sec. 4.1
        "init_word": None,
        "encoder.architecture": "resnet50",  # sec. 3.2
        "encoder.width": 256,  # Lin et al. 2017
        "learning_rate": 5e-3,  # app. C.1
        "encoder_learning_rate": 5e-3,
        "reduction": "sum",  # eq. 5
        "reweighting": "paper",
        "blend_result": True,  # eq. 1
        "augmentation.flips": False,
        "augmentation.shift": 0.1,
        "augmentation.probability": 1.0,
        "mask_model.tokens": 4,  # sec. 4.1
        "mask_model.steps_per_defect": 30_000,  # app. C.1
    },
    "official": {
        **_BOTH,
        "anomaly_tokens": 4,
        "init_word": "anomaly",
        "encoder.architecture": "ir",
        "encoder.channels": (64, 128, 256, 512),
        "encoder.depths": (3, 4, 14, 3),
        "encoder.width": 512,
        "learning_rate": 2e-2,
        "encoder_learning_rate": 2e-2,
        "mask_policy": "bilinear_half",
        "reduction": "global_mean",
        "reweighting": "official",
        "blend_result": False,
        "augmentation.flips": True,
        "augmentation.shift": 0.0,
        "augmentation.probability": 0.5,
        "mask_model.tokens": 16,
        "mask_model.steps_per_defect": 5000,
    },
}
