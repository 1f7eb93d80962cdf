"""Batches: normalised, shuffled and augmented as a whole, the same for the same seed."""

import itertools

import pytest
import torch
from helpers.training import OFF

from lineup.params import Augment
from lineup.training.augmentation import _random_sides, augment
from lineup.training.batches import Batches, shuffle
from lineup.training.draws import Purpose, draw_seed


def settings(**changes):
    return Augment(**OFF | changes)


def draw(images, seed=0, **changes):
    torch.manual_seed(seed)
    return augment(images, settings(**changes))


def blob(count=64, size=21):
    """Return images that are dark but for one bright 3×3 square right of the middle."""
    images = torch.zeros(count, 1, size, size)
    images[:, :, size // 2 - 1 : size // 2 + 2, size - 6 : size - 3] = 1.0
    return images


def centres(images):
    """Return each image's centre of mass relative to the middle, in pixels: (N, 2) as x, y."""
    place = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    sums = [(images.sum((1, axis)) * place).sum(1) for axis in (2, 3)]
    return torch.stack(sums, 1) / images.sum((1, 2, 3))[:, None]


@pytest.fixture
def noise():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (10, 3, 6, 7), dtype=torch.uint8, generator=generator)


def test_a_batch_is_normalised_by_the_channels_mean_and_std(noise):
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])
    labels = torch.arange(10)
    images, targets = Batches(noise, labels, mean, std).batch(torch.tensor([7, 2]))
    expected = (noise[[7, 2]] / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert images.dtype == torch.float32 and targets.tolist() == [7, 2]
    assert torch.allclose(images, expected, atol=1e-5)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_rows_of_features_pass_as_they_are():
    features, targets = torch.randn(5, 3), torch.randn(5, 2)
    batches = Batches(features, targets, torch.zeros(1), torch.ones(1))
    inputs, truth = batches.batch(torch.tensor([4, 0]), settings(rotate=90, erase=1))
    assert torch.equal(inputs, features[[4, 0]]) and torch.equal(truth, targets[[4, 0]])


def test_an_epoch_sees_every_example_once_in_an_order_of_seed_and_epoch_alone():
    order = shuffle(1000, seed=3, epoch=0)
    assert torch.equal(order.sort().values, torch.arange(1000))
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(order, shuffle(1000, seed=3, epoch=0))
    assert not torch.equal(order, shuffle(1000, seed=3, epoch=1))
    assert not torch.equal(order, shuffle(1000, seed=4, epoch=0))


def test_no_seeds_order_is_another_seeds_order_of_another_epoch():
    other = pow(1_000_003, -1, 2**32)  # × 1,000,003 is 1 there
    assert not torch.equal(shuffle(1000, seed=other, epoch=0), shuffle(1000, seed=0, epoch=1))


def test_seed_purpose_and_number_each_reach_both_halves_of_the_generators_seed():
    draws = list(itertools.product([0, 1, 3, 2**32 - 1], Purpose, [0, 1, 1000, 2**32 - 1]))
    seeds = [draw_seed(*draw) for draw in draws]
    assert seeds == [draw_seed(*draw) for draw in draws]
    for half in ({seed % 2**32 for seed in seeds}, {seed >> 32 for seed in seeds}):
        assert len(half) == len(draws)
    for seed in seeds:
        assert torch.Generator().manual_seed(seed).initial_seed() == seed


def test_augmentation_off_changes_nothing(noise):
    images = noise.float()
    assert torch.equal(draw(images), images)


@pytest.mark.parametrize(
    "change",
    [
        *({name: 0.1} for name in ("shift", "scale", "shear")),
        *({"rotate": 10}, {"flip": True}, {"erase": 0.5}),
        {"crop": 0.4},
    ],
    ids=str,
)
def test_each_augmentation_is_random_by_the_seed_and_differs_from_image_to_image(change):
    images = blob(32)
    first = draw(images, seed=1, **change)
    assert torch.equal(first, draw(images, seed=1, **change))
    assert not torch.equal(first, draw(images, seed=2, **change))
    assert first.shape == images.shape and len(first.flatten(1).unique(dim=0)) > 1
    assert first.min() >= 0 and first.max() <= 1 + 1e-6


def test_shift_moves_at_most_its_part_of_the_image_in_all_directions():
    moved = centres(draw(blob(), shift=0.1)) - centres(blob())
    assert moved.abs().max() <= 0.1 * 21 + 0.01
    for axis in (0, 1):
        assert moved[:, axis].min() < -1 and moved[:, axis].max() > 1


def test_rotate_turns_around_the_middle_by_at_most_its_angle():
    before, after = centres(blob()), centres(draw(blob(), rotate=30))
    radius = before[0].norm()
    angles = torch.rad2deg(torch.atan2(after[:, 1], after[:, 0]))
    assert torch.allclose(after.norm(dim=1), radius, atol=0.5)
    assert angles.abs().max() <= 31 and angles.min() < -15 and angles.max() > 15


@pytest.mark.parametrize("sides", [(64, 64), (32, 96), (96, 32)])
def test_rotate_is_a_rotation_also_of_images_that_are_not_square(sides):
    places = torch.meshgrid(*(torch.arange(float(side)) for side in sides), indexing="ij")
    found = draw(torch.stack(places).expand(16, 2, *sides), rotate=8)  # where each pixel was
    down, right = (found.diff(dim=axis)[:, :, sides[0] // 2, sides[1] // 2] for axis in (2, 3))
    for step in (down, right):
        assert torch.allclose(step.norm(dim=1), torch.ones(16), atol=1e-3)
    assert torch.allclose((down * right).sum(1), torch.zeros(16), atol=1e-3)
    assert right[:, 0].abs().max() > 0.05


def test_scale_moves_what_lies_outside_the_middle_in_and_out():
    ratio = centres(draw(blob(), scale=0.2))[:, 0] / centres(blob())[:, 0]
    assert 1 / 1.2 - 0.05 < ratio.min() < 0.9 and 1.1 < ratio.max() < 1 / 0.8 + 0.05


@pytest.mark.parametrize("width", [21, 63])
def test_shear_shifts_rows_in_proportion_to_their_height(width):
    images = torch.zeros(64, 1, 21, width)
    images[:, :, :, width // 2] = 1.0  # a vertical line
    slanted = draw(images, shear=0.3)
    place = torch.arange(width) - width // 2
    top = (slanted[:, 0, 3] * place).sum(1) / slanted[:, 0, 3].sum(1)
    bottom = (slanted[:, 0, 17] * place).sum(1) / slanted[:, 0, 17].sum(1)
    assert torch.allclose(top, -bottom, atol=0.2)
    assert 1.2 < top.abs().max() <= 0.3 * 7 + 0.2


def test_the_border_goes_on_outwards_where_an_image_moves_away():
    bright = torch.full((16, 1, 9, 9), 200.0)
    assert torch.allclose(draw(bright, shift=0.5, rotate=45, scale=0.3), bright)


@pytest.mark.parametrize(("name", "axis"), [("flip", -1), ("vertical_flip", -2)])
def test_flip_mirrors_about_every_second_image_as_a_whole(name, axis, noise):
    images = noise.float().repeat(40, 1, 1, 1)
    flipped = draw(images, **{name: True})
    mirrored, kept = ((flipped == same).all((1, 2, 3)) for same in (images.flip(axis), images))
    assert (mirrored ^ kept).all() and 0.4 < mirrored.float().mean() < 0.6


def test_crop_enlarges_a_part_of_the_image_of_at_least_that_area_and_stays_inside():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    images = torch.stack([rows, columns]).repeat(400, 1, 1, 1)  # each pixel tells where it was
    cropped = draw(images, crop=0.6)
    spans = [cropped[:, 0, -1, 0] - cropped[:, 0, 0, 0], cropped[:, 1, 0, -1] - cropped[:, 1, 0, 0]]
    height, width = (span / 63 for span in spans)
    area, ratio = height * width, width / height
    assert 0.36 < area.min() < 0.5 and 0.85 < area.max() < 1.02
    assert 0.7 < ratio.min() < 0.85 and 1.2 < ratio.max() < 1.4
    assert cropped[:, 1].min() < 0.1 and cropped[:, 1].max() > 62.9  # also at the borders


@pytest.mark.parametrize("crop", [0.01, 0.1, 0.6])
def test_crop_cuts_off_no_more_than_it_says(crop):
    torch.manual_seed(0)
    sides = _random_sides(1 - crop, 2000, torch.device("cpu"))
    area = sides.prod(1)
    assert sides.max() <= 1 and area.min() >= 1 - crop - 1e-6 and area.max() > 1 - 0.1 * crop


def test_color_changes_brightness_contrast_and_saturation_within_the_limit():
    generator = torch.Generator().manual_seed(0)
    images = 100 + 40 * torch.rand(300, 3, 8, 8, generator=generator)
    changed = draw(images, color=0.3)
    brightness = changed.mean((1, 2, 3)) / images.mean((1, 2, 3))
    assert 0.69 < brightness.min() < 0.75 and 1.25 < brightness.max() < 1.31
    saturation = changed.std(1).mean((1, 2)) / images.std(1).mean((1, 2)) / brightness
    assert 0.48 < saturation.min() < 0.65 and 1.35 < saturation.max() < 1.7  # 0.7², 1.3²
    assert torch.equal(changed, draw(images, color=0.3))
    assert not torch.equal(changed, draw(images, seed=1, color=0.3))
    grey = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert draw(grey, color=0.3).std(1).max() < 1e-3  # what has no colour gets none
    assert draw(images * 2.5, color=0.9).max() == 255 and draw(images, color=0.9).min() >= 0


def test_erase_blanks_one_rectangle_with_the_images_mean_in_its_part_of_the_images():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(400, 2, 20, 20, generator=generator)
    erased = draw(images, erase=0.25)
    changed = (erased != images).all(1)  # (N, H, W): a rectangle goes through all channels
    hit = changed.any((1, 2))
    assert 0.17 < hit.float().mean() < 0.33
    assert torch.equal(erased[~hit], images[~hit])
    for index in hit.nonzero().flatten()[:30]:
        rows, columns = (changed[index].any(axis).nonzero().flatten() for axis in (1, 0))
        inside = changed[index, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert inside.all() and inside.sum() == changed[index].sum() <= 0.5 * 400
        assert torch.allclose(erased[index][:, changed[index]], images[index].mean(), atol=1e-5)


def test_a_training_batch_is_augmented_before_it_is_normalised(noise):
    batches = Batches(noise, torch.arange(10), torch.full((3,), 0.5), torch.full((3,), 0.25))
    torch.manual_seed(5)
    images, _ = batches.batch(torch.arange(10), settings(flip=True, erase=1))
    torch.manual_seed(5)
    expected = (augment(noise.float(), settings(flip=True, erase=1)) / 255 - 0.5) / 0.25
    assert torch.allclose(images, expected, atol=1e-5)
    plain, _ = batches.batch(torch.arange(10))
    assert not torch.allclose(images, plain)
