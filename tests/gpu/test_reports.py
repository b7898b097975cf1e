"""What is said of devices: `vecstore plan`, metrics, doctor, NVML where it is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vecstore.cli.main import cli
from vecstore.index import device
from vecstore.index.budget import need
from vecstore.index.telemetry import Telemetry
from vecstore.server.device_metrics import DEVICE_FAMILIES, of_devices

from .devices import opened


def planned(*arguments: str) -> dict[str, Any]:
    """Run `vecstore plan --json`."""
    result = CliRunner().invoke(cli, ["plan", "--json", *arguments])
    assert result.exit_code == 0, result.output
    plan: dict[str, Any] = json.loads(result.output)
    return plan


def test_a_plan_is_what_the_formulas_say() -> None:
    """Bytes by kind and phase are those that a device's worker is held to, and each shard has its place."""
    plan = planned("--rows", "10M", "--dim", "96", "--metric", "l2", "--shards", "2", "--gpus", "2")
    wanted = need("ivf_pq", 5_000_000, 96, "l2")
    assert plan["gpu"]["ivf_pq"] == {"train": wanted.train, "build": wanted.build, "serve": wanted.serve}
    assert set(plan["gpu"]) == {"flat", "ivf_sq", "ivf_pq"}
    assert {one["gpu"] for one in plan["placed"].values()} == {0, 1}
    assert plan["refused"] == {}
    assert plan["cpu"]["rows"] == 10_000_000 * (4 * 96 + 16)


def test_a_plan_says_what_has_no_room() -> None:
    """A GPU that is too small leaves the shard to the CPU, with the reason; graphs are planned with cuVS alone."""
    plan = planned("--rows", "1e9", "--dim", "1024", "--gpu-memory", "8")
    assert plan["placed"] == {}
    assert plan["refused"]["shard 0"].startswith("budget: ")
    assert "cagra" in planned("--rows", "1k", "--dim", "8", "--cuvs")["gpu"]


def test_a_plan_is_printed_for_people() -> None:
    """Without --json there is a table and a line for each shard."""
    result = CliRunner().invoke(cli, ["plan", "--rows", "1M", "--dim", "128"])
    assert result.exit_code == 0
    assert "ivf_pq" in result.output
    assert "shard 0: GPU 0, flat" in result.output


@pytest.mark.parametrize("rows", ["0", "many", "-5"])
def test_a_plan_of_no_rows_is_refused(rows: str) -> None:
    """A number of rows is a number of rows."""
    result = CliRunner().invoke(cli, ["plan", "--rows", rows, "--dim", "8"])
    assert result.exit_code == 2
    assert "is not a number of rows" in result.output


def test_devices_are_exported(tmp_path: Path) -> None:
    """Every family is exported for a store with devices, without samples where NVML says nothing; none for the CPU."""
    with opened(tmp_path / "store", "host") as database:
        families = {family.name: family for family in of_devices(database.status())}
    assert {name.removesuffix("_total") for name in DEVICE_FAMILIES} == set(families)
    assert [sample.labels for sample in families["vecstore_device_ready"].samples] == [{"device": "host0"}]
    assert families["vecstore_device_power_watts"].samples == []
    assert all(family.samples == [] for family in of_devices({"devices": []}))


def test_nvml_may_be_missing() -> None:
    """Without nvidia-ml-py, its driver, or a GPU of that name, nothing is known, and nothing fails."""
    telemetry = Telemetry(["0", "GPU-none"])
    assert isinstance(telemetry.read(), dict)
    telemetry.close()
    assert telemetry.read() == {}


def test_the_visible_devices_are_those_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """`CUDA_VISIBLE_DEVICES` says which GPUs there are, by number or UUID; emptied, there is none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, GPU-5b")
    assert device.found() == ["1", "GPU-5b"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device.found() == []
    assert device.described() == "no GPU can be seen: searches run on the CPU"
