"""The registry: names, settings, weights with their cards, and what each refusal says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pydantic_core import PydanticUndefined

from cubeloom.errors import ModelError
from cubeloom.models import registry
from cubeloom.models.cards import Card, card_path, read_card, write_card
from cubeloom.models.checkpoints import weights_digest
from cubeloom.models.network import Network
from cubeloom.models.registry import create_model, list_models, model_card, register_model, save_model

PAGE = (Path(__file__).resolve().parents[2] / "docs/models.md").read_text()
SHIPPED = [entry.name for entry in list_models() if entry.card]


def same(one, other) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.fixture
def saved(tiny, tmp_path) -> Path:
    """Weights of `tiny` with their card."""
    path = tmp_path / "mine.safetensors"
    save_model(tiny, path, Card(name="tiny", family="tiny", settings={"width": 4}, tile=64, halo=8, licence="CC0-1.0"))
    return path


@pytest.fixture
def shipped(tiny, tmp_path, monkeypatch) -> Path:
    """A folder of shipped weights with `tiny.demo` in it."""
    monkeypatch.setattr(registry, "SHIPPED", tmp_path / "weights")
    path = tmp_path / "weights" / "tiny.demo.safetensors"
    save_model(tiny, path, Card(name="tiny.demo", family="tiny", tag="demo", settings={"width": 4}))
    return path


class TestNames:
    def test_a_family_without_weights_is_built_with_its_settings_in_eval_mode(self, families):
        network = create_model("tiny", width=6, in_channels=2)
        assert type(network) is families
        assert not network.training
        assert network(torch.zeros(1, 2, 3, 4, 4)).shape == (1, 1, 3, 4, 4)
        assert network.head.out_channels == 6

    @pytest.mark.parametrize(
        ("wrong", "near"),
        [("tinny", "tiny"), ("tiny_wyde", "tiny_wide"), ("hsdt_x", "hsdt_"), ("tyny.demo", "tiny.demo")],
    )
    def test_an_unknown_name_comes_with_the_nearest(self, shipped, wrong, near):
        with pytest.raises(ModelError, match=rf"unknown model '{wrong}'; did you mean '{near}"):
            create_model(wrong)

    def test_a_name_like_no_other_lists_the_families(self, families):
        with pytest.raises(ModelError, match=r"unknown model 'zzz'\. Families: .*hsdt_s.*tiny"):
            create_model("zzz")

    def test_an_unknown_tag_comes_with_the_nearest_and_with_those_of_the_family(self, shipped):
        with pytest.raises(
            ModelError, match=r"no weights 'tiny.demmo' .*did you mean 'tiny.demo'\? Of tiny: tiny.demo"
        ):
            create_model("tiny.demmo")
        with pytest.raises(ModelError, match=r"no weights 'tiny_wide.a'.* Of tiny_wide: none"):
            create_model("tiny_wide.a")
        with pytest.raises(ModelError, match=r"no weights 'tiny' are shipped"):
            create_model("tiny", "builtin")

    def test_an_unknown_setting_comes_with_the_nearest(self, families):
        with pytest.raises(ModelError, match=r"unknown setting 'widht'; did you mean 'width'\? .*in_channels, width"):
            create_model("tiny", widht=3)

    @pytest.mark.parametrize("width", ["four", -4, 2.5])
    def test_a_setting_of_another_kind_is_refused(self, families, width):
        with pytest.raises(ModelError, match=r"model tiny cannot be built with settings {'width': "):
            create_model("tiny", width=width)

    @pytest.mark.parametrize("name", ["tiny", "hsdt_s"])
    def test_a_name_is_registered_once(self, families, name):
        with pytest.raises(ValueError, match=f"'{name}' is registered twice: .*{__name__.rpartition('.')[2]}"):
            register_model(name)(lambda: Network())

    @pytest.mark.parametrize("name", ["a.b", "A", "", "a/b"])
    def test_a_name_that_could_not_be_told_from_a_tag_or_a_path_is_refused(self, families, name):
        with pytest.raises(ValueError, match="lower case"):
            register_model(name)

    def test_names_are_known_without_importing_torch(self):
        code = (
            "import sys; from cubeloom.models.registry import list_models; list_models(); print('torch' in sys.modules)"
        )
        assert (
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
        )

    @pytest.mark.parametrize("family", sorted(registry._HOMES))
    def test_every_family_is_registered_where_the_table_says(self, family):
        with torch.device("meta"):  # some are large
            network = create_model(family)
        assert isinstance(network, Network)
        assert not network.training
        assert model_card(family).family == family

    @pytest.mark.parametrize("family", ["croma_nano", "hsdt_s", "spectral_segmenter"])
    def test_a_network_of_shapes_alone_is_the_one_that_is_built(self, family):
        """It costs no draws either: the values of an untrained network are the seed's."""
        torch.manual_seed(0)
        built = registry._family(family).build()
        torch.manual_seed(0)
        with torch.device("meta"):
            outline = create_model(family)
        again = create_model(family)
        kinds = [
            {
                name: (one.shape, one.dtype, one.requires_grad)
                for name, one in network.state_dict(keep_vars=True).items()
            }
            for network in (outline, again)
        ]
        assert kinds[0] == kinds[1]
        assert all(one.is_meta for one in outline.state_dict().values())
        assert same(again, built.eval())


class TestWeights:
    def test_shipped_weights_come_by_their_tag(self, tiny, shipped):
        for network in (create_model("tiny.demo"), create_model("tiny.demo", "builtin")):
            assert same(network, tiny)
            assert not network.training
        entries = {entry.name: entry.card for entry in list_models()}
        assert entries["tiny"] is None
        assert entries["tiny.demo"] == model_card("tiny.demo") == model_card(shipped) == read_card(card_path(shipped))
        assert list(entries).index("tiny.demo") == list(entries).index("tiny") + 1

    def test_weights_with_a_card_need_no_settings(self, families, tmp_path):
        wide = create_model("tiny", width=9)
        path = tmp_path / "wide.safetensors"
        card = save_model(wide, path, Card(name="tiny", family="tiny", settings={"width": 9}))
        assert card.sha256 == weights_digest(path)
        assert same(create_model("tiny", path), wide)
        assert same(create_model("tiny", str(path), width=9), wide)
        with pytest.raises(ModelError, match=r"card says width=9, not 4"):
            create_model("tiny", path, width=4)

    def test_weights_without_a_card_take_the_defaults_of_their_family(self, families, tmp_path):
        path = tmp_path / "bare.pth"
        network = create_model("tiny", in_channels=2)
        torch.save({"net": network.state_dict(), "epoch": 80}, path)
        card = model_card("tiny", path, in_channels=2)
        assert (card.name, card.tag, card.settings) == ("tiny", "", {"in_channels": 2})
        assert (card.transform, card.bands, card.tile, card.halo) == ("bands", 31, 256, 16)
        assert (card.multiple, card.sigma_input) == (2, True)
        assert card.sha256 == weights_digest(path)
        assert same(create_model("tiny", path, in_channels=2), network)

    def test_keys_of_the_authors_are_mapped_before_they_are_checked(self, tiny, tmp_path):
        theirs = {key.replace("head.", "first."): value for key, value in tiny.state_dict().items()}
        torch.save(theirs, tmp_path / "theirs.pth")
        assert same(create_model("tiny", tmp_path / "theirs.pth"), tiny)
        with pytest.raises(ModelError, match="another architecture"):
            create_model("tiny_wide", tmp_path / "theirs.pth")

    def test_weights_of_another_architecture_are_refused_with_the_keys_that_tell(self, tiny, tmp_path):
        torch.save(tiny.state_dict(), tmp_path / "tiny.pth")
        said = r"another architecture than Tiny.* of another shape: head.weight \(4, 1, 3, 3, 3\) instead of \(8, 1, 3"
        with pytest.raises(ModelError, match=said):
            create_model("tiny_wide", tmp_path / "tiny.pth")

    def test_weights_whose_card_names_another_family_are_refused(self, saved):
        with pytest.raises(ModelError, match="of family 'tiny', not 'tiny_wide'"):
            create_model("tiny_wide", saved)

    def test_a_tag_and_other_weights_contradict_each_other(self, shipped, saved):
        with pytest.raises(ModelError, match=r"'tiny.demo' stands for the shipped weights .* the family alone: 'tiny'"):
            create_model("tiny.demo", saved)

    def test_a_card_of_other_weights_is_refused_before_they_are_parsed(self, saved):
        saved.write_bytes(b"not even safetensors")
        for call in (lambda: create_model("tiny", saved), lambda: model_card(saved), lambda: model_card("tiny", saved)):
            with pytest.raises(
                ModelError, match=r"sha256 is [0-9a-f]{64}, their card mine.card.json says [0-9a-f]{64}"
            ):
                call()

    def test_a_file_that_is_not_there(self, families, tmp_path):
        with pytest.raises(ModelError, match=r"none.safetensors: No such file"):
            create_model("tiny", tmp_path / "none.safetensors")

    def test_weights_are_saved_whole_and_the_same_each_time(self, tiny, saved, tmp_path):
        again = tmp_path / "again.safetensors"
        card = save_model(tiny, again, read_card(card_path(saved)))
        assert again.read_bytes() == saved.read_bytes()
        assert card == read_card(card_path(saved))
        assert not list(tmp_path.glob(".*"))
        with pytest.raises(ModelError, match=r"ends with .safetensors"):
            save_model(tiny, tmp_path / "x.pth", card)


class TestLoading:
    """Weights that fill a network which had none before."""

    def test_they_are_the_networks_own(self, tiny, tmp_path):
        save_model(tiny, tmp_path / "a.safetensors", Card(name="tiny", family="tiny"))
        loaded = create_model("tiny", tmp_path / "a.safetensors")
        assert all(not value.is_meta and value.requires_grad for value in loaded.parameters())
        with torch.no_grad():
            loaded.head.weight.zero_()
        assert torch.equal(create_model("tiny", tmp_path / "a.safetensors").head.weight, tiny.head.weight)

    def test_they_take_the_networks_type(self, tiny, tmp_path):
        torch.save({key: value.double() for key, value in tiny.state_dict().items()}, tmp_path / "a.pt")
        assert {value.dtype for value in create_model("tiny", tmp_path / "a.pt").parameters()} == {torch.float32}

    def test_a_missing_counter_is_zero(self, tiny, tmp_path):
        state = {key: value for key, value in tiny.state_dict().items() if "num_batches" not in key}
        torch.save(state, tmp_path / "a.pt")
        assert create_model("tiny", tmp_path / "a.pt").bn.num_batches_tracked == 0

    @pytest.mark.parametrize("where", ["buffer", "attribute"])
    def test_what_no_state_dict_holds_is_computed(self, families, tmp_path, where):
        class Ramped(families):
            def __init__(self) -> None:
                super().__init__(1, 4)
                if where == "buffer":
                    self.register_buffer("ramp", torch.arange(3.0), persistent=False)
                else:
                    self.ramp = torch.arange(3.0)

        registry.register_model("ramped")(lambda: Ramped())
        save_model(create_model("ramped"), tmp_path / "a.safetensors", Card(name="ramped", family="ramped"))
        assert create_model("ramped", tmp_path / "a.safetensors").ramp.tolist() == [0, 1, 2]


class TestSizes:
    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("freenet", {"width": 1e4}),
            ("freenet", {"num_classes": 2**40}),
            ("hsdt_s", {"num_bands": 10**10}),
            ("spectral_resnet50", {"num_classes": 2**40}),
            ("spectral_vit_nano", {"image_size": 2**20}),
            ("spectral_vit_nano", {"patch_size": 2**10, "image_size": 2**10 * 200}),
            ("spectral_timm", {"num_classes": 2**60}),
            ("spectral_segmenter", {"head": "upernet", "head_width": 2**20}),
            ("spectral_regressor", {"outputs": 2**40}),
        ],
    )
    def test_a_network_that_would_fill_the_memory_is_not_built(self, name, settings):
        with pytest.raises(ModelError, match=f"model {name} cannot be built with settings .*: "):
            create_model(name, **settings)


class TestCards:
    def test_a_card_is_found_by_the_weights_and_by_its_own_name(self, saved):
        card = model_card(saved)
        assert card == model_card(str(saved)) == model_card(card_path(saved)) == model_card("tiny", saved)
        assert (card.tile, card.licence, card.sha256) == (64, "CC0-1.0", weights_digest(saved))

    def test_weights_without_a_card_need_their_family(self, saved):
        card_path(saved).unlink()
        with pytest.raises(ModelError, match=r"no card beside them \(mine.card.json\).*model_card\('hsdt_s'"):
            model_card(saved)
        assert model_card("tiny", saved).sha256 == weights_digest(saved)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"halos": 3}, r"unknown key 'halos'; did you mean 'halo'\?"),
            ({"name": None}, r"name: Input should be a valid string"),
            ({"name": "other"}, r"name 'other' is not family 'tiny'"),
            ({"sha256": "abc"}, r"sha256: "),
            ({"transform": "fourier"}, r"transform: .*'bands' or 'eigenimages'"),
            ({"wavelengths_nm": [900, 400]}, r"do not ascend"),
            ({"multiple": 5}, r"tile 64 is no multiple of 5"),
            ({"halo": 32}, r"all halo"),
            ({"format": "cubeloom-model/9"}, r"format: .*cubeloom-model/1"),
            ({"settings": {"wdth": 4}}, r"unknown setting 'wdth'; did you mean 'width'"),
        ],
    )
    def test_a_card_that_is_none_says_what_is_wrong_and_where(self, saved, change, said):
        path = card_path(saved)
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ModelError, match=rf"(?s)(card|model) .*{said}"):
            create_model("tiny", saved)

    def test_a_missing_key_is_named(self, saved):
        path = card_path(saved)
        content = json.loads(path.read_text())
        del content["family"], content["name"]
        path.write_text(json.dumps(content))
        with pytest.raises(ModelError, match=r"mine.card.json: key 'name' is missing; key 'family' is missing"):
            model_card(saved)

    def test_a_file_that_is_no_json(self, saved):
        card_path(saved).write_text("{")
        with pytest.raises(ModelError, match=r"mine.card.json: not valid JSON"):
            model_card(saved)

    def test_a_card_survives_its_file(self, tmp_path):
        card = Card(
            name="tiny.demo",
            family="tiny",
            tag="demo",
            wavelengths_nm=(418.2, 2445.5),
            metrics={"psnr": {"stripe": 40.1}},
            bands=None,
        )
        write_card(card, tmp_path / "c.card.json")
        assert read_card(tmp_path / "c.card.json") == card


def trained_card(**fields) -> Card:
    """A card of a network that sees three bands and tells two classes apart."""
    bands = {"numbers": [3, 5, 9], "wavelengths_nm": [500, 600, 700], "fwhm_nm": [5, 6, 7]}
    classes = [{"value": 2, "name": "water", "colour": "#0000ff"}, {"value": 7, "name": "wood", "colour": "#00ff00"}]
    known = {"bands": 3, "input_bands": bands, "mean": (0.1, 0.2, 0.3), "std": (1, 2, 3), "classes": classes}
    return Card(**{"name": "tiny", "family": "tiny", "task": "segment", **known, **fields})


class TestChannels:
    def test_all_of_it_survives_the_file(self, tmp_path):
        card = trained_card(outputs=("P", "K"))
        write_card(card, tmp_path / "c.card.json")
        assert read_card(tmp_path / "c.card.json") == card
        assert card.input_bands.numbers == (3, 5, 9)
        assert len(card.input_bands) == 3

    @pytest.mark.parametrize(
        ("fields", "problem"),
        [
            ({"bands": 4}, "bands is 4, input_bands has 3"),
            ({"mean": (0.1,)}, "1 values of mean and 3 of std for 3 bands"),
            ({"mean": (0.1,), "std": (1,)}, "1 values of mean and 1 of std for 3 bands"),
            ({"std": (1, 0, 3)}, "greater than 0"),
            ({"mean": (1, float("nan"), 3)}, "finite"),
            ({"input_bands": {"wavelengths_nm": [500, 600, 700], "fwhm_nm": [5]}}, "3 wavelengths_nm, 1 fwhm_nm"),
            ({"input_bands": {"wavelengths_nm": [500, 700, 600], "fwhm_nm": [5, 5, 5]}}, "do not ascend"),
            (
                {"input_bands": {"numbers": [1, 1, 2], "wavelengths_nm": [500, 600, 700], "fwhm_nm": [5, 5, 5]}},
                "band number stands twice",
            ),
            ({"classes": [{"value": 0, "name": "a", "colour": "#000000"}]}, "greater than or equal to 1"),
            ({"classes": [{"value": 1, "name": "a", "colour": "red"}]}, "pattern"),
            ({"classes": [{"value": one, "name": str(one), "colour": "#000000"} for one in (2, 1)]}, "do not ascend"),
            ({"classes": [{"value": one, "name": "a", "colour": "#000000"} for one in (1, 2)]}, "among the classes"),
            ({"outputs": ("P", "P")}, "among the outputs"),
        ],
    )
    def test_what_disagrees_is_refused(self, fields, problem):
        with pytest.raises(ValueError, match=problem):
            trained_card(**fields)


class TestPage:
    def test_every_key_of_a_card_is_described_with_its_default(self):
        rows = dict(
            re.findall(
                r"^\| `(\w+)` \| (`[^`]+`)? ?\|", PAGE.partition("## Cards")[2].partition("\n## ")[0], re.MULTILINE
            )
        )
        fields = {name: field.get_default(call_default_factory=True) for name, field in Card.model_fields.items()}
        fields = {name: list(default) if isinstance(default, tuple) else default for name, default in fields.items()}
        expected = {name: None if default is PydanticUndefined else default for name, default in fields.items()}
        assert {
            name: yaml.safe_load(default.strip("`")) if default else None for name, default in rows.items()
        } == expected

    def test_a_family_is_added_as_the_page_says(self, families):
        code = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[-1]
        exec(compile(code, "models.md", "exec"), {"__name__": "own"})
        cube = torch.rand(1, 1, 5, 3, 3)
        assert torch.equal(create_model("mean")(cube)[0, 0, 4], cube.mean(dim=2)[0, 0])
        assert "mean" in [entry.name for entry in list_models()]

    def test_every_family_is_on_the_page(self):
        assert all(f"`{family}`" in PAGE for family in registry._HOMES)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_is_complete(name):
    """Weights load by their card, and card and log say what they are."""
    card = model_card(name)
    assert (card.name, card.licence != "") == (name, True)
    assert card.training
    assert card.metrics
    assert card.log
    assert (registry.SHIPPED / card.log).is_file()
    assert all(torch.isfinite(value).all() for value in create_model(name).state_dict().values())
