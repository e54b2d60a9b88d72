from .checkpoint import load_checkpoint as load_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint
from .loop import TrainingConfig as TrainingConfig
from .loop import step_generator as step_generator
from .loop import train as train
from .muon import Muon as Muon
from .precision import inference_autocast as inference_autocast
from .precision import training_autocast as training_autocast
