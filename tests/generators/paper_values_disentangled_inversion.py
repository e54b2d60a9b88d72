"""Values of Cho et al., "Revisiting DDIM Inversion for Controlling Defect Generation", from the text of the paper."""

VALUES = {
    "paper": {
        "models": "defect",  # section 4.1: a model for each defect type of each object
        "steps": 500,  # section 4.1
        "balance": "area",  # eq. 5
        "canvas": "whole",  # eq. 8: the latent of the normal image
        "sampling_steps": 50,  # section 4.1
        "mode": "paper",  # eq. 9
        "start": "noise",  # theorem 1
        "paste": False,  # eq. 9 ends with the latent; nothing is pasted
        "refinement": "attention",  # eq. 13
        "guidance_scale": 1.0,  # none is mentioned
        "refinement_sides": (16, 32),  # not named; at 512 px
        "learning_rate": 5e-6,  # not stated; DreamBooth, which the paper follows
        "schedule": "constant",  # not stated; DreamBooth
        "batch_size": 2,  # not stated
    }
}
