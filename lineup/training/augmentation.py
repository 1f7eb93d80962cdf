"""Random changes of a whole batch of images on its device, each image on its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from lineup.params import Augment

CROPPED_RATIO = (3 / 4, 4 / 3)  # of the sides of what is left (Szegedy et al., 2015)
GREY = (0.299, 0.587, 0.114)  # parts of red, green, blue in brightness (ITU-R BT.601)
ERASED_AREA = (0.02, 0.33)  # of the image (Zhong et al., 2017)
ERASED_RATIO = (0.3, 3.3)  # of the rectangle's sides


def augment(images: Tensor, settings: Augment) -> Tensor:
    """Return float images (N, C, H, W), 0–255, changed at random as `settings` say."""
    affine = (settings.rotate, settings.shift, settings.scale, settings.shear, settings.crop)
    if any(affine):
        images = random_affine(images, settings)
    for flip, axis in ((settings.flip, -1), (settings.vertical_flip, -2)):
        if flip:
            mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            images = torch.where(mirrored, images.flip(axis), images)
    if settings.color:
        images = random_color(images, settings.color)
    if settings.erase:
        images = random_erasing(images, settings.erase)
    return images


def random_affine(images: Tensor, settings: Augment) -> Tensor:
    """Return images turned, shifted, scaled, sheared and cropped by one random affine map each.

    Beyond its border an image goes on as its border is (Simard et al., 2003, without elasticity).
    """
    count, device = len(images), images.device

    def uniform(limit: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, device=device) * 2 - 1) * limit

    angle = uniform(math.radians(settings.rotate))
    scale = 1 + uniform(settings.scale, 2)
    shear = uniform(settings.shear)
    ratio = images.shape[2] / images.shape[3]  # the grid spans -1 to 1 whatever the sides
    rotation = torch.stack([angle.cos(), -angle.sin() * ratio, angle.sin() / ratio, angle.cos()], 1)
    stretch = torch.diag_embed(scale)
    stretch[:, 0, 1] = shear * ratio
    shift = uniform(2 * settings.shift, 2, 1)
    if settings.crop:
        sides = _random_sides(1 - settings.crop, count, device)
        stretch = stretch * sides[:, None]  # columns: x and y of the grid
        shift = shift + (uniform(1, 2) * (1 - sides))[:, :, None]
    grid = _affine_grid(rotation.view(count, 2, 2) @ stretch, shift, images.shape[1:])
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _random_sides(smallest: float, count: int, device: torch.device) -> Tensor:
    """Return width and height (N, 2), parts of the image's, of areas from `smallest` to 1."""
    area = torch.empty(count, device=device).uniform_(smallest, 1)
    log_ratios = [math.log(ratio) for ratio in CROPPED_RATIO]
    ratio = torch.empty(count, device=device).uniform_(*log_ratios).exp()
    ratio = ratio.clamp(area, 1 / area)  # no side is longer than the image's
    return torch.stack([_sqrt(area * ratio), _sqrt(area / ratio)], 1)


def random_color(images: Tensor, limit: float) -> Tensor:
    """Return images (N, C, H, W) with another brightness, contrast and saturation each.

    Brightness scales all values; contrast those around the image's mean; saturation, where there is
    colour, those around the pixel's grey.
    """
    count, channels = images.shape[:2]
    factors = 1 + (torch.rand(3, count, 1, 1, 1, device=images.device) * 2 - 1) * limit
    brightness, contrast, saturation = factors
    images = images * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    if channels == 3:
        colours = zip(GREY, images.split(1, dim=1), strict=True)
        grey = sum(part * channel for part, channel in colours)
        images = grey + (images - grey) * saturation
    return images.clamp(0, 255)


def _affine_grid(matrix: Tensor, shift: Tensor, shape: torch.Size) -> Tensor:
    """Return sampling grids (N, H, W, 2) for maps (N, 2, 2) and shifts (N, 2, 1).

    One product for all images: affine_grid makes one per image and takes five times as long.
    """
    identity = torch.eye(2, 3, device=matrix.device)[None]
    plain = functional.affine_grid(identity, [1, *shape], align_corners=False)
    grid = torch.addmm(shift.view(-1, 1), matrix.view(-1, 2), plain.view(-1, 2).T)  # (N·2, H·W)
    return grid.view(len(matrix), 2, *shape[1:]).permute(0, 2, 3, 1)


def random_erasing(images: Tensor, probability: float) -> Tensor:
    """Return images of which some have a random rectangle blanked with the image's own mean."""
    count, _, height, width = images.shape
    device = images.device
    log_ratios = [math.log(ratio) for ratio in ERASED_RATIO]
    area = torch.empty(count, device=device).uniform_(*ERASED_AREA)
    ratio = torch.empty(count, device=device).uniform_(*log_ratios).exp()
    half_height = _sqrt(area * ratio) * height / 2
    half_width = _sqrt(area / ratio) * width / 2
    middle = torch.rand(2, count, device=device)
    rows = _near(middle[0], half_height, height)
    columns = _near(middle[1], half_width, width)
    chosen = torch.rand(count, device=device) < probability
    erased = (rows[:, :, None] & columns[:, None, :] & chosen[:, None, None]).unsqueeze(1)
    return torch.where(erased, images.mean((1, 2, 3), keepdim=True), images)


def _sqrt(values: Tensor) -> Tensor:
    """Return square roots; torch.sqrt leaves them to MKL, which rounds by the kind of processor."""
    return values * values.rsqrt()


def _near(middle: Tensor, half: Tensor, length: int) -> Tensor:
    """Return which pixels (N, length) are within `half` of `middle`, a fraction of the length."""
    pixels = torch.arange(length, device=middle.device) + 0.5
    return (pixels - middle[:, None] * length).abs() < half[:, None]
