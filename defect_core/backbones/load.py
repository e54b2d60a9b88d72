"""Load a latent diffusion model: the embedded family, a folder in Stable Diffusion's layout, or a hub name."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from defect_core.backbones.locate import digest_files, find_model
from defect_core.errors import InputError

EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
LAYOUT = "vae/ unet/ text_encoder/ tokenizer/ scheduler/ with config.json and *.safetensors"
_CONFIG_FILES = {
    "vae": "config.json",
    "unet": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
# where latent diffusion's own layout (diffusers' LDMTextToImagePipeline) names a part otherwise
_LDM_FOLDERS = {"vae": "vqvae", "text_encoder": "bert"}
_FETCHED = [f"{part}/*" for part in (*_CONFIG_FILES, *_LDM_FOLDERS.values())]
_VARIANTS = ["*.bin", "*.msgpack", "*.onnx*", "*.fp16.*", "*non_ema*"]
_WEIGHT_STEMS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}


@dataclass
class Backbone:
    """A latent diffusion model (Rombach et al. 2022) with the few calls that the generators need.

    The three networks are loaded in evaluation mode with every parameter frozen; a trainer unfreezes what it trains.

    Attributes:
        name: as asked for: `embedded`, a folder or a hub name.
        folder: where its files lie.
        vae: diffusers' AutoencoderKL.
        denoiser: diffusers' UNet2DConditionModel, predicts the noise.
        text_encoder: transformers' CLIPTextModel.
        tokenizer: transformers' CLIPTokenizer.
        schedule: cumulative alphas of the training schedule, float32 [N], falling, on the CPU.
        patch_size: side of the squares folded into channels before the VAE; 1 for Stable Diffusion.
        device, dtype: where the networks lie, and their number type.
    """

    name: str
    folder: Path
    vae: Any
    denoiser: Any
    text_encoder: Any
    tokenizer: Any
    schedule: Tensor
    patch_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @property
    def resolution(self) -> int:
        """Side in pixels of the square images that it draws."""
        return self.latent_size * self.patch_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_size(self) -> int:
        """Side of the square latents."""
        return int(self.denoiser.config.sample_size)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.latent_channels)

    @property
    def text_length(self) -> int:
        """Number of tokens T that a prompt is padded or cut to."""
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over the configuration and weight files that it was loaded from."""
        return digest_folder(self.folder)

    def encode(self, images: Tensor) -> Tensor:
        """Images to latents: the mean of the VAE's posterior, normalised to about unit variance per channel.

        Args:
            images: [B, 3, R, R] in [-1, 1].

        Returns:
            [B, C, h, h] on the backbone's device, in its dtype.
        """
        images = images.to(self.device, self.dtype)
        if self.patch_size > 1:
            images = F.pixel_unshuffle(images, self.patch_size)
        mean = self.vae.encode(images).latent_dist.mean
        offset, scale = self._normalisation()
        return (mean - offset) * scale

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, C, h, h] to images [B, 3, R, R], clamped to [-1, 1]."""
        offset, scale = self._normalisation()
        images = self.vae.decode(latents.to(self.device, self.dtype) / scale + offset).sample
        if self.patch_size > 1:
            images = F.pixel_shuffle(images, self.patch_size)
        return images.clamp(-1, 1)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to the text encoder's last hidden states [B, T, D]; longer prompts are cut to T tokens."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.text_length, truncation=True, return_tensors="pt"
        )
        return self.text_encoder(input_ids=tokens.input_ids.to(self.device)).last_hidden_state

    def save(self, folder: Path) -> None:
        """Write a folder that `load_backbone` reads: the denoiser as it is now, in half precision, all else as it was.

        The digest of a Backbone in memory stays that of the folder it was loaded from.
        """
        from defect_core.backbones.architecture import save_network

        folder.mkdir(parents=True, exist_ok=True)
        for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
            source = _part(self.folder, part)
            shutil.copytree(source, folder / source.name, dirs_exist_ok=True)
        if (self.folder / "defectory.json").is_file():
            shutil.copy(self.folder / "defectory.json", folder)
        save_network(self.denoiser, folder / "unet")

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "Backbone":
        """Move the networks, in place; what is None stays as it is."""
        self.device = torch.device(device) if device is not None else self.device
        self.dtype = dtype or self.dtype
        for network in (self.vae, self.denoiser, self.text_encoder):
            torch.nn.Module.to(network, self.device, self.dtype)  # diffusers' own `to` logs a remark at every call
        return self

    def _normalisation(self) -> tuple[Tensor | float, Tensor | float]:
        """Offset and scale with latents = (z - offset) · scale; per channel where the VAE's config has both lists."""
        config = self.vae.config
        means, deviations = config.get("latents_mean"), config.get("latents_std")
        if means is None or deviations is None:
            return config.get("shift_factor") or 0.0, config.scaling_factor
        shape = (1, len(means), 1, 1)
        offset = torch.tensor(means, device=self.device, dtype=self.dtype).reshape(shape)
        scale = config.scaling_factor / torch.tensor(deviations, device=self.device, dtype=self.dtype).reshape(shape)
        return offset, scale


def load_backbone(
    name: str | Path = "embedded", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Backbone:
    """Load a backbone by name.

    Args:
        name: `embedded` (small, ships with the package, 128 px); a folder in Stable Diffusion's layout, or in that of
            latent diffusion's text-to-image model (`vqvae/`, `bert/` in place of `vae/`, `text_encoder/`), weights in
            safetensors; or a hub name such as `stable-diffusion-v1-5/stable-diffusion-v1-5`, looked for in the
            folder that the environment variable DEFECTORY_WEIGHTS names (whole name, then its last part), in the
            hub's cache, and on the hub.
        device: where to put the networks.
        dtype: their number type.

    Raises:
        InputError: nothing is found under this name, a part is missing, or a part cannot be read.
    """
    folder = find_model("backbone", str(name), EMBEDDED_FOLDER, LAYOUT, wanted=_FETCHED, unwanted=_VARIANTS)
    _check_layout(folder, str(name))
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    text_class, tokenizer_class = _text_classes(folder)
    scheduler = _guard(folder, "scheduler", lambda path: DDIMScheduler.from_config(_read_json(path)))
    backbone = Backbone(
        name=str(name),
        folder=folder,
        vae=_load_network(folder, "vae", AutoencoderKL),
        denoiser=_load_network(folder, "unet", UNet2DConditionModel),
        text_encoder=_load_network(folder, "text_encoder", text_class),
        tokenizer=_guard(folder, "tokenizer", lambda path: tokenizer_class.from_pretrained(path.parent)),
        schedule=scheduler.alphas_cumprod.float().clone(),
        patch_size=_patch_size(folder),
    )
    if backbone.denoiser.config.in_channels != backbone.latent_channels:
        raise InputError(
            f"backbone {name}: unet/ takes {backbone.denoiser.config.in_channels} channels, vae/ makes "
            f"{backbone.latent_channels}; expected the same number (inpainting models are not supported)"
        )
    return backbone.to(device, dtype)


def digest_folder(folder: Path) -> str:
    """Hex sha256 over the names and bytes of a backbone folder's configuration and weight files, in order of name."""
    files = [folder / "defectory.json", *(path for part in _CONFIG_FILES for path in _part(folder, part).rglob("*"))]
    kept = (path for path in files if path.suffix in {".json", ".txt", ".safetensors"})
    return digest_files(kept, lambda path: path.relative_to(folder).as_posix())


def _check_layout(folder: Path, name: str) -> None:
    for part, config in _CONFIG_FILES.items():
        place = _part(folder, part)
        if not (place / config).is_file():
            raise InputError(f"backbone {name}: {place.name}/{config} is missing; expected {LAYOUT}")
    # without either, transformers would make a tokenizer of no words and say nothing
    files = ("vocab.json", "tokenizer.json", *(["vocab.txt"] if _is_ldm(folder) else []))
    if not any((folder / "tokenizer" / file).is_file() for file in files):
        raise InputError(f"backbone {name}: tokenizer/vocab.json is missing; expected {LAYOUT}")
    for part, stem in _WEIGHT_STEMS.items():
        place = _part(folder, part)
        if not any((place / f"{stem}{end}").is_file() for end in (".safetensors", ".safetensors.index.json")):
            raise InputError(f"backbone {name}: {place.name}/{stem}.safetensors is missing; expected {LAYOUT}")


def _is_ldm(folder: Path) -> bool:
    return (folder / _LDM_FOLDERS["text_encoder"]).is_dir()


def _part(folder: Path, part: str) -> Path:
    return folder / (_LDM_FOLDERS.get(part, part) if _is_ldm(folder) else part)


def _text_classes(folder: Path) -> tuple[Any, Any]:
    """The classes of text encoder and tokenizer: CLIP's, or those that latent diffusion trained."""
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

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # the text encoder's loader would draw one for a fraction of a second
    try:
        return _guard(folder, part, read)
    finally:
        if shown:
            logging.enable_progress_bar()


def _guard(folder: Path, part: str, read: Any) -> Any:
    """Read one part; whatever the readers raise becomes one line that names the part."""
    try:
        return read(_part(folder, part) / _CONFIG_FILES[part])
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"backbone {folder}: {part}/ cannot be loaded ({reason}); expected {LAYOUT}") from error


def _patch_size(folder: Path) -> int:
    path = folder / "defectory.json"
    if not path.is_file():
        return 1
    try:
        size = _read_json(path)["patch_size"]
    except (KeyError, TypeError, ValueError):
        size = None
    if not isinstance(size, int) or size < 1:
        raise InputError(f"{path}: field patch_size is missing or wrong; expected a whole number, at least 1")
    return size


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
