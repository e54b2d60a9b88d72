"""How much of a picture the autoencoder keeps: `python -m defect_core.backbones.measure FOLDER [--backbone NAME]`."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from defect_core.backbones.load import Backbone, load_backbone
from defect_core.errors import InputError
from defect_core.progress import track

_BATCH = 16


def main(arguments: list[str] | None = None) -> None:
    """Print, as JSON, the number of pictures and the mean round-trip PSNR in dB for every folder."""
    parser = argparse.ArgumentParser(description="Round-trip PSNR of a backbone's autoencoder on folders of pictures.")
    parser.add_argument("folders", type=Path, nargs="+", help="folders, searched through, of .png and .jpg files")
    parser.add_argument("--backbone", default="embedded", help="name or folder, as for load_backbone")
    parser.add_argument("--ending", default=".png .jpg .jpeg", help="file endings to take; a mask is no picture")
    options = parser.parse_args(arguments)
    backbone, endings = load_backbone(options.backbone), set(options.ending.split())
    print(json.dumps({str(folder): _measure(backbone, folder, endings) for folder in options.folders}, indent=2))


def round_trip_psnr(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    """PSNR in dB of every image [B, 3, R, R] in [-1, 1] after encode and decode: float [B]; the peak is 2."""
    with torch.inference_mode():
        errors = (backbone.decode(backbone.encode(images)).float().cpu() - images).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / errors.clamp(min=1e-10))


def _measure(backbone: Backbone, folder: Path, endings: set[str]) -> dict[str, float]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    if not paths:
        raise InputError(
            f"{folder}: no pictures; expected a folder with files ending in {' or '.join(sorted(endings))}"
        )
    size = (backbone.resolution, backbone.resolution)
    values = []
    for start in track(range(0, len(paths), _BATCH), "round trip"):
        pictures = [Image.open(path).convert("RGB") for path in paths[start : start + _BATCH]]
        array = np.stack([np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) for picture in pictures])
        images = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1
        values.append(round_trip_psnr(backbone, images))
    return {"pictures": len(paths), "psnr_db": round(float(torch.cat(values).mean()), 2)}


if __name__ == "__main__":
    main()
