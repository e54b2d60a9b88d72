"""The segmentation network: by default a U-Net on the ImageNet EfficientNet-Lite0 encoder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from defect_core.errors import InputError
from defect_core.evaluation.segmentation.config import SegmenterConfig
from defect_core.metrics.features import LITE0_MEAN, LITE0_STD, load_lite0_state

if TYPE_CHECKING:
    from segmentation_models_pytorch.base import SegmentationModel

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Before training each pixel is a defect with a probability of 5 % (sigmoid(-3)), because defects are rare.
INITIAL_LOGIT = -3.0


class Segmenter(nn.Module):
    """A network that computes defect logits of RGB images.

    Args:
        config: settings.
        pretrained: whether to load the encoder weights that `config` names; False if a state dict is loaded afterwards.

    Shape: `[B,3,S,S]` float in 0..255 -> `[B,1,S,S]` logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: SegmenterConfig, pretrained: bool = True) -> None:
        super().__init__()
        self.pretrained = config.encoder_weights != "none"
        network = _build_network(config, pretrained)
        is_lite0 = config.encoder_weights != "imagenet"
        mean, std = ((LITE0_MEAN,) * 3, (LITE0_STD,) * 3) if is_lite0 else (IMAGENET_MEAN, IMAGENET_STD)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)
        head: Any = network.segmentation_head
        nn.init.constant_(head[0].bias, INITIAL_LOGIT)
        # Channels-last halves the time of depthwise and pointwise convolutions on a CPU.
        self.network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if config.frozen_stages:
            trunk: Any = self.encoder.model
            for module in (trunk.conv_stem, trunk.bn1, *list(trunk.blocks)[: config.frozen_stages]):
                module.requires_grad_(False)

    @property
    def encoder(self) -> nn.Module:
        """Encoder of the network, without the decoder and the head."""
        encoder: Any = self.network.encoder
        return encoder

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images."""
        scaled = (images - self.mean) / self.std
        return self.network(scaled.contiguous(memory_format=torch.channels_last))

    def train(self, mode: bool = True) -> "Segmenter":
        """Set training mode, in which the batch statistics of a pretrained encoder stay fixed."""
        super().train(mode)
        # A batch of 8 is too small to estimate the batch statistics again. A random encoder has none to preserve.
        for module in self.encoder.modules() if self.pretrained else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    @torch.inference_mode()
    def predict(self, images: NDArray[np.uint8], batch_size: int = 16) -> NDArray[np.float32]:
        """Return score maps in 0..1, float32 `[N,S,S]`, of uint8 images `[N,S,S,3]`."""
        self.eval()
        device = next(self.parameters()).device
        maps = [np.zeros((0, *images.shape[1:3]), np.float32)]
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))
            logits = self(batch.permute(0, 3, 1, 2).to(device).float())
            maps.append(logits.sigmoid()[:, 0].float().cpu().numpy())
        return np.concatenate(maps)


def save_segmenter(model: Segmenter, config: SegmenterConfig, file: Path) -> None:
    """Write weights and settings to a safetensors file; the same model gives the same bytes."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, file, metadata={"config": json.dumps(config.model_dump(mode="json"), sort_keys=True)})


def load_segmenter(file: Path, device: str = "cpu") -> Segmenter:
    """Return the segmenter that `save_segmenter` wrote, in eval mode.

    Args:
        file: safetensors file.
        device: torch device of the model.

    Raises:
        InputError: the file is missing or contains no segmenter.
    """
    try:
        with safe_open(file, "pt") as stored:
            settings = json.loads(stored.metadata()["config"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not iterable)
        model = Segmenter(SegmenterConfig(**settings), pretrained=False)
        model.load_state_dict(tensors)
    except FileNotFoundError:
        raise InputError(f"{file.name}: not found; expected a segmenter written by the segment stage") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{file.name}: no segmenter of this version ({reason}); expected one that the segment stage wrote"
        ) from None
    return model.to(device).eval()


def _build_network(config: SegmenterConfig, pretrained: bool) -> "SegmentationModel":
    import segmentation_models_pytorch as smp

    classes = {
        "unet": smp.Unet,
        "upernet": smp.UPerNet,
        "deeplabv3plus": smp.DeepLabV3Plus,
        "segformer": smp.Segformer,
    }
    weights = "imagenet" if pretrained and config.encoder_weights == "imagenet" else None
    widths = {"decoder_channels": config.decoder_channels} if config.architecture == "unet" else {}
    try:
        network = classes[config.architecture](config.encoder, encoder_weights=weights, classes=1, **widths)
    except Exception as error:  # Unknown names and missing weights raise exceptions of several types.
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"segment.encoder: {config.encoder!r} with {config.architecture}: {reason}") from None
    if pretrained and config.encoder_weights == "embedded":
        state = load_lite0_state()
        trunk: Any = network.encoder.model
        trunk.load_state_dict({name: state[name] for name in trunk.state_dict()})
    return network
