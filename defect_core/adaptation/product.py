"""Adaptation of a backbone to one product, written as a folder in the layout of the original backbone."""

from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import save_file

from defect_core.adaptation.adapt import adapt_denoiser, train_normal_denoiser
from defect_core.adaptation.config import AdaptConfig
from defect_core.adaptation.normal_sampler import DENOISER_FILE, NormalSampler
from defect_core.adaptation.sampler_choice import choose_sampler
from defect_core.backbones.load import Backbone
from defect_core.data.files import write_json
from defect_core.data.records import save_png
from defect_core.generators.base import Example
from defect_core.seeds import derive_seed

SAMPLES = 20  # sampled normal images that are stored for people to look at
CANDIDATE_SAMPLES = 50  # sampled normal images that decide between the samplers


def adapt_to_product(
    backbone: Backbone,
    load_original: Callable[[], Backbone],
    examples: Sequence[Example],
    config: AdaptConfig,
    folder: Path,
    work_dir: Path,
    base_seed: int,
) -> None:
    """Adapt a backbone to the normal images of one product and write it to a folder.

    Besides the adapted backbone, the folder gets:

    - `adaptation.json`: the training curve of the generators' denoiser.
    - `normal_denoiser.safetensors` and `normal_denoiser_training.json`: the denoiser that samples normal images and its
      training curve, if `config.normal_sampler_steps` is not 0.
    - `normal_sampler.json` and, if it brings the samples nearer to the real images, `sensor_noise.safetensors`.
    - `samples/`: normal images, sampled from noise.

    Args:
        backbone: its denoiser is changed.
        load_original: loads the backbone with its original weights, which autoguidance needs after the training.
        examples: normal training images, at least two.
        config: settings.
        folder: an existing folder.
        work_dir: folder of the checkpoints; a killed run continues from there.
        base_seed: base seed of the project.
    """
    product = examples[0].product
    seed = derive_seed(base_seed, product, "", "adapt", 0)
    curve = adapt_denoiser(backbone, examples, config, work_dir, seed)
    write_json(folder / "adaptation.json", curve, sort_keys=False)
    backbone.save(folder)
    if config.normal_sampler_steps:
        curve = train_normal_denoiser(backbone, examples, config, work_dir / "normal_denoiser", seed)
        write_json(folder / "normal_denoiser_training.json", curve, sort_keys=False)
        state = backbone.denoiser.state_dict()
        save_file({name: value.half().cpu().contiguous() for name, value in state.items()}, folder / DENOISER_FILE)
    sampler = NormalSampler.from_examples(backbone, load_original(), examples)
    seeds = [derive_seed(base_seed, product, "", "tried", index) for index in range(CANDIDATE_SAMPLES)]
    sampler, candidates = choose_sampler(sampler, seeds)
    sampler.save(folder, candidates)
    seeds = [derive_seed(base_seed, product, "", "drawn", index) for index in range(SAMPLES)]
    for index, image in enumerate(sampler.sample(seeds)):
        save_png(image, folder / f"samples/{index:02d}.png")
