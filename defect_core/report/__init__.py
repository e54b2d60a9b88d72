"""Results for people: the leaderboard, contact sheets of images, charts, and the HTML report.

A module here reads metrics and images of a project and presents them. It computes no score of an image.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
