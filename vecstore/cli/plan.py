"""The command `vecstore plan`: what a collection takes, on the CPU and on GPUs, before there is one."""

from __future__ import annotations

from typing import Any, get_args

import click

from ..errors import InvalidArgument
from ..values import Metric
from .output import Output, reporting

__all__ = ["plan_command"]

_GIB = 1 << 30
_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}


class _Count(click.ParamType[int]):
    """A number of rows: 5000000, 5_000_000, 5M."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the number."""
        if isinstance(value, int):
            return value
        text = str(value).replace("_", "").replace(",", "")
        factor = _UNITS.get(text[-1:], 1)
        try:
            number = float(text[:-1] if factor > 1 else text) * factor
        except ValueError:
            number = 0
        if not 1 <= number < 2**48:
            self.fail(f"{value!r} is not a number of rows such as 5000000 or 5M", param, ctx)
        return int(number)


@click.command("plan")
@click.option("--rows", type=_Count(), required=True, help="Points, such as 5000000 or 5M.")
@click.option("--dim", type=click.IntRange(1, 16_384), required=True, help="Numbers of each vector.")
@click.option("--index", default="auto", show_default=True, help="Index of the collection.")
@click.option("--metric", type=click.Choice(get_args(Metric)), default="cosine", show_default=True)
@click.option("--shards", type=click.IntRange(1, 64), default=1, show_default=True, help="Shards: what GPUs share.")
@click.option("--gpus", type=click.IntRange(0, 64), default=1, show_default=True, help="GPUs to plan for.")
@click.option("--gpu-memory", "gib", type=click.FloatRange(0.1, 4096), default=72.0, show_default=True,
              help="GiB of each that indexes may take (device_memory_bytes_max).")  # fmt: skip
@click.option("--cuvs", is_flag=True, help="With the extra gpu-cuvs, which has graphs.")
@reporting
def plan_command(
    out: Output,
    *,
    rows: int,
    dim: int,
    index: str,
    metric: Metric,
    shards: int,
    gpus: int,
    gib: float,
    cuvs: bool,
) -> None:
    """Say what a collection takes: memory of the process, and of GPUs for each kind of index and phase.

    The formulas stand in docs/operations.md. Rows are spread over shards evenly, and a shard goes to one GPU.
    """
    from ..index import budget, placement

    names = ("auto", "flat", "ivf_flat", "ivf_pq", "ivf_sq8", "hnsw")
    if index not in names:
        raise InvalidArgument(f"--index: {index!r} is not one of {', '.join(names)}")
    each = -(-rows // shards)
    kinds = [kind for kind in budget.KINDS if kind != "cagra" or cuvs]
    needs = {kind: budget.need(kind, each, dim, metric) for kind in kinds}
    wanted = [placement.Wanted(f"shard {i}", each, dim, metric, index) for i in range(shards)]
    rooms = [placement.Room(str(i), int(gib * _GIB), cuvs) for i in range(gpus)]
    placed = placement.place(wanted, rooms, {})
    result = {
        "rows": rows,
        "dim": dim,
        "metric": metric,
        "index": index,
        "shards": shards,
        "cpu": _on_cpu(rows, dim, index, metric),
        "gpu": {kind: {"train": need.train, "build": need.build, "serve": need.serve} for kind, need in needs.items()},
        "placed": {
            name: {"gpu": int(device), "kind": choice.kind, "lists": choice.lists, "bytes": choice.need.serve}
            for name, (device, choice) in placed.build.items()
        },
        "refused": placed.refused,
    }
    out.result(result, lambda: _print_plan(out, result, gpus, gib))


def _on_cpu(rows: int, dim: int, index: str, metric: Metric) -> dict[str, int | None]:
    """Return bytes of rows and of the index; the latter is None where the engine is not installed."""
    held = rows * (4 * dim + 16 + (4 if metric == "cosine" else 0))
    try:
        from ..index.kinds import memory_bytes
    except ImportError:
        return {"rows": held, "index": None}
    return {"rows": held, "index": memory_bytes(index, rows, dim)}


def _print_plan(out: Output, result: dict[str, Any], gpus: int, gib: float) -> None:
    cpu = result["cpu"]
    index = "install the extra cpu to know" if cpu["index"] is None else _size(cpu["index"])
    print(f"memory of the process: rows {_size(cpu['rows'])} (mapped), index {index}; payloads and ids beside them")
    table = [
        [kind, _size(need["train"]), _size(need["build"]), _size(need["serve"])] for kind, need in result["gpu"].items()
    ]
    shards = result["shards"]
    out.table([f"GPU memory of {'a shard' if shards > 1 else 'the collection'}", "train", "build", "serve"], table)
    if not gpus:
        return
    for name, one in result["placed"].items():
        lists = f", {one['lists']:,} lists" if one["lists"] else ""
        print(f"{name}: GPU {one['gpu']}, {one['kind']}{lists}, {_size(one['bytes'])} of {gib:g} GiB")
    for name, reason in result["refused"].items():
        print(f"{name}: on the CPU ({reason})")


def _size(size: int) -> str:
    return f"{size / _GIB:,.2f} GiB" if size >= _GIB // 10 else f"{size / (1 << 20):,.1f} MiB"
