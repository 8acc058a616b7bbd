"""The paper's FCN: geometry and logits of the published networks, their start, and VGG-16's weights in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.errors import CheckpointError, ConfigError
from segtrain.models.fcn import FCN, BilinearUpsampling

STRIDES = (32, 16, 8)
KINDS = ("weight", "bias")


def blank(**options: Any) -> FCN:
    """An FCN whose upsampling is as it starts and whose other weights wait to be drawn; most of its time is fc6's."""
    with torch.device("meta"):
        model = FCN(**options)
    model = model.double().to_empty(device="cpu").eval()
    for module in model.modules():
        if isinstance(module, BilinearUpsampling):
            module.reset_parameters()
    return model


def small(**options: Any) -> FCN:
    torch.manual_seed(0)
    return FCN(**{"num_classes": 3, "fc_channels": 8, **options})


def scored(model: FCN) -> FCN:
    """With scores that are not zero, so that differences show."""
    torch.manual_seed(1)
    for name, layer in model.named_children():
        if name.startswith("score"):
            nn.init.normal_(layer.weight, std=0.1)
    return model


def counts(model: nn.Module) -> tuple[int, int]:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, learns in sizes if learns)


@pytest.mark.parametrize("stride", STRIDES)
def test_totals(stride: int, goldens: dict[str, Any]) -> None:
    totals, name = goldens["parameters"], f"fcn{stride}s_vgg16_21"
    with torch.device("meta"):
        fixed = FCN(num_classes=21, stride=stride)  # type: ignore[arg-type]
        learned = FCN(num_classes=21, stride=stride, learn_upsampling=True)  # type: ignore[arg-type]
    assert counts(fixed) == (totals[name], totals[f"{name}_learnable"])
    assert counts(learned) == (totals[name], totals[name])


def test_recorded_logits(goldens: dict[str, Any], wave: Any, fill_by_order: Any, check_logits: Any) -> None:
    golden = goldens["originals"]
    image = wave(*golden["fcn8s"]["input_chw"])
    model = blank(num_classes=21, stride=8)
    drawn = nn.ModuleList(m for m in model.children() if not isinstance(m, BilinearUpsampling))
    assert fill_by_order(drawn, lambda: model.logits(image)) == golden["fcn8s"]["n_filled_modules"]
    with torch.inference_mode():
        features = model.backbone(image)  # once for the three networks, whose convolutions are the same
        model.backbone.forward = lambda _image: features  # type: ignore[method-assign]
        check_logits(model.logits(image)["out"], golden["fcn8s"])
        model.at_once = True
        check_logits(model.logits(image)["out"], golden["fcn8s_atonce"])
        # The coarser network executes the same layers first, so it drew the same weights.
        with torch.device("meta"):
            coarse = FCN(num_classes=21, stride=32).double().eval()
        state = {key: value for key, value in model.state_dict().items() if not key.startswith(FCN.staged_layers)}
        upscore = BilinearUpsampling(21, 32, padded=False, learn=False).double()
        coarse.load_state_dict({**state, "upscore.weight": upscore.weight}, assign=True)
        coarse.backbone.forward = model.backbone.forward  # type: ignore[method-assign]
        check_logits(coarse.logits(image)["out"], golden["fcn32s"])


def test_upsampling_kernels_are_the_published_ones(goldens: dict[str, Any]) -> None:
    for size, golden in goldens["ops"]["bilinear_deconv"].items():
        if not size.isdigit() or int(size) % 2:
            continue  # the rule, and odd kernels, which no FCN has
        layer = BilinearUpsampling(3, int(size) // 2, padded=False, learn=False)
        row = torch.tensor(golden["row_1d"])
        assert torch.equal(layer.weight[1, 1], torch.outer(row, row))
        assert layer.weight[1, 1].sum() == golden["sum_2d"]
        assert layer.weight.sum() == 3 * golden["sum_2d"]  # no class reads another


@pytest.mark.parametrize("padded", [False, True])
def test_upsampling_of_one_to_nine(padded: bool, goldens: dict[str, Any]) -> None:
    golden = goldens["ops"]["deconv_k4s2_on_1to9"]
    layer = BilinearUpsampling(1, 2, padded=padded, learn=False)
    grid = torch.arange(1.0, 10).view(1, 1, 3, 3)
    with torch.inference_mode():
        found = layer(grid)[0, 0]
    assert torch.equal(found, torch.tensor(golden["pad1" if padded else "pad0"]))
    if padded:
        want = F.interpolate(grid, scale_factor=2, mode="bilinear", align_corners=False)[0, 0]
        assert torch.allclose(found[1:-1, 1:-1], want[1:-1, 1:-1])


def grids(model: FCN, size: int) -> dict[str, int]:
    """The height of each layer's output for a square image."""
    seen: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda _module, _args, out: seen.update({name: out.shape[-2]})

    pools = [m for m in model.backbone if isinstance(m, nn.MaxPool2d)]
    named = {f"pool{index}": pool for index, pool in enumerate(pools, 1)} | dict(model.named_children())
    for name, module in named.items():
        if name != "backbone":
            module.register_forward_hook(watch(name))
    assert model(torch.zeros(1, 3, size, size, device="meta"))["out"].shape[-2:] == (size, size)
    return seen


@pytest.mark.parametrize("case", range(4))
def test_grids_are_the_published_ones(case: int, goldens: dict[str, Any]) -> None:
    golden = goldens["ops"]["fcn_geometry"]["sizes"][case]
    seen: dict[str, int] = {}
    with torch.device("meta"):
        for stride in STRIDES:
            found = grids(FCN(num_classes=21, stride=stride), golden["input"])  # type: ignore[arg-type]
            seen |= {"upscore32s" if name == "upscore" else name: size for name, size in found.items()}
    assert {name: seen[name] for name in golden if name != "input"} == {k: v for k, v in golden.items() if k != "input"}


def test_cuts_are_the_published_ones(goldens: dict[str, Any]) -> None:
    crops = goldens["ops"]["fcn_geometry"]["crop_offsets"]
    score = torch.arange(64.0 * 64).view(1, 1, 64, 64)
    model = small(stride=8)
    for name, layer in (
        ("fcn32s.score", "upscore"),
        ("fcn16s.score_pool4c", "score_pool4"),
        ("fcn16s.score", "upscore16"),
        ("fcn8s.score_pool3c", "score_pool3"),
        ("fcn8s.score", "upscore8"),
    ):
        network, _, cut = name.partition(".")
        offset = crops[network][cut]
        found = model._cut(layer, score, torch.empty(1, 3, 7, 9))
        assert torch.equal(found, score[..., offset : offset + 7, offset : offset + 9])


@pytest.mark.parametrize("padding", ["paper", "modern"])
@pytest.mark.parametrize("stride", STRIDES)
def test_every_size_works(stride: int, padding: str) -> None:
    with torch.device("meta"):
        model = small(stride=stride, padding=padding).eval()
        for height in (*range(1, 67), 375, 500, 513):
            image = torch.empty(1, 3, height, 514 - height)
            assert model.logits(image)["out"].shape == (1, 3, height, 514 - height)


@pytest.mark.parametrize("padding", ["paper", "modern"])
def test_scores_stand_where_their_pixels_are(padding: str) -> None:
    # With kernels that hand on their middle tap, FCN-32s only pools and interpolates. A spot of light must then shine
    # brightest where it is, give or take the half cell that pooling leaves unsure.
    model = small(stride=32, padding=padding, num_classes=2).eval()
    spots = torch.tensor([[50, 73], [75, 40]])
    image = torch.zeros(2, 3, 96, 96)
    image[range(2), :, spots[:, 0], spots[:, 1]] = 1
    with torch.inference_mode():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.zero_()
                middle = layer.kernel_size[0] // 2
                layer.weight[:, 0, middle, middle] = 1
        shine = model(image)["out"][:, 0]
    assert shine.max() > 0.9
    brightest = [divmod(int(at), 96) for at in shine.flatten(1).argmax(1)]
    assert (torch.tensor(brightest) - spots).abs().max() <= 16


def test_modern_padding_has_the_same_weights_and_other_logits() -> None:
    paper, modern = scored(small()).eval(), small(padding="modern").eval()
    modern.load_state_dict(paper.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        one, other = paper(image)["out"], modern(image)["out"]
    assert one.shape == other.shape
    assert not torch.allclose(one, other, atol=1e-2 * float(one.std()))


def test_starts_with_zero_scores_and_learns_from_there() -> None:
    model = small(padding="modern").train()
    image = torch.randn(1, 3, 32, 32)
    logits = model(image)["out"]
    assert torch.equal(logits, torch.zeros(1, 3, 32, 32))
    F.cross_entropy(logits, torch.ones(1, 32, 32, dtype=torch.long)).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {f"{layer}.{kind}" for layer in ("score_fr", "score_pool4", "score_pool3") for kind in KINDS}


def test_hidden_layers_start_with_variance_two_over_fan_in() -> None:
    model = small(fc_channels=64)
    assert model.fc6.weight.std().item() == pytest.approx((2 / (512 * 49)) ** 0.5, rel=0.02)
    assert model.fc7.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    assert model.fc6.bias is not None
    assert not model.fc6.bias.any()


def test_at_once_scales_the_skips_before_they_are_scored() -> None:
    model, plain = (small(at_once=flag, padding="modern").double().eval() for flag in (True, False))
    scored(model)
    state = model.state_dict()
    state["score_pool4.weight"] = state["score_pool4.weight"] * 0.01
    state["score_pool3.weight"] = state["score_pool3.weight"] * 0.0001
    plain.load_state_dict(state)
    image = torch.randn(1, 3, 20, 30, dtype=torch.float64)
    with torch.inference_mode():
        assert torch.allclose(model(image)["out"], plain(image)["out"], rtol=1e-12, atol=1e-12)


def test_at_once_without_skips_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        small(stride=32, at_once=True)
    assert "FCN-32s has no skips that could be scaled" in str(caught.value)
    assert "set model.at_once=false" in str(caught.value)


@pytest.mark.parametrize("stride", STRIDES)
def test_class_layers_are_what_the_class_count_changes(stride: int) -> None:
    with torch.device("meta"):
        few, many = (small(stride=stride, num_classes=n) for n in (2, 5))
    shapes = {key: value.shape for key, value in many.state_dict().items()}
    changed = {key.rpartition(".")[0] for key, value in few.state_dict().items() if value.shape != shapes[key]}
    assert changed == set(few.class_layers)
    assert len(few.class_layers) == len(changed)


@pytest.mark.parametrize(("coarse", "fine"), [(32, 16), (16, 8), (32, 8)])
def test_stages_differ_in_the_staged_layers_only(coarse: int, fine: int) -> None:
    with torch.device("meta"):
        before, after = (small(stride=stride).state_dict() for stride in (coarse, fine))
    differing = {key.rpartition(".")[0] for key in before.keys() ^ after.keys()}
    assert differing <= set(FCN.staged_layers)
    assert "score_pool4" in differing or "score_pool3" in differing
    assert all(before[key].shape == after[key].shape for key in before.keys() & after.keys())


def test_a_stage_starts_as_a_blend_of_the_last() -> None:
    # With the new skip's scores still zero, 16s says what 32s says, but for the kernel's shape.
    coarse, fine = scored(small(stride=32)).eval(), small(stride=16).eval()
    state = {key: value for key, value in coarse.state_dict().items() if key != "upscore.weight"}
    new = fine.load_state_dict(state, strict=False)
    assert new.unexpected_keys == []
    assert {key.rpartition(".")[0] for key in new.missing_keys} <= set(FCN.staged_layers)
    image = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        want, got = coarse(image)["out"], fine(image)["out"]
    assert (got - want).abs().max() < 0.1 * (want.max() - want.min())


def classifier_state(generator: torch.Generator) -> dict[str, Tensor]:
    """torchvision's vgg16 state_dict by keys and shapes, drawn."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).mul_((2 / shape[-1]) ** 0.5)

    state = {f"features.{key}": value for key, value in small().backbone.state_dict().items()}
    for layer, rows, columns in (("0", 4096, 25088), ("3", 4096, 4096), ("6", 1000, 4096)):
        state |= {f"classifier.{layer}.weight": draw(rows, columns), f"classifier.{layer}.bias": draw(rows)}
    return state


@pytest.fixture(scope="module")
def classifier() -> dict[str, Tensor]:
    return classifier_state(torch.Generator().manual_seed(0))


def test_hidden_layers_compute_what_torchvisions_classifier_does(classifier: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        model = FCN(num_classes=2, stride=32, padding="modern").eval()
    converted = model.from_classifier(classifier)
    own = {key: value for key, value in small(num_classes=2, stride=32).state_dict().items() if "score" in key}
    own["score_fr.weight"] = torch.zeros(2, 4096, 1, 1)
    model.load_state_dict({**converted, **own}, assign=True)
    assert not any(key.startswith("classifier") for key in converted)
    with torch.inference_mode():
        pool5 = model.backbone(torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)))[-1]
        want = pool5.flatten(1)
        for layer in ("classifier.0", "classifier.3"):
            want = F.relu(F.linear(want, classifier[f"{layer}.weight"], classifier[f"{layer}.bias"]))
        # Of the 7x7 outputs of the padded fc6 the middle one sees the whole grid and no padding.
        got = F.relu(model.fc7(F.relu(model.fc6(pool5))))[0, :, 3, 3]
    assert pool5.shape[-2:] == (7, 7)
    assert torch.allclose(got, want[0], rtol=1e-4, atol=1e-4 * float(want.max()))


def test_fewer_channels_take_every_nth(classifier: dict[str, Tensor]) -> None:
    model = small(fc_channels=8)
    converted = model.from_classifier(classifier)
    fc6 = classifier["classifier.0.weight"].view(4096, 512, 7, 7)
    assert torch.equal(converted["fc6.weight"], fc6[::512])
    assert torch.equal(converted["fc6.bias"], classifier["classifier.0.bias"][::512])
    assert torch.equal(converted["fc7.weight"][..., 0, 0], classifier["classifier.3.weight"][::512, ::512])
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert unexpected == []
    assert all(key.rpartition(".")[0] in model.class_layers for key in missing)


def test_features_alone_leave_the_hidden_layers_out(classifier: dict[str, Tensor]) -> None:
    model = small(fc_channels=10)  # not a divisor of 4096, which does not matter here
    converted = model.from_classifier({key: v for key, v in classifier.items() if key.startswith("features.")})
    assert converted.keys() == {key for key in model.state_dict() if key.startswith("backbone.")}


def test_keys_of_nobody_stay_for_the_loader_to_refuse(classifier: dict[str, Tensor]) -> None:
    state = {"features.0.weight": classifier["features.0.weight"], "stem.weight": torch.zeros(1)}
    assert set(small().from_classifier(state)) == {"backbone.0.weight", "stem.weight"}


def test_channels_that_cannot_be_thinned_are_refused(classifier: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError) as caught:
        small(fc_channels=10).from_classifier(classifier)
    assert "10 channels cannot be drawn evenly from VGG-16's 4096" in str(caught.value)
    assert "set model.fc_channels=1024 or model.weights=none" in str(caught.value)


def test_a_classifier_of_another_shape_is_refused() -> None:
    with pytest.raises(CheckpointError) as caught:
        small().from_classifier({"classifier.0.weight": torch.zeros(4096, 512)})
    assert "classifier.0.weight has the shape (4096, 512)" in str(caught.value)
    assert "(4096, 25088), as in torchvision's vgg16" in str(caught.value)


def test_other_channel_counts_and_bfloat16() -> None:
    model = scored(small(in_channels=1, padding="modern")).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 1, 33, 21))["out"]
    assert logits.shape == (2, 3, 33, 21)
    assert logits.isfinite().all()


@pytest.mark.parametrize("padding", ["paper", "modern"])
def test_one_export_serves_odd_and_even_sizes(padding: str) -> None:
    # Where the coarsest grid is a single pixel, up to 32 pixels of the image, an export is for that size alone.
    model = scored(small(padding=padding)).eval()
    free = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(model, (torch.randn(2, 3, 40, 33),), dynamic_shapes=(free,)).module()
    for size in ((40, 33), (64, 49)):
        image = torch.randn(1, 3, *size)
        assert torch.allclose(exported(image)["out"], model(image)["out"], atol=1e-5)


def test_compiles_in_one_piece() -> None:
    model = scored(small(padding="modern")).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    image = torch.randn(1, 3, 17, 20)
    with torch.no_grad():
        assert torch.equal(compiled(image)["out"], model(image)["out"])
