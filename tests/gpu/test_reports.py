"""What is said of devices: `vecstore plan`, metrics, doctor, NVML where it is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from vecstore.cli.main import cli
from vecstore.index import device
from vecstore.index.budget import need
from vecstore.index.channel import WorkerOptions
from vecstore.index.handle import Device
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


def test_devices_are_found_where_the_drivers_folder_is_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A sandbox without /proc/driver shows the devices' files; those that are no GPUs do not count."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "_PROC", tmp_path / "none")
    monkeypatch.setattr(device, "_DEV", tmp_path)
    assert device.found() == []
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / name).touch()
    assert device.found() == ["0", "1"]


@pytest.mark.parametrize(("given", "order"), [(None, "PCI_BUS_ID"), ("2,3", None)])
def test_a_worker_counts_gpus_as_nvml_does(
    given: str | None, order: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that nobody gave are the driver's; what a user gave keeps its meaning."""
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    seen: list[dict[str, str]] = []

    def started(*_: Any, env: dict[str, str], **__: Any) -> None:
        seen.append(env)
        raise OSError("not here")

    monkeypatch.setattr("vecstore.index.handle.subprocess.Popen", started)
    with pytest.raises(OSError, match="not here"):
        Device("3", WorkerOptions(device="3"), lambda: None)._begun()
    assert seen[0]["CUDA_VISIBLE_DEVICES"] == "3"
    assert seen[0].get("CUDA_DEVICE_ORDER") == order


def test_a_device_that_nvml_does_not_know_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML takes no abbreviated UUID; of others it goes on telling, without what they cannot tell (MIG)."""
    monkeypatch.setitem(sys.modules, "pynvml", cast(Any, _Nvml))
    told = Telemetry(["GPU-5b", "0"]).read()
    assert told == {"0": {"memory_used_bytes": 3.0, "memory_total_bytes": 5.0, "power_w": 0.07}}


class _Nvml:
    """NVML with one device, of which it tells memory and power."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """Whatever it does not know."""

    @staticmethod
    def nvmlInit() -> None:  # noqa: N802  (NVML's names)
        """Begin."""

    @staticmethod
    def nvmlDeviceGetHandleByIndex(number: int) -> int:  # noqa: N802
        """Return a device."""
        return number

    @classmethod
    def nvmlDeviceGetHandleByUUID(cls, name: bytes) -> int:  # noqa: N802
        """Return no device."""
        raise cls.NVMLError(name)

    @staticmethod
    def nvmlDeviceGetMemoryInfo(_: int) -> Any:  # noqa: N802
        """Return its memory."""
        return SimpleNamespace(used=3, total=5)

    @staticmethod
    def nvmlDeviceGetPowerUsage(_: int) -> int:  # noqa: N802
        """Return milliwatts."""
        return 70

    @classmethod
    def nvmlDeviceGetUtilizationRates(cls, _: int) -> Any:  # noqa: N802
        """Tell nothing."""
        raise cls.NVMLError

    @classmethod
    def nvmlDeviceGetTemperature(cls, *_: int) -> Any:  # noqa: N802
        """Tell nothing."""
        raise cls.NVMLError
