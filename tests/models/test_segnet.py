"""SegNet: totals, recorded logits, and unpooling that puts every maximum back where it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from segtrain.models.segnet import SegNet, unpool


def pool(image: Tensor) -> tuple[Tensor, Tensor]:
    values, position = F.max_pool2d(image, 2, ceil_mode=True, return_indices=True)
    return values, position


@pytest.fixture(scope="module")
def model() -> SegNet:
    torch.manual_seed(0)
    return SegNet(num_classes=3).eval()


@pytest.mark.parametrize("classes", [11, 12, 21])
def test_totals(classes: int, goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = SegNet(num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == goldens["parameters"][f"segnet_vgg16_{classes}"]


def test_recorded_logits(goldens: dict[str, Any], wave: Any, fill_by_order: Any, check_logits: Any) -> None:
    golden = goldens["originals"]["segnet"]
    model = SegNet(num_classes=11).double().eval()
    image = wave(*golden["input_chw"])
    assert fill_by_order(model, lambda: model.logits(image)) == golden["n_filled_modules"]
    with torch.inference_mode():
        logits = model.logits(image)["out"]
    assert list(logits.shape[1:]) == golden["logits_shape"]
    check_logits(logits, golden)


@pytest.mark.parametrize("case", ["even", "odd"])
def test_unpooling_of_recorded_maxima(case: str, goldens: dict[str, Any]) -> None:
    golden = goldens["ops"]["max_unpool"]
    golden = golden["odd"] if case == "odd" else golden
    image = torch.tensor(golden["input"])[None, None]
    values, position = pool(image)
    assert values[0, 0].tolist() == golden["pooled"]
    assert position[0, 0].tolist() == golden["flat_indices"]  # of equal values the first
    assert unpool(values, position, image.shape[-2:])[0, 0].tolist() == golden["unpooled"]


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 1), (1, 6), (5, 1), (2, 2), (3, 3)])
def test_unpooling_is_pytorchs_and_its_gradient_too(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, *size, dtype=torch.float64).relu()  # zeros: ties
    values, position = pool(image)
    ours, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    got = unpool(ours, position, size)
    want = F.max_unpool2d(theirs, position, 2, 2, output_size=size)
    assert torch.equal(got, want)
    weight = torch.randn_like(got)
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    assert ours.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_maxima_come_back_and_the_rest_is_zero() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 4, 9, 14) + 0.1
    values, position = pool(image)
    back = unpool(values, position, (9, 14))
    kept = back != 0
    assert torch.equal(back[kept], image[kept])
    assert int(kept.sum()) == values.numel()
    assert torch.equal(pool(back)[0], values)


def test_grids_of_camvid_are_the_authors(goldens: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = SegNet(num_classes=11).eval()
        down: list[list[int]] = []
        up: list[list[int]] = []
        for layer in model.backbone:
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda _module, _args, out: down.append(list(out.shape[-2:])))
        for stage in model.decoder:
            stage.register_forward_hook(lambda _module, _args, out: up.append(list(out.shape[-2:])))
        logits = model.logits(torch.empty(1, 3, 360, 480))["out"]
    chain = goldens["ops"]["max_unpool"]["segnet_360x480_pool_chain"]
    grids = [size for index, size in enumerate(down) if index == 0 or size != down[index - 1]]
    assert grids == [[360, 480], *chain[:-1]]
    assert up == grids[::-1]
    assert logits.shape == (1, 11, 360, 480)


def test_every_small_size_works() -> None:
    with torch.device("meta"):
        model = SegNet(num_classes=2).eval()
        for height in (1, 2, 3, 5, 17, 31, 32, 33, 34, 47, 64, 66):
            image = torch.empty(1, 3, height, 67 - height)
            assert model.logits(image)["out"].shape == (1, 2, height, 67 - height)


def test_torchvisions_weights_fit_the_encoder(model: SegNet) -> None:
    # The classifier of 123 M numbers stays on the meta device: the encoder has no use for it.
    with torch.device("meta"):
        state = torchvision.models.vgg16_bn(weights=None).state_dict()
    state |= {f"features.{key}": value for key, value in model.backbone.state_dict().items()}
    converted = model.from_classifier(state)
    assert SegNet.imagenet_name == model.backbone.name == "vgg16_bn"
    assert converted.keys() == {key for key in model.state_dict() if key.startswith("backbone.")}
    model.backbone.load_state_dict({key.removeprefix("backbone."): value for key, value in converted.items()})


def test_keys_of_nobody_stay_for_the_loader_to_refuse(model: SegNet) -> None:
    state = {"features.0.weight": torch.zeros(1), "stem.weight": torch.zeros(1), "classifier.6.bias": torch.zeros(1)}
    assert set(model.from_classifier(state)) == {"backbone.0.weight", "stem.weight"}


def test_start_is_the_authors(model: SegNet) -> None:
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.001)), name
            assert torch.equal(layer.weight, torch.ones_like(layer.weight)), name
        elif isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            assert not layer.bias.any(), name
            if layer.weight.numel() > 5000:
                want = (2 / (9 * layer.in_channels)) ** 0.5
                assert layer.weight.std().item() == pytest.approx(want, rel=0.05), name


def test_only_the_classifier_depends_on_the_class_count() -> None:
    with torch.device("meta"):
        few, many = (SegNet(num_classes=n).state_dict() for n in (2, 5))
    changed = {key.rpartition(".")[0] for key in few if few[key].shape != many[key].shape}
    assert changed == set(SegNet.class_layers)


def test_every_kernel_learns() -> None:
    torch.manual_seed(0)
    model = SegNet(num_classes=2, in_channels=1).train()
    logits = model(torch.randn(2, 1, 33, 35))
    assert list(logits) == ["out"]
    logits["out"].square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if parameter.ndim > 1:
            assert parameter.grad.abs().sum() > 0, name


def test_bfloat16(model: SegNet) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 17, 5))["out"]
    assert logits.shape == (2, 3, 17, 5)
    assert logits.isfinite().all()


def test_one_export_serves_odd_and_even_sizes(model: SegNet) -> None:
    # Where the deepest grid is a single pixel, up to 32 pixels of the image, an export is for that size alone.
    free = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with torch.no_grad():
        exported = torch.export.export(model, (torch.randn(2, 3, 40, 35),), dynamic_shapes=(free,)).module()
        image = torch.randn(1, 3, 37, 64)
        assert torch.allclose(exported(image)["out"], model(image)["out"], atol=1e-5)


def test_deterministic_where_pytorchs_unpooling_refuses() -> None:
    # PyTorch refuses max_unpool2d under this switch on every device; ours must go through, both ways.
    image = torch.rand(1, 2, 5, 5, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        values, position = pool(image)
        with pytest.raises(RuntimeError, match="deterministic"):
            F.max_unpool2d(values, position, 2, 2, output_size=(5, 5))
        unpool(values, position, (5, 5)).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert image.grad is not None
    assert int((image.grad != 0).sum()) == 2 * 9
