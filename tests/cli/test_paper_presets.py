"""The presets `paper-METHOD`: method, backbone, split, masks, filters and evaluation of the paper, together."""

import pytest

from defect_core.cli.protocols import PROTOCOLS
from defect_core.cli.scaffold import PAPER_PROTOCOLS, PRESETS, init_project
from defect_core.generators.paper_table import methods_with_components
from defect_core.generators.registry import generator_config
from defect_core.project.paths import Project

# Backbone and resolution are named in the papers; "unstated" means that the paper names no version.
BACKBONES = {
    "anomaly-diffusion": "CompVis/ldm-text2im-large-256",
    "cadiff": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "defectdiffu": "stable-diffusion-v1-5/stable-diffusion-v1-5",  # only its VAE
    "disentangled-inversion": "stable-diffusion-v1-5/stable-diffusion-v1-5",  # unstated
    "seas": "CompVis/stable-diffusion-v1-4",
}


def test_every_method_with_a_component_table_has_a_preset():
    assert {f"paper-{name}" for name in methods_with_components()} <= set(PAPER_PROTOCOLS) <= set(PRESETS)


@pytest.mark.parametrize("preset", [f"paper-{name}" for name in methods_with_components()])
def test_a_paper_preset_selects_method_backbone_and_protocol_and_no_filter(preset, tmp_path):
    init_project(tmp_path / "p", preset, with_git=False)
    params, method = Project(tmp_path / "p").params, preset.removeprefix("paper-")
    assert params.generators == (method,) and params.arms == ("real_only", method)
    assert params.backbone == BACKBONES[method]
    assert params.generator_settings(method) == generator_config(method, {"variant": "paper"})
    for section, values in PROTOCOLS[PAPER_PROTOCOLS[preset]].items():
        for key, value in values.items():
            assert getattr(getattr(params, section), key) == (tuple(value) if isinstance(value, list) else value)
    limits = params.synthesize
    assert (limits.min_change, limits.min_area, limits.min_on_product, limits.min_distance) == (0, 1, 0, 0)
    assert limits.max_change_outside is None and params.adapt is None and params.release is None
