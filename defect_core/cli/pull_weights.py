"""`defectory weights pull`: fetches the weights of FID, KID, Inception Score and LPIPS, and the backbone.

Files go where torch hub keeps them, under its names, so that every score finds them without a setting.
"""

import hashlib
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from defect_core.errors import InputError
from defect_core.progress import track

MIRROR_VARIABLE = "DEFECTORY_MIRROR"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class WeightsFile:
    """A file with published weights.

    Attributes:
        about: what needs the file.
        url: where its authors publish it; the name ends with the first digits of its sha256, as torch hub checks them.
        alternative: a file with the same weights in safetensors format, which serves as well.
        megabytes: size of the download.
    """

    about: str
    url: str
    alternative: str
    megabytes: int

    @property
    def name(self) -> str:
        """The file name in torch hub's cache."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def digest(self) -> str:
        """The first hexadecimal digits of the sha256."""
        found = re.search(r"-([0-9a-f]{8,})\.pth$", self.name)
        return found.group(1) if found else ""


_TORCH = "https://download.pytorch.org/models"
FILES = (
    WeightsFile(
        "FID, KID, Inception Score",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "inception_v3_fid_2015_pool3.safetensors",
        96,
    ),
    WeightsFile("LPIPS (alex)", f"{_TORCH}/alexnet-owt-7be5be79.pth", "alexnet_features_imagenet.safetensors", 244),
    WeightsFile("LPIPS (vgg)", f"{_TORCH}/vgg16-397923af.pth", "vgg16_features_imagenet_fp16.safetensors", 553),
)


def cache_folder() -> Path:
    """Return the folder in which torch hub keeps weights."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def missing_files(files: Sequence[WeightsFile] = FILES) -> list[WeightsFile]:
    """Return the files that are neither in DEFECTORY_WEIGHTS nor in torch hub's cache, under either name."""
    folders = [cache_folder(), *(Path(folder) for folder in [os.environ.get("DEFECTORY_WEIGHTS")] if folder)]
    return [
        file for file in files if not any((each / name).is_file() for each in folders for name in _names_of(file, each))
    ]


def pull_weights(files: Sequence[WeightsFile], mirror: str | None = None, source: Path | None = None) -> list[Path]:
    """Fetch files into torch hub's cache and return their paths.

    Args:
        files: which files.
        mirror: URL of a folder with files of the same names; None: the environment variable DEFECTORY_MIRROR, else the
            addresses of the authors.
        source: folder to copy from, without network; files in safetensors format are accepted too.

    Raises:
        InputError: a file is missing, its digest is wrong, or the download fails. Complete files stay.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    mirror = mirror or os.environ.get(MIRROR_VARIABLE)
    return [_copy(file, source, folder) if source else _download(file, mirror, folder) for file in files]


def _names_of(file: WeightsFile, folder: Path) -> tuple[str, ...]:
    return (file.name, file.alternative) if folder == cache_folder() else (file.alternative,)


def _copy(file: WeightsFile, source: Path, folder: Path) -> Path:
    for name in (file.name, file.alternative):
        if (source / name).is_file():
            part = folder / f"{name}.part"
            shutil.copy(source / name, part)
            return _accept(part, folder / name, file.digest if name == file.name else "", str(source / name))
    raise InputError(f"{source}: has neither {file.name} nor {file.alternative}; expected one of them")


def _download(file: WeightsFile, mirror: str | None, folder: Path) -> Path:
    """Download to `NAME.part`, from where an interrupted download ended, then check and rename."""
    url = f"{mirror.rstrip('/')}/{file.name}" if mirror else file.url
    part = folder / f"{file.name}.part"
    done = part.stat().st_size if part.is_file() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        with urllib.request.urlopen(request, timeout=60) as answer:
            resumes = answer.status == 206
            total = int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if resumes else "wb") as stream:
                for _ in track(range(-(-total // _BLOCK) or 1), f"{file.name} ({file.about})"):
                    stream.write(answer.read(_BLOCK if total else -1))
            if total and part.stat().st_size < total + done * resumes:
                raise OSError("the connection ended early")
    except (OSError, ValueError, urllib.error.URLError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = " ".join(str(error).split())
        raise InputError(
            f"{url}: the download failed ({reason}); call it again to continue, name another address with --mirror, "
            "or a folder with --from"
        ) from None
    return _accept(part, folder / file.name, file.digest, url)


def _accept(part: Path, target: Path, digest: str, origin: str) -> Path:
    with part.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(digest):
        part.unlink()
        raise InputError(
            f"{origin}: sha256 begins with {found[: len(digest)]}; expected {digest}: the file is damaged or another"
        )
    part.replace(target)
    return target
