"""Load a latent diffusion model: the embedded one, a folder in the layout of diffusers, or a model of the hub."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from defect_core.backbones.compute import DEFAULT_COMPUTE, ComputeConfig
from defect_core.backbones.locate import digest_files, find_model
from defect_core.backbones.prediction import check_prediction, check_schedule, predict_noise_from_velocity
from defect_core.backbones.save import save_network
from defect_core.errors import InputError

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
LAYOUT = "vae/ unet/ text_encoder/ tokenizer/ scheduler/ with config.json and *.safetensors"
PATCH_FILE = "defectory.json"  # states the patch size, which the layout of diffusers cannot express
_CONFIG_FILES = {
    "vae": "config.json",
    "unet": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
# The layout of LDMTextToImagePipeline in diffusers (Rombach et al. 2022) has other names for two parts.
_LDM_FOLDERS = {"vae": "vqvae", "text_encoder": "bert"}
_ALLOW_PATTERNS = [f"{part}/*" for part in (*_CONFIG_FILES, *_LDM_FOLDERS.values())]
_IGNORE_PATTERNS = ["*.bin", "*.msgpack", "*.onnx*", "*.fp16.*", "*non_ema*"]
_WEIGHT_STEMS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}
_DIGESTED_SUFFIXES = {".json", ".txt", ".safetensors"}
_Part = TypeVar("_Part")


@dataclass
class Backbone:
    """A latent diffusion model (Rombach et al. 2022) with the operations that the generators need.

    The three networks are in evaluation mode and frozen. A trainer enables the gradients of the parameters it trains.
    In the shapes, B is the batch size, R the `resolution`, C `latent_channels`, h `latent_size`, T `text_length` and D
    the width of the text encoder. The networks are typed `Any`, because diffusers and transformers build their
    attribute `config` at run time.

    Attributes:
        name: the name given to `load_backbone`.
        folder: the folder that contains the files of the model.
        vae: AutoencoderKL of diffusers: images [B, 3 p², R/p, R/p] to latents [B, C, h, h], where p is `patch_size`.
        denoiser: UNet2DConditionModel of diffusers. It predicts the noise [B, C, h, h] from noisy latents [B, C, h, h],
            timesteps [B] and text embeddings [B, T, D]; that of a model with v-prediction is converted to the noise.
        text_encoder: CLIPTextModel of transformers, or LDMBertModel of diffusers.
        tokenizer: the tokenizer that belongs to `text_encoder`.
        alphas_cumprod: cumulative products of alpha of the noise schedule, float32 [N] in (0, 1), decreasing with the
            timestep; always on the CPU.
        patch_size: side p of the patches that are folded into channels before the VAE; 1 for Stable Diffusion.
        device: device of the networks.
        dtype: number type of the networks.
        compute: how generators train and sample with the networks.
    """

    name: str
    folder: Path
    vae: Any
    denoiser: Any
    text_encoder: Any
    tokenizer: "PreTrainedTokenizerBase"
    alphas_cumprod: Tensor
    patch_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    compute: ComputeConfig = DEFAULT_COMPUTE

    @property
    def resolution(self) -> int:
        """Side R of the square images in pixels."""
        return self.latent_size * self.patch_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_size(self) -> int:
        """Side h of the square latents."""
        return int(self.denoiser.config.sample_size)

    @property
    def latent_channels(self) -> int:
        """Number of channels C of the latents."""
        return int(self.vae.config.latent_channels)

    @property
    def text_length(self) -> int:
        """Number of tokens T to which a prompt is padded or truncated."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) over the configuration and weight files in `folder`."""
        return digest_folder(self.folder)

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents of images: the mean of the VAE's posterior, normalised to about unit variance.

        Args:
            images: [B, 3, R, R] in [-1, 1], on any device.

        Returns:
            [B, C, h, h], on the device and in the dtype of the backbone.
        """
        images = images.to(self.device, self.dtype)
        if self.patch_size > 1:
            images = F.pixel_unshuffle(images, self.patch_size)
        mean = self.vae.encode(images).latent_dist.mean
        offset, scale = self._normalisation()
        return (mean - offset) * scale

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of normalised latents.

        Args:
            latents: [B, C, h, h], on any device.

        Returns:
            [B, 3, R, R], clamped to [-1, 1], on the device and in the dtype of the backbone.
        """
        offset, scale = self._normalisation()
        images = self.vae.decode(latents.to(self.device, self.dtype) / scale + offset).sample
        if self.patch_size > 1:
            images = F.pixel_shuffle(images, self.patch_size)
        return images.clamp(-1, 1)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Return the last hidden states of the text encoder.

        Args:
            prompts: B prompts; each is padded or truncated to T tokens.

        Returns:
            [B, T, D], on the device and in the dtype of the backbone.
        """
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.text_length, truncation=True, return_tensors="pt"
        )
        return self.text_encoder(input_ids=tokens.input_ids.to(self.device)).last_hidden_state

    def save(self, folder: Path) -> None:
        """Write a folder that `load_backbone` reads.

        The current weights of the denoiser are written in half precision. The other parts are copied from
        `self.folder`. `self.digest` does not change.

        Args:
            folder: the folder to write; missing folders are created.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
            source = _part_folder(self.folder, part)
            shutil.copytree(source, folder / source.name, dirs_exist_ok=True)
        if (self.folder / PATCH_FILE).is_file():
            shutil.copy(self.folder / PATCH_FILE, folder)
        save_network(self.denoiser, folder / "unet")

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "Backbone":
        """Move the networks in place and return the backbone.

        Args:
            device: the new device; None keeps the current one.
            dtype: the new number type; None keeps the current one.
        """
        self.device = torch.device(device) if device is not None else self.device
        self.dtype = dtype or self.dtype
        for network in (self.vae, self.denoiser, self.text_encoder):
            torch.nn.Module.to(network, self.device, self.dtype)  # the `to` of diffusers logs a warning at each call
        return self

    def configure(self, compute: ComputeConfig) -> "Backbone":
        """Prepare the networks for the settings of `compute` in place, and return the backbone."""
        self.compute = compute
        if compute.channels_last:
            for network in (self.vae, self.denoiser):
                torch.nn.Module.to(network, memory_format=torch.channels_last)
        if compute.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()  # without effect when no gradients are computed
        if compute.compile:
            self.denoiser.compile()
        return self

    def _normalisation(self) -> tuple[Tensor | float, Tensor | float]:
        """Return offset and scale in latents = (mean - offset) · scale, per channel if the VAE's config has lists."""
        config = self.vae.config
        means, deviations = config.get("latents_mean"), config.get("latents_std")
        if means is None or deviations is None:
            return config.get("shift_factor") or 0.0, config.scaling_factor
        shape = (1, len(means), 1, 1)
        offset = torch.tensor(means, device=self.device, dtype=self.dtype).reshape(shape)
        scale = config.scaling_factor / torch.tensor(deviations, device=self.device, dtype=self.dtype).reshape(shape)
        return offset, scale


def load_backbone(
    name: str | Path = "embedded",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    compute: ComputeConfig = DEFAULT_COMPUTE,
) -> Backbone:
    """Load a latent diffusion model.

    Only weights in safetensors format are read. Models that predict the noise or the velocity (Stable Diffusion 2.x)
    are supported; inpainting models, Stable Diffusion XL and schedules with zero terminal SNR are not.

    Args:
        name: one of

            - "embedded": the small model that ships with the package (128 px);
            - a folder in the layout of diffusers for Stable Diffusion (`vae/`, `unet/`, `text_encoder/`, `tokenizer/`,
              `scheduler/`) or LDMTextToImagePipeline (`vqvae/` and `bert/` for `vae/` and `text_encoder/`);
            - a hub name "OWNER/MODEL". It is looked up in the folder of the environment variable DEFECTORY_WEIGHTS (as
              OWNER/MODEL, then as MODEL), in the hub's cache, and on the hub, from which it is downloaded.
        device: device of the networks, as torch accepts it.
        dtype: number type of the networks. Training needs float32; `compute.dtype` is what they compute in.
        compute: how generators train and sample with the networks; see docs/params.md.

    Returns:
        The backbone, in evaluation mode and frozen.

    Raises:
        InputError: there is no model with this name, a part is missing or cannot be read, the parts do not fit, or the
            model is of another family. The message is one line.

    >>> backbone = load_backbone("embedded")
    >>> backbone.resolution, backbone.latent_channels, backbone.latent_size
    (128, 48, 16)
    >>> backbone.encode(torch.zeros(1, 3, 128, 128)).shape
    torch.Size([1, 48, 16, 16])
    """
    patterns = {"allow_patterns": _ALLOW_PATTERNS, "ignore_patterns": _IGNORE_PATTERNS}
    folder = find_model("backbone", str(name), EMBEDDED_FOLDER, LAYOUT, **patterns)
    _check_layout(folder, str(name))
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    text_class, tokenizer_class = _text_classes(folder)
    scheduler: Any = _read_part(folder, "scheduler", lambda path: DDIMScheduler.from_config(_read_json(path)))
    backbone = Backbone(
        name=str(name),
        folder=folder,
        vae=_load_network(folder, "vae", AutoencoderKL),
        denoiser=_load_network(folder, "unet", UNet2DConditionModel),
        text_encoder=_load_network(folder, "text_encoder", text_class),
        tokenizer=_read_part(folder, "tokenizer", lambda path: tokenizer_class.from_pretrained(path.parent)),
        alphas_cumprod=scheduler.alphas_cumprod.float().clone(),
        patch_size=_read_patch_size(folder),
    )
    _check_parts(backbone)
    kind = str(scheduler.config.get("prediction_type", "epsilon"))
    check_schedule(str(name), backbone.alphas_cumprod, kind)
    return _convert_prediction(backbone.to(device, dtype), kind).configure(compute)


def _convert_prediction(backbone: Backbone, kind: str) -> Backbone:
    """Return the backbone with a denoiser that returns the noise, whatever its network predicts."""
    if kind == "v_prediction":
        with torch.no_grad():
            check_prediction(backbone.name, backbone.denoiser, backbone.encode_text([""]))
        predict_noise_from_velocity(backbone.denoiser, backbone.alphas_cumprod)
    return backbone


def _check_parts(backbone: Backbone) -> None:
    """Raise InputError if the parts do not fit, or the U-Net needs inputs that the methods do not have."""
    config, text = backbone.denoiser.config, backbone.text_encoder.config
    if config.in_channels != backbone.latent_channels:
        raise InputError(
            f"backbone {backbone.name}: unet/ has {config.in_channels} input channels and vae/ has "
            f"{backbone.latent_channels} latent channels; expected the same number (no inpainting model)"
        )
    for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if config.get(key) is not None:
            raise InputError(
                f"backbone {backbone.name}: unet/ needs further inputs ({key} is {config[key]!r}, as in Stable "
                "Diffusion XL); expected a model that reads latents and text only, such as Stable Diffusion 1.x or 2.x"
            )
    width = getattr(text, "hidden_size", None) or text.d_model
    widths = config.cross_attention_dim
    for read in {widths} if isinstance(widths, int) else set(widths):
        if read != width:
            raise InputError(
                f"backbone {backbone.name}: unet/ reads text of width {read} and text_encoder/ gives {width}; "
                "expected the same width: take both from one model"
            )


def digest_folder(folder: Path) -> str:
    """Return the sha256 (hex) over the names and bytes of the configuration and weight files of a backbone folder."""
    parts = (path for part in _CONFIG_FILES for path in _part_folder(folder, part).rglob("*"))
    files = (path for path in (folder / PATCH_FILE, *parts) if path.suffix in _DIGESTED_SUFFIXES)
    return digest_files(files, lambda path: path.relative_to(folder).as_posix())


def _check_layout(folder: Path, name: str) -> None:
    def require(part: str, *files: str) -> None:
        location = _part_folder(folder, part)
        if not any((location / file).is_file() for file in files):
            raise InputError(f"backbone {name}: {location.name}/{files[0]} is missing; expected {LAYOUT}")

    for part, config in _CONFIG_FILES.items():
        require(part, config)
    # Without a vocabulary, transformers silently creates a tokenizer that knows no token.
    require("tokenizer", "vocab.json", "tokenizer.json", *(["vocab.txt"] if _is_ldm(folder) else []))
    for part, stem in _WEIGHT_STEMS.items():
        require(part, f"{stem}.safetensors", f"{stem}.safetensors.index.json")


def _is_ldm(folder: Path) -> bool:
    return (folder / _LDM_FOLDERS["text_encoder"]).is_dir()


def _part_folder(folder: Path, part: str) -> Path:
    return folder / (_LDM_FOLDERS.get(part, part) if _is_ldm(folder) else part)


def _text_classes(folder: Path) -> tuple[Any, Any]:
    """Return the classes of text encoder and tokenizer for the layout of the folder."""
    if _is_ldm(folder):
        from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
        from transformers.models.bert.tokenization_bert import BertTokenizer

        return LDMBertModel, BertTokenizer
    from transformers.models.clip.modeling_clip import CLIPTextModel
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    return CLIPTextModel, CLIPTokenizer


def _load_network(folder: Path, part: str, network_class: Any) -> Any:
    from transformers.utils import logging

    def read(config: Path) -> Any:
        network, info = network_class.from_pretrained(config.parent, use_safetensors=True, output_loading_info=True)
        if info["missing_keys"]:
            raise ValueError(f"no weight named {min(info['missing_keys'])}")
        return network.eval().requires_grad_(False)

    is_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # the text encoder loads in a fraction of a second
    try:
        return _read_part(folder, part, read)
    finally:
        if is_enabled:
            logging.enable_progress_bar()


def _read_part(folder: Path, part: str, read: Callable[[Path], _Part]) -> _Part:
    """Return `read(configuration file of a part)`, and turn every error into an InputError that names the part."""
    try:
        return read(_part_folder(folder, part) / _CONFIG_FILES[part])
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"backbone {folder}: {part}/ cannot be loaded ({reason}); expected {LAYOUT}") from error


def _read_patch_size(folder: Path) -> int:
    path = folder / PATCH_FILE
    if not path.is_file():
        return 1
    try:
        size = _read_json(path)["patch_size"]
    except (KeyError, TypeError, ValueError):
        size = None
    if not isinstance(size, int) or size < 1:
        raise InputError(f"{path}: patch_size is {size!r}; expected an integer >= 1")
    return size


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
