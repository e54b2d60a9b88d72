"""The torchmetrics classes in Lightning: logged as objects, they accumulate over batches and reset between epochs."""

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from defect_core.metrics import LocalisationScores, PerRegionOverlap, PixelAveragePrecision, localisation_scores


class Segmenter(LightningModule):
    """One convolution; it keeps the score maps of each epoch, to compute the expected scores from them."""

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Conv2d(3, 1, 3, padding=1)
        self.train_ap = PixelAveragePrecision()
        self.validation = MetricCollection({"ap": PixelAveragePrecision(), "pro": PerRegionOverlap()}, prefix="val_")
        self.all_scores = LocalisationScores()
        self.maps = {"train": [], "val": []}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def training_step(self, batch):
        images, masks = batch
        logits = self.network(images)
        self.train_ap(self._keep("train", logits), masks)
        self.log("train_ap", self.train_ap, on_step=False, on_epoch=True)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, masks.float())

    def validation_step(self, batch):
        images, masks = batch
        scores = self._keep("val", self.network(images))
        self.validation.update(scores, masks)
        self.all_scores.update(scores, masks)
        self.log_dict(self.validation)

    def on_validation_epoch_end(self):
        self.log_dict({f"all_{name}": value for name, value in self.all_scores.compute().items()})
        self.all_scores.reset()

    def _keep(self, name, logits):
        scores = logits.detach().sigmoid()
        self.maps[name].append(scores)
        return scores


class Recorder(Callback):
    """Keeps what was logged in each epoch, beside the score maps of the epoch."""

    def __init__(self):
        self.epochs = []

    def on_validation_epoch_start(self, trainer, module):
        module.maps["val"].clear()

    def on_train_epoch_start(self, trainer, module):
        module.maps["train"].clear()

    def on_train_epoch_end(self, trainer, module):
        logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
        self.epochs.append((logged, {name: torch.cat(maps)[:, 0].numpy() for name, maps in module.maps.items()}))


def _images(seed):
    """Return 6 images of noise, brighter inside their masks, and the masks."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(6, 1, 16, 16, dtype=torch.bool)
    for number in range(1, 6):
        masks[number, :, number : number + 5, 2:9] = True
    return torch.randn(6, 3, 16, 16, generator=generator) + 0.8 * masks, masks


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*treespec, LeafSpec:FutureWarning")
def test_logged_metrics_equal_the_scores_of_all_images_of_each_epoch(tmp_path):
    torch.manual_seed(0)
    recorder, (_, masks) = Recorder(), _images(1)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=1, callbacks=[recorder], default_root_dir=tmp_path, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1,
    )  # fmt: skip
    loaders = [DataLoader(TensorDataset(*_images(seed)), batch_size=2) for seed in (0, 1)]
    trainer.fit(Segmenter(), *loaders)
    assert len(recorder.epochs) == 2
    for logged, maps in recorder.epochs:
        expected = localisation_scores(maps["val"], masks[:, 0].numpy())
        assert {"all_pixel_ap", "all_iou", "all_image_ap"} <= logged.keys()
        assert logged["val_ap"] == pytest.approx(expected["pixel_ap"], abs=1e-6)
        assert logged["val_pro"] == pytest.approx(expected["pro"], abs=1e-6)
        for name, value in logged.items():
            if name.startswith("all_"):
                assert value == pytest.approx(expected[name.removeprefix("all_")], abs=1e-6), name
        trained = localisation_scores(maps["train"], _images(0)[1][:, 0].numpy())
        assert logged["train_ap"] == pytest.approx(trained["pixel_ap"], abs=1e-6)
    assert recorder.epochs[0][0]["val_ap"] != recorder.epochs[1][0]["val_ap"]
