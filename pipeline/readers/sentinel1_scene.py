"""Radar polarisations as a Scene's band axis, and a GRD product as a Scene without pixels.

A band is a polarisation. Its wavelength is that of the radar, some 55 million nm, and its width that of the pulses'
bandwidth: true numbers, by which spectral stages refuse it of themselves. `detector` holds the polarisation in lower
case, so that `select_bands(detector="vv")` picks it, and the attribute `band_names` its name.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cubeloom.pipeline.encoding import FLOAT
from cubeloom.pipeline.scene import Bands, SceneSpec, Variable, cube_variable
from cubeloom.untrusted import safe_name

from .sentinel1_calibration import CALIBRATIONS
from .sentinel1_geolocation import Geocoding
from .sentinel1_metadata import ImageMetadata, ProductMetadata
from .sentinel1_safe import POLARISATIONS
from .sentinel2_scene import credit

INCIDENCE = "incidence_angle"
"""Name of the layer of angles of incidence."""

LIGHT = 299_792_458.0
"""Speed of light, m/s."""
FREQUENCY = 5.405000454334350e9
"""Of Sentinel-1's radar, Hz: for files that do not say it."""
BANDWIDTH = 4.92e7
"""Of its pulses in interferometric wide swath, mean of the swaths, Hz: for files that do not say it."""


def radar_bands(polarisations: Sequence[str], frequency: float = FREQUENCY, bandwidth: float = BANDWIDTH) -> Bands:
    """The band axis of polarisations; all have the wavelength of the radar.

    Args:
        polarisations: such as `VV`, in the order of the bands.
        frequency: Hz.
        bandwidth: Hz.
    """
    count = len(polarisations)
    wavelength = LIGHT / frequency * 1e9
    return Bands(
        number=np.array([POLARISATIONS.index(name) + 1 for name in polarisations]),
        wavelength=np.full(count, wavelength),
        fwhm=np.full(count, wavelength * bandwidth / frequency),
        detector=np.array([name.lower() for name in polarisations]),
        good=np.ones(count, bool),
        preferred=np.ones(count, bool),
    )


def band_names(polarisations: Sequence[str]) -> dict[str, str]:
    """Polarisations by band number, as the attribute `band_names` holds them."""
    return {str(POLARISATIONS.index(name) + 1): name for name in polarisations}


def scene_spec(
    name: str,
    product: ProductMetadata,
    first: ImageMetadata,
    polarisations: Sequence[str],
    geocoding: Geocoding,
    options: Mapping[str, str],
    *,
    trims: bool,
) -> SceneSpec:
    """The Scene of a GRD product.

    Args:
        name: of the product. The Scene of sigma0 on the native grid has it; the others add what they are.
        product: its manifest.
        first: annotation of one of its images.
        polarisations: of its images.
        geocoding: the map grid.
        options: with which it is opened, `crs` resolved.
        trims: whether border noise is masked.

    Raises:
        InputError: the product's name cannot be used as one.
    """
    quantity, grid = options["calibration"], options["grid"]
    suffix = ("" if quantity == "sigma0" else f"-{quantity}") + ("" if grid == "native" else f"-{grid}")
    variables = {quantity: cube_variable(quantity, long_name=f"{quantity} backscatter on the ellipsoid, linear")}
    if options["angles"] == "incidence":
        attrs = {"long_name": "angle of incidence on the ellipsoid", "units": "degree"}
        variables[INCIDENCE] = Variable(("y", "x"), FLOAT, attrs)
    return SceneSpec(
        scene_id=safe_name(name + suffix, "scene id"),
        sensor=product.sensor,
        processing_level="GRD",
        time=first.start,
        source=name,
        bands=radar_bands(polarisations, first.frequency, first.bandwidth),
        grid=geocoding.grid,
        variables=variables,
        measurement=quantity,
        subject=quantity,
        history=tuple(_history(first, geocoding, options, trims=trims)),
        attrs={
            **product.attrs,
            **first.attrs,
            "start_datetime": first.start.isoformat(),
            "end_datetime": first.stop.isoformat(),
            "band_names": band_names(polarisations),
            "looks": first.looks,
            "attribution": credit(first.start),
        },
    )


def _history(image: ImageMetadata, geocoding: Geocoding, options: Mapping[str, str], *, trims: bool) -> list[str]:
    quantity = options["calibration"]
    removed = {"clipped": "thermal noise removed, negative power set to 0", "signed": "thermal noise removed"}
    noise = "thermal noise removed by the processor" if image.denoised else removed.get(options["noise"], "noise kept")
    step = f"{geocoding.grid.resolution.x:g}"
    averaged = f", {geocoding.finer} x {geocoding.finer} samples a pixel averaged" if geocoding.finer > 1 else ""
    lines = [
        f"{quantity} = (DN^2 - noise) / A^2 by the tables of {CALIBRATIONS[quantity]}, bilinear; {noise}",
        f"geocoded by the geolocation grid onto {options['crs']}, {step} px, {options['resampling']}{averaged}: "
        "ellipsoid with the heights of the grid's points, no terrain correction",
    ]
    return [*lines, "border noise masked"] if trims else lines
