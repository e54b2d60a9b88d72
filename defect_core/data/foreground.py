"""Foreground of an image: which pixels belong to the product, its pose, and whether its texture has a direction.

The thresholds have no published source. They were set by hand, so that an uncertain image counts as all foreground.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from defect_core.data.masks import fill_small_holes, label_components

_REDUCED_SIDE = 96  # pixels of the longer side at which the foreground is segmented
_BLUR = 1.2  # standard deviation in reduced pixels; removes sensor noise before thresholding
_BLUR_TRUNCATE = 2.5  # standard deviations
_BORDER_WIDTH = 2  # reduced pixels from which the background colour is taken
_MIN_PRODUCT, _MAX_PRODUCT = 0.02, 0.92  # fractions of the image; outside this range the threshold means nothing
_MIN_CONTRAST = 18.0  # grey levels between the mean distances of background and product
_MIN_CONTRAST_RATIO = 3.0  # the same contrast in standard deviations of the background
_MIN_BACKGROUND_BORDER = 0.7  # fraction of the border that must be background
_MIN_OUTLINE_SLOPE = 6.0  # mean slope at the outline relative to the background: uneven light has no outline
_BACKGROUND_DISTANCE = 4  # reduced pixels from the product at which the slope of the background is measured
_MAX_COMPONENTS, _MIN_IN_COMPONENTS = 5, 0.85  # the largest components must hold this fraction of the product
_HOLE_FRACTION = 0.004  # of the image; smaller holes are reflections on the product and are filled

_DIRECTION_SIDE = 256  # pixels of the longer side at which the direction of a texture is measured
_GRADIENT_SIGMA = 1  # pixels
_GRADIENT_QUANTILE = 0.9  # the steepest tenth of the gradients belongs to outlines and defects, and is ignored
_MIN_COHERENCE = 0.25  # brushed metal is above, a woven fabric below

_MIN_POSE_PIXELS = 3  # fewer pixels have no long axis


class Pose(NamedTuple):
    """Position and orientation of a product in its image.

    Attributes:
        centre: float64 [2], (x, y) in pixels.
        angle: direction of the long axis in radians.
        elongation: ratio of the standard deviations along and across the long axis, at least 1.
    """

    centre: NDArray[np.float64]
    angle: float
    elongation: float


def find_foreground(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return a mask bool [H, W] that is True where the product is.

    It is True everywhere for textures that fill the frame, and whenever the segmentation is uncertain.

    The colour distance to the median of the image border is thresholded by the method of Otsu (1979) on a reduced
    image. The result is used only if most of the border is background, if the product differs clearly from it, also
    along its outline, and if the product consists of a few connected components.

    Args:
        image: uint8 [H, W, 3].
    """
    height, width = image.shape[:2]
    everything = np.ones((height, width), dtype=bool)
    small = reduce_image(image, _REDUCED_SIDE)
    small = ndimage.gaussian_filter(small, (_BLUR, _BLUR, 0), truncate=_BLUR_TRUNCATE)
    border = np.ones(small.shape[:2], dtype=bool)
    border[_BORDER_WIDTH:-_BORDER_WIDTH, _BORDER_WIDTH:-_BORDER_WIDTH] = False
    distance = np.sqrt(((small - np.median(small[border], axis=0)) ** 2).sum(axis=2) / 3)
    product = distance > _otsu_threshold(distance)
    if not _is_distinct(product, distance, border):
        return everything
    product = np.asarray(ndimage.binary_closing(product, iterations=1), bool) | product
    labels, count = label_components(product, connectivity=4)
    areas = np.sort(np.bincount(labels.ravel(), minlength=count + 1)[1:])[::-1]
    if areas[:_MAX_COMPONENTS].sum() < _MIN_IN_COMPONENTS * areas.sum():
        return everything
    product = fill_small_holes(product, _HOLE_FRACTION * product.size)
    large = Image.fromarray(product.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(large) > 0.5


def has_texture_direction(image: NDArray[np.uint8], product: NDArray[np.bool_] | None = None) -> bool:
    """Return whether the image is a texture that runs in one direction, as brushed metal does.

    An image that shows background beside the product has no texture direction. The measure is the coherence of the
    structure tensor summed over the image, (λ1 - λ2) / (λ1 + λ2) (Bigün and Granlund, 1987).

    Args:
        image: uint8 [H, W, 3].
        product: `find_foreground(image)`, if the caller already has it.
    """
    if not (find_foreground(image) if product is None else product).all():
        return False
    gray = reduce_image(image, _DIRECTION_SIDE).mean(2)
    down = ndimage.gaussian_filter(gray, _GRADIENT_SIGMA, order=(1, 0))  # pyright: ignore[reportArgumentType]
    across = ndimage.gaussian_filter(gray, _GRADIENT_SIGMA, order=(0, 1))  # pyright: ignore[reportArgumentType]
    slope = np.hypot(down, across)
    used = slope <= np.quantile(slope, _GRADIENT_QUANTILE)
    a, b, c = ((one * other)[used].sum() for one, other in ((across, across), (across, down), (down, down)))
    return bool(np.hypot(a - c, 2 * b) > _MIN_COHERENCE * (a + c))


def reduce_image(image: NDArray[np.uint8], side: int, min_side: int = 8) -> NDArray[np.float32]:
    """Return the image as float32 [h, w, 3], averaged over boxes so that its longer side is at most `side`.

    Args:
        image: uint8 [H, W, 3].
        side: largest height and width of the result.
        min_side: smallest height and width of the result.
    """
    height, width = image.shape[:2]
    factor = max(1.0, max(height, width) / side)
    size = (max(min_side, round(width / factor)), max(min_side, round(height / factor)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX), dtype=np.float32)


def estimate_pose(product: NDArray[np.bool_]) -> Pose:
    """Return the pose of a foreground mask bool [H, W], from the mean and the covariance of its pixels."""
    step = max(1, max(product.shape) // _REDUCED_SIDE)
    points = np.argwhere(product[::step, ::step])[:, ::-1] * step + step / 2
    if len(points) < _MIN_POSE_PIXELS:
        return Pose(np.array(product.shape[::-1]) / 2, 0.0, 1.0)
    centre = points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((points - centre).T))
    elongation = float(np.sqrt(values[1] / max(values[0], 1e-9)))
    return Pose(centre, float(np.arctan2(vectors[1, 1], vectors[0, 1])), elongation)


def _is_distinct(product: NDArray[np.bool_], distance: NDArray[np.float32], border: NDArray[np.bool_]) -> bool:
    """Return whether the thresholded product is distinct from its background, also along its outline."""
    if not _MIN_PRODUCT < product.mean() < _MAX_PRODUCT:
        return False
    level, spread = distance[~product].mean(), distance[~product].std()
    contrast = distance[product].mean() - level
    if contrast < _MIN_CONTRAST or contrast < _MIN_CONTRAST_RATIO * spread:
        return False
    if (~product[border]).mean() < _MIN_BACKGROUND_BORDER:
        return False
    down, across = np.gradient(distance)
    slope = np.hypot(down, across)
    eroded = np.asarray(ndimage.binary_erosion(product, border_value=1), bool)
    outline = np.asarray(ndimage.binary_dilation(product), bool) & ~eroded
    background = ~np.asarray(ndimage.binary_dilation(product, iterations=_BACKGROUND_DISTANCE), bool)
    return not (background.any() and slope[outline].mean() < _MIN_OUTLINE_SLOPE * slope[background].mean())


def _otsu_threshold(values: NDArray[np.float32]) -> float:
    counts, edges = np.histogram(values, bins=128)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1:][np.nanargmax(np.where(above > 0, between, 0))])
