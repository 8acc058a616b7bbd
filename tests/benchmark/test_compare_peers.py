"""The comparison with other libraries goes on where one of them is missing, and says so."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compare_peers.py"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))  # where the script finds the files beside it
    spec = importlib.util.spec_from_file_location("compare_peers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_peer_that_cannot_be_imported_is_a_row_with_the_reason(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Any:
        raise ModuleNotFoundError("No module named 'peer'")

    builders = {"base": lambda: lambda: sum(range(1000)), "peer": absent, "ours": lambda: lambda: sum(range(10))}
    monkeypatch.setitem(peers.TOPICS, "matrix", lambda: (2.0, builders))
    found = peers.measure("matrix", 3, 0.01)
    assert [row["name"] for row in found["rows"]] == ["base", "ours"]
    assert found["rows"][1]["ratio"] > 1
    said = peers.table("matrix", found, {})
    assert "| peer | not installable: ModuleNotFoundError: No module named 'peer' | | |" in said
    assert "pip said no" in peers.table("matrix", found, {"peer": "pip said no"})  # its reason comes first


def test_each_topic_has_this_package_and_its_peers(peers: ModuleType) -> None:
    assert list(peers.TOPICS) == ["data", "matrix", "losses", "steps"]
    _, builders = peers.TOPICS["matrix"]()
    assert any(name.startswith("segtrain") for name in builders)
    assert any("torchmetrics" in name for name in builders)
