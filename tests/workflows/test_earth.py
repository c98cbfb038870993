"""Readers of SpectralEarth's sets: class lists, codes, splits, and what is wrong with a folder or list."""

import numpy as np
import pytest

from cubeloom.errors import ConfigError, InputError
from cubeloom.models.spectral_earth import DN_OF_ONE, statistics
from cubeloom.workflows.train.earth_classes import CORINE
from cubeloom.workflows.train.earth_layout import find_patches, read_codes, read_patch
from cubeloom.workflows.train.earth_sets import EARTH_SETS, earth_set, open_set
from cubeloom.workflows.train.earth_soil import SOIL
from cubeloom.workflows.train.earth_splits import EarthSplit, by_scenes, low_label, read_split, scene_of

CODES = {
    "cdl": "1 2 3 4 5 6 45 54 69 72 75 76 204 210",
    "desis_cdl": "1 2 3 5 42 43 49 54 56 68 69 75 76 204",
    "eo1_cdl": "1 2 3 4 5 6 41 42 43 54 69 75 76 204",
    "nlcd": "11 21 22 23 24 31 41 42 43 52 71 81 82 90 95",
    "eurocrops": "3301090205 3301010600 3301090303 3301010800 3301090301 3303060000 3303030600 3303050000 3303030100 "
    "3301060500 3301060300 3303010000 3301020000 3301160000 3301029900",
    "bdforet": "1 2 3 4 5 7 9 10 11 12 14 16",
    "treemap": "184 185 221 924 105 503 520 706 801 201 264 266 281 301 901 406 923 142 161 602 607 608 267 371",
    "bnetd": "1 2 3 6 9 10 13 15 16 21",
}
"""Of the authors' configurations, in their order."""
CORINE_43 = (
    "111 112 121 122 123 124 131 132 133 141 142 211 212 213 221 222 223 231 241 242 243 244 311 312 313 321 322 323 "
    "324 331 332 333 334 411 412 421 422 423 511 512 521 522 523"
)
OF_NO_CLASS = {122, 123, 124, 131, 132, 133, 141, 142, 332, 334, 423}
TABLE = {  # bands, classes, tiles
    "corine": (202, 19, (8250, 1100, 1650)),
    "cdl": (202, 14, (1200, 160, 240)),
    "nlcd": (202, 15, (10125, 1350, 2025)),
    "eurocrops": (202, 15, (1260, 180, 360)),
    "bdforet": (202, 12, (1912, 255, 383)),
    "treemap": (202, 24, (7500, 1000, 1500)),
    "bnetd": (202, 10, (1575, 210, 315)),
    "desis_cdl": (235, 14, (750, 100, 150)),
    "eo1_cdl": (198, 14, (357, 82, 111)),
    "hyperview": (150, 0, (1385, 347)),
}


@pytest.fixture(scope="module")
def cdl(earth_data, tmp_path_factory):
    return earth_data.write_set(tmp_path_factory.mktemp("sets") / "enmap_cdl", "cdl")


class TestDescriptions:
    def test_the_sets_are_those_of_the_paper(self):
        found = {name: (one.bands, len(one.classes), tuple(one.counts.values())) for name, one in EARTH_SETS.items()}
        assert found == TABLE

    @pytest.mark.parametrize("name", CODES)
    def test_codes_stand_in_the_authors_order(self, name):
        assert [one.codes for one in EARTH_SETS[name].classes] == [(int(code),) for code in CODES[name].split()]

    def test_corine_joins_43_classes_to_19(self):
        codes = [code for one in CORINE for code in one.codes]
        assert len(codes) == len(set(codes))
        assert set(map(int, CORINE_43.split())) - set(codes) == OF_NO_CLASS
        assert len(CORINE_43.split()) == 43
        assert set(codes) < set(map(int, CORINE_43.split()))

    @pytest.mark.parametrize("name", [name for name in EARTH_SETS if name != "hyperview"])
    def test_every_class_has_a_name_and_a_colour_of_its_own(self, name):
        classes = EARTH_SETS[name].card_classes
        assert [one.value for one in classes] == [*range(1, len(classes) + 1)]
        assert len({one.name for one in classes}) == len({one.colour for one in classes}) == len(classes)

    def test_tasks(self):
        others = {name: one.task for name, one in EARTH_SETS.items() if one.task != "segment"}
        assert others == {"corine": "multilabel", "hyperview": "regress"}
        assert earth_set("hyperview").outputs == SOIL

    def test_statistics_are_in_the_units_of_the_cubes(self):
        np.testing.assert_allclose(earth_set("nlcd").statistics.mean, np.divide(statistics().mean, DN_OF_ONE))
        assert earth_set("desis_cdl").statistics == statistics("desis")
        assert (earth_set("enmap_nlcd").units, earth_set("eo1_cdl").units) == ("1", "DN")

    def test_unknown_set(self):
        with pytest.raises(ConfigError, match="no set 'eurocrop'; did you mean 'eurocrops'"):
            earth_set("eurocrop")


class TestPatches:
    def test_places_and_their_dates(self, earth_data, tmp_path):
        earth_data.write_patches(tmp_path, places=3)
        (tmp_path / "enmap" / "empty").mkdir()
        (tmp_path / "enmap" / "readme.txt").write_text("")
        patches = find_patches(tmp_path)
        assert [(patch.name, len(patch.dates)) for patch in patches] == [("0000000", 2), ("0000001", 1), ("0000002", 2)]
        assert find_patches(tmp_path / "enmap") == patches
        rng = np.random.default_rng(0)
        assert all(set(patches[0].two_views(rng)) == set(patches[0].dates) for _ in range(8))
        assert patches[1].two_views(rng) == patches[1].dates * 2

    def test_cubes_are_reflectance(self, earth_data, tmp_path):
        values = np.arange(3 * 4, dtype=np.int16).reshape(3, 2, 2) * 100
        values[1, 0, 0] = -32768
        cube = read_patch(earth_data.write_tif(tmp_path / "a.tif", values), bands=3)
        expected = np.where(values == -32768, np.nan, values / 10_000)
        np.testing.assert_allclose(cube, expected, rtol=1e-6)
        marked = read_patch(earth_data.write_tif(tmp_path / "b.tif", values, nodata=300), bands=3, scale=1)
        assert np.isnan(marked[0, 1, 1])
        assert marked[1, 0, 0] == -32768

    def test_codes_are_replaced(self, earth_data, tmp_path):
        codes = np.array([[0, 3301010600], [3301090303, 7]], np.uint32)
        path = earth_data.write_tif(tmp_path / "a.tif", np.stack([codes, codes * 0]))
        assert read_codes(path, [3301090303, 3301010600], [1, 2]).tolist() == [[0, 2], [1, 0]]

    def test_what_is_no_such_folder_or_file(self, earth_data, tmp_path):
        with pytest.raises(InputError, match=r"no such folder; expected enmap/PATCH/SCENE\.tif"):
            find_patches(tmp_path / "none")
        with pytest.raises(InputError, match="holds no patch"):
            find_patches(tmp_path)
        path = earth_data.write_tif(tmp_path / "a.tif", np.ones((3, 2, 2), np.int16))
        with pytest.raises(InputError, match=r"a.tif: 3 bands, expected 202"):
            read_patch(path)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(InputError, match=r"a\.tif"):
            read_patch(path)
        coarse = earth_data.write_tif(tmp_path / "b.tif", np.ones((1, 2, 2), np.float32))
        with pytest.raises(InputError, match="float32 cannot tell codes such as 3301010600"):
            read_codes(coarse, [3301010600], [1])


def published(scenes=30, each=4):
    """A split whose parts share scenes, as the authors'."""
    names = [f"{number:07d}/{number % scenes:05d}.tif" for number in range(scenes * each)]
    return EarthSplit("published", tuple(names[:84]), tuple(names[84:96]), tuple(names[96:]))


class TestSplits:
    def test_no_scene_stands_in_two_parts(self):
        whole = published()
        assert whole.shared_scenes == 24
        split = by_scenes(whole)
        parts = split.train, split.val, split.test
        assert sorted(sum(parts, ())) == sorted((*whole.train, *whole.val, *whole.test))
        scenes = [{scene_of(name) for name in part} for part in parts]
        assert sum(map(len, scenes)) == len(set.union(*scenes)) == 30
        assert split.shared_scenes == 0
        assert [len(part) for part in parts] == pytest.approx([84, 12, 24], abs=4)

    def test_scenes_are_dealt_the_same_in_any_order(self):
        whole = published()
        turned = EarthSplit("published", whole.train[::-1], whole.val[::-1], whole.test[::-1])
        assert by_scenes(turned) == by_scenes(whole)

    @pytest.mark.parametrize(("fraction", "train", "val"), [(0.1, 7, 2), (0.25, 19, 5), (0.5, 33, 12), (1.0, 84, 12)])
    def test_fewer_labels(self, fraction, train, val):
        """80 % of a small part of 96 tiles train, 70 % of a larger; the other part gives at most what it has."""
        whole = published()
        split = low_label(whole, fraction)
        assert (len(split.train), len(split.val), split.test) == (train, val, whole.test)
        assert set(split.train) <= set(whole.train)
        assert low_label(whole, fraction) == split

    @pytest.mark.parametrize("fraction", [0, 1.5, 0.01])
    def test_a_fraction_that_leaves_nothing(self, fraction):
        with pytest.raises(ConfigError, match="fraction"):
            low_label(published(), fraction)

    def test_two_scenes_are_too_few(self):
        with pytest.raises(InputError, match="2 scenes cannot be dealt"):
            by_scenes(EarthSplit("published", ("1/1.tif",), ("2/2.tif",), ("3/1.tif",)))

    @pytest.mark.parametrize(
        ("part", "text", "words"),
        [
            ("val", None, r"val.txt: No such file"),
            ("test", "\n", r"test.txt: lists no tile"),
            ("train", "0000001/00001.tif\nimages.tif\n", r"train.txt, tile 2: found 'images.tif', expected PATCH"),
            ("train", "../00001.tif\n", r"train.txt, tile 1: '..' cannot be used"),
            ("val", "0000000/00000.tif\n", r"0000000/00000.tif stands in train.txt and again in val.txt"),
        ],
    )
    def test_lists_that_are_wrong(self, cdl, tmp_path, part, text, words):
        for name in ("train", "val", "test"):
            (tmp_path / f"{name}.txt").write_text((cdl / "splits" / f"{name}.txt").read_text())
        (tmp_path / f"{part}.txt").unlink()
        if text is not None:
            (tmp_path / f"{part}.txt").write_text(text)
        with pytest.raises(InputError, match=words):
            read_split(tmp_path)

    def test_other_counts_are_remarked_on(self, cdl):
        assert read_split(cdl / "splits", {"train": 6, "val": 3, "test": 3}).remarks == ()
        (remark,) = read_split(cdl / "splits", {"train": 6, "val": 3, "test": 240}).remarks
        assert remark.endswith("test.txt lists 3 tiles; published are 240")


class TestSets:
    def test_tiles_of_each_part(self, cdl):
        parts = open_set("cdl", cdl)
        assert [len(part) for part in (parts.train, parts.val, parts.test)] == [6, 3, 3]
        assert len(parts.remarks) == 3
        cube, target = parts.train.cube(0), parts.train.target(0)
        assert (cube.shape, cube.dtype, target.shape) == ((202, 32, 32), np.float32, (32, 32))
        assert set(np.unique(target)) <= {0, 1, 2, 3, 4}
        assert 0.01 < cube.mean() < 1

    def test_a_folder_above_and_lists_elsewhere(self, cdl, tmp_path):
        lists = tmp_path / "data" / "enmap_cdl"
        lists.mkdir(parents=True)
        for part, other in (("train", "val"), ("val", "train"), ("test", "test")):
            (lists / f"{part}.txt").write_text((cdl / "splits" / f"{other}.txt").read_text())
        parts = open_set("cdl", cdl.parent, tmp_path / "data", split="scenes")
        assert parts.kind == "scenes"
        assert len(parts.train) + len(parts.val) + len(parts.test) == 12

    def test_labels_of_a_tile(self, earth_data, tmp_path):
        parts = open_set("corine", earth_data.write_set(tmp_path, "corine", (2, 1, 1), classes=6))
        codes = read_codes(parts.train.labels(0), [111, 121, 211, 221, 231, 242], [1, 2, 3, 4, 5, 6])
        assert np.flatnonzero(parts.train.target(0)).tolist() == [value - 1 for value in np.unique(codes) if value]

    def test_soil(self, earth_data, tmp_path):
        parts = open_set("hyperview", earth_data.write_set(tmp_path, "hyperview", (3, 2)))
        assert (len(parts.train), len(parts.val), parts.test) == (3, 2, None)
        assert parts.val.target(1).shape == (4,)
        with np.load(parts.val.image(1)) as file:
            raw = file["data"]
        cube = parts.val.cube(1)
        assert cube.shape == (150, 128, 128)
        np.testing.assert_allclose(
            cube[:, [0, 0, -1, -1], [0, -1, 0, -1]], raw[:, [0, 0, -1, -1], [0, -1, 0, -1]], rtol=1e-4
        )

    @pytest.mark.parametrize(
        ("column", "words"),
        [("K", "'K'; expected numbers under sample_index"), ("sample_index", "sample_index")],
    )
    def test_a_soil_table_without_a_column(self, earth_data, tmp_path, column, words):
        path = earth_data.write_set(tmp_path, "hyperview", (1, 1)) / "splits" / "val.csv"
        path.write_text(path.read_text().replace(column, "other", 1))
        with pytest.raises(InputError, match=words):
            open_set("hyperview", tmp_path)

    def test_a_soil_image_that_is_none(self, earth_data, tmp_path):
        parts = open_set("hyperview", earth_data.write_set(tmp_path, "hyperview", (1, 1)))
        np.savez(parts.train.image(0), data=np.ones((3, 4, 4)))
        with pytest.raises(InputError, match=r"'data' is \(3, 4, 4\) of float64, expected \(150, y, x\)"):
            parts.train.cube(0)
        np.savez(parts.train.image(0), other=np.ones(3))
        with pytest.raises(InputError, match="holds no array 'data'"):
            parts.train.cube(0)

    @pytest.mark.parametrize("options", [{"split": "scenes"}, {"fraction": 0.5}])
    def test_soil_has_no_other_split(self, earth_data, tmp_path, options):
        with pytest.raises(ConfigError, match="hyperview has the published split alone"):
            open_set("hyperview", earth_data.write_set(tmp_path, "hyperview", (1, 1)), **options)

    def test_what_is_missing(self, cdl, tmp_path):
        with pytest.raises(InputError, match="no such folder; expected enmap_cdl"):
            open_set("cdl", tmp_path / "none")
        with pytest.raises(ConfigError, match="split 'random' is unknown; expected published or scenes"):
            open_set("cdl", cdl, split="random")
        with pytest.raises(InputError, match=r"12 of 12 listed files are missing, as .*0000000/00000.tif"):
            open_set("cdl", tmp_path, cdl / "splits")
