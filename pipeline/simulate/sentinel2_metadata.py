"""The documents of a simulated Sentinel-2 product, with the elements and the structure of ESA's."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.readers.sentinel2_bands import NAMES, nominal_bands

from .sentinel2_tile import TileGrid

FloatArray = npt.NDArray[np.float64]
_SCHEMA = "https://psd-14.sentinel2.eo.esa.int/PSD"
NODE_STEP = 5000
"""Distance of the nodes of angle grids, m."""
_IRRADIANCE = (1884.69, 1959.66, 1823.24, 1512.06, 1424.64, 1287.61, 1162.08, 1041.63, 955.32, 812.92, 367.15, 245.59,
               85.25)  # fmt: skip
"""Solar irradiance by `bandId`, W m-2 um-1."""


@dataclass(frozen=True)
class ProductFacts:
    """What the documents of a product say.

    Attributes:
        name: of the product, without `.SAFE`.
        tile: MGRS tile with its T.
        granule: folder of the tile below GRANULE.
        baseline: of the processor, such as `05.11`.
        offset: DN added to reflectance times 10000, as its negative; 0 writes no element.
        start: of the pass, UTC.
        processed: when the product was made, UTC.
        orbit: relative orbit.
        grid: the tile's.
        sun: zenith and azimuth, deg.
        images: paths of the images, without suffix.
        masks: type, `bandId` (None for all bands) and path of each mask.
        shares: percent of the tile by class of SCL.
        corners: latitude and longitude round the tile.
    """

    name: str
    tile: str
    granule: str
    baseline: str
    offset: int
    start: datetime
    processed: datetime
    orbit: int
    grid: TileGrid
    sun: tuple[float, float]
    images: Sequence[str]
    masks: Sequence[tuple[str, int | None, str]]
    shares: Mapping[int, float]
    corners: Sequence[tuple[float, float]]


def product_document(facts: ProductFacts) -> str:
    """MTD_MSIL2A.xml."""
    images = "".join(f"<IMAGE_FILE>{path}</IMAGE_FILE>\n" for path in facts.images)
    datastrip = f"S2A_OPER_MSI_L2A_DS_2APS_{_compact(facts.processed)}_S{_compact(facts.start)}_N{facts.baseline}"
    cloud = sum(facts.shares.get(value, 0.0) for value in (8, 9, 10))
    corners = " ".join(f"{lat:.9f} {lon:.9f}" for lat, lon in (*facts.corners, facts.corners[0]))
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-2A_User_Product xmlns:n1="{_SCHEMA}/User_Product_Level-2A.xsd">
<n1:General_Info>
<Product_Info>
<PRODUCT_START_TIME>{_iso(facts.start)}</PRODUCT_START_TIME>
<PRODUCT_STOP_TIME>{_iso(facts.start)}</PRODUCT_STOP_TIME>
<PRODUCT_URI>{facts.name}.SAFE</PRODUCT_URI>
<PROCESSING_LEVEL>Level-2A</PROCESSING_LEVEL>
<PRODUCT_TYPE>S2MSI2A</PRODUCT_TYPE>
<PROCESSING_BASELINE>{facts.baseline}</PROCESSING_BASELINE>
<GENERATION_TIME>{_iso(facts.processed)}</GENERATION_TIME>
<Datatake datatakeIdentifier="GS2A_{_compact(facts.start)}_000001_N{facts.baseline}">
<SPACECRAFT_NAME>Sentinel-2A</SPACECRAFT_NAME>
<DATATAKE_TYPE>INS-NOBS</DATATAKE_TYPE>
<DATATAKE_SENSING_START>{_iso(facts.start)}</DATATAKE_SENSING_START>
<SENSING_ORBIT_NUMBER>{facts.orbit}</SENSING_ORBIT_NUMBER>
<SENSING_ORBIT_DIRECTION>DESCENDING</SENSING_ORBIT_DIRECTION>
</Datatake>
<Product_Organisation><Granule_List>
<Granule datastripIdentifier="{datastrip}" granuleIdentifier="{facts.granule}" imageFormat="JPEG2000">
{images}</Granule>
</Granule_List></Product_Organisation>
</Product_Info>
<Product_Image_Characteristics>
<Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT>
<SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>
<Special_Values><SPECIAL_VALUE_TEXT>SATURATED</SPECIAL_VALUE_TEXT>
<SPECIAL_VALUE_INDEX>65535</SPECIAL_VALUE_INDEX></Special_Values>
<QUANTIFICATION_VALUES_LIST>
<BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>
<AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE>
<WVP_QUANTIFICATION_VALUE unit="cm">1000.0</WVP_QUANTIFICATION_VALUE>
</QUANTIFICATION_VALUES_LIST>
{_offsets(facts.offset)}<Reflectance_Conversion><U>1.0</U><Solar_Irradiance_List>
{_irradiance()}</Solar_Irradiance_List></Reflectance_Conversion>
<Spectral_Information_List>
{_spectral()}</Spectral_Information_List>
</Product_Image_Characteristics>
</n1:General_Info>
<n1:Geometric_Info><Product_Footprint><Product_Footprint><Global_Footprint>
<EXT_POS_LIST>{corners}</EXT_POS_LIST>
</Global_Footprint></Product_Footprint></Product_Footprint></n1:Geometric_Info>
<n1:Quality_Indicators_Info>
<Cloud_Coverage_Assessment>{cloud:.6f}</Cloud_Coverage_Assessment>
<Image_Content_QI>
<CLOUD_SHADOW_PERCENTAGE>{facts.shares.get(3, 0.0):.6f}</CLOUD_SHADOW_PERCENTAGE>
<VEGETATION_PERCENTAGE>{facts.shares.get(4, 0.0):.6f}</VEGETATION_PERCENTAGE>
<WATER_PERCENTAGE>{facts.shares.get(6, 0.0):.6f}</WATER_PERCENTAGE>
<THIN_CIRRUS_PERCENTAGE>{facts.shares.get(10, 0.0):.6f}</THIN_CIRRUS_PERCENTAGE>
<SNOW_ICE_PERCENTAGE>{facts.shares.get(11, 0.0):.6f}</SNOW_ICE_PERCENTAGE>
</Image_Content_QI>
</n1:Quality_Indicators_Info>
</n1:Level-2A_User_Product>
"""


def tile_document(facts: ProductFacts) -> str:
    """MTD_TL.xml."""
    grid = facts.grid
    sizes = "".join(
        f'<Size resolution="{step}"><NROWS>{grid.shape(step)[0]}</NROWS><NCOLS>{grid.shape(step)[1]}</NCOLS></Size>\n'
        for step in (10, 20, 60)
    )
    places = "".join(
        f'<Geoposition resolution="{step}"><ULX>{grid.left:.0f}</ULX><ULY>{grid.top:.0f}</ULY><XDIM>{step}</XDIM>'
        f"<YDIM>-{step}</YDIM></Geoposition>\n"
        for step in (10, 20, 60)
    )
    masks = "".join(_mask(*mask) for mask in facts.masks)
    identity = f"S2A_OPER_MSI_L2A_TL_2APS_{_compact(facts.processed)}_A000001_{facts.tile}_N{facts.baseline}"
    zone = f"{facts.grid.epsg % 100:02d}{'N' if facts.grid.epsg < 32700 else 'S'}"
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-2A_Tile_ID xmlns:n1="{_SCHEMA}/S2_PDI_Level-2A_Tile_Metadata.xsd">
<n1:General_Info>
<TILE_ID metadataLevel="Brief">{identity}</TILE_ID>
<SENSING_TIME metadataLevel="Standard">{_iso(facts.start)}</SENSING_TIME>
</n1:General_Info>
<n1:Geometric_Info>
<Tile_Geocoding metadataLevel="Brief">
<HORIZONTAL_CS_NAME>WGS84 / UTM zone {zone}</HORIZONTAL_CS_NAME>
<HORIZONTAL_CS_CODE>EPSG:{grid.epsg}</HORIZONTAL_CS_CODE>
{sizes}{places}</Tile_Geocoding>
<Tile_Angles metadataLevel="Standard">
{_angles(facts)}</Tile_Angles>
</n1:Geometric_Info>
<n1:Quality_Indicators_Info metadataLevel="Standard">
<Pixel_Level_QI geometry="FULL_RESOLUTION">
{masks}</Pixel_Level_QI>
</n1:Quality_Indicators_Info>
</n1:Level-2A_Tile_ID>
"""


def manifest(facts: ProductFacts, files: Iterable[str]) -> str:
    """manifest.safe, with every file of the product."""
    objects = "".join(
        f'<dataObject ID="file{number}"><byteStream><fileLocation locatorType="URL" href="./{name}"/></byteStream>'
        "</dataObject>\n"
        for number, name in enumerate(files)
    )
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<xfdu:XFDU xmlns:xfdu="urn:ccsds:schema:xfdu:1" version="esa/safe/sentinel/1.1/sentinel-2/msi/archive_l2a_user_product">
<!-- {facts.name}: simulated -->
<dataObjectSection>
{objects}</dataObjectSection>
</xfdu:XFDU>
"""


def _offsets(offset: int) -> str:
    if not offset:
        return ""
    listed = "".join(
        f'<BOA_ADD_OFFSET band_id="{band}">{offset}</BOA_ADD_OFFSET>\n' for band in range(len(_IRRADIANCE))
    )
    return f"<BOA_ADD_OFFSET_VALUES_LIST>\n{listed}</BOA_ADD_OFFSET_VALUES_LIST>\n"


def _irradiance() -> str:
    return "".join(
        f'<SOLAR_IRRADIANCE bandId="{band}" unit="W/m\u00b2/\u00b5m">{value}</SOLAR_IRRADIANCE>\n'
        for band, value in enumerate(_IRRADIANCE)
    )


def _spectral() -> str:
    parts = []
    for band in nominal_bands(NAMES):
        centre, width = band.response.wavelength, band.response.fwhm
        first, last = int(np.floor(centre - 1.5 * width)), int(np.ceil(centre + 1.5 * width))
        values = np.exp(-4 * np.log(2) * ((np.arange(first, last + 1) - centre) / width) ** 2)
        physical = band.name.replace("B0", "B")
        parts.append(
            f'<Spectral_Information bandId="{band.number - 1}" physicalBand="{physical}">\n'
            f"<RESOLUTION>{band.resolution}</RESOLUTION>\n"
            f'<Wavelength><MIN unit="nm">{first}</MIN><MAX unit="nm">{last}</MAX>'
            f'<CENTRAL unit="nm">{centre}</CENTRAL></Wavelength>\n'
            f'<Spectral_Response><STEP unit="nm">1</STEP><VALUES>{_row(values, 9)}</VALUES></Spectral_Response>\n'
            "</Spectral_Information>\n"
        )
    return "".join(parts)


def _angles(facts: ProductFacts) -> str:
    height, width = (cells * 60 for cells in facts.grid.cells)
    rows, columns = (int(np.ceil(side / NODE_STEP)) + 1 for side in (height, width))
    across = np.broadcast_to(np.linspace(0, 1, columns), (rows, columns))
    sun = [np.full((rows, columns), angle) for angle in facts.sun]
    zenith, azimuth = 6 * np.abs(across - 0.5) + 1, np.where(across < 0.5, 104.0, 286.0)
    parts = [f"<Sun_Angles_Grid>\n{_pair(*sun)}</Sun_Angles_Grid>\n"]
    parts.append(f"<Mean_Sun_Angle>{_mean(*facts.sun)}</Mean_Sun_Angle>\n")
    seen = {1: across <= 0.6, 2: across >= 0.4}
    for band in range(len(_IRRADIANCE)):
        for detector, stripe in seen.items():
            grids = _pair(np.where(stripe, zenith, np.nan), np.where(stripe, azimuth, np.nan))
            parts.append(
                f'<Viewing_Incidence_Angles_Grids bandId="{band}" detectorId="{detector}">\n{grids}'
                "</Viewing_Incidence_Angles_Grids>\n"
            )
    means = "".join(
        f'<Mean_Viewing_Incidence_Angle bandId="{band}">{_mean(float(zenith.mean()), 195.0)}'
        "</Mean_Viewing_Incidence_Angle>\n"
        for band in range(len(_IRRADIANCE))
    )
    return "".join(parts) + f"<Mean_Viewing_Incidence_Angle_List>\n{means}</Mean_Viewing_Incidence_Angle_List>\n"


def _pair(zenith: FloatArray, azimuth: FloatArray) -> str:
    grids = []
    for name, grid in (("Zenith", zenith), ("Azimuth", azimuth)):
        rows = "".join(f"<VALUES>{_row(row, 6)}</VALUES>\n" for row in grid)
        steps = f'<COL_STEP unit="m">{NODE_STEP}</COL_STEP><ROW_STEP unit="m">{NODE_STEP}</ROW_STEP>'
        grids.append(f"<{name}>{steps}\n<Values_List>\n{rows}</Values_List></{name}>\n")
    return "".join(grids)


def _mean(zenith: float, azimuth: float) -> str:
    return (
        f'<ZENITH_ANGLE unit="deg">{zenith:.9f}</ZENITH_ANGLE><AZIMUTH_ANGLE unit="deg">{azimuth:.9f}</AZIMUTH_ANGLE>'
    )


def _mask(kind: str, band: int | None, path: str) -> str:
    of = "" if band is None else f'bandId="{band}" '
    return f'<MASK_FILENAME {of}type="{kind}">{path}</MASK_FILENAME>\n'


def _row(values: FloatArray, digits: int) -> str:
    return " ".join("NaN" if np.isnan(value) else f"{value:.{digits}f}" for value in values)


def _iso(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _compact(time: datetime) -> str:
    return time.strftime("%Y%m%dT%H%M%S")
