"""What a server exports: that it is right after known traffic, and that documents and rules name what exists."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

import grpc
import numpy as np
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.serve import TIMEOUT_S, call, filled, node, process
from vecstore import Collection, Hits
from vecstore.clock import SystemClock
from vecstore.server.admission import Reason
from vecstore.server.metrics import FAMILIES, ServerMetrics
from vecstore.server.settings import MetricsSettings
from vecstore.server.shadow import Shadow
from vecstore.values import Hit
from vecstore.wire.v1 import store_pb2 as pb

ROOT = Path(__file__).parents[2]
SEARCH = "/vecstore.v1.Collections/Search"
UPSERT = "/vecstore.v1.Collections/Upsert"


def search(number: int, *vector: float, **more: Any) -> pb.SearchRequest:
    """Return a search for three points."""
    return pb.SearchRequest(collection=number, vector=np.array(vector, np.float32).tobytes(), k=3, **more)


def refused(channel: grpc.Channel, name: str, request: Any) -> grpc.StatusCode:
    """Return the code of a call that is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, name, request)
    code = caught.value.code()
    assert isinstance(code, grpc.StatusCode)
    return code


def test_known_traffic_is_counted(tmp_path: Path) -> None:
    """Calls by method and code, their times, points, rows, log, syncs and LSNs after traffic that is known."""
    with process(tmp_path / "store", "--region", "north") as served, served.channel() as channel:
        number = filled(channel, count=50)
        for i in range(7):
            call(channel, "Search", search(number, i, 0, 0, 0))
        assert refused(channel, "Search", search(number, 1, 2)) is grpc.StatusCode.INVALID_ARGUMENT
        assert refused(channel, "Count", pb.CountRequest(collection=1)) is grpc.StatusCode.NOT_FOUND
        counted = "vecstore_requests_total"
        assert served.metric(counted, method=SEARCH, code="OK") == 7
        assert served.metric(counted, method=SEARCH, code="INVALID_ARGUMENT") == 1
        assert served.metric("vecstore_request_seconds_count", method=SEARCH) == 8
        assert 0 < served.metric("vecstore_request_seconds_sum", method=SEARCH) < 60
        assert served.metric("vecstore_request_seconds_bucket", method=SEARCH, le="+Inf") == 8
        assert served.metric(counted, method=UPSERT, code="OK") == 1
        assert served.metric("vecstore_points", collection="docs") == 50
        assert served.metric("vecstore_unindexed_rows", collection="docs") == 50
        assert served.metric("vecstore_segments", collection="docs", state="growing") == 1
        assert served.metric("vecstore_log_bytes_total") > 50 * 16
        assert served.metric("vecstore_sync_seconds_count") >= 2
        assert served.metric("vecstore_lsn_durable") == served.metric("vecstore_lsn_applied") == 3
        assert served.metric("vecstore_ready") == served.metric("vecstore_writable") == 1
        assert served.metric("vecstore_disk_free_bytes") > served.metric("vecstore_disk_free_bytes_min") > 0
        assert served.metric("process_resident_memory_bytes") > 1_000_000
        (info,) = [dict(labels) for name, labels in served.metrics() if name == "vecstore_info"]
        assert info["region"] == "north"


def test_every_family_is_exported(tmp_path: Path) -> None:
    """What a server exports is exactly what the table of names says, with its kinds and texts."""
    with node(tmp_path / "store") as served:
        text = served.metrics.text().decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    names = {name.removesuffix("_total"): family for name, family in FAMILIES.items()}
    ours = {name: family for name, family in found.items() if name.startswith("vecstore_")}
    assert set(ours) == set(names)
    for name, family in ours.items():
        assert (family.type, family.documentation) == (names[name].kind, names[name].doc)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(names[name].labels)


def test_before_it_is_ready_it_says_so() -> None:
    """A server whose store recovers exports its calls, and that it is not ready."""
    metrics = ServerMetrics(SystemClock().wall_us)
    metrics.observe("/a/B", grpc.StatusCode.UNAVAILABLE, 0.004)
    metrics.shed("queue")
    text = metrics.text().decode()
    assert "vecstore_ready 0.0" in text
    assert 'vecstore_requests_total{code="UNAVAILABLE",method="/a/B"} 1.0' in text
    assert 'vecstore_request_seconds_bucket{le="0.005",method="/a/B"} 1.0' in text
    assert 'vecstore_request_seconds_bucket{le="0.003",method="/a/B"} 0.0' in text
    assert 'vecstore_sheds_total{reason="queue"} 1.0' in text


def test_counting_loses_nothing() -> None:
    """Calls counted by many threads at once are all there."""
    metrics = ServerMetrics(SystemClock().wall_us)

    def work() -> None:
        for _ in range(2_000):
            metrics.observe("/a/B", "OK", 0.001)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 'vecstore_requests_total{code="OK",method="/a/B"} 16000.0' in metrics.text().decode()


# -- measured recall ---------------------------------------------------------------------------------------------------


class Scripted:
    """A collection whose answers are written down: what an exact search finds, and what any other does."""

    name, metric = "docs", "ip"

    def __init__(self, truth: list[int], found: list[int], lsns: list[int]) -> None:
        self._truth, self._found, self._lsns = truth, found, iter(lsns)

    def search(self, vector: Any, k: int, *, exact: bool = False, **more: Any) -> Hits:
        """Find what is written down."""
        ids = self._truth if exact else self._found
        return Hits([Hit(i, {}, None, -float(i)) for i in ids], next(self._lsns, 1), exact)


def measured(shadow: Shadow, result: str, count: int) -> dict[str, float]:
    """Wait until a shadow has reported so many results of a kind."""
    waiting = threading.Event()
    for _ in range(2_000):
        found = dict(shadow.report().get("docs", {}))
        if found.get(result, 0) >= count:
            return found
        waiting.wait(0.01)
    raise AssertionError(shadow.report())


def shadow_of(collection: object, **settings: Any) -> Shadow:
    """Return a shadow over one collection, which repeats every search."""
    found = cast(Collection, collection)
    return Shadow(MetricsSettings(recall_every=1, recall_time_share=1.0, **settings), lambda number: found)


def test_recall_is_the_share_of_the_true_hits() -> None:
    """Half of the true hits found is a recall of a half; one that is as near as the last of them counts."""
    shadow = shadow_of(Scripted([1, 2, 3, 4], [1, 4, 8, 9], []))
    shadow.start()
    shadow.offer(search(1, 1.0))
    assert measured(shadow, "measured", 1)["recall"] == 0.5
    shadow.close()


def test_searches_between_which_something_was_written_do_not_count() -> None:
    """Where the state moved between the two searches they are repeated; if it always moves, nothing is measured."""
    shadow = shadow_of(Scripted([1], [2], [1, 2, 3, 4, 5, 6, 7, 7]))
    shadow.start()
    shadow.offer(search(1, 1.0))
    assert "recall" not in measured(shadow, "changed", 1)
    shadow.offer(search(1, 1.0))
    assert measured(shadow, "measured", 1)["recall"] == 0.0
    shadow.close()


def test_nothing_is_measured_while_callers_wait() -> None:
    """While calls wait the shadow does nothing but say so."""
    collection = cast(Collection, Scripted([1], [1], []))
    shadow = Shadow(MetricsSettings(recall_every=1, recall_time_share=1.0), lambda number: collection, lambda: True)
    shadow.start()
    shadow.offer(search(1, 1.0))
    assert measured(shadow, "busy", 1) == {"busy": 1}
    shadow.close()


def test_few_wait_to_be_measured() -> None:
    """Searches beyond those that may wait are left out, and one in N alone is taken."""
    shadow = shadow_of(Scripted([1], [1], []), recall_queue_max=5)
    for _ in range(100):
        shadow.offer(search(1, 1.0))
    shadow.offer(search(1, 1.0, exact=True))
    shadow.start()
    measured(shadow, "measured", 5)
    shadow.offer(search(1, 1.0))
    assert measured(shadow, "measured", 6)["measured"] == 6
    shadow.close()


def test_measured_recall_of_a_server(tmp_path: Path) -> None:
    """Searches of callers are repeated with an exact scan and exported by collection."""
    flags = {("metrics", "recall_every"): 2, ("metrics", "recall_time_share"): 1.0}
    with node(tmp_path / "store", flags) as served, grpc.insecure_channel(served.grpc_address) as channel:
        number = filled(channel, count=100)
        for i in range(20):
            call(channel, "Search", search(number, i, 1, 1, 1))
        waiting = threading.Event()
        wanted = 'vecstore_recall_searches_total{collection="docs",result="measured"} 10.0'
        for _ in range(int(TIMEOUT_S * 10)):
            text = served.metrics.text().decode()
            if wanted in text:
                break
            waiting.wait(0.1)
        assert wanted in text
        assert 'vecstore_measured_recall{collection="docs"} 1.0' in text


# -- what is written about metrics -------------------------------------------------------------------------------------


def expressions() -> Iterator[tuple[str, str]]:
    """Iterate over the queries of alert rules and dashboards, each with what it belongs to."""
    for group in yaml.safe_load((ROOT / "deploy/alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for file in sorted((ROOT / "deploy").glob("grafana-*.json")):
        dashboard = json.loads(file.read_text())
        for annotation in dashboard["annotations"]["list"]:
            yield f"{file.name}: {annotation['name']}", annotation["expr"]
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield f"{file.name}: {panel['title']}", target["expr"]


EXPRESSIONS = sorted(set(expressions()))


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[f"{i}" for i in range(len(EXPRESSIONS))])
def test_queries_use_what_exists(where: str, expression: str) -> None:
    """Every query of a rule or a panel parses, and names metrics and labels that a server exports."""
    promql_parser.parse(expression.replace("$__rate_interval", "5m"))
    samples = dict(FAMILIES)
    for name, family in FAMILIES.items():
        if family.kind == "histogram":
            samples |= {f"{name}{part}": family for part in ("_bucket", "_sum", "_count")}
    named = re.findall(r"\b(vecstore_\w+)(?:\{([^}]*)\})?", expression)
    for name, selector in named:
        assert name in samples, where
        labels = set(re.findall(r"(\w+)\s*[=!]~?", selector)) - {"instance", "job"}
        assert labels <= set(samples[name].labels), where
    assert named or "process_" in expression or "up{" in expression
    grouped = {label for found in re.findall(r"\bby \(([^)]*)\)", expression) for label in found.split(", ")}
    known = {label for name, _ in named for label in samples[name].labels} | {"le", "instance"}
    assert grouped <= known, where


def test_the_documents_tell_of_every_metric_alert_and_reason() -> None:
    """The operator's tables have a row for each metric, each alert, and each reason of a shed."""
    text = (ROOT / "docs/operations.md").read_text()
    metrics = text[text.index("### Metrics") : text.index("### Shed calls")]
    sheds = text[text.index("### Shed calls") : text.index("### Alerts")]
    alerts = text[text.index("### Alerts") :]
    assert set(re.findall(r"^\| `(vecstore_\w+)`", metrics, re.MULTILINE)) == set(FAMILIES)
    named = {name for name, _ in EXPRESSIONS if name.startswith("Vecstore")}
    assert set(re.findall(r"`(Vecstore\w+)`", alerts)) == named
    rows = re.findall(r"^\| (`.+?`) \|", sheds, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == set(get_args(Reason))
