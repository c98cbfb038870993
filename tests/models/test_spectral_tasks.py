"""Heads behind spectral backbones: keys and shapes by their tables, plain forward passes, any size of image."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from cubeloom.errors import ModelError
from cubeloom.models.cards import Card
from cubeloom.models.heads import ConvHead, FCNHead, Pyramid, UPerHead, regression_mlp
from cubeloom.models.registry import create_model, model_card, save_model
from cubeloom.models.spectral_earth import enmap_bands
from cubeloom.models.spectral_tasks import HEADS, SpectralSegmenter

SMALL = {"image_size": 16}
BANDS = 80


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def lively(network):
    """The network in eval mode, with every statistic and factor of its own."""
    for key, values in network.state_dict().items():
        if key.endswith("running_var"):
            values.copy_(torch.rand_like(values) + 0.5)
        elif values.is_floating_point() and values.ndim == 1:
            values.add_(torch.randn_like(values) * 0.2)
    return network.eval()


def segmenter(head="conv", classes=3, **settings):
    return lively(
        create_model("spectral_segmenter", head=head, num_classes=classes, backbone_settings=SMALL, **settings)
    )


def cube(height=16, width=16, batch=1):
    return torch.randn(batch, BANDS, height, width)


def shapes(network):
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def outline(name, **settings):
    with torch.device("meta"):
        return create_model(name, **settings)


def count(network):
    return sum(value.numel() for value in network.parameters())


class TestAuthorsHeads:
    """Those of `semantic_segmentation_module` and `regression_module`: keys, shapes, counts."""

    def test_keys_of_the_conv_head(self):
        assert shapes(ConvHead(384, 7, 4)) == {
            "segmentation_conv.1.weight": (128, 384, 3, 3),
            "segmentation_conv.1.bias": (128,),
            **{f"segmentation_conv.2.{name}": (128,) for name in ("weight", "bias", "running_mean", "running_var")},
            "segmentation_conv.2.num_batches_tracked": (),
            "segmentation_conv.5.weight": (7, 128, 3, 3),
            "segmentation_conv.5.bias": (7,),
        }

    @pytest.mark.parametrize(("stride", "widths"), [(2, [5]), (8, [128, 64, 5]), (32, [128, 64, 32, 16, 5])])
    def test_a_conv_head_has_a_step_for_each_doubling(self, stride, widths):
        head = ConvHead(24, 5, stride)
        convs = [layer for layer in head.segmentation_conv if isinstance(layer, nn.Conv2d)]
        assert [conv.out_channels for conv in convs] == widths
        assert head.eval()(torch.randn(1, 24, 2, 3)).shape == (1, 5, 2 * stride, 3 * stride)

    def test_keys_of_the_fcn(self):
        assert shapes(FCNHead(2048, 7)) == {
            "0.weight": (256, 2048, 3, 3),
            **{f"1.{name}": (256,) for name in ("weight", "bias", "running_mean", "running_var")},
            "1.num_batches_tracked": (),
            "3.weight": (7, 256, 1, 1),
            "3.bias": (7,),
        }

    def test_keys_of_the_perceptron(self):
        norm = ("weight", "bias", "running_mean", "running_var")
        assert shapes(regression_mlp(384, 4)) == {
            **{f"0.{name}": (384,) for name in norm},
            "0.num_batches_tracked": (),
            "1.weight": (2048, 384),
            "1.bias": (2048,),
            "4.weight": (1024, 2048),
            "4.bias": (1024,),
            "7.weight": (4, 1024),
            "7.bias": (4,),
        }

    @pytest.mark.parametrize(
        ("family", "settings", "parameters"),
        [
            ("spectral_segmenter", {"backbone": "spectral_vit_small", "head": "conv", "num_classes": 7}, 22_982_151),
            (
                "spectral_segmenter",
                {
                    "backbone": "spectral_resnet50",
                    "backbone_settings": {"dense": True},
                    "head": "fcn",
                    "num_classes": 7,
                },
                28_923_527,
            ),
            ("spectral_regressor", {"backbone": "spectral_vit_small", "outputs": 4}, 25_422_852),
            ("spectral_regressor", {"backbone": "spectral_resnet50", "outputs": 4}, 30_505_348),
        ],
    )
    def test_parameters_of_the_whole(self, family, settings, parameters):
        """As the authors' classes have them, built beside ours."""
        assert count(outline(family, **settings)) == parameters

    def test_names_of_the_parts(self):
        conv, fcn = (outline("spectral_segmenter", head=head, backbone_settings=SMALL) for head in ("conv", "fcn"))
        assert {key.partition(".")[0] for key in shapes(conv)} == {"encoder", "head"}
        assert {key.partition(".")[0] for key in shapes(fcn)} == {"encoder", "classifier"}
        assert fcn.head is fcn.classifier
        for backbone, place in (("spectral_vit_nano", "vit_core.head."), ("spectral_resnet50", "resnet.fc.")):
            network = outline("spectral_regressor", backbone=backbone, outputs=2)
            assert {key for key in shapes(network) if ".7." in key and key.startswith(place)} == {
                f"{place}7.weight",
                f"{place}7.bias",
            }
            assert isinstance(network.head, nn.Sequential)


class TestForward:
    """Beside the layers one by one."""

    def test_conv(self):
        network, x = segmenter("conv"), cube()
        state = {key.removeprefix("head.segmentation_conv."): value for key, value in network.state_dict().items()}
        y = functional.interpolate(network.encoder.features(x, [7])[0], scale_factor=2, mode="bilinear")
        y = functional.conv2d(y, state["1.weight"], state["1.bias"], padding=1)
        names = ("running_mean", "running_var", "weight", "bias")
        y = functional.batch_norm(y, *(state[f"2.{name}"] for name in names)).relu()
        y = functional.interpolate(y, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(network(x), functional.conv2d(y, state["5.weight"], state["5.bias"], padding=1))

    def test_linear(self):
        network, x = segmenter("linear"), cube(16, 24)
        features = network.encoder.features(x, [7])[0]
        scores = torch.einsum("kc,nchw->nkhw", network.head.weight[..., 0, 0], features)
        expected = functional.interpolate(scores + network.head.bias[:, None, None], (16, 24), mode="bilinear")
        torch.testing.assert_close(network(x), expected)

    def test_regressor(self):
        network, x = lively(create_model("spectral_regressor", outputs=4, backbone_settings=SMALL)), cube(batch=2)
        embed = create_model("spectral_vit_nano", **SMALL)
        embed.load_state_dict({key: value for key, value in network.state_dict().items() if ".head." not in key})
        torch.testing.assert_close(network(x), network.head(embed(x)))
        torch.testing.assert_close(network.for_inference()(x), network(x), rtol=0, atol=1e-5)

    def test_a_pyramid_has_four_sizes_none_beyond_the_image(self):
        maps = [torch.randn(1, 6, 5, 7) for _ in range(4)]
        assert [tuple(one.shape[2:]) for one in Pyramid([6] * 4, 16).eval()(maps)] == [
            (20, 28),
            (10, 14),
            (5, 7),
            (3, 4),
        ]
        assert [tuple(one.shape[2:]) for one in Pyramid([6] * 4, 2).eval()(maps)] == [
            (10, 14),
            (10, 14),
            (5, 7),
            (3, 4),
        ]

    def test_each_map_counts_in_upernet(self):
        head = lively(UPerHead([4, 6, 8], 3, 16))
        maps = [torch.randn(1, channels, side, side) for channels, side in ((4, 8), (6, 4), (8, 2))]
        scores = head(maps)
        assert scores.shape == (1, 3, 8, 8)
        for changed in range(3):
            others = [one + 0.5 * (index == changed) for index, one in enumerate(maps)]
            assert not torch.allclose(head(others), scores, atol=1e-3)

    @pytest.mark.parametrize("head", HEADS)
    def test_any_image_that_is_a_multiple(self, head):
        network = segmenter(head, head_width=16) if head == "upernet" else segmenter(head)
        for height, width in ((16, 16), (4, 4), (8, 20)):
            x = cube(height, width, batch=2)
            scores = network(x)
            assert scores.shape == (2, 3, height, width)
            torch.testing.assert_close(network.for_inference()(x), scores, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("head", HEADS)
    def test_all_that_is_there_learns_even_from_a_single_tile(self, head):
        network = segmenter(head, head_width=16) if head == "upernet" else segmenter(head)
        network.train()(cube()).square().mean().backward()
        assert [name for name, value in network.named_parameters() if value.grad is None] == []

    def test_networks_of_timm(self):
        settings = {"backbone": "convnext_atto"}
        for head in ("conv", "upernet"):
            network = create_model(
                "spectral_segmenter",
                backbone="spectral_timm",
                backbone_settings=settings,
                head=head,
                num_classes=4,
                head_width=8,
            )
            assert network(cube(32, 32)).shape == (1, 4, 32, 32)

    def test_a_resnet_gives_upernet_its_stages(self):
        network = create_model("spectral_segmenter", backbone="spectral_resnet50", head="upernet", head_width=8)
        assert network.indices == [0, 1, 2, 3, 4]
        assert network(cube(32, 16)).shape == (1, 2, 32, 16)


class TestWeights:
    def test_a_segmenter_loads_by_its_card(self, tmp_path):
        network = segmenter("fcn", classes=2)
        classes = [{"value": 1, "name": "a", "colour": "#000000"}, {"value": 2, "name": "b", "colour": "#ffffff"}]
        settings = {"head": "fcn", "num_classes": 2, "backbone_settings": SMALL}
        fields = model_card("spectral_segmenter", **settings).model_dump() | {"classes": classes}
        save_model(network, tmp_path / "mine.safetensors", Card(**fields))
        loaded, x = create_model("spectral_segmenter", tmp_path / "mine.safetensors"), cube()
        assert isinstance(loaded, SpectralSegmenter)
        assert torch.equal(loaded(x), network(x))
        assert model_card(tmp_path / "mine.safetensors").input_bands == enmap_bands()

    def test_checkpoints_of_the_authors_training(self, tmp_path):
        """Lightning's layout: everything below `model.`, and the weights of the loss."""
        x = cube()
        cases = [
            ("spectral_segmenter", {"head": "fcn", "num_classes": 3, "backbone_settings": SMALL}),
            ("spectral_regressor", {"outputs": 2, "backbone_settings": SMALL}),
            ("spectral_vit_nano", {"num_classes": 19, **SMALL}),
        ]
        for family, settings in cases:
            network = lively(create_model(family, **settings))
            state = {f"model.{key}": value for key, value in network.state_dict().items()}
            if family == "spectral_segmenter":
                state["loss.weight"] = torch.ones(3)
            torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
            assert torch.equal(create_model(family, tmp_path / "last.ckpt", **settings)(x), network(x))

    def test_another_head_is_refused(self, tmp_path):
        torch.save(segmenter("conv").state_dict(), tmp_path / "conv.pth")
        with pytest.raises(ModelError, match=r"missing: classifier\.0\.weight"):
            create_model(
                "spectral_segmenter", tmp_path / "conv.pth", head="fcn", num_classes=3, backbone_settings=SMALL
            )

    def test_cards_without_a_file(self):
        card = model_card("spectral_segmenter", num_classes=5, backbone_settings={"image_size": 64, "patch_size": 8})
        assert (card.task, card.tile, card.multiple, card.halo) == ("segment", 64, 8, 8)
        assert (card.sensor, card.input_bands) == ("EnMAP", enmap_bands())
        regressor = model_card("spectral_regressor", backbone="spectral_resnet50", outputs=2)
        assert (regressor.task, regressor.multiple, regressor.halo) == ("regress", 16, 0)


class TestRefused:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"head": "unet"}, "there is no head 'unet'; expected conv, fcn, upernet, linear"),
            ({"num_classes": 0}, "num_classes and head_width are at least 1"),
            ({"backbone": "spectral_vit_nano.enmap"}, "name its family alone"),
            ({"backbone": "hsdt_s"}, "gives no feature maps; expected one that does"),
            ({"backbone": "spectral_vit_nono"}, "did you mean 'spectral_vit_nano'"),
            ({"backbone_settings": {"num_classes": 4}}, "num_classes is of the head"),
            ({"backbone_settings": {"patchsize": 4}}, "did you mean 'patch_size'"),
            ({"backbone": "spectral_resnet50", "backbone_settings": {"dense": True}}, "must be 2, 4, 8 ...; found 1"),
        ],
    )
    def test_settings_of_a_segmenter(self, settings, words):
        with pytest.raises(ModelError, match=words):
            outline("spectral_segmenter", **settings)

    def test_a_regressor_without_values(self):
        with pytest.raises(ModelError, match="outputs is at least 1"):
            create_model("spectral_regressor", outputs=0)

    def test_a_pyramid_of_other_maps(self):
        with pytest.raises(ModelError, match="takes four feature maps; found 3"):
            Pyramid([4, 4, 4], 4)

    def test_a_tile_of_another_size(self):
        with pytest.raises(ModelError, match="multiples of 4"):
            segmenter()(cube(18, 16))
