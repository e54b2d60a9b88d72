"""A prepared work folder with a corpus of a few scenes, shared by the tests of both pretrainings."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from defect_core.pretraining import corpus_store
from defect_core.pretraining.corpus_store import Corpus, prepare_corpus

SCENES = 24


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """The folder with tokenizer, autoencoder and corpus, rendered in this process; tests must not change it."""
    folder = tmp_path_factory.mktemp("pretraining")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_store, "ProcessPoolExecutor", lambda workers, *_, **__: ThreadPoolExecutor(workers))
        with prepare_corpus(folder, SCENES):
            pass
    return folder


@pytest.fixture
def work(prepared, tmp_path):
    """A new work folder with links to the prepared files."""
    for name in ("tokenizer", "vae", "corpus"):
        (tmp_path / name).symlink_to(prepared / name)
    return tmp_path


@pytest.fixture
def scenes():
    """The number of scenes in the corpus."""
    return SCENES


@pytest.fixture
def corpus(prepared):
    corpus = Corpus(prepared, SCENES, torch.device("cpu"))
    corpus.load_shards()
    return corpus
