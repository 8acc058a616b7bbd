"""Parameter groups, optimizers, and schedules against published figures and torch's own."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import get_class, get_method
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from segtrain.errors import ConfigError
from segtrain.optim.optimizers import adamw, parameter_groups, rmsprop, sgd
from segtrain.optim.schedules import Constant, Cosine, OneCycle, Poly, Schedule, Step, make_scheduler

CONFIGS = Path(__file__).parents[1] / "configs"
SCHEDULES: dict[str, type[Schedule]] = {
    "poly": Poly,
    "cosine": Cosine,
    "onecycle": OneCycle,
    "constant": Constant,
    "step": Step,
}


class Net(nn.Module):
    """A model with a backbone, norms of several kinds, a shared parameter and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False))
        self.classifier = nn.Sequential(nn.LayerNorm([4, 6, 6]), nn.PReLU(), nn.Conv2d(4, 2, 1))
        self.shared = self.backbone[2]
        self.again = nn.Conv2d(4, 2, 1)
        self.again.weight = self.classifier[2].weight
        self.scale = nn.Parameter(torch.ones(2, 2))
        self.frozen = nn.Conv2d(2, 2, 1).requires_grad_(False)


def names_by_group(model: nn.Module, **options: Any) -> dict[str, set[str]]:
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, lr=0.1, weight_decay=0.01, **options)
    return {group["name"]: {name_of[id(parameter)] for parameter in group["params"]} for group in groups}


def test_each_parameter_is_in_the_group_where_it_belongs() -> None:
    assert names_by_group(Net()) == {
        "backbone": {"backbone.0.weight", "backbone.2.weight"},
        "backbone_no_decay": {"backbone.0.bias", "backbone.1.weight", "backbone.1.bias"},
        "head": {"scale", "classifier.2.weight"},
        "head_no_decay": {
            "classifier.0.weight",
            "classifier.0.bias",
            "classifier.1.weight",
            "classifier.2.bias",
            "again.bias",
        },
    }


@pytest.mark.parametrize("decay_norm_bias", [False, True])
def test_every_trainable_parameter_is_in_one_group(decay_norm_bias: bool) -> None:
    model = Net()
    groups = parameter_groups(model, lr=0.1, weight_decay=0.01, decay_norm_bias=decay_norm_bias)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted({id(p) for p in model.parameters() if p.requires_grad})


def test_groups_have_their_learning_rate_and_decay() -> None:
    groups = parameter_groups(Net(), lr=0.1, weight_decay=0.01, backbone_lr_mult=0.1, head_lr_mult=10.0)
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in groups} == {
        "backbone": (pytest.approx(0.01), 0.01),
        "backbone_no_decay": (pytest.approx(0.01), 0.0),
        "head": (pytest.approx(1.0), 0.01),
        "head_no_decay": (pytest.approx(1.0), 0.0),
    }


def test_biases_of_convolutions_can_have_a_rate_of_their_own() -> None:
    assert names_by_group(Net(), bias_lr_mult=2.0) == {
        "backbone": {"backbone.0.weight", "backbone.2.weight"},
        "backbone_no_decay": {"backbone.1.weight", "backbone.1.bias"},
        "backbone_bias": {"backbone.0.bias"},
        "head": {"scale", "classifier.2.weight"},
        "head_no_decay": {"classifier.0.weight", "classifier.0.bias", "classifier.1.weight"},
        "head_bias": {"classifier.2.bias", "again.bias"},
    }
    groups = parameter_groups(Net(), lr=0.1, weight_decay=0.01, head_lr_mult=10.0, bias_lr_mult=2.0)
    found = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert found["head_bias"] == (pytest.approx(2.0), 0.0)  # ten times, and twice again: DeepLab v2's last layers
    assert found["backbone_bias"] == (pytest.approx(0.2), 0.0)
    assert found["head"] == (pytest.approx(1.0), 0.01)


def test_norms_and_biases_can_be_decayed_too() -> None:
    groups = parameter_groups(Net(), lr=0.1, weight_decay=0.01, decay_norm_bias=True)
    assert [(group["name"], group["weight_decay"]) for group in groups] == [
        ("backbone", 0.01),
        ("head", 0.01),
    ]


def test_a_model_without_backbone_is_all_head() -> None:
    assert names_by_group(nn.Sequential(nn.Linear(2, 2))) == {
        "head": {"0.weight"},
        "head_no_decay": {"0.bias"},
    }


def test_a_multiplier_for_a_backbone_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        parameter_groups(nn.Sequential(nn.Linear(2, 2)), lr=0.1, weight_decay=0.0, backbone_lr_mult=0.1)
    assert "optimizer.backbone_lr_mult is 0.1, and Sequential has no backbone" in str(error.value)
    assert "set optimizer.backbone_lr_mult=1" in str(error.value)


def test_a_model_that_is_all_frozen_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear has no trainable parameter"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), lr=0.1, weight_decay=0.0)


@pytest.mark.parametrize("make", [sgd, adamw, rmsprop])
def test_an_update_without_gradient_decays_weights_alone(make: Any) -> None:
    model = Net()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, lr=0.1, weight_decay=0.5, backbone_lr_mult=0.0)
    optimizer = make(groups, lr=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"scale", "classifier.2.weight"}


def test_the_optimizers_are_torchs_with_these_values() -> None:
    params = [nn.Parameter(torch.ones(1))]
    found = sgd(params, lr=0.3, momentum=0.8, weight_decay=0.2, nesterov=True).defaults
    assert {key: found[key] for key in ("lr", "momentum", "weight_decay", "nesterov")} == {
        "lr": 0.3,
        "momentum": 0.8,
        "weight_decay": 0.2,
        "nesterov": True,
    }
    found = adamw(params, lr=0.3, betas=[0.5, 0.6], eps=0.1, weight_decay=0.2).defaults
    assert (found["lr"], found["betas"], found["eps"], found["weight_decay"]) == (0.3, (0.5, 0.6), 0.1, 0.2)
    found = rmsprop(params, lr=0.3, alpha=0.5, eps=0.1, momentum=0.7, weight_decay=0.2).defaults
    expected = {"lr": 0.3, "alpha": 0.5, "eps": 0.1, "momentum": 0.7, "weight_decay": 0.2}
    assert {key: found[key] for key in expected} == expected


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        sgd([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.0, nesterov=True)
    assert "optimizer.momentum=0.9 or optimizer.nesterov=false" in str(error.value)


@pytest.mark.parametrize(
    ("base", "total_steps", "expected"),
    [
        (  # DeepLabv3
            0.007,
            30000,
            {
                0: 0.007,
                1: 0.006999789999649996,
                10: 0.0069978999649957215,
                7500: 0.005403226547064994,
                15000: 0.003751207118877026,
                29999: 6.541674199080747e-07,
                30000: 0.0,
            },
        ),
        (  # DeepLabv2
            2.5e-4,
            20000,
            {
                0: 0.00025,
                5000: 0.00019297237668089264,
                10000: 0.00013397168281703665,
                19999: 3.3652165227458613e-08,
            },
        ),
        (  # PSPNet
            0.01,
            30000,
            {0: 0.01, 7500: 0.007718895067235705, 15000: 0.005358867312681466, 29999: 9.345248855829638e-07},
        ),
    ],
)
def test_poly_gives_the_published_learning_rates(base: float, total_steps: int, expected: dict[int, float]) -> None:
    found = {step: base * Poly(power=0.9).factor(step, total_steps) for step in expected}
    assert found == pytest.approx(expected, rel=1e-9, abs=0)


def rates(scheduler: LRScheduler, steps: int) -> list[list[float]]:
    """The learning rate of every group at every step of a training."""
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def two_groups(first: float = 0.1, second: float = 1.0) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (first, second)]
    return sgd(groups, lr=0.1)


def test_step_gives_deeplab_v1s_learning_rates() -> None:
    found = {step: 1e-3 * Step().factor(step, 6000) for step in (0, 1999, 2000, 3999, 4000, 5999)}
    assert found == pytest.approx({0: 1e-3, 1999: 1e-3, 2000: 1e-4, 3999: 1e-4, 4000: 1e-5, 5999: 1e-5})


def test_poly_can_hold_its_rate_for_some_steps() -> None:
    held, plain = Poly(every=10), Poly()
    found = [held.factor(step, 95) for step in range(95)]
    assert found == [plain.factor(step // 10 * 10, 95) for step in range(95)]
    assert len(set(found)) == 10


def test_a_scheduler_scales_each_groups_own_rate() -> None:
    found = rates(make_scheduler(two_groups(0.1, 1.0), Poly(), 20), 20)
    assert found == [pytest.approx([0.1 * (1 - step / 20) ** 0.9, (1 - step / 20) ** 0.9]) for step in range(20)]


@pytest.mark.parametrize("total_steps", [10, 37, 100])
@pytest.mark.parametrize("pct_start", [0.15, 0.3, 0.95])
def test_onecycle_is_torchs(total_steps: int, pct_start: float) -> None:
    schedule = OneCycle(pct_start=pct_start, div_factor=10.0, final_div_factor=100.0)
    expected = OneCycleLR(
        two_groups(),
        max_lr=[0.1, 1.0],
        total_steps=total_steps,
        pct_start=pct_start,
        div_factor=10.0,
        final_div_factor=100.0,
        cycle_momentum=False,
    )
    found = rates(make_scheduler(two_groups(), schedule, total_steps), total_steps)
    # Torch's scheduler refuses the step after the last.
    for step in range(total_steps):
        assert found[step] == pytest.approx([group["lr"] for group in expected.optimizer.param_groups])
        expected.optimizer.step()
        if step < total_steps - 1:
            expected.step()


def test_onecycle_leaves_momentum_alone() -> None:
    optimizer = two_groups()
    rates(make_scheduler(optimizer, OneCycle(), 10), 5)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]


@pytest.mark.parametrize("min_factor", [0.0, 0.2])
def test_cosine_is_torchs(min_factor: float) -> None:
    found = rates(make_scheduler(two_groups(0.1, 0.1), Cosine(min_factor=min_factor), 30), 30)
    expected = rates(CosineAnnealingLR(two_groups(0.1, 0.1), 30, eta_min=0.1 * min_factor), 30)
    assert [pair[0] for pair in found] == pytest.approx([pair[0] for pair in expected])


def test_the_ends_of_the_schedules() -> None:
    assert Poly(min_factor=0.1).factor(50, 50) == pytest.approx(0.1)
    assert Cosine(min_factor=0.1).factor(50, 50) == pytest.approx(0.1)
    assert OneCycle(div_factor=10.0, final_div_factor=5.0).factor(49, 50) == pytest.approx(0.02)
    assert {Constant().factor(step, 50) for step in range(51)} == {1.0}


@given(
    kind=st.sampled_from(sorted(SCHEDULES)),
    total_steps=st.integers(1, 400),
    warmup=st.floats(0, 1, exclude_max=True),
    warmup_start=st.floats(1e-6, 1),
    pct_start=st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_factors_lie_between_0_and_1_and_every_step_learns(
    kind: str, total_steps: int, warmup: float, warmup_start: float, pct_start: float
) -> None:
    options = {"pct_start": pct_start} if kind == "onecycle" else {}
    warmup_steps = int(warmup * total_steps)
    schedule = SCHEDULES[kind](warmup_steps=warmup_steps, warmup_start=warmup_start, **options)
    factors = [schedule.factor(step, total_steps) for step in range(total_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    after = [schedule.factor(total_steps + step, total_steps) for step in range(3)]
    assert after[0] == after[1] == after[2]
    assert 0 <= after[0] <= 1
    if kind in ("poly", "cosine"):
        falling = factors[warmup_steps:]
        assert falling == sorted(falling, reverse=True)
        assert falling[0] == 1.0


@pytest.mark.parametrize(("kind", "peak"), [(Poly, 1.0), (Cosine, 1.0), (Constant, 1.0), (OneCycle, 1 / 25)])
def test_the_warmup_is_a_line_to_where_the_schedule_starts(kind: type[Schedule], peak: float) -> None:
    schedule = kind(warmup_steps=10, warmup_start=0.2)
    found = [schedule.factor(step, 50) for step in range(11)]
    assert found == pytest.approx([peak * (0.2 + 0.8 * step / 10) for step in range(11)])
    plain = kind()
    assert schedule.factor(23, 50) == plain.factor(13, 40)


@pytest.mark.parametrize("warmup_steps", [10, 11])
def test_a_warmup_of_all_steps_is_refused(warmup_steps: int) -> None:
    schedule = Poly(warmup_steps=warmup_steps)
    with pytest.raises(ConfigError) as error:
        make_scheduler(two_groups(), schedule, 10)
    assert f"the warm-up of {warmup_steps} steps takes all 10 steps of the training" in str(error.value)
    assert "scheduler.warmup_steps" in str(error.value)
    assert make_scheduler(two_groups(), schedule, warmup_steps + 1).get_last_lr()[0] > 0


@pytest.mark.parametrize("kind", SCHEDULES.values())
def test_a_resumed_scheduler_goes_on_as_if_never_stopped(kind: type[Schedule]) -> None:
    schedule = kind(warmup_steps=4)
    expected = rates(make_scheduler(two_groups(), schedule, 20), 20)
    optimizer = two_groups()
    stopped = make_scheduler(optimizer, schedule, 20)
    rates(stopped, 7)
    resumed_optimizer = two_groups()
    resumed = make_scheduler(resumed_optimizer, schedule, 20)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(stopped.state_dict())
    assert rates(resumed, 13) == expected[7:]


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_an_optimizer_config_has_the_arguments_of_optimizer_and_groups(name: str) -> None:
    config = yaml.safe_load((CONFIGS / "optimizer" / f"{name}.yaml").read_text(encoding="utf-8"))
    make = get_method(config.pop("_target_"))
    assert make.__name__ == name
    own = set(inspect.signature(make).parameters) - {"params"}
    of_groups = set(inspect.signature(parameter_groups).parameters) - {"model"}
    assert set(config) == own | of_groups
    model = Net()
    groups = parameter_groups(model, **{key: config[key] for key in of_groups})
    optimizer = make(groups, **{key: config[key] for key in own})
    assert {group["lr"] for group in optimizer.param_groups} == {config["lr"]}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {config["weight_decay"], 0.0}
    assert isinstance(config["lr"], float)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scheduler_config_shows_every_argument_with_its_default(name: str) -> None:
    config = yaml.safe_load((CONFIGS / "scheduler" / f"{name}.yaml").read_text(encoding="utf-8"))
    kind = get_class(config.pop("_target_"))
    assert kind is SCHEDULES[name]
    defaults = {
        parameter.name: parameter.default
        for one in (Schedule, kind)
        for parameter in inspect.signature(one).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert config == defaults
    assert all(math.isfinite(value) and not isinstance(value, bool) for value in config.values())
