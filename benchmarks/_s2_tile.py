"""Case `s2_tile`: from a Sentinel-2 product to a published store, beside rioxarray's bare write of the same images.

The four 10 m bands of a whole tile, 10980 x 10980 px in JPEG 2000. Ours opens the product by its metadata, applies the
offset, folds SCL into flags, writes overviews, hashes and verifies every chunk, syncs the disk and renames: a finished
product. The peer opens the four images one by one and calls `to_zarr`: no offset, masks, overviews, hashes,
verification or sync. It stands for the faster of its two ways: as it comes (`open_rasterio(path)`), and on Dask
(`chunks=True`).

The tile is made of a simulated product of 2196 px, mirrored until it is full, with some more noise, and kept in FOLDER
(0.6 GB); it is lossless and tiled like ESA's own. Making it takes some minutes; `--prepare` does that and no more. Each
run is a process of its own, peer and ours in turn; the file cache is warm for both. Seconds are wall clock from the
open file to the end of the work, imports left out, and CPU seconds of the same part; peak memory is that of the whole
process. The ratio is ours over peer, median of the pairs. The content hash of the input is left out: a catalog's
checksum stands for it.
"""

import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CELLS, PIECE, QUICK = 1830, 366, 183
"""Edge in cells of 60 m: of a tile, of the simulated piece that fills it, and of the piece of the short case."""
BANDS, CHECKED = ("B02", "B03", "B04", "B08"), ("B01", "B04", "B12")
NOISE = 8
"""Random numbers below this are added, so that no compressor finds the repeated rows again; sensor noise has 12."""
MEMORY = 2 * 2**30


def tile(folder: Path, *, quick: bool) -> Path:
    """The product that a folder keeps; it is made where it is missing."""
    return _product(folder / ("quick" if quick else "tile"), quick=quick)


def _product(folder: Path, *, quick: bool) -> Path:
    """A product in a folder, made once."""
    from cubeloom.pipeline.simulate.sentinel2 import simulate_sentinel2

    found = sorted(folder.glob("S2*.SAFE"))
    if found:
        return found[0]
    edge = 2 * (QUICK if quick else PIECE)
    with tempfile.TemporaryDirectory() as scratch:
        piece = simulate_sentinel2(Path(scratch), seed=11, height=edge + 4, width=edge + 4, place=(48.1, 11.6)).path
        cells = (edge if quick else CELLS * 2) // 2
        made = _enlarged(piece, Path(scratch) / "made", cells, edge // 2)
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(made, folder / piece.name))


def _enlarged(piece: Path, out: Path, cells: int, part: int) -> Path:
    """The product with tiles of `cells` x `cells` of 60 m, mirrored from its upper left `part` x `part` cells.

    Its documents are the piece's, with the numbers of rows and columns that it has now; it holds the images that the
    10 m grid needs.
    """
    shutil.copytree(piece, out, ignore=shutil.ignore_patterns("*.jp2"))
    document = next(out.glob("GRANULE/*/MTD_TL.xml"))
    text = document.read_text()
    for step in (10, 20, 60):
        edge = cells * 60 // step
        size = f'<Size resolution="{step}"><NROWS>{edge}</NROWS><NCOLS>{edge}</NCOLS>'
        text, count = re.subn(rf'<Size resolution="{step}">\s*<NROWS>\d+</NROWS>\s*<NCOLS>\d+</NCOLS>', size, text)
        assert count == 1, f"{document}: no size of the {step} m grid"
    document.write_text(text)
    for image in _images(piece):
        target = out / image.relative_to(piece)
        target.parent.mkdir(parents=True, exist_ok=True)
        _enlarge(image, target, cells, part)
    return out


def _images(product: Path) -> Iterator[Path]:
    """The 10 m bands, SCL, and the coarse images that the offset is checked by."""
    bands = [(band, 10) for band in BANDS] + [(band, 60) for band in CHECKED] + [("SCL", 20)]
    for pattern in (f"R{step}m/*_{band}_{step}m" for band, step in bands):
        yield from product.glob(f"GRANULE/*/IMG_DATA/{pattern}.jp2")


def _enlarge(image: Path, target: Path, cells: int, part: int) -> None:
    import numpy as np
    import rasterio

    with rasterio.open(image) as source:
        pixels, profile, step = source.read(1), source.profile, round(source.res[0])
    block = {10: 1024, 20: 640, 60: 192}[step]
    piece = pixels[: part * 60 // step, : part * 60 // step]
    edge, size = cells * 60 // step, piece.shape[0]
    at = np.arange(edge) % (2 * size)
    at = np.where(at < size, at, 2 * size - 1 - at)
    full = piece[at[:, None], at[None, :]]
    if piece.dtype == np.uint16:
        full += np.random.default_rng(step).integers(0, NOISE, full.shape, np.uint16)
    profile |= {"height": edge, "width": edge, "blockxsize": block, "blockysize": block}
    with rasterio.open(target, "w", **profile, QUALITY=100, REVERSIBLE="YES", YCBCR420="NO") as sink:
        sink.write(full, 1)


def measured(product: Path, rounds: int, scratch: Path) -> dict[str, Any]:
    """The row of the case, printed; no round is one that fills the file cache as well."""
    case = "s2_tile"
    peers = {"as it comes": "peer", "on Dask": "peer-dask"}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", *peers.values())}
    for number in range(rounds + 1):
        for side in runs:
            measured = _in_process(side, product, scratch / "out.zarr")
            if number or not rounds:  # the first of several rounds fills the file cache
                runs[side].append(measured)
    way = min(peers, key=lambda name: statistics.median(run["seconds"] for run in runs[peers[name]]))
    ours, peer = runs["ours"], runs[peers[way]]
    row: dict[str, Any] = {
        "case": case,
        "ours_s": statistics.median(run["seconds"] for run in ours),
        "peer_s": statistics.median(run["seconds"] for run in peer),
        "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in zip(ours, peer, strict=True)),
        "peak_mib": max(run["peak_mib"] for run in ours),
        "peer_peak_mib": max(run["peak_mib"] for run in peer),
        "ours_cpu_s": statistics.median(run["cpu"] for run in ours),
        "peer_cpu_s": statistics.median(run["cpu"] for run in peer),
        "peer": way,
        "ours_mib": ours[0]["store_mib"],
        "peer_mib": peer[0]["store_mib"],
    }
    columns = ("ours_s", "peer_s", "ratio", "peak_mib", "peer_peak_mib", "ours_cpu_s", "peer_cpu_s")
    print(f"{'case':10}" + "".join(f"{name:>15}" for name in columns))
    print(f"{case:10}" + "".join(f"{row[name]:15.2f}" for name in columns) + f"  {way}", flush=True)
    return row


def _in_process(side: str, product: Path, out: Path) -> dict[str, float]:
    """One run in a fresh process; what it printed."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, side, str(product), str(out)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(result.stdout))


def _one_run(side: str, product: str, out: str) -> None:
    warnings.simplefilter("ignore")
    seconds, cpu = _ours(product, out) if side == "ours" else _peer(product, out, side == "peer-dask")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(file.stat().st_size for file in Path(out).rglob("*") if file.is_file()) / 2**20
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mib": peak, "store_mib": size}))


def _ours(product: str, out: str) -> tuple[float, float]:
    import rasterio.windows  # noqa: F401
    import scipy.ndimage  # noqa: F401

    from cubeloom.pipeline.engine import run_to_store
    from cubeloom.pipeline.readers import open_source, sentinel2  # noqa: F401 - imports are not timed

    start, cpu = time.perf_counter(), time.process_time()
    run_to_store(open_source(product), [], Path(out), workers=2, memory=MEMORY)
    return time.perf_counter() - start, time.process_time() - cpu


def _peer(product: str, out: str, on_dask: bool) -> tuple[float, float]:
    import dask.array  # noqa: F401
    import rioxarray
    import xarray as xr
    import zarr  # noqa: F401

    start, cpu = time.perf_counter(), time.process_time()
    bands = {}
    for name in BANDS:
        image = next(Path(product).glob(f"GRANULE/*/IMG_DATA/R10m/*_{name}_10m.jp2"))
        opened = rioxarray.open_rasterio(image, chunks=True) if on_dask else rioxarray.open_rasterio(image)
        bands[name] = opened.squeeze("band", drop=True)
    xr.Dataset(bands).to_zarr(out, mode="w", zarr_format=3, consolidated=False)
    return time.perf_counter() - start, time.process_time() - cpu


if __name__ == "__main__":
    _one_run(*sys.argv[1:])
