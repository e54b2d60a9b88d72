"""Values of Tong et al. 2026, "CADiff", from the text of the paper."""

VALUES = {
    "paper": {
        "epochs": 1000,
        "batch_size": 16,
        "learning_rate": 1e-5,
        "token_learning_rate": 1e-5,
        "schedule": "constant",
        "max_grad_norm": None,  # as in ControlNet, whose other settings are kept
        "init_word": "anomaly",
        "tune_denoiser": False,  # eq. 4: only the tokens are updated
        "balance": "image",  # eq. 4: the image-level loss
        "normal_fraction": 0.0,  # anomalous images only
        "localising": "paper",  # eq. 5
        "localising_weight": 1e-3,
        "contrast_weight": 5e-4,
        "contrast_views": 16,  # eq. 6: the images of the batch
        "self_adaptive_interaction": "attention",  # eq. 9, 10
        "focus_threshold": 0.75,
        "focus_side": 16,
        "focus_latched": False,  # eq. 11 decides for every t
        "masked_focus": True,
        "strength_range": (0.5, 1.5),  # table 4
        "intensity": "attention",  # eq. 11
        "canvas": "whole",
        "start": "noise",  # no normal image is an input
        "paste": False,
        "sampling_steps": 50,
        "guidance_scale": 7.5,  # not stated
    }
}
