"""Which names a `_target_` may lead to."""

from __future__ import annotations

from typing import Any

import pytest

from segtrain import targets
from segtrain.errors import ConfigError


@pytest.mark.parametrize(
    "path",
    [
        "segtrain.models.unet.UNet",
        "segtrain.optim.optimizers.adamw",
        "torch.nn.Conv2d",
        "torch.optim.SGD",
        "torchvision.models.segmentation.fcn_resnet50",
        "albumentations.HorizontalFlip",
        "albumentations.pytorch.ToTensorV2",
    ],
)
def test_what_a_target_may_name(path: str) -> None:
    assert targets.resolve(path, "model").__name__ == path.rsplit(".", 1)[1]


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.os.system",
        "torch.load",
        "torch.hub.load",
        "torch.nn.functional.torch.load",
        "torch.nn.modules.module.torch.load",
        "torch.nn.Module.load_state_dict",
        "torch.utils.cpp_extension.load",
        "torch.nn",
        "segtrain.data.dataset.Path",
        "segtrain.data.download.extract",
        "segtrain.data.download.fetch",
        "segtrain.atomic.write_atomically",
        "segtrain.commands.train.run",
        "segtrain.models.unet.UNet.__init__",
        "segtrain.models.unet.UNet.__init__.__globals__",
        "albumentations.core.serialization.load",
        "segtrain",
        "",
        3,
        None,
    ],
)
def test_what_a_target_may_not_name(path: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        targets.resolve(path, "model")
    assert caught.value.found.startswith(f"model._target_={path}")


def test_a_package_is_allowed_by_its_name_and_no_other_that_begins_like_it() -> None:
    assert targets.resolve("json.JSONDecoder", "x", ["json"])
    with pytest.raises(ConfigError, match="allowed package"):
        targets.resolve("json.JSONDecoder", "x", ["jso"])
    with pytest.raises(ConfigError, match="allowed package"):  # defined in a package that is not allowed
        targets.resolve("json.decoder.re.compile", "x", ["json"])


def test_a_module_that_is_not_installed_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_something.py").write_text("import a_module_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="needs the module 'a_module_nobody_has', which is not installed"):
        targets.resolve("needs_something.Net", "model", ["needs_something"])
