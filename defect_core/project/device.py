"""The device on which a project's models run."""


def default_device() -> str:
    """Return this machine's accelerator, `cuda` or `mps`, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
