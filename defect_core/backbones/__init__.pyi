from .load import Backbone as Backbone
from .load import load_backbone as load_backbone
