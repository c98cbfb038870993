"""From an EnMAP product to a published store, beside rioxarray's bare write of the same cube.

Run: python benchmarks/ingest.py [--quick] [--json FILE] [--rounds N] [--work FOLDER]

Ours reads a simulated L2A product (cube, per-band pixel mask, quality layers), writes 128 px chunks of all bands with
overviews, hashes and verifies every chunk, syncs the disk and renames: a finished product. The peer reads the cube
alone, as it comes (`open_rasterio(path)`), and calls `to_zarr`: no mask, overviews, hashes, verification or sync.
Beside it stands the same on Dask (`chunks=True`), whose chunks are whole bands.

Each run is a process of its own, peer and ours in turn; the file cache is warm for both. Seconds are wall clock from
the open file to the end of the work, imports left out; peak memory is that of the whole process. Ratios are ours over
peer's, medians of the pairs. The content hash of the input is left out: a catalog's checksum stands for it.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

FULL, SMALL = (1220, 1250), (384, 400)
"""Height and width, px, of an EnMAP L2A raster, and of the short cases."""


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small scene, one cold round; under a minute")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each case, after one that is not counted")
    parser.add_argument("--work", type=Path, help="keep the simulated products here, for the next time")
    parser.add_argument("--run", nargs=4, metavar=("SIDE", "SOURCE", "OUT", "CODEC"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        _one_run(*arguments.run)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.work or Path(scratch)
        height, width = SMALL if arguments.quick else FULL
        rounds = 0 if arguments.quick else arguments.rounds
        print(
            f"{'case':18}{'ours s':>8}{'peer s':>8}{'ratio':>7}{'on Dask':>9}{'ratio':>7}"
            f"{'ours MiB':>10}{'peer MiB':>10}{'on Dask':>10}"
        )
        rows = []
        for case, layout, times, codec in (
            ("default_tiled", "tiled", 1, "default"),
            ("default_strips", "strips", 1, "default"),
            ("default_tiled_4x", "tiled", 4, "default"),
            ("same_codec", "tiled", 1, "same"),
        ):
            product = _product(folder / f"{layout}-{times}", layout, height * times, width)
            rows.append(_case(case, product, codec, rounds, Path(scratch)))
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))


def _product(folder: Path, layout: str, height: int, width: int) -> Path:
    """A simulated L2A product, made once."""
    from cubeloom.pipeline.simulate import simulate_scene

    found = sorted(folder.glob("ENMAP*Z"))
    return found[0] if found else simulate_scene(folder, seed=1, height=height, width=width, layout=layout).path


def _case(case: str, product: Path, codec: str, rounds: int, scratch: Path) -> dict[str, Any]:
    cube = next(path for path in product.iterdir() if path.name.endswith("-SPECTRAL_IMAGE.TIF"))
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "peer": [], "peer-dask": []}
    for number in range(rounds + 1):
        for side in runs:
            source = product if side == "ours" else cube
            measured = _in_process(side, source, scratch / "out.zarr", codec)
            if number or not rounds:  # the first of several rounds fills the file cache
                runs[side].append(measured)
    seconds = {side: statistics.median(run["seconds"] for run in done) for side, done in runs.items()}
    peaks = {side: max(run["peak_mib"] for run in done) for side, done in runs.items()}
    row = {
        "case": case,
        "ours_s": seconds["ours"],
        "peer_s": seconds["peer"],
        "ratio": _ratio(runs["ours"], runs["peer"]),
        "peak_mib": peaks["ours"],
        "peer_peak_mib": peaks["peer"],
        "dask_s": seconds["peer-dask"],
        "dask_ratio": _ratio(runs["ours"], runs["peer-dask"]),
        "dask_peak_mib": peaks["peer-dask"],
        "ours_mib": runs["ours"][0]["store_mib"],
        "peer_mib": runs["peer"][0]["store_mib"],
    }
    print(
        "{case:18}{ours_s:8.2f}{peer_s:8.2f}{ratio:7.2f}{dask_s:9.2f}{dask_ratio:7.2f}{peak_mib:10.0f}"
        "{peer_peak_mib:10.0f}{dask_peak_mib:10.0f}".format(**row),
        flush=True,
    )
    return row


def _ratio(ours: list[dict[str, float]], peer: list[dict[str, float]]) -> float:
    """Median over the pairs."""
    return statistics.median(a["seconds"] / b["seconds"] for a, b in zip(ours, peer, strict=True))


def _in_process(side: str, source: Path, out: Path, codec: str) -> dict[str, float]:
    """One run in a fresh process; what it printed."""
    command = [sys.executable, __file__, "--run", side, str(source), str(out), codec]
    shutil.rmtree(out, ignore_errors=True)
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(result.stdout))


def _one_run(side: str, source: str, out: str, codec: str) -> None:
    warnings.simplefilter("ignore")
    seconds = _ours(source, out) if side == "ours" else _peer(source, out, codec, side == "peer-dask")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(file.stat().st_size for file in Path(out).rglob("*") if file.is_file()) / 2**20
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "store_mib": size}))


def _ours(source: str, out: str) -> float:
    import rasterio  # noqa: F401 - imports are not timed, here as of the peer

    from cubeloom.pipeline.engine import run_to_store
    from cubeloom.pipeline.readers import open_source
    from cubeloom.pipeline.readers.open import reader_of

    reader_of(Path(source))  # imports the readers
    start = time.perf_counter()
    run_to_store(open_source(source), [], Path(out), workers=2)
    return time.perf_counter() - start


def _peer(source: str, out: str, codec: str, dask: bool) -> float:
    import dask.array
    import rioxarray
    import zarr  # noqa: F401
    from zarr.codecs import BloscCodec

    start = time.perf_counter()
    cube = rioxarray.open_rasterio(source, chunks=True) if dask else rioxarray.open_rasterio(source)
    blosc = BloscCodec(typesize=2, cname="zstd", clevel=1, shuffle="bitshuffle", blocksize=2**20)
    encoding = {"reflectance": {"compressors": [blosc]}} if codec == "same" else {}
    dataset = cube.to_dataset(name="reflectance")
    dataset.to_zarr(out, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
