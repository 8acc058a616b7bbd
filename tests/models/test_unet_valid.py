"""The paper's U-Net: recorded logits, valid sizes, mirrored surroundings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtrain.errors import ConfigError
from segtrain.models.layers import mirror_window
from segtrain.models.unet import UNetValid

RELEASE = {"unet_valid": {}, "unet_valid_up_first": {"concat": "up_first"}, "unet_phseg_v5": {"release": True}}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def small(depth: int = 2, **options: Any) -> UNetValid:
    torch.manual_seed(0)
    return UNetValid(num_classes=3, in_channels=2, base_channels=4, depth=depth, **options).double().eval()


def noise(*size: int) -> Tensor:
    return torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_totals(goldens: dict[str, Any]) -> None:
    totals = goldens["parameters"]
    with torch.device("meta"):
        assert count(UNetValid(num_classes=2, in_channels=1)) == totals["unet_1_2"] == 31_030_658
        assert count(UNetValid(num_classes=21)) == totals["unet_3_21"]
        assert count(UNetValid(num_classes=2, in_channels=1, release=True)) == totals["unet_phseg_v5_1_2"]


@pytest.mark.parametrize("name", RELEASE)
def test_recorded_logits(name: str, goldens: dict[str, Any], wave: Any, fill_by_order: Any, check_logits: Any) -> None:
    golden = goldens["originals"][name]
    with torch.device("meta"):  # no time for the first weights: the rule draws all of them
        model = UNetValid(num_classes=2, in_channels=1, **RELEASE[name]).double().eval()
    model.to_empty(device="cpu")
    assert count(model) == golden["params"]
    image = wave(*golden["input_chw"])
    assert fill_by_order(model, lambda: model.logits(image)) == golden["n_filled_modules"]
    with torch.inference_mode():
        logits = model.logits(image)["out"]
    assert list(logits.shape[1:]) == golden["logits_shape"]
    check_logits(logits, golden)


@pytest.mark.parametrize("side", [188, 572])
def test_sizes_at_every_layer_are_figure_1s(side: int, goldens: dict[str, Any]) -> None:
    golden = goldens["ops"]["unet_valid"][str(side)]
    with torch.device("meta"):
        model = UNetValid(num_classes=2, in_channels=1)
    chain = [side]
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.MaxPool2d) and module is not model.classifier:
            module.register_forward_hook(lambda _module, _args, out: chain.append(out.shape[-1]))
    assert model.logits(torch.zeros(1, 1, side, side, device="meta"))["out"].shape[-1] == golden["output"]
    assert chain == golden["chain"]
    assert model.margin == 92


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_exactly_the_sizes_that_every_pooling_halves_are_valid(depth: int) -> None:
    """Against the layers' own arithmetic: two valid convolutions, pooling of even sizes, doubling."""

    def output(side: int) -> int | None:
        for _ in range(depth):
            side -= 4
            if side <= 0 or side % 2:
                return None
            side //= 2
        side -= 4
        for _ in range(depth):
            if side <= 0:
                return None
            side = 2 * side - 4
        return side if side > 0 else None

    with torch.device("meta"):
        model = UNetValid(num_classes=2, base_channels=1, depth=depth)
    valid = {side: out for side in range(1, 500) if (out := output(side))}
    for length in range(1, max(valid.values()) + 1):
        assert model.valid_size(length) == min(side for side, out in valid.items() if out >= length)
    for side in range(1, 300):
        image = torch.empty(1, 3, side, min(valid), device="meta")
        if side in valid:
            assert side - valid[side] == 2 * model.margin
            assert model.logits(image)["out"].shape[-2:] == (valid[side], valid[min(valid)])
        else:
            with pytest.raises(ConfigError):
                model.logits(image)


def test_a_wrong_size_is_told_its_neighbors() -> None:
    with torch.device("meta"):
        model = UNetValid(num_classes=2, context="crop").train()
    with pytest.raises(ConfigError) as caught:
        model(torch.zeros(1, 3, 580, 100, device="meta"))
    text = str(caught.value)
    assert "an image of 580x100 does not fit the valid convolutions of a U-Net of depth 4" in text
    assert "sides of 16k + 188, k from 0; here a height of 572 or 588, a width of 188" in text
    assert "augment.crop_size=[588,188], or model.context=mirror" in text
    assert model(torch.zeros(1, 3, 588, 188, device="meta"))["out"].shape[-2:] == (588, 188)
    with pytest.raises(ConfigError, match="a height of 188, a width of 572"):
        model.logits(torch.zeros(1, 3, 187, 572, device="meta"))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (5, 17), (40, 33)])
def test_mirroring_is_numpys_reflection(size: tuple[int, int]) -> None:
    image = noise(*size)
    padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), (0, 0), (30, 31), (50, 7)], mode="reflect"))
    found = mirror_window(image, (-30, size[0] + 61), (-50, size[1] + 57))
    assert torch.equal(found, padded)
    assert torch.equal(mirror_window(image, (-10, 7), (size[1], 5)), padded[..., 20:27, 50 + size[1] : 55 + size[1]])


def test_mirroring_at_most_one_image_is_torchs() -> None:
    image = noise(9, 12)
    assert torch.equal(mirror_window(image, (-8, 20), (-3, 26)), F.pad(image, (3, 11, 8, 3), mode="reflect"))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 5), (31, 44)])
def test_forward_is_the_network_on_the_mirrored_image(size: tuple[int, int]) -> None:
    model, image = small(), noise(*size)
    with torch.inference_mode():
        rows, columns = ((-model.margin, model.valid_size(side)) for side in size)
        native = model.logits(mirror_window(image, rows, columns))["out"]
        found = model(image)["out"]
        assert torch.equal(model(image, resize=False)["out"], found)  # a loss at native size fits the target too
    assert found.shape == (1, 3, *size)
    assert torch.equal(found, native[..., : size[0], : size[1]])


def test_inside_an_image_forward_sees_no_padding() -> None:
    model, image = small(depth=1), noise(50, 42)
    margin = model.margin
    with torch.inference_mode():
        inner = model.logits(image)["out"]
        whole = model(image)["out"]
    assert inner.shape[-2:] == (50 - 2 * margin, 42 - 2 * margin)
    assert torch.allclose(whole[..., margin:-margin, margin:-margin], inner, rtol=0, atol=1e-12)


def test_a_crop_that_brings_its_context_is_judged_in_its_middle_and_in_training_alone() -> None:
    model, image = small(context="crop", dropout=0.0), noise(52, 60)
    margin = model.margin
    assert margin == 20
    inner = model.logits(image)["out"]
    mirroring = model(image)["out"]
    assert mirroring[..., 0, :].any()
    logits = model.train()(image)["out"]
    assert logits.shape == mirroring.shape
    assert torch.equal(logits[..., margin:-margin, margin:-margin], inner)
    logits[..., margin:-margin, margin:-margin] = 0
    assert not logits.any()


@pytest.mark.parametrize(("release", "dropped"), [(False, [32]), (True, [16, 32])])
def test_dropout_ends_the_contracting_path(release: bool, dropped: list[int]) -> None:
    model = small(depth=3, release=release, dropout=1.0).train()
    widths: list[int] = []
    model.dropout.register_forward_hook(lambda _module, args, _out: widths.append(args[0].shape[1]))
    logits = model(noise(8, 8))["out"]
    assert widths == dropped
    # With all of the bottom dropped, gradients reach the levels above it through their skips alone.
    logits.sum().backward()
    idle = [i for i, level in enumerate(model.encoder) if not level[0].weight.grad.any()]
    assert idle == ([2, 3] if release else [3])


def test_dropout_rests_in_evaluation() -> None:
    image = noise(8, 8)
    assert torch.equal(small(dropout=0.5)(image)["out"], small(dropout=0.0)(image)["out"])


def test_the_release_is_up_first_unless_told_otherwise() -> None:
    assert [small(release=r).up_first for r in (False, True)] == [False, True]
    assert not small(release=True, concat="skip_first").up_first
    assert small(concat="up_first").up_first


def test_weights_start_with_variance_two_over_fan_in() -> None:
    torch.manual_seed(0)
    model = UNetValid(num_classes=2, base_channels=32, depth=3)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 5000:
            incoming = module.in_channels * (9 if isinstance(module, nn.Conv2d) else 1)
            assert module.weight.std().item() == pytest.approx((2 / incoming) ** 0.5, rel=0.05), name
            assert not module.bias.any()


def test_class_layers_are_exactly_what_the_class_count_changes() -> None:
    with torch.device("meta"):
        few, many = (UNetValid(num_classes=count).state_dict() for count in (2, 5))
    changed = {key.rpartition(".")[0] for key in few if few[key].shape != many[key].shape}
    assert changed == set(UNetValid.class_layers)


@pytest.mark.parametrize("context", ["mirror", "crop"])
def test_training_reaches_every_parameter(context: Any) -> None:
    model = small(context=context, release=True).train()
    model(noise(52, 52).requires_grad_())["out"].square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_autocast_gives_half_precision_logits() -> None:
    model = small().float()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        logits = model(noise(9, 9).float())["out"]
    assert logits.dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.allclose(logits.float(), model(noise(9, 9).float())["out"], atol=0.1)


@pytest.mark.parametrize("context", ["mirror", "crop"])
def test_one_graph_holds_all_of_it(context: Any) -> None:
    model = small(context=context, dropout=0.0).train()
    image = noise(52, 60)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(image)["out"], model(image)["out"])


def test_one_export_serves_many_sizes() -> None:
    model = small().float()
    free = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(model, (torch.randn(2, 2, 17, 20),), dynamic_shapes=(free,)).module()
    for size in ((17, 20), (16, 24), (15, 13), (41, 30)):
        image = torch.randn(1, 2, *size)
        assert torch.allclose(exported(image)["out"], model(image)["out"], atol=1e-5), size
