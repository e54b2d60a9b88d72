from .scene import Scene as Scene
from .scene import crop_view as crop_view
from .scene import render_scene as render_scene
from .scene import vocabulary_texts as vocabulary_texts
