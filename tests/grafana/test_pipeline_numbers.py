"""What the dashboard of the pipeline shows is what the rows of pipeline_stats add up to, by Python alone."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

import numpy as np
import pytest

from grafana.builders.dashboards import pipeline
from grafana.emulator import seed_stats
from grafana.emulator.seed_operations import Sickness
from grafana.emulator.seed_stats import INSTANCE, SICK_MINUTES, Stat
from grafana.emulator.time_range import TimeRange
from receiver.store.client import Store
from tests.grafana.operations import NOW, SICK, last, migrated, rows, value

DASHBOARD = pipeline.build()
STATS = seed_stats.stats(NOW, SICK)
QUARANTINED = "quarantined."

Take = Callable[[Stat], bool]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with migrated(tmp_path_factory.mktemp("pipeline")) as store:
        seed_stats.seed_stats(store, NOW, sick=SICK)
        yield store


def of(stage: str, name: str, kind: str = "delta") -> Take:
    return lambda stat: stat[:3] == (stage, name, kind)


def summed(take: Take, hours: float = 26) -> float:
    """What these numbers were in the last hours, the row at their begin included."""
    rows_of = round(hours * 60) + 1
    return sum(
        float(np.nansum(minutes[-rows_of:])) for stat, minutes in STATS.items() if take(stat)
    )


def over_time(
    take: Take,
    label: Callable[[Stat], str],
    hours: float,
    step_s: int,
    merge: Callable[[list[float]], float] = sum,
) -> dict[tuple[datetime, str], float]:
    """(begin of the bar, label) -> numbers of its minutes, merged; without zeros of counters."""
    bars: defaultdict[tuple[datetime, str], list[float]] = defaultdict(list)
    for stat, minutes in STATS.items():
        if not take(stat):
            continue
        for ago in range(min(round(hours * 60) + 1, len(minutes))):
            count = float(minutes[-1 - ago])
            at = int((NOW - timedelta(minutes=ago)).timestamp())
            if not np.isnan(count) and (count or stat.stat != "delta"):
                begin = datetime.fromtimestamp(at - at % step_s, NOW.tzinfo)
                bars[begin, label(stat)].append(count)
    return {key: merge(counts) for key, counts in bars.items()}


def shown(
    store: Store, title: str, hours: float, step_s: int, label: str, column: str
) -> dict[tuple[datetime, str], float]:
    found = rows(store, DASHBOARD, title, last(hours), step_s)
    assert [row["time"] for row in found] == sorted(row["time"] for row in found)
    return {(row["time"], row[label]): row[column] for row in found}


@pytest.mark.parametrize("hours", [1, 24])
def test_figures_of_the_pipeline(store: Store, hours: float) -> None:
    time = last(hours)
    refused = summed(of("edge", "refused"), hours) / summed(of("edge", "in"), hours)
    assert value(store, DASHBOARD, "Requests refused", time) == pytest.approx(refused)
    assert refused > (0.03 if hours == 1 else 0)
    duplicates = summed(lambda stat: stat.reason == "duplicate", hours)
    share = duplicates / summed(of("ingest", "in"), hours)
    assert value(store, DASHBOARD, "Duplicates", time) == pytest.approx(share)
    in_quarantine = summed(lambda stat: stat.reason.startswith(QUARANTINED), hours)
    assert value(store, DASHBOARD, "In quarantine", time) == in_quarantine == 49
    assert value(store, DASHBOARD, "Last report", time) == 0
    assert value(store, DASHBOARD, "meters.yaml", time) == 1
    size = STATS[Stat("spool", "size", "value")]
    assert value(store, DASHBOARD, "In the spool", time) == size[-1]
    assert value(store, DASHBOARD, "Oldest waits", time) == pytest.approx(
        STATS[Stat("spool", "oldest_age", "value")][-1]
    )
    lag = STATS[Stat("writer", "lag", "p99")]
    assert value(store, DASHBOARD, "Visible after (p99)", time) == max(lag[-5:])


def test_what_is_shown_last_is_of_the_end_of_the_chosen_time(store: Store) -> None:
    ago = 90
    before = TimeRange(NOW - timedelta(hours=4), NOW - timedelta(minutes=ago))
    assert (
        value(store, DASHBOARD, "In the spool", before)
        == (STATS[Stat("spool", "size", "value")][-1 - ago])
    )
    assert value(store, DASHBOARD, "meters.yaml", before) == 0
    nobody = TimeRange(NOW - timedelta(days=9), NOW - timedelta(days=8))
    assert value(store, DASHBOARD, "In the spool", nobody) is None
    assert value(store, DASHBOARD, "Last report", nobody) is None
    assert (
        value(store, DASHBOARD, "Requests refused", last(1), chosen={"instance": ("other",)})
        is None
    )


def test_each_stage_adds_up(store: Store) -> None:
    found = {row["what"]: row for row in rows(store, DASHBOARD, "In = out + refused", last(24))}

    for what, (stage, prefix) in {
        "edge, requests": ("edge", ""),
        "ingest, requests": ("ingest", "requests_"),
        "ingest, uses": ("ingest", ""),
        "ingest, corrections": ("ingest", "corrections_"),
        "writer, rows": ("writer", ""),
        "keys, requests": ("keys", ""),
    }.items():
        expected = [summed(of(stage, f"{prefix}{name}"), 24) for name in ("in", "out", "refused")]
        row = found.pop(what)
        assert [row["arrived"], row["passed"], row["refused"]] == expected
        assert row["missing"] == expected[0] - expected[1] - expected[2] == 0
    assert found == {}
    pairs = rows(store, DASHBOARD, "From stage to stage", last(24))
    assert [(row["first"], row["second"]) for row in pairs] == [
        (summed(of("edge", "out"), 24), summed(of("ingest", "requests_out"), 24)),
        (summed(of("spool", "in"), 24), summed(of("writer", "out"), 24)),
    ]


@pytest.mark.parametrize(
    ("title", "stage"),
    [
        ("Requests in, out and refused", "edge"),
        ("Uses in, out and refused", "ingest"),
        ("Rows in, out and refused", "writer"),
    ],
)
@pytest.mark.parametrize(("hours", "step_s"), [(1, 60), (24, 300)])
def test_rates_of_a_stage(store: Store, title: str, stage: str, hours: float, step_s: int) -> None:
    found = rows(store, DASHBOARD, title, last(hours), step_s)

    for name in ("in", "out", "refused"):
        expected = over_time(of(stage, name), lambda _: "", hours, step_s)
        assert {row["time"]: row[name] for row in found if row[name]} == {
            time: pytest.approx(count / step_s) for (time, _), count in expected.items()
        }
    # A bar for each step in which the receiver reported, also where a number is zero.
    assert len(found) == len(over_time(of("spool", "size", "value"), lambda _: "", hours, step_s))


def reason(stat: Stat) -> str:
    return stat.reason


def labelled(name: str) -> Callable[[Stat], str]:
    return lambda stat: dict(stat.labels)[name]


COUNTS: Sequence[tuple[str, Take, Callable[[Stat], str]]] = (
    ("Requests by door", of("edge", "in"), labelled("transport")),
    ("Refused requests by reason", of("edge", "refused"), reason),
    (
        "Uses that were not stored, by reason",
        lambda stat: of("ingest", "refused")(stat) and not stat.reason.startswith(QUARANTINED),
        reason,
    ),
    (
        "Into quarantine, by reason",
        lambda stat: stat.reason.startswith(QUARANTINED),
        lambda stat: stat.reason.removeprefix(QUARANTINED),
    ),
    (
        "Corrections",
        lambda stat: stat.stage == "ingest" and stat.name.startswith("corrections_"),
        lambda stat: stat.name,
    ),
    (
        "Batches, failures and retries",
        lambda stat: stat.stage == "writer" and stat.name in ("batches", "failures", "retries"),
        lambda stat: stat.name,
    ),
    ("Rows stored by table", of("writer", "out"), labelled("table")),
    ("Rows of failed attempts, by reason", of("writer", "refused"), reason),
    ("Quota counters", lambda stat: stat.stage == "quota", lambda stat: stat.name),
)


@pytest.mark.parametrize(("title", "take", "label"), COUNTS, ids=[title for title, *_ in COUNTS])
def test_counts_over_time(
    store: Store, title: str, take: Take, label: Callable[[Stat], str]
) -> None:
    expected = over_time(take, label, 24, 300)
    assert expected
    found = shown(store, title, 24, 300, "label", "count")
    assert {key: count for key, count in found.items() if count} == expected
    # One label has a bar, if only of nothing, for each interval.
    assert Counter(name for _, name in found)[min(name for _, name in found)] == 289


@pytest.mark.parametrize(
    ("title", "stage", "name"),
    [
        ("Bytes that wait", "spool", "size"),
        ("Entries that wait", "spool", "entries"),
        ("Age of the oldest entry", "spool", "oldest_age"),
        ("Identities in memory", "ingest", "ids"),
        ("Memory of the identities", "ingest", "ids_size"),
        ("Streams in the cache", "ingest", "streams"),
    ],
)
def test_levels_are_the_highest_of_their_time(
    store: Store, title: str, stage: str, name: str
) -> None:
    expected = over_time(of(stage, name, "value"), lambda _: INSTANCE, 6, 600, max)
    assert shown(store, title, 6, 600, "label", "value") == pytest.approx(expected)


def percentiles(stage: str, name: str, kinds: Sequence[str]) -> Take:
    return lambda stat: stat[:2] == (stage, name) and stat.stat in kinds


def test_connections_and_percentiles(store: Store) -> None:
    transport = labelled("transport")
    connections = over_time(of("edge", "connections", "value"), transport, 6, 600, max)
    assert shown(store, "Open connections", 6, 600, "label", "value") == connections
    for title, stage, name, kinds, label in (
        (
            "Acknowledgement takes",
            "edge",
            "ack_duration",
            ("p50", "p99"),
            lambda stat: f"{stat.stat} {transport(stat)}",
        ),
        ("From admitted to stored", "writer", "lag", ("p50", "p95", "p99"), lambda stat: stat.stat),
    ):
        worst = over_time(
            percentiles(stage, name, kinds),
            label,
            6,
            600,
            max,
        )
        assert shown(store, title, 6, 600, "label", "seconds") == pytest.approx(worst)


def test_duplicates_and_the_file_of_meters_over_time(store: Store) -> None:
    uses = over_time(of("ingest", "in"), lambda _: "", 6, 600)
    twice = over_time(lambda stat: stat.reason == "duplicate", lambda _: "", 6, 600)
    found = rows(store, DASHBOARD, "Duplicates over time", last(6), 600)
    assert {row["time"]: row["duplicates"] for row in found} == {
        time: pytest.approx(twice[time, ""] / count) for (time, _), count in uses.items()
    }
    file = rows(store, DASHBOARD, "Reloads of meters.yaml", last(24), 60)
    assert sum(row["reloads"] for row in file) == 1
    assert Counter(row["wrong"] for row in file)[1] == SICK_MINUTES
    assert value(store, DASHBOARD, "Intervals that are missing here", last(6)) == 0
    (row,) = rows(store, DASHBOARD, "Keys that wrote for other tenants", last(6))
    assert (row["key_id"], row["items"]) == ("acme-portal", 4)
    assert Sickness.TENANT_REFUSED in SICK
