"""Training-free denoising beside what is at hand elsewhere: wavelets band by band, and principal components.

Run: python benchmarks/denoise_classic.py [--quick] [--json FILE] [--data FOLDER]

The peers are scikit-image's `denoise_wavelet` (BayesShrink, soft, its defaults) on every band, with the noise level
given to it, and a truncated PCA with the number of components that brings it the least error: both know more than our
stage, which finds noise and rank by itself. PSNR with range 1, mean over bands; SAM in degrees; seconds are wall clock.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from odc.geo.geobox import GeoBox

from cubeloom.pipeline import metrics
from cubeloom.pipeline.lift import lift
from cubeloom.pipeline.scene import Bands, SceneSpec, cube_variable, scene_from
from cubeloom.pipeline.stages.denoise import Denoise

Cube = npt.NDArray[np.float32]


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cubes, one kind of noise each")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--data", type=Path, help="folder with simu_indian/ and unmixing_samson/, real and simulated")
    arguments = parser.parse_args()
    ours(landscape(32, 8, 4))  # imports and thread pools come once and are not timed
    print(f"{'case (components of 99.99 %)':34}{'method':18}{'PSNR dB':>9}{'gain':>8}{'SAM deg':>9}{'seconds':>9}")
    kinds = ("iid",) if arguments.quick else ("iid", "per band")
    cubes = _cubes(arguments.quick, arguments.data)
    rows = [_case(f"{name}, {kind}", clean, kind) for name, clean in cubes for kind in kinds]
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


def _case(case: str, clean: Cube, kind: str) -> dict[str, Any]:
    """One clean cube with 5 % noise, through ours and the peers."""
    random = np.random.default_rng(0)
    sigma = np.full(len(clean), 0.05) if kind == "iid" else random.uniform(0.01, 0.09, len(clean))
    noisy = (clean + sigma[:, None, None] * random.standard_normal(clean.shape)).astype(np.float32)
    methods: dict[str, Callable[[], Cube]] = {
        "noisy": lambda: noisy,
        "cubeloom": lambda: ours(noisy),
        "wavelets by band": lambda: wavelets_by_band(noisy, sigma),
        "PCA, best rank": lambda: best_pca(noisy, clean),
    }
    found = {name: _measured(method, clean) for name, method in methods.items()}
    case = f"{case} ({components(clean)})"
    for name, (psnr, sam, seconds) in found.items():
        print(f"{case:34}{name:18}{psnr:9.2f}{psnr - found['noisy'][0]:8.2f}{sam:9.2f}{seconds:9.2f}", flush=True)
    before, own = found["noisy"], found["cubeloom"]
    peer = found["wavelets by band"]
    return {
        "case": case,
        "ours_s": own[2],
        "peer_s": peer[2],
        "ratio": own[2] / peer[2],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "gain_db": own[0] - before[0],
        "peer_gain_db": peer[0] - before[0],
        "pca_gain_db": found["PCA, best rank"][0] - before[0],
        "components": components(clean),
        "sam_deg": own[1],
        "noisy_sam_deg": before[1],
        "peer_sam_deg": peer[1],
    }


def _measured(method: Callable[[], Cube], clean: Cube) -> tuple[float, float, float]:
    start = time.perf_counter()
    made = method()
    seconds = time.perf_counter() - start
    return metrics.psnr(clean, made, 1.0), metrics.sam(clean, made), seconds


def ours(noisy: Cube) -> Cube:
    """The stage as Python calls it, on a Scene in memory."""
    bands = len(noisy)
    spec = SceneSpec(
        scene_id="benchmark",
        sensor="simulated",
        processing_level="L2A",
        time=datetime(2024, 6, 1, tzinfo=UTC),
        source="memory",
        bands=Bands(
            number=np.arange(1, bands + 1, dtype=np.int32),
            wavelength=np.linspace(420, 2450, bands),
            fwhm=np.full(bands, 10.0),
            detector=np.full(bands, ""),
            good=np.ones(bands, bool),
            preferred=np.ones(bands, bool),
        ),
        grid=GeoBox(noisy.shape[1:], Affine(30, 0, 500_010, 0, -30, 5_800_020), "EPSG:32633"),
        variables={"reflectance": cube_variable("reflectance")},
        measurement="reflectance",
        subject="reflectance",
    )
    scene = scene_from(spec, {"reflectance": noisy})
    return np.asarray(lift(Denoise(method="subspace"))(scene)["denoised"].values)


def wavelets_by_band(noisy: Cube, sigma: npt.NDArray[np.float64]) -> Cube:
    """scikit-image's wavelet denoising of each band, told the noise of each."""
    from skimage.restoration import denoise_wavelet

    return np.stack([denoise_wavelet(band, sigma=s) for band, s in zip(noisy, sigma, strict=True)])


def best_pca(noisy: Cube, clean: Cube) -> Cube:
    """The PCA truncation nearest to the clean cube, which no method could choose without it."""
    from sklearn.decomposition import PCA

    spectra = noisy.reshape(len(noisy), -1).T
    truth = clean.reshape(len(clean), -1).T
    model = PCA(min(40, len(noisy)), svd_solver="covariance_eigh").fit(spectra)
    parts = model.transform(spectra)
    errors = []
    for rank in range(1, parts.shape[1] + 1):
        made = parts[:, :rank] @ model.components_[:rank] + model.mean_
        errors.append(float(np.mean((made - truth) ** 2)))
    rank = int(np.argmin(errors)) + 1
    made = parts[:, :rank] @ model.components_[:rank] + model.mean_
    return np.ascontiguousarray(made.T).reshape(clean.shape)


def _cubes(quick: bool, data: Path | None) -> Iterator[tuple[str, Cube]]:
    """Clean cubes in [0, 1]: a drawn landscape, and those of the data folder."""
    yield "landscape", landscape(128 if quick else 256, 224)
    for ground in ("temperate",) if quick else ("temperate", "arid", "coastal"):
        yield f"simulated {ground}", simulated(ground, 128 if quick else 200)
    if data is None:
        return
    from scipy.io import loadmat

    indian = loadmat(data / "simu_indian" / "simu_indian.mat")["simu_indian"].transpose(2, 0, 1)
    yield "simulated Indian Pines", indian.astype(np.float32)
    samson = loadmat(data / "unmixing_samson" / "Samson.mat")["Y"].reshape(156, 95, 95)
    yield "Samson", samson.astype(np.float32)


def simulated(ground: str, edge: int) -> Cube:
    """The clean cube of a simulated L2A product: the middle of its swath, all bands, scaled to [0, 1]."""
    from tempfile import TemporaryDirectory

    import rasterio

    from cubeloom.pipeline.simulate import simulate_scene

    with TemporaryDirectory() as folder:
        size = edge * 2
        product = simulate_scene(Path(folder), landscape=ground, seed=1, height=size, width=size, clouds=0.0)
        with rasterio.open(product.truth_folder / "CLEAN.TIF") as file:
            window = rasterio.windows.Window((size - edge) // 2, (size - edge) // 2, edge, edge)
            cube = file.read(window=window).astype(np.float32)
    return np.asarray((cube - cube.min()) / (cube.max() - cube.min()), np.float32)


def components(clean: Cube) -> int:
    """Principal components that hold 99.99 % of a cube's energy."""
    spectra = clean.reshape(len(clean), -1).astype(np.float64)
    energy = np.linalg.eigvalsh(spectra @ spectra.T)[::-1].cumsum()
    return int(np.searchsorted(energy / energy[-1], 0.9999)) + 1


def landscape(edge: int, bands: int, parts: int = 16) -> Cube:
    """Parcels and fractal mixtures of `parts` spectra under uneven light and water vapour; 15 components or more."""
    random = np.random.default_rng(0)
    at = np.linspace(420, 2450, bands)
    knots = np.cumsum(random.normal(0, 0.2, (parts, 14)), axis=1)
    spectra = np.stack([np.interp(at, np.linspace(420, 2450, 14), k - k.min() + 0.2) for k in knots])
    for _ in range(3):
        centre, width = random.uniform(450, 2400, (parts, 1)), random.uniform(15, 100, (parts, 1))
        spectra *= 1 - random.uniform(0.1, 0.5, (parts, 1)) * np.exp(-(((at - centre) / width) ** 2))
    rows, cols = np.indices((edge, edge))
    seeds = random.uniform(0, edge, (200, 2))
    nearest = np.argmin((rows[..., None] - seeds[:, 0]) ** 2 + (cols[..., None] - seeds[:, 1]) ** 2, axis=-1)
    parcels = np.eye(parts)[random.integers(0, parts, 200)][nearest]
    share = np.exp(3 * parcels + 1.5 * np.stack([_fractal(random, edge) for _ in range(parts)], axis=-1))
    share /= share.sum(axis=-1, keepdims=True)
    light = np.clip(1 + 0.15 * _fractal(random, edge), 0.3, 2)
    vapour = np.clip(1 + 0.3 * _fractal(random, edge), 0.1, 2)
    bands_of_water = 0.3 * np.exp(-(((at - 940) / 35) ** 2)) + 0.3 * np.exp(-(((at - 1140) / 40) ** 2))
    cube = np.einsum("yxp,pb->byx", share * light[..., None], spectra)
    cube *= np.exp(-bands_of_water[:, None, None] * vapour)
    return np.asarray((cube - cube.min()) / (cube.max() - cube.min()), np.float32)


def _fractal(random: np.random.Generator, edge: int) -> npt.NDArray[np.float64]:
    frequency = np.hypot(np.fft.fftfreq(edge)[:, None], np.fft.rfftfreq(edge))
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(random.standard_normal((edge, edge))) * frequency**-1.3, (edge, edge))
    return np.asarray(field / field.std())


if __name__ == "__main__":
    main()
