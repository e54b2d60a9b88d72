"""The numerical guard: a value that is not finite ends the training with step, images and checkpoint."""

import pytest
import torch
from torch import nn

from defect_core.errors import NonFiniteError
from defect_core.evaluation.training import train_model
from defect_core.training.guard import check_module, first_non_finite, note_batch
from defect_core.training.loop import TrainingConfig, train


def _module():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def _run(module, work_dir, loss, steps=5, **settings):
    config = TrainingConfig(steps=steps, learning_rate=1e-3, weight_decay=0.0, **settings)
    return train(module, loss, config, seed=0, work_dir=work_dir, label="fit of x")


def test_the_first_loss_that_is_nan_names_its_step_and_images(tmp_path):
    module = _module()

    def loss(step, generator):
        note_batch([f"image-{step}.png"])
        value = module(torch.ones(1, 3)).sum()
        return value * float("nan") if step == 2 else value

    with pytest.raises(NonFiniteError) as caught:
        _run(module, tmp_path, loss)
    assert "fit of x: the loss is nan at step 3 (images: image-2.png)" in str(caught.value)
    assert "no checkpoint yet" in str(caught.value) and "\n" not in str(caught.value)


def test_a_gradient_that_is_infinite_is_found_although_the_loss_is_finite(tmp_path):
    module = _module()

    def loss(step, generator):
        value = module(torch.ones(1, 3)).sum()
        return (value - value.detach()).abs().sqrt()  # 0, with an undefined slope

    with pytest.raises(NonFiniteError, match=r"norm of the gradients is (inf|nan) at step 1"):
        _run(module, tmp_path, loss)


def test_a_learning_rate_that_destroys_the_weights_ends_the_training(tmp_path):
    module = _module()
    config = TrainingConfig(steps=60, learning_rate=1e38, weight_decay=0.0, warmup_steps=1)

    def loss(step, generator):
        return module(torch.ones(1, 3)).square().sum()

    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        train(module, loss, config, seed=0, work_dir=tmp_path, label="fit")


def test_the_segmenter_loop_checks_every_loss():
    model = _module()
    losses = (model(torch.ones(1, 3)).sum() * (float("inf") if step == 1 else 1.0) for step in range(3))
    with pytest.raises(NonFiniteError, match=r"segmenter: the loss is -?inf at step 2"):
        train_model(model, losses, torch.optim.AdamW(model.parameters()), steps=3, label="segmenter")


def test_the_name_of_the_first_broken_weight_is_returned():
    tensors = {"a": torch.ones(2), "n": torch.ones(1, dtype=torch.int64), "b": torch.tensor([1.0, float("inf")])}
    assert first_non_finite(tensors.items()) == "b"
    assert first_non_finite([("a", torch.ones(2))]) is None
    module = _module()
    with torch.no_grad():
        module.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="x: the weight bias is not finite"):
        check_module(module, "x")
