"""Denoisers are compared on equal inputs, and the numbers in the tables are the numbers."""

import hashlib
import json
import re
import zlib

import numpy as np
import pytest
import rasterio
from scipy.io import savemat
from skimage.metrics import structural_similarity

import cubeloom
from cubeloom.errors import ConfigError, InputError
from cubeloom.pipeline import metrics
from cubeloom.pipeline.simulate.noise import PROTOCOL, add_noise
from cubeloom.workflows.evaluate.cubes import digest, read_cube
from cubeloom.workflows.evaluate.denoise import evaluate_denoise, noisy_input, parse_noises
from cubeloom.workflows.evaluate.denoise_files import write_evaluation
from cubeloom.workflows.evaluate.denoise_methods import parse_methods
from cubeloom.workflows.evaluate.denoise_tables import markdown
from cubeloom.workflows.evaluate.hymixde import hymixde


def landscape(bands=24, height=40, width=48, seed=0):
    """Fields of four materials with smooth spectra, unscaled."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 12
    cover = np.stack([np.sin(y + k) ** 2 * np.cos(x * (1 + k / 3)) ** 2 + 0.1 for k in range(4)])
    spectra = np.cumsum(rng.uniform(0, 1, (bands, 4)), axis=0)
    return np.tensordot(spectra / spectra.max(), cover / cover.sum(axis=0), 1)


@pytest.fixture
def mat(tmp_path):
    """A MATLAB file with these arrays, by name."""

    def make(name="cube.mat", **arrays):
        savemat(tmp_path / name, arrays)
        return tmp_path / name

    return make


def expected(cube):
    return ((cube - cube.min()) / (cube.max() - cube.min())).astype(np.float32)


# --- reading cubes


@pytest.mark.parametrize("bands", ["first", "last"])
def test_the_band_axis_is_found_by_the_wavelengths(mat, bands):
    cube = landscape()
    path = mat(
        I=cube if bands == "first" else np.moveaxis(cube, 0, -1),
        rgb=np.zeros((40, 48, 3)),
        wl=np.linspace(0.4, 1.0, 24)[None],
        bbl=(np.arange(24) != 5).astype(np.uint8),
    )
    read = read_cube(str(path), 512)
    kept = np.arange(24) != 5
    np.testing.assert_allclose(read.cube, expected(cube[kept]), atol=1e-6)
    np.testing.assert_allclose(read.wavelength, np.linspace(400, 1000, 24)[kept])
    assert read.band.tolist() == (np.flatnonzero(kept) + 1).tolist()
    assert any(f"bands {bands}" in note for note in read.notes)
    assert any("micrometres" in note for note in read.notes)
    assert read.valid.all()


def test_bands_are_put_in_order_of_wavelength(mat):
    cube, wavelength = landscape(), np.linspace(400, 1000, 24)
    wavelength[[3, 4]] = wavelength[[4, 3]]
    read = read_cube(str(mat(I=np.moveaxis(cube, 0, -1), wavelength=wavelength)), 512)
    assert (np.diff(read.wavelength) > 0).all()
    assert read.band[3:5].tolist() == [5, 4]
    np.testing.assert_allclose(read.cube[3], expected(cube)[4], atol=1e-6)


def test_without_wavelengths_the_axis_is_guessed_and_said(mat, tmp_path):
    cube = landscape(height=30, width=30)
    first = read_cube(str(mat("first.mat", data=cube)), 512)
    last = read_cube(str(mat("last.mat", data=np.moveaxis(cube, 0, -1))), 512)
    assert np.array_equal(first.cube, last.cube)
    assert "guessed" in first.notes[0]
    assert "bands=last" in first.notes[0]
    assert "bands=first" in last.notes[0]
    assert "evenly spread over 420-2450 nm, an assumption" in first.notes[1]
    np.testing.assert_allclose(first.wavelength, np.linspace(420, 2450, 24))
    stated = read_cube(f"{tmp_path / 'last.mat'}#bands=last,wavelengths=400:900", 512)
    assert stated.wavelength[[0, -1]].tolist() == [400, 900]


def test_a_matrix_of_spectra_needs_its_shape(mat, tmp_path):
    cube = landscape()
    matrix = np.stack([band.ravel(order="F") for band in cube])
    path = mat(Y=matrix, lines=40.0, cols=48.0)
    np.testing.assert_allclose(read_cube(f"{path}#key=Y", 512).cube, expected(cube), atol=1e-6)
    rows = mat("rows.mat", Y=cube.reshape(24, -1).T)
    read = read_cube(f"{rows}#shape=40x48,order=C", 512)
    np.testing.assert_allclose(read.cube, expected(cube), atol=1e-6)
    with pytest.raises(ConfigError, match=r"give shape=HEIGHTxWIDTH \(found nothing\)"):
        read_cube(f"{rows}#key=Y", 512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("#key=other", r"no numeric array 'other'; the file has a \(40, 48, 24\), b"),
        ("", r"no one array is the largest with 3 axes; name the cube with key="),
        ("#key=a,bands=middle", "bands='middle'; expected first or last"),
        ("#key=a,axis=last", "take no option 'axis'; they take key, bands"),
        ("#key=a,wavelengths=nm", "no array 'nm' with 24 values"),
        ("#key=a,wavelengths=900:400", "two rising numbers in nm"),
        ("#key", "option 'key' after '#'; expected NAME=VALUE"),
    ],
)
def test_a_matlab_file_that_says_too_little_is_refused(mat, options, message):
    cube = np.moveaxis(landscape(), 0, -1)
    with pytest.raises(ConfigError, match=message):
        read_cube(f"{mat(a=cube, b=cube)}{options}", 512)


@pytest.mark.parametrize("content", [b"not a matlab file at all", b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "cube.mat").write_bytes(content)
    with pytest.raises(InputError, match=r"cube\.mat"):
        read_cube(str(tmp_path / "cube.mat"), 512)


def test_a_truncated_file_is_refused(mat):
    path = mat(a=np.random.default_rng(0).random((20, 20, 8)))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match="damaged"):
        read_cube(str(path), 512)


def test_cubes_without_use_are_refused(mat, tmp_path):
    with pytest.raises(InputError, match="every value is 3"):
        read_cube(str(mat(a=np.full((20, 20, 8), 3.0))), 512)
    with pytest.raises(InputError, match="no pixel has a value in every good band"):
        read_cube(str(mat("b.mat", a=np.full((20, 20, 8), np.nan))), 512)
    with pytest.raises(InputError, match="no such file"):
        read_cube(str(tmp_path / "missing.mat"), 512)


def test_the_crop_is_the_middle_and_the_scaling_its_own(mat):
    cube = landscape()
    cube[:, 0, 0] = 50  # outside the crop
    read = read_cube(f"{mat(a=np.moveaxis(cube, 0, -1))}#bands=last", 30)
    assert read.crop == (5, 9, 30, 30)
    np.testing.assert_allclose(read.cube, expected(cube[:, 5:35, 9:39]), atol=1e-6)
    assert (read.cube.min(), read.cube.max()) == (0, 1)
    assert read.describe()["crop"] == {"row": 5, "column": 9, "height": 30, "width": 30}


def test_a_plain_geotiff_is_a_cube_too(tmp_path):
    cube = (landscape() * 9000).astype(np.int16)
    cube[:, :3] = -999
    path = tmp_path / "plain.tif"
    with rasterio.open(path, "w", "GTiff", 48, 40, 24, dtype="int16", nodata=-999) as file:
        file.write(cube)
    read = read_cube(str(path), 512)
    assert not read.valid[:3].any()
    assert read.valid[3:].all()
    assert np.isnan(read.cube[:, :3]).all()
    np.testing.assert_allclose(read.cube[:, 3:], expected(cube[:, 3:].astype(float)), atol=1e-6)


def test_a_product_store_is_a_cube_too(make_scene, tmp_path):
    scene = make_scene(60, 50, bands=12, background=10)
    cubeloom.write_scene(scene, tmp_path / "scene.zarr")
    read = read_cube(str(tmp_path / "scene.zarr"), 512)
    stored = cubeloom.open_scene(tmp_path / "scene.zarr")["reflectance"].values
    assert len(read.band) == 11  # one is not good
    assert not read.valid[:10, :10].any()
    assert read.valid.sum() == 60 * 50 - 100
    good = scene["good"].values
    low, high = np.nanmin(stored[good]), np.nanmax(stored[good])
    np.testing.assert_allclose(read.cube, (stored[good] - low) / (high - low), atol=1e-6)


# --- inputs


def test_options_are_checked():
    assert parse_noises("protocol") == tuple(PROTOCOL)
    assert parse_noises("stripe, enmap,stripe") == ("stripe", "enmap")
    methods = parse_methods("noisy,network:hsdt_s.enmap,network:hsdt_m@hf:some/repo/file@0123")
    assert methods[1].parameters == {"method": "network", "model": "hsdt_s.enmap"}
    assert methods[2].parameters == {"method": "network", "model": "hsdt_m", "weights": "hf:some/repo/file@0123"}
    for text, message in (("bm3d", "'bm3d'; expected noisy"), ("network:", "expected"), ("noisy,noisy", "twice")):
        with pytest.raises(ConfigError, match=message):
            parse_methods(text)
    with pytest.raises(ConfigError, match="names no method"):
        parse_methods("")
    with pytest.raises(ConfigError, match="'rain' is not known"):
        parse_noises("stripe,rain")


def test_noisy_inputs_depend_on_seed_noise_and_name_alone(mat):
    read = read_cube(str(mat("field.mat", a=landscape())), 512)
    made = noisy_input(read, "mixture", 3)
    rng = np.random.default_rng([3, zlib.crc32(b"mixture"), zlib.crc32(b"field")])
    by_hand = add_noise(read.cube, "mixture", rng, read.wavelength)
    np.testing.assert_array_equal(made.cube, by_hand.cube)
    assert made.description["sha256"] == digest(by_hand.cube) != noisy_input(read, "mixture", 4).description["sha256"]
    assert made.description["struck_share"] == pytest.approx(by_hand.struck.mean(), abs=1e-6)


# --- scores and tables


@pytest.fixture(scope="module")
def two_cubes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cubes")
    masked = landscape(seed=1)
    masked[:, :6, :6] = np.nan
    for name, cube in (("plain", landscape()), ("masked", masked)):
        savemat(folder / f"{name}.mat", {"a": np.moveaxis(cube, 0, -1)})
    return [read_cube(f"{folder / name}.mat#bands=last", 512) for name in ("plain", "masked")]


@pytest.fixture(scope="module")
def evaluation(two_cubes):
    methods = parse_methods("noisy,subspace,hymixde")
    return evaluate_denoise(two_cubes, methods, parse_noises("gaussian30,mixture"), seed=1)


def test_scores_equal_an_independent_computation(evaluation, two_cubes):
    for cube in two_cubes:
        noisy = noisy_input(cube, "gaussian30", 1).cube
        made = np.clip(cubeloom.denoise(cube.scene(noisy), method="subspace")["denoised"].values, 0, 1)
        for method, estimate in (("noisy", noisy), ("subspace", made)):
            [score] = [s for s in evaluation.scores if (s.cube, s.noise, s.method) == (cube.name, "gaussian30", method)]
            x, y = cube.cube[:, cube.valid].astype(float), estimate[:, cube.valid].astype(float)
            error = np.mean((x - y) ** 2, axis=1)
            assert score.psnr_db == pytest.approx(np.mean(-10 * np.log10(error)))
            cosine = np.sum(x * y, axis=0) / np.linalg.norm(x, axis=0) / np.linalg.norm(y, axis=0)
            assert score.sam_rad == pytest.approx(np.mean(np.arccos(np.clip(cosine, -1, 1))), rel=1e-6)
            assert score.sam_deg == pytest.approx(np.degrees(score.sam_rad))
            assert score.ergas == pytest.approx(100 * np.sqrt(np.mean(error / x.mean(axis=1) ** 2)))
            if cube.valid.all():
                bands = zip(cube.cube.astype(float), estimate.astype(float), strict=True)
                similar = np.mean([structural_similarity(a, b, data_range=1)[()] for a, b in bands])
                assert score.ssim_uniform == pytest.approx(similar, abs=2e-3)  # which counts the border by less
                assert score.ssim_gaussian == metrics.ssim(cube.cube, estimate, 1.0, gaussian=True)


def test_denoisers_help_and_the_mixed_noise_baseline_stands_stripes_and_impulses(evaluation):
    psnr = {(s.cube, s.noise, s.method): s.psnr_db for s in evaluation.scores}
    for cube in ("plain", "masked"):
        assert psnr[cube, "gaussian30", "subspace"] > psnr[cube, "gaussian30", "noisy"] + 8
        assert psnr[cube, "gaussian30", "hymixde"] > psnr[cube, "gaussian30", "noisy"] + 8
        assert psnr[cube, "mixture", "hymixde"] > psnr[cube, "mixture", "subspace"] + 2


def test_means_and_tables_say_what_the_scores_say(evaluation, tmp_path):
    write_evaluation(evaluation, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    scores = results["scores"]
    assert len(scores) == 2 * 2 * 3
    assert results["conventions"]["ssim_uniform"].startswith("mean over bands, range 1")
    by_hand = {}
    for noise in ("gaussian30", "mixture", "mean"):
        for method in ("noisy", "subspace", "hymixde"):
            some = [s for s in scores if s["method"] == method and noise in ("mean", s["noise"])]
            by_hand[noise, method] = some
            [mean] = [m for m in results["means"] if (m["noise"], m["method"]) == (noise, method)]
            for metric in ("psnr_db", "ssim_gaussian", "sam_deg", "ergas", "seconds"):
                assert mean[metric] == pytest.approx(np.mean([s[metric] for s in some]))
    section = re.search(r"## PSNR, dB, mean over 2 cubes\n\n(.*?)\n\n##", (tmp_path / "table.md").read_text(), re.S)[1]
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in section.splitlines()]
    assert rows[0] == ["noise", "noisy", "subspace", "hymixde"]
    for row in rows[2:]:
        for method, cell in zip(rows[0][1:], row[1:], strict=True):
            assert float(cell) == round(float(np.mean([s["psnr_db"] for s in by_hand[row[0], method]])), 2)
    best = re.search(r"^\| mixture \|.*$", section, re.M)[0]
    assert re.findall(r"\*\*([\d.]+)\*\*", best) == [rows[3][3]]
    with rasterio.open(tmp_path / "figure.png") as figure:
        assert figure.width > 900
        assert np.unique(figure.read(1)).size > 50


def test_a_method_that_fails_is_said_and_the_others_go_on(two_cubes):
    methods = parse_methods("noisy,network:no_such_network")
    found = evaluate_denoise(two_cubes[:1], methods, ("gaussian50",))
    good, bad = found.scores
    assert good.psnr_db == pytest.approx(14.15, abs=0.1)
    assert bad.error
    assert bad.psnr_db is None
    assert found.mean("psnr_db", methods[1].name) is None
    page = markdown(found)
    assert "failed" in page
    assert bad.error in page


def test_a_network_is_named_by_the_digest_of_its_weights(two_cubes, tmp_path):
    from safetensors.torch import save_file

    from cubeloom.models.hsdt import hsdt_s

    weights = tmp_path / "untrained.safetensors"
    save_file(hsdt_s().state_dict(), weights)
    [method] = parse_methods(f"network:hsdt_s@{weights}")
    assert method.label == "network:hsdt_s@untrained.safetensors"
    assert method.describe()["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


# --- the baseline


def test_the_baseline_finds_what_stripes_and_impulses_hid(two_cubes):
    [clean, _] = two_cubes
    noisy = clean.cube.copy()
    rng = np.random.default_rng(0)
    noisy += rng.normal(0, 0.02, noisy.shape).astype(np.float32)
    hit = rng.random(noisy.shape) < 0.05
    noisy[hit] = 1
    dead = rng.random((24, 48)) < 0.08
    noisy = np.where(dead[:, None], 0, noisy).astype(np.float32)
    made = hymixde(noisy)
    assert made.dtype == np.float32
    where = hit | dead[:, None]
    assert np.abs(noisy - clean.cube)[where].mean() > 0.2
    assert np.abs(made - clean.cube)[where].mean() < 0.03


def test_what_stands_under_the_mask_does_not_reach_the_baseline(two_cubes):
    [_, clean] = two_cubes
    noisy = noisy_input(clean, "mixture", 0).cube
    results = []
    for fill in (np.nan, np.inf, -32768.0, 0.3):
        changed = noisy.copy()
        changed[:, ~clean.valid] = fill
        results.append(hymixde(changed, clean.valid)[:, clean.valid])
    assert np.isfinite(results[0]).all()
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_the_baseline_takes_few_bands_and_constant_ones():
    cube = np.zeros((3, 24, 24), np.float32)
    cube[1] = np.linspace(0, 1, 24)
    made = hymixde(cube)
    np.testing.assert_allclose(made, cube, atol=0.05)


# --- the command


def test_the_command_writes_numbers_page_and_figure(cli, mat, tmp_path):
    path = f"{mat('field.mat', a=np.moveaxis(landscape(16, 32, 32), 0, -1))}#bands=last"
    call = ("evaluate", "denoise", path, "--methods", "noisy,subspace", "--noises", "noniid", "--seed", "5")
    first = cli(*call, "--out", tmp_path / "a", "--json")
    again = cli(*call, "--out", tmp_path / "b", "--noises", "stripe,noniid")
    assert (first.code, again.code) == (0, 0)
    assert "field: 16 bands, 32 x 32 px" in first.err
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert json.loads(first.out)["means"] == one["means"]
    assert one["cubes"][0]["noisy"]["noniid"] == two["cubes"][0]["noisy"]["noniid"]
    alike = [[s["psnr_db"] for s in found["scores"] if s["noise"] == "noniid"] for found in (one, two)]
    assert alike[0] == alike[1]
    assert (tmp_path / "a/figure.png").stat().st_size > 5000
    assert (tmp_path / "a/table.md").read_text().startswith("# Denoising: 1 cube, 1 kind of noise, seed 5")


def test_the_command_refuses_in_one_line(cli, mat, tmp_path):
    path = mat(a=landscape(8, 20, 20))
    wrong = cli("evaluate", "denoise", path, "--methods", "best", "--out", tmp_path / "out")
    assert wrong.code == 2
    assert wrong.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    failed = cli("evaluate", "denoise", path, "--methods", "noisy,network:none", "--noises", "blind", "--out", tmp_path)
    assert failed.code == 3
    assert "network:none: failed" in failed.err


@pytest.mark.shared
def test_the_held_out_cubes_are_read(shared_data):
    samson = read_cube(f"{shared_data}/unmixing_samson/Samson.mat#key=Y", 512)
    urban = read_cube(f"{shared_data}/anomaly_abu/abu-urban-2.mat", 512)
    salton = read_cube(f"{shared_data}/misc/salton_sea_roi.mat", 512)
    assert samson.cube.shape == (156, 95, 95)
    assert urban.cube.shape == (198, 100, 100)
    assert salton.cube.shape == (204, 51, 56)
    assert (np.diff(salton.wavelength) >= 0).all()
    for cube in (samson, urban, salton):
        band = cube.cube[len(cube.band) // 2]
        assert np.corrcoef(band[1:].ravel(), band[:-1].ravel())[0, 1] > 0.6  # a picture, not a shuffled one
