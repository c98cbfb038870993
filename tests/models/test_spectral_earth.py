"""The bands and statistics of SpectralEarth's weights."""

import numpy as np
import pytest

from cubeloom.errors import ModelError
from cubeloom.models.cards import Card
from cubeloom.models.registry import model_card
from cubeloom.models.spectral_earth import DN_OF_ONE, ENMAP_202, card_fields, enmap_bands, statistics
from cubeloom.pipeline.simulate.bands import operational


def test_the_bands_are_all_but_those_in_water_vapour():
    assert len(ENMAP_202) == 202
    assert set(range(1, 225)) - set(ENMAP_202) == {*range(127, 142), *range(161, 168)}


def test_their_centres_and_widths_are_those_of_the_instrument():
    bands, table, places = enmap_bands(), operational(), np.array(ENMAP_202) - 1
    np.testing.assert_allclose(bands.wavelengths_nm, table.wavelength[places], atol=0.8)
    np.testing.assert_allclose(bands.fwhm_nm, table.fwhm[places], atol=0.2)


@pytest.mark.parametrize(
    ("sensor", "bands", "means"),
    [
        ("enmap", 202, (813, 3217)),
        ("desis", 235, (649, 3627)),
        ("eo1", 198, (2.1, 4965)),
        ("hyperview", 150, (333, 1787)),
    ],
)
def test_statistics_of_each_sensor(sensor, bands, means):
    mean, std = statistics(sensor)
    assert len(mean) == len(std) == bands
    np.testing.assert_allclose((min(mean), max(mean)), means, rtol=0.01)
    assert min(std) > 0


def test_deviations_of_enmap():
    np.testing.assert_allclose((min(statistics().std), max(statistics().std)), (1096, 1718), rtol=0.001)


def test_the_bands_removed_are_where_the_means_jump():
    """The spectrum is smooth but where bands were left out: the authors' table of wavelengths would put a jump at 130.

    Neighbours in the second window, 142-160, differ by a few per cent; at its ends lie the gaps.
    """
    mean = np.array(statistics().mean)
    steps = np.abs(np.diff(mean)) / mean[:-1]
    first, last = ENMAP_202.index(142), ENMAP_202.index(160)
    assert steps[first:last].max() < 0.02
    assert steps[first - 1] > 0.2
    assert steps[last] > 0.2


def test_unknown_sensor():
    with pytest.raises(ModelError, match="no statistics of 'prisma'; of enmap, desis, eo1, hyperview there are"):
        statistics("prisma")


def test_fields_of_a_card_are_in_reflectance():
    card = Card(name="spectral_vit_small", family="spectral_vit_small", task="embed", **card_fields())
    assert (card.sensor, card.variable, card.units, card.bands) == ("EnMAP", "reflectance", "1", 202)
    np.testing.assert_allclose(np.array(card.mean) * DN_OF_ONE, statistics().mean)
    np.testing.assert_allclose(np.array(card.std) * DN_OF_ONE, statistics().std)
    assert card.wavelengths_nm == (card.input_bands.wavelengths_nm[0], card.input_bands.wavelengths_nm[-1])


@pytest.mark.parametrize("family", ["spectral_resnet50", "spectral_vit_nano", "spectral_timm"])
def test_weights_without_a_card_are_taken_for_the_authors(family):
    card = model_card(family)
    assert (card.task, card.input_bands) == ("embed", enmap_bands())
    np.testing.assert_allclose(np.array(card.mean) * DN_OF_ONE, statistics().mean)
