"""Containers that products are delivered in: a ZIP of one folder, and the tar.gz of an EnMAP order."""

import gzip
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

_EPOCH = (2024, 1, 1, 0, 0, 0)


def pack_zip(folder: Path, archive: Path) -> None:
    """Write a folder and all files below it as a ZIP; the same files give the same bytes."""
    with zipfile.ZipFile(archive, "w") as target:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            entry = zipfile.ZipInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}", _EPOCH)
            entry.external_attr = 0o644 << 16
            # the rasters are compressed already
            text = file.suffix.lower() in (".xml", ".safe")
            entry.compress_type = zipfile.ZIP_DEFLATED if text else zipfile.ZIP_STORED
            with file.open("rb") as source, target.open(entry, "w", force_zip64=True) as out:
                while chunk := source.read(1 << 20):
                    out.write(chunk)


def order_name(datatake: int) -> str:
    """Name of the order that delivers a datatake, without `.tar.gz`."""
    return f"dims_op_oc_oc-en_7{datatake:08d}_1"


def pack_order(product: Path, archive: Path, order: str, stamp: str) -> None:
    """Write the ZIP of a product into an order as EOWEB delivers it; `stamp` is the acquisition time."""
    level = product.stem[12:15]
    datatake = product.stem.split("-")[2].split("_")[0].removeprefix("DT")
    folder = f"{order}/ENMAP.HSI.{level}/ENMAP-HSI-{level}DT{datatake}_01-{stamp}_simulated"
    texts = {
        f"{order}/iif/dims_nz_pl_dfd_simulated_iif.xml": b"<iif/>\n",
        f"{order}/readme.html": b"<html><body>Simulated EnMAP product.</body></html>\n",
        f"{order}/tools/iif.xsd": b"",
    }
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        with product.open("rb") as source:
            tar.addfile(_entry(f"{folder}/{product.name}", product.stat().st_size), source)
        for name, text in texts.items():
            tar.addfile(_entry(name, len(text)), io.BytesIO(text))


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o644, 1704067200
    return entry


def replace_in(out: Path, made: Path) -> Path:
    """Move what was made into the folder `out`, in the place of what has its name there."""
    target = out / made.name
    if target.is_dir():
        shutil.rmtree(target)
    return made.replace(target)
