"""`cubeloom models`: what it lists and shows, for a person and for a script."""

import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cubeloom.models import registry
from cubeloom.models.cards import Card
from cubeloom.models.classifiers import Classifier, MapClass
from cubeloom.models.registry import create_model, save_model

HEAVY = ("torch", "rasterio", "huggingface_hub", "xarray", "sklearn")


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A folder of shipped weights with `hsdt_s.demo` in it."""
    monkeypatch.setattr(registry, "SHIPPED", tmp_path)
    card = Card(
        name="hsdt_s.demo",
        family="hsdt_s",
        tag="demo",
        sensor="EnMAP",
        wavelengths_nm=(418.4, 2445.6),
        licence="CC-BY-4.0",
        training={"steps": 20_000, "scenes": [f"s{n}" for n in range(20)]},
        metrics={"stripe": {"psnr": 41.25}},
    )
    return save_model(create_model("hsdt_s"), tmp_path / "hsdt_s.demo.safetensors", card)


def test_the_list_names_families_and_their_weights(cli, demo):
    ended = cli("models", "list")
    assert ended.code == 0
    assert all(family in ended.out for family in ("hsdt_s ", "hsdt_m ", "hsdt_l "))
    row = next(line for line in ended.out.splitlines() if "hsdt_s.demo" in line)
    assert all(part in row for part in ("denoise", "EnMAP", "418-2446", "31 bands", "CC-BY-4.0", demo.sha256[:8]))
    listed = json.loads(cli("models", "list", "--json").out)
    assert {entry["name"]: entry["card"] for entry in listed}["hsdt_s.demo"] == demo.model_dump(mode="json")
    assert {entry["family"] for entry in listed} >= {"hsdt_s", "hsdt_m", "hsdt_l"}


def test_info_shows_the_card(cli, demo, tmp_path):
    shown = {line.split()[1]: line for line in cli("models", "info", "hsdt_s.demo").out.splitlines() if "│" in line}
    assert "134,350" in shown["parameters"]
    assert "20,000" in shown["training.steps"]
    assert "s0 ... s19 (20)" in shown["training.scenes"]
    assert "41.25" in shown["metrics.stripe.psnr"]
    expected = {**demo.model_dump(mode="json"), "parameters": 134_350}
    for model in ("hsdt_s.demo", tmp_path / "hsdt_s.demo.safetensors", tmp_path / "hsdt_s.demo.card.json"):
        assert json.loads(cli("models", "info", model, "--json").out) == expected


def test_info_of_weights_without_a_card_needs_their_family(cli, demo, tmp_path):
    (tmp_path / "hsdt_s.demo.safetensors").rename(tmp_path / "bare.safetensors")
    ended = cli("models", "info", "hsdt_s", "--weights", tmp_path / "bare.safetensors", "--json")
    assert json.loads(ended.out)["sha256"] == demo.sha256
    ended = cli("models", "info", tmp_path / "bare.safetensors")
    assert ended.code == 2
    assert "no card beside them (bare.card.json)" in ended.err


def test_info_of_a_classifier_shows_its_card(cli, tmp_path):
    x = np.random.default_rng(0).random((40, 12), np.float32)
    classifier = Classifier(
        estimator=LogisticRegression().fit(x, np.repeat([1, 2], 20)),
        classes=(MapClass(1, "tree", "#00ff00"), MapClass(2, "water", "#0000ff")),
        wavelengths=np.linspace(420, 2450, 12),
        fwhm=np.full(12, 10.0),
        variable="reflectance",
        units="1",
    ).save(tmp_path / "m.skops")
    described = json.loads(cli("models", "info", tmp_path / "m.skops", "--json").out)
    assert described == json.loads(json.dumps(classifier.card() | {"sha256": classifier.sha256}))
    shown = cli("models", "info", tmp_path / "m.skops").out
    assert all(part in shown for part in ("LogisticRegression", "tree, water", "420.0 ... 2450.0 (12)"))


@pytest.mark.parametrize(
    ("model", "said"),
    [("hsdt_x", "did you mean"), ("none.skops", "No such file"), ("none.safetensors", "No such file"),
     ("hf:a/b/c.pt", "64 hex digits")],
)  # fmt: skip
def test_a_model_that_is_none_ends_in_one_line(cli, model, said):
    ended = cli("models", "info", model)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert said in ended.err


def test_help_imports_nothing_that_takes_time():
    code = (
        "import sys\nfrom cubeloom.workflows.cli import main\n"
        "for arguments in (['--help'], ['list', '--help'], ['info', '--help']):\n"
        "    sys.argv = ['cubeloom', 'models', *arguments]\n"
        "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code\n"
        f"print('loaded:', [name for name in {HEAVY} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "loaded: []"
