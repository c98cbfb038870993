"""The documents of a simulated Sentinel-1 GRD product, with the elements and the structure of ESA's."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .sentinel1_radiometry import LINE_STEP, VECTOR_STEP, Instrument
from .sentinel1_view import REFERENCE_ANGLE, SPACING, RadarGrid

FloatArray = npt.NDArray[np.float64]
LINE_SECONDS = 1.483282101543731e-3
"""Time from one line to the next, s."""
POINTS = (10, 21)
"""Lines and pixels of the geolocation grid."""
_HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n'
_SCHEMAS = {
    "annotation": "s1Level1ProductSchema",
    "calibration": "s1Level1CalibrationSchema",
    "noise": "s1Level1NoiseSchema",
    "measurement": "s1Level1MeasurementSchema",
}


@dataclass(frozen=True)
class ProductFacts:
    """What the documents of a product say.

    Attributes:
        name: of the product, without `.SAFE`.
        start: of the first line, UTC.
        version: of the processor, such as `003.71`.
        direction: `ascending` or `descending`.
        orbit: absolute and relative.
        datatake: number of the datatake.
        height: of the ground above the ellipsoid, m.
        grid: of the images.
        instrument: whose tables are written.
    """

    name: str
    start: datetime
    version: str
    direction: str
    orbit: tuple[int, int]
    datatake: int
    height: float
    grid: RadarGrid
    instrument: Instrument

    @property
    def stop(self) -> datetime:
        """Time of the last line."""
        return self.at(self.grid.shape[0] - 1)

    def at(self, line: float) -> datetime:
        """Time of a line."""
        return self.start + timedelta(seconds=line * LINE_SECONDS)


@dataclass(frozen=True, eq=False)
class Points:
    """The geolocation grid `(line, pixel)`."""

    line: FloatArray
    pixel: FloatArray
    latitude: FloatArray
    longitude: FloatArray


def ground_points(grid: RadarGrid) -> Points:
    """Points spread evenly over the image, the last ones on its last line and pixel."""
    lines, pixels = (
        np.unique(np.rint(np.linspace(0, size - 1, count))) for size, count in zip(grid.shape, POINTS, strict=True)
    )
    line, pixel = np.meshgrid(lines, pixels, indexing="ij")
    return Points(line, pixel, *grid.geographic(line, pixel))


def calibration_document(facts: ProductFacts, polarisation: str) -> str:
    """calibration-*.xml."""
    pixel = _pixels(facts.grid)
    rows = {
        name: _numbers(facts.instrument.amplitude(pixel, quantity))
        for name, quantity in (("sigmaNought", "sigma0"), ("betaNought", "beta0"), ("gamma", "gamma0"), ("dn", "beta0"))
    }
    tables = "".join(f'<{name} count="{pixel.size}">{row}</{name}>\n' for name, row in rows.items())
    vectors = [
        f"<calibrationVector>\n<azimuthTime>{_time(facts.at(line))}</azimuthTime>\n<line>{line}</line>\n"
        f'<pixel count="{pixel.size}">{_places(pixel)}</pixel>\n{tables}</calibrationVector>\n'
        for line in _lines(facts.grid)
    ]
    return (
        f"{_HEAD}<calibration>\n{_header(facts, polarisation)}<calibrationInformation>\n"
        "<absoluteCalibrationConstant>1.000000e+00</absoluteCalibrationConstant>\n</calibrationInformation>\n"
        f'<calibrationVectorList count="{len(vectors)}">\n{"".join(vectors)}</calibrationVectorList>\n</calibration>\n'
    )


def noise_document(facts: ProductFacts, polarisation: str) -> str:
    """noise-*.xml, with range and azimuth vectors, or with range vectors alone as before IPF 2.90."""
    new = facts.instrument.varies
    vector, table = ("noiseRangeVector", "noiseRangeLut") if new else ("noiseVector", "noiseLut")
    pixel = _pixels(facts.grid)
    values = _numbers(facts.instrument.range_noise(pixel))
    vectors = [
        f"<{vector}>\n<azimuthTime>{_time(facts.at(line))}</azimuthTime>\n<line>{line}</line>\n"
        f'<pixel count="{pixel.size}">{_places(pixel)}</pixel>\n'
        f'<{table} count="{pixel.size}">{values}</{table}>\n</{vector}>\n'
        for line in _lines(facts.grid)
    ]
    listed = f'<{vector}List count="{len(vectors)}">\n{"".join(vectors)}</{vector}List>\n'
    blocks = _azimuth_blocks(facts) if new else ""
    return f"{_HEAD}<noise>\n{_header(facts, polarisation)}{listed}{blocks}</noise>\n"


def _azimuth_blocks(facts: ProductFacts) -> str:
    """A block for each of three swaths, with the same factors."""
    lines, pixels = facts.grid.shape
    line = np.unique(np.append(np.arange(0, lines, 10.0), lines - 1))
    edges = [0, pixels // 3, 2 * pixels // 3, pixels]
    values = _numbers(facts.instrument.azimuth_noise(line))
    blocks = "".join(
        f"<noiseAzimuthVector>\n<swath>IW{number}</swath>\n<firstAzimuthLine>0</firstAzimuthLine>\n"
        f"<firstRangeSample>{first}</firstRangeSample>\n<lastAzimuthLine>{lines - 1}</lastAzimuthLine>\n"
        f'<lastRangeSample>{last - 1}</lastRangeSample>\n<line count="{line.size}">{_places(line)}</line>\n'
        f'<noiseAzimuthLut count="{line.size}">{values}</noiseAzimuthLut>\n</noiseAzimuthVector>\n'
        for number, (first, last) in enumerate(pairwise(edges), 1)
    )
    return f'<noiseAzimuthVectorList count="3">\n{blocks}</noiseAzimuthVectorList>\n'


def annotation_document(facts: ProductFacts, polarisation: str, points: Points, mean: float) -> str:
    """The annotation of a polarisation; `mean` is that of its numbers."""
    lines, pixels = facts.grid.shape
    return f"""{_HEAD}<product>
{_header(facts, polarisation)}<generalAnnotation>
<productInformation>
<pass>{facts.direction.capitalize()}</pass>
<timelinessCategory>Fast-24h</timelinessCategory>
<platformHeading>{(facts.grid.heading + 180) % 360 - 180:.15e}</platformHeading>
<projection>Ground Range</projection>
<rangeSamplingRate>6.434523812571428e+07</rangeSamplingRate>
<radarFrequency>5.405000454334350e+09</radarFrequency>
</productInformation>
</generalAnnotation>
<imageAnnotation>
<imageInformation>
<productFirstLineUtcTime>{_time(facts.start)}</productFirstLineUtcTime>
<productLastLineUtcTime>{_time(facts.stop)}</productLastLineUtcTime>
<pixelValue>Detected</pixelValue>
<outputPixels>16 bit Unsigned Integer</outputPixels>
<rangePixelSpacing>{SPACING:.6e}</rangePixelSpacing>
<azimuthPixelSpacing>{SPACING:.6e}</azimuthPixelSpacing>
<azimuthTimeInterval>{LINE_SECONDS:.15e}</azimuthTimeInterval>
<numberOfSamples>{pixels}</numberOfSamples>
<numberOfLines>{lines}</numberOfLines>
<incidenceAngleMidSwath>{REFERENCE_ANGLE:.15e}</incidenceAngleMidSwath>
<imageStatistics><outputDataMean><re>{mean:.6e}</re><im>0.000000e+00</im></outputDataMean></imageStatistics>
</imageInformation>
<processingInformation>
<thermalNoiseCorrectionPerformed>false</thermalNoiseCorrectionPerformed>
<swathProcParamsList count="3">
{_swaths(facts.instrument.looks)}</swathProcParamsList>
<ellipsoidName>WGS84</ellipsoidName>
</processingInformation>
</imageAnnotation>
<geolocationGrid>
<geolocationGridPointList count="{points.line.size}">
{_grid_points(facts, points)}</geolocationGridPointList>
</geolocationGrid>
</product>
"""


def _swaths(looks: float) -> str:
    bandwidths = (5.650445548389234e7, 4.83e7, 4.28e7)
    return "".join(
        f"<swathProcParams>\n<swath>IW{number}</swath>\n<rangeProcessing>\n<windowType>Hamming</windowType>\n"
        f"<totalBandwidth>{bandwidth:.15e}</totalBandwidth>\n<numberOfLooks>{looks:g}</numberOfLooks>\n"
        "</rangeProcessing>\n<azimuthProcessing>\n<numberOfLooks>1</numberOfLooks>\n</azimuthProcessing>\n"
        "</swathProcParams>\n"
        for number, bandwidth in enumerate(bandwidths, 1)
    )


def _grid_points(facts: ProductFacts, points: Points) -> str:
    columns = (part.ravel() for part in (points.line, points.pixel, points.latitude, points.longitude))
    return "".join(
        f"<geolocationGridPoint>\n<azimuthTime>{_time(facts.at(line))}</azimuthTime>\n<line>{line:.0f}</line>\n"
        f"<pixel>{pixel:.0f}</pixel>\n<latitude>{latitude:.15e}</latitude>\n<longitude>{longitude:.15e}</longitude>\n"
        f"<height>{facts.height:.15e}</height>\n"
        f"<incidenceAngle>{float(facts.grid.incidence(np.asarray(pixel))):.15e}</incidenceAngle>\n"
        "</geolocationGridPoint>\n"
        for line, pixel, latitude, longitude in zip(*columns, strict=True)
    )


def manifest(facts: ProductFacts, files: Sequence[tuple[str, str, int, str]], corners: FloatArray) -> str:
    """manifest.safe.

    Args:
        facts: of the product.
        files: kind (`annotation`, `calibration`, `noise`, `measurement`), path, bytes and MD5 of each file.
        corners: latitude and longitude round the scene `(n, 2)`.
    """
    objects = "".join(
        f'<dataObject ID="{name.rpartition("/")[2].partition(".")[0].replace("-", "")}" repID="{_SCHEMAS[kind]}">\n'
        f'<byteStream mimeType="{"text/xml" if name.endswith("xml") else "application/octet-stream"}" size="{size}">\n'
        f'<fileLocation locatorType="URL" href="./{name}"/>\n<checksum checksumName="MD5">{digest}</checksum>\n'
        "</byteStream>\n</dataObject>\n"
        for kind, name, size, digest in files
    )
    ring = " ".join(f"{latitude:.6f},{longitude:.6f}" for latitude, longitude in corners)
    return f"""{_HEAD}<xfdu:XFDU xmlns:gml="http://www.opengis.net/gml" xmlns:xfdu="urn:ccsds:schema:xfdu:1"\
 xmlns:safe="http://www.esa.int/safe/sentinel-1.0" xmlns:s1="http://www.esa.int/safe/sentinel-1.0/sentinel-1"\
 xmlns:s1sarl1="http://www.esa.int/safe/sentinel-1.0/sentinel-1/sar/level-1"\
 version="esa/safe/sentinel-1.0/sentinel-1/sar/level-1/grd/standard/iwdp">
<!-- {facts.name}: simulated -->
<metadataSection>
{
        _section(
            "processing",
            f'<safe:processing name="GRD Post Processing" start="{_time(facts.stop)}"><safe:facility '
            f'name="simulated"><safe:software name="Sentinel-1 IPF" version="{facts.version}"/></safe:facility>'
            "</safe:processing>",
        )
    }
{
        _section(
            "platform",
            "<safe:platform><safe:familyName>SENTINEL-1</safe:familyName><safe:number>A</safe:number></safe:platform>",
        )
    }
{
        _section(
            "measurementOrbitReference",
            "<safe:orbitReference>"
            f'<safe:orbitNumber type="start">{facts.orbit[0]}</safe:orbitNumber>'
            f'<safe:relativeOrbitNumber type="start">{facts.orbit[1]}</safe:relativeOrbitNumber>'
            f"<safe:extension><s1:orbitProperties><s1:pass>{facts.direction.upper()}</s1:pass></s1:orbitProperties>"
            "</safe:extension></safe:orbitReference>",
        )
    }
{
        _section(
            "generalProductInformation",
            "<s1sarl1:standAloneProductInformation><s1sarl1:productType>GRD"
            "</s1sarl1:productType></s1sarl1:standAloneProductInformation>",
        )
    }
{
        _section(
            "acquisitionPeriod",
            f"<safe:acquisitionPeriod><safe:startTime>{_time(facts.start)}</safe:startTime>"
            f"<safe:stopTime>{_time(facts.stop)}</safe:stopTime></safe:acquisitionPeriod>",
        )
    }
{
        _section(
            "measurementFrameSet",
            "<safe:frameSet><safe:frame><safe:footPrint><gml:coordinates>"
            f"{ring}</gml:coordinates></safe:footPrint></safe:frame></safe:frameSet>",
        )
    }
</metadataSection>
<dataObjectSection>
{objects}</dataObjectSection>
</xfdu:XFDU>
"""


def _section(name: str, content: str) -> str:
    return f'<metadataObject ID="{name}"><metadataWrap><xmlData>{content}</xmlData></metadataWrap></metadataObject>'


def _header(facts: ProductFacts, polarisation: str) -> str:
    return (
        f"<adsHeader>\n<missionId>S1A</missionId>\n<productType>GRD</productType>\n"
        f"<polarisation>{polarisation}</polarisation>\n<mode>IW</mode>\n<swath>IW</swath>\n"
        f"<startTime>{_time(facts.start)}</startTime>\n<stopTime>{_time(facts.stop)}</stopTime>\n"
        f"<absoluteOrbitNumber>{facts.orbit[0]}</absoluteOrbitNumber>\n"
        f"<missionDataTakeId>{facts.datatake}</missionDataTakeId>\n</adsHeader>\n"
    )


def _time(when: datetime) -> str:
    return f"{when:%Y-%m-%dT%H:%M:%S.%f}"


def _lines(grid: RadarGrid) -> list[int]:
    """Lines of the vectors; the last lies at or beyond the image's end, as in ESA's."""
    return list(range(0, grid.shape[0] - 1 + LINE_STEP, LINE_STEP))


def _pixels(grid: RadarGrid) -> FloatArray:
    last = grid.shape[1] - 1
    return np.unique(np.append(np.arange(0, last, VECTOR_STEP), last)).astype(float)


def _places(values: FloatArray) -> str:
    return " ".join(f"{value:.0f}" for value in values)


def _numbers(values: FloatArray) -> str:
    return " ".join(f"{value:.6e}" for value in values)
