"""What the generated files are made of: Grafana itself would find some of this out only when it is looked at."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.builders import layout, panels, sql, write
from grafana.builders.dashboard import panels_of
from grafana.builders.variables import DATASOURCE_UID, PLUGIN
from grafana.emulator.macros import STATEMENTS
from tests.grafana.harness import FILES, load

EACH = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
UID = re.compile(r"^[A-Za-z0-9_-]{1,40}$")
TABLE = re.compile(r"\b(?:FROM|JOIN)\s+(metering\.\w+)")
TIME_COLUMNS = {
    "metering.events": "timestamp",
    "metering.event_corrections": "timestamp|corrected_at",
    "metering.usage_minute": "window_start",
    "metering.usage_hour": "window_start",
    "metering.usage_day": "window_start",
    "metering.usage_month": "window_start",
    "metering.quota_usage": "period_start|period_end",
    "metering.pipeline_stats": "at",
    "metering.quarantine": "ingested_at",
    "metering.quarantine_resolved": "ingested_at|resolved_at",
    "metering.audit_log": "at",
}
WHOLE_TABLES = {
    "metering.meter_definitions",
    "metering.quotas",
    "metering.api_keys",
    "metering.api_key_use",
}
"""Small ones, of what is true now."""


def targets(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for panel in panels_of(dict(dashboard)):
        yield from ((panel["title"], target) for target in panel["targets"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]
    for annotation in dashboard["annotations"]["list"]:
        if "target" in annotation:
            yield annotation["name"], annotation["target"]


def reads(query: str) -> Iterator[tuple[str, str]]:
    """(table, what its SELECT says behind it) of each read, without the subqueries in that."""
    for match in TABLE.finditer(query):
        rest, depth, skipped = [], 0, 0
        for place in range(match.end(), len(query)):
            depth += {"(": 1, ")": -1}.get(query[place], 0)
            if depth < 0 or (depth == 0 and query.startswith("UNION ALL", place)):
                break
            if not skipped and re.match(r"\(\s*(SELECT|WITH)\b", query[place:]):
                skipped = depth
            if not skipped:
                rest.append(query[place])
            if skipped and depth < skipped:
                skipped = 0
        yield match[1], "".join(rest)


def links(part: object) -> Iterator[str]:
    """URLs of every link below."""
    if isinstance(part, dict):
        if isinstance(part.get("url"), str):
            yield part["url"]
        for value in part.values():
            yield from links(value)
    elif isinstance(part, list):
        for value in part:
            yield from links(value)


def test_the_files_are_what_the_code_generates() -> None:
    for path, text in write.files().items():
        assert (write.ROOT / path).read_text(encoding="utf-8") == text, f"{path}: run make grafana"
    generated = {write.ROOT / path for path in write.files()}
    assert [path for path in FILES if path not in generated] == []


def test_generating_again_changes_nothing() -> None:
    assert write.files() == write.files()


def test_uids_and_titles_are_unique_and_grafana_takes_them() -> None:
    found = [load(path) for path in FILES]

    assert len({one["uid"] for one in found}) == len({one["title"] for one in found}) == len(FILES)
    for one in found:
        assert UID.match(one["uid"])
        assert one["title"].startswith("Metering / ")


@EACH
def test_a_dashboard_is_of_the_shape_that_is_provisioned(path: Path) -> None:
    dashboard = load(path)

    assert dashboard["id"] is None
    assert dashboard["schemaVersion"] == 42
    assert dashboard["timezone"] == "utc"
    assert dashboard["tags"] == ["metering"]
    assert dashboard["editable"] is False
    assert dashboard["description"]
    assert not {"__inputs", "__requires"} & dashboard.keys()
    assert path.name == f"{dashboard['uid']}.json"


@EACH
def test_the_foundation_sdk_knows_every_key(path: Path) -> None:
    """What it does not know is lost on the way through it: misspelt, or of no version it is for."""
    register_default_plugins()
    dashboard = load(path)
    del dashboard["id"]

    through = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))

    assert list(_lost(dashboard, through, path.stem)) == []


def _lost(before: Any, after: Any, where: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key not in after:
                yield f"{where}.{key}"
            else:
                yield from _lost(value, after[key], f"{where}.{key}")
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            yield f"{where}: {len(before)} and {len(after)}"
        for index, pair in enumerate(zip(before, after, strict=False)):
            yield from _lost(*pair, f"{where}[{index}]")
    elif before != after:
        yield f"{where}: {before!r} and {after!r}"


@EACH
def test_no_panel_overlaps_another_or_leaves_the_grid(path: Path) -> None:
    dashboard = load(path)
    placed = [*dashboard["panels"], *panels_of(dashboard)]
    places = {panel["id"]: panel["gridPos"] for panel in placed}

    for place in places.values():
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= layout.COLUMNS
        assert place["h"] >= 1
    for one, other in combinations(places.values(), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (path.stem, one, other)


@EACH
def test_ids_of_panels_and_queries_are_unique(path: Path) -> None:
    dashboard = load(path)
    every = [
        *dashboard["panels"],
        *(one for row in dashboard["panels"] for one in row.get("panels", [])),
    ]
    ids = [panel["id"] for panel in every]

    assert len(ids) == len(set(ids))
    for panel in panels_of(dashboard):
        names = [target["refId"] for target in panel["targets"]]
        assert names
        assert len(names) == len(set(names)), panel["title"]
    titles = [panel["title"] for panel in panels_of(dashboard)]
    assert len(titles) == len(set(titles)), titles


@EACH
def test_every_panel_says_what_it_is_and_what_it_means_to_be_empty(path: Path) -> None:
    for panel in panels_of(load(path)):
        defaults = panel["fieldConfig"]["defaults"]

        assert panel["title"].strip(), path
        assert len(panel["description"]) >= 20, panel["title"]
        assert panel["description"].rstrip().endswith("."), panel["title"]
        assert defaults["unit"], panel["title"]
        assert defaults["noValue"], panel["title"]


@EACH
def test_every_query_goes_to_the_chosen_data_source(path: Path) -> None:
    dashboard = load(path)
    chosen = {"type": PLUGIN, "uid": "${datasource}"}
    first = dashboard["templating"]["list"][0]

    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", PLUGIN)
    assert first["current"]["value"] == DATASOURCE_UID
    for panel in panels_of(dashboard):
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            assert variable["datasource"] == chosen
            assert variable["refresh"] == 2, "values are those of the chosen time"
    for annotation in dashboard["annotations"]["list"][1:]:
        assert annotation["datasource"] == annotation["target"]["datasource"] == chosen


@EACH
def test_a_query_has_what_the_plugin_reads(path: Path) -> None:
    for where, target in targets(load(path)):
        assert target["editorType"] == "sql", where
        assert target["pluginVersion"], where
        wanted = {0: "timeseries", 1: "table"}[target["format"]]
        assert target["queryType"] == wanted, where


@EACH
def test_links_lead_to_dashboards_and_variables_that_exist(path: Path) -> None:
    dashboard = load(path)
    known = {one["uid"]: one for one in map(load, FILES)}
    own = {variable["name"] for variable in dashboard["templating"]["list"]}

    for url in links(dashboard):
        parts = urlsplit(url)
        assert parts.path.startswith("/d/"), url
        there = known[parts.path.removeprefix("/d/")]
        theirs = {variable["name"] for variable in there["templating"]["list"]}
        assert "${__url_time_range}" in parts.query, f"{url} forgets the time"
        assert "${datasource:queryparam}" in parts.query, f"{url} forgets the data source"
        for name in parse_qs(parts.query):
            if name.startswith("var-"):
                assert name.removeprefix("var-") in theirs, url
        for name in re.findall(r"\$\{(\w+):queryparam\}", parts.query):
            assert name in own & theirs, url


@EACH
def test_the_menu_keeps_time_and_choices(path: Path) -> None:
    (menu,) = load(path)["links"]

    assert menu["type"] == "dashboards"
    assert menu["tags"] == ["metering"]
    assert menu["keepTime"]
    assert menu["includeVars"]


@EACH
def test_queries_name_variables_that_exist(path: Path) -> None:
    dashboard = load(path)
    known = {variable["name"] for variable in dashboard["templating"]["list"]}

    for where, target in targets(dashboard):
        named = set(re.findall(r"\$\{(\w+)(?::\w+)?\}|\$(?!_)(\w+)", target["rawSql"]))
        found = {one or other for one, other in named}
        assert {name for name in found if not name.startswith("__")} <= known, where


@EACH
def test_a_variable_stands_where_it_cannot_end_its_literal(path: Path) -> None:
    """Grafana's formats for SQL escape no backslash; percent-encoded there is none, and no quote."""
    for where, target in targets(load(path)):
        for name, form in re.findall(r"\$\{(\w+)(?::(\w+))?\}", target["rawSql"]):
            assert form == "percentencode", (where, name)
        bare = re.sub(r"\$__conditionalAll\(|, ?\$\w+\)", "", target["rawSql"])
        assert not re.search(r"\$(?!__)\w+", bare), where


@EACH
def test_no_macro_is_one_that_is_not_emulated_or_stands_in_a_string(path: Path) -> None:
    for where, target in targets(load(path)):
        query = target["rawSql"]
        assert not any(f"$__{name}" in query for name in STATEMENTS), where
        for literal in re.findall(r"'(?:[^'\\]|\\.)*'", query):
            assert "$__" not in literal, where


@EACH
def test_queries_only_read_and_only_named_columns_of_metering_tables(path: Path) -> None:
    for where, target in targets(load(path)):
        query = target["rawSql"]
        assert re.match(r"\s*(SELECT|WITH)\b", query), where
        assert ";" not in query, where
        assert not re.search(r"SELECT\s+\*|,\s*\*|\bsystem\.|\bINSERT\b|key_hash|payload", query), (
            where
        )
        named = {*re.findall(r"\b(\w+) AS \(", query), "numbers"}
        for table in re.findall(r"\b(?:FROM|(?<!ARRAY )JOIN)\s+([\w.]+)", query):
            assert table in {*TIME_COLUMNS, *WHOLE_TABLES, *named}, (where, table)


@EACH
def test_every_read_of_a_large_table_is_bounded_in_time(path: Path) -> None:
    for where, target in targets(load(path)):
        for table, rest in reads(target["rawSql"]):
            if table in WHOLE_TABLES:
                continue
            condition = rest.split("GROUP BY")[0].split("ORDER BY")[0]
            assert "WHERE" in condition, (where, table)
            column = rf"\b(?:{TIME_COLUMNS[table]})\b"
            bound = rf"(\$__(?:timeFilter|timeFilter_ms|dateFilter|timeFrom)\({column}\)|{column}\s*(?:>=?|=))"
            assert re.search(bound, condition) or "period_start <=" in condition, (
                where,
                table,
                condition,
            )


@EACH
def test_a_read_of_usage_is_bounded_by_tenant_where_tenants_are_chosen(path: Path) -> None:
    dashboard = load(path)
    if "tenant" not in {variable["name"] for variable in dashboard["templating"]["list"]}:
        return
    of_tenants = {"metering.events", *(one for one in TIME_COLUMNS if ".usage_" in one)}
    for panel in panels_of(dashboard):
        for target in panel["targets"]:
            for table, rest in reads(target["rawSql"]):
                if table in of_tenants:
                    assert sql.TENANT in rest, (panel["title"], table)


@EACH
def test_tables_and_series_are_of_bounded_length(path: Path) -> None:
    for panel in panels_of(load(path)):
        for target in panel["targets"]:
            if panel["type"] in (
                "table",
                "timeseries",
                "bargauge",
                "gauge",
                "piechart",
                "barchart",
            ):
                assert "LIMIT" in target["rawSql"], panel["title"]
            if panel["type"] == "timeseries":
                assert "ORDER BY" in target["rawSql"], panel["title"]


def test_the_data_source_has_the_types_that_the_plugin_casts_to() -> None:
    """It panics on others (pkg/plugin/settings.go)."""
    (source,) = yaml.safe_load((write.ROOT / "provisioning/datasources/metering.yaml").read_text())[
        "datasources"
    ]
    settings = source["jsonData"]

    assert (source["type"], source["uid"]) == (PLUGIN, DATASOURCE_UID)
    for name in ("host", "protocol", "username", "defaultDatabase", "port", "secure"):
        assert isinstance(settings[name], str), name
    for name in ("dialTimeout", "queryTimeout"):
        assert isinstance(settings[name], str)
        assert settings[name].isdecimal()
    assert set(settings) <= {
        *("host", "port", "protocol", "secure", "path", "username", "defaultDatabase"),
        *("dialTimeout", "queryTimeout", "tlsSkipVerify", "validateSql", "customSettings"),
    }
    assert set(source["secureJsonData"]) == {"password"}


def test_the_folder_of_dashboards_is_the_one_that_is_mounted() -> None:
    (provider,) = yaml.safe_load(
        (write.ROOT / "provisioning/dashboards/metering.yaml").read_text()
    )["providers"]

    assert provider["type"] == "file"
    assert (provider["folder"], provider["folderUid"]) == ("Metering", "metering")
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_a_panel_that_is_too_wide_is_refused() -> None:
    wide = panels.stat(title="a", description="b", unit="c", no_value="d", sql="e", width=25)

    with pytest.raises(ValueError, match="25 columns"):
        layout.place([layout.Row(panels=(wide,))])
