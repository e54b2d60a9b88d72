"""The network: by default a U-Net on the ImageNet EfficientNet-Lite0 encoder; inputs and outputs are fixed."""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from defect_core.errors import InputError
from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.metrics.features import LITE0_MEAN, LITE0_STD, load_lite0_state

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Segmenter(nn.Module):
    """RGB uint8-range images to defect logits.

    Shape: `[B,3,S,S]` float in 0..255 -> `[B,1,S,S]` logits.
    """

    def __init__(self, config: SegmenterConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.pretrained = config.encoder_weights != "none"
        self.network = _build(config, pretrained)
        ours = config.encoder_weights != "imagenet"
        mean, std = ((LITE0_MEAN,) * 3, (LITE0_STD,) * 3) if ours else (IMAGENET_MEAN, IMAGENET_STD)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)
        # start from "a defect is rare": sigmoid(-3) is 5 %
        nn.init.constant_(self.network.segmentation_head[0].bias, -3.0)
        # channels-last halves the time of depthwise and pointwise convolutions on a CPU
        self.network = self.network.to(memory_format=torch.channels_last)
        if config.frozen_stages:
            trunk = self.network.encoder.model
            for module in (trunk.conv_stem, trunk.bn1, *list(trunk.blocks)[: config.frozen_stages]):
                module.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        scaled = (images - self.mean) / self.std
        return self.network(scaled.contiguous(memory_format=torch.channels_last))

    def train(self, mode: bool = True) -> "Segmenter":
        super().train(mode)
        # a batch of 8 is too small to re-estimate ImageNet's batch statistics; an encoder that starts at random has
        # none to keep
        for module in self.network.encoder.modules() if self.pretrained else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    @torch.inference_mode()
    def predict(self, images: NDArray[np.uint8], batch_size: int = 16) -> NDArray[np.float32]:
        """Score maps in 0..1, float32 `[N,S,S]`, of uint8 images `[N,S,S,3]`."""
        self.eval()
        device = next(self.parameters()).device
        maps = [np.zeros((0, *images.shape[1:3]), np.float32)]
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))
            logits = self(batch.permute(0, 3, 1, 2).to(device).float())
            maps.append(logits.sigmoid()[:, 0].float().cpu().numpy())
        return np.concatenate(maps)


def save_segmenter(model: Segmenter, config: SegmenterConfig, file: Path) -> None:
    """Write weights and configuration to one safetensors file (byte-stable)."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, file, metadata={"config": json.dumps(config.model_dump(mode="json"), sort_keys=True)})


def load_segmenter(file: Path, device: str = "cpu") -> Segmenter:
    """Read what `save_segmenter` wrote.

    Raises:
        InputError: the file is missing or is no segmenter.
    """
    try:
        with safe_open(file, "pt") as stored:
            settings = json.loads(stored.metadata()["config"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        model = Segmenter(SegmenterConfig(**settings), pretrained=False)
        model.load_state_dict(tensors)
    except FileNotFoundError:
        raise InputError(f"{file.name}: not found; expected a segmenter written by the segment stage") from None
    except Exception as error:
        raise InputError(f"{file.name}: no segmenter of this version: {' '.join(str(error).split())[:120]}") from None
    return model.to(device).eval()


def _build(config: SegmenterConfig, pretrained: bool) -> nn.Module:
    import segmentation_models_pytorch as smp

    classes = {
        "unet": smp.Unet,
        "upernet": smp.UPerNet,
        "deeplabv3plus": smp.DeepLabV3Plus,
        "segformer": smp.Segformer,
    }
    fetched = "imagenet" if pretrained and config.encoder_weights == "imagenet" else None
    widths = {"decoder_channels": config.decoder_channels} if config.architecture == "unet" else {}
    try:
        network = classes[config.architecture](config.encoder, encoder_weights=fetched, classes=1, **widths)
    except Exception as error:  # unknown names, weights that do not exist or cannot be fetched: each its own type
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"segment.encoder: {config.encoder!r} with {config.architecture}: {reason}") from None
    if pretrained and config.encoder_weights == "embedded":
        state = load_lite0_state()
        trunk = network.encoder.model
        trunk.load_state_dict({name: state[name] for name in trunk.state_dict()})
    return network
