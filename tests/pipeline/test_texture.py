"""Texture agrees with scikit-image's matrices window by window, at edges and gaps too, in blocks of any size."""

import numpy as np
import pytest
from skimage.feature import graycomatrix, graycoprops

from cubeloom.errors import InputError
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.scene import spec_of
from cubeloom.pipeline.stages.texture import HARALICK, Texture, in_decibel
from cubeloom.pipeline.stages.texture_glcm import MEASURES, MISSING, OFFSETS, quantise, texture_images

ANGLES = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
PEER_NAMES = {"asm": "ASM"}


def by_scikit_image(patch: np.ndarray, levels: int) -> list[float]:
    matrices = graycomatrix(patch, [1], ANGLES, levels=levels, symmetric=True, normed=True)
    return [graycoprops(matrices, PEER_NAMES.get(name, name)).mean() for name in MEASURES]


def by_definition(patch: np.ndarray) -> dict[str, float]:
    """Counted pair by pair, without the pairs that lack a pixel."""
    found = []
    for down, right in OFFSETS:
        matrix = np.zeros((8, 8))
        for row, col in np.ndindex(patch.shape):
            to = (row + down, col + right)
            if to[0] < patch.shape[0] and 0 <= to[1] < patch.shape[1] and MISSING not in (patch[row, col], patch[to]):
                matrix[patch[row, col], patch[to]] += 1
                matrix[patch[to], patch[row, col]] += 1
        if matrix.any():
            found.append(measured(matrix / matrix.sum()))
    return (
        {name: np.mean([one[name] for one in found]) for name in MEASURES} if found else dict.fromkeys(MEASURES, np.nan)
    )


def measured(share: np.ndarray) -> dict[str, float]:
    i, j = np.indices(share.shape)
    mean, some = (share * i).sum(), share[share > 0]
    variance = (share * (i - mean) ** 2).sum()
    together = (share * (i - mean) * (j - mean)).sum()
    return {
        "mean": mean,
        "variance": variance,
        "homogeneity": (share / (1 + (i - j) ** 2)).sum(),
        "contrast": (share * (i - j) ** 2).sum(),
        "dissimilarity": (share * abs(i - j)).sum(),
        "entropy": -(some * np.log(some)).sum(),
        "asm": (share**2).sum(),
        "correlation": together / variance if variance > 1e-12 else 1.0,
        "energy": np.sqrt((share**2).sum()),
    }


@pytest.mark.parametrize(("window", "levels"), [(5, 32), (3, 2), (7, 64)])
def test_measures_are_those_of_scikit_image_in_every_window(window, levels):
    image = np.random.default_rng(window).integers(0, levels, (9, 14)).astype(np.uint8)
    image[:6, :7] = image[0, 0]  # a window of one level
    made, half = texture_images(image, MEASURES, window), window // 2
    for row, col in np.ndindex(image.shape):  # scikit-image cuts its windows at the edges by being given less
        patch = image[max(row - half, 0) : row + half + 1, max(col - half, 0) : col + half + 1]
        np.testing.assert_allclose(made[:, row, col], by_scikit_image(patch, levels), rtol=2e-5, atol=1e-6)


def test_missing_pixels_take_no_part_whatever_they_hold():
    random = np.random.default_rng(0)
    image = random.integers(0, 8, (14, 15)).astype(np.uint8)
    image[random.random(image.shape) < 0.3] = MISSING
    image[0:4, 0:4] = MISSING
    image[1, 1] = 3  # no neighbour, so no pair in any direction but through the window's rim
    made = texture_images(image, MEASURES, 5)
    padded = np.pad(image, 2, constant_values=MISSING)
    for row, col in np.ndindex(image.shape):
        expected = by_definition(padded[row : row + 5, col : col + 5])
        if image[row, col] == MISSING:
            assert np.isnan(made[:, row, col]).all()
        else:
            np.testing.assert_allclose(made[:, row, col], list(expected.values()), rtol=2e-5, atol=1e-6)
    assert np.isnan(texture_images(np.pad(np.zeros((1, 1), np.uint8), 3, constant_values=MISSING))).all()


def test_measures_come_alone_and_in_the_order_wanted():
    image = np.random.default_rng(3).integers(0, 32, (9, 9)).astype(np.uint8)
    every = dict(zip(MEASURES, texture_images(image), strict=True))
    some = texture_images(image, ("energy", "mean"))
    np.testing.assert_array_equal(some, [every["energy"], every["mean"]])


def test_levels_are_of_equal_width_and_open_at_both_ends():
    values = np.array([-9, 0, 0.49, 0.5, 1.999, 2, 50, np.nan, np.inf], np.float32)
    assert quantise(values, 0.0, 2.0, 4).tolist() == [0, 0, 0, 1, 3, 3, 3, MISSING, MISSING]
    assert quantise(np.ones(3, np.float32), 1.0, 1.0, 4).max() < 4


@pytest.mark.parametrize("window", [4, 1, 13])
def test_windows_it_does_not_take_are_refused(window):
    with pytest.raises(ValueError, match="odd number"):
        texture_images(np.zeros((9, 9), np.uint8), MEASURES, window)
    with pytest.raises(ValueError, match="less than 128"):
        texture_images(np.full((9, 9), 200, np.uint8), MEASURES)


# --- the stage


@pytest.fixture
def scene(make_scene):
    return make_scene(height=60, width=70, bands=6, background=8)


def test_the_stage_measures_levels_between_percentiles_of_the_scene(scene):
    made = lift(Texture(bands=(2, 4), window=3, levels=16, measures=("contrast", "entropy")))(scene).compute()
    bands = [list(scene.band.values).index(number) for number in (2, 4)]
    valid = (scene.quality.values & 1) == 0
    for at, band in enumerate(bands):
        image = np.where(valid, scene.reflectance.values[band], np.nan)
        low, high = np.nanpercentile(image, (1, 99))
        levels = quantise(image, low, high, 16)
        expected = texture_images(levels, ("contrast", "entropy"), 3)
        found = made.texture.values[2 * at : 2 * at + 2]
        # The scene's percentiles are those of narrow bins, so some pixels change level.
        assert np.nanmean(np.abs(found - expected)) < 0.1 * np.nanmean(expected)
        assert (np.isnan(found) == np.isnan(expected)).all()


def test_every_measure_is_a_band_that_says_what_it_is(scene):
    spec = spec_of(lift(Texture(bands=(2, 4)))(scene))
    assert spec.group == spec.subject == "texture"
    assert spec.sizes("texture") == (16, 60, 70)
    assert list(spec.attrs["band_names"].values())[:9:8] == ["b2_mean", "b4_mean"]
    np.testing.assert_array_equal(spec.bands.wavelength, np.repeat(scene.wavelength.values[[1, 3]], 8))
    assert "quality" in spec.variables
    assert Texture().measures == HARALICK
    assert spec.variables["texture"].encoding.scale is None


def test_masked_numbers_change_nothing(scene):
    stage = Texture(bands=(1,), measures=("entropy",))
    background = (scene.quality.values & 1) != 0
    assert background.any()
    changed = scene.copy(deep=True)
    changed.reflectance.values[:, background] = np.random.default_rng(0).normal(0, 50, int(background.sum()))
    np.testing.assert_array_equal(lift(stage)(changed).texture.values, lift(stage)(scene).texture.values)


def test_backscatter_is_taken_in_decibel():
    np.testing.assert_allclose(in_decibel(np.array([1, 0.01, 0, np.nan], np.float32)), [0, -20, -50, np.nan])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"bands": (77,)}, r"no band \[77\]; the scene has"), ({"variable": "sigma"}, "no cube 'sigma'; the scene has")],
)
def test_what_the_scene_lacks_is_refused(scene, parameters, message):
    with pytest.raises(InputError, match=message):
        lift(Texture(**parameters))(scene)


@pytest.mark.parametrize("wrong", [{"window": 4}, {"percentiles": (99, 1)}, {"measures": ("mean", "mean")}])
def test_parameters_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"middle|ascend|twice"):
        Texture(**wrong)
