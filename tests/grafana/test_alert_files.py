"""The provisioning files of alert rules, contact points and policies: what would keep Grafana from starting."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.builders import dashboards, write
from grafana.builders.alerting.rule import RUNBOOKS_URL
from grafana.builders.dashboard import panels_of
from grafana.builders.variables import DATASOURCE_UID
from grafana.emulator.alerts import duration
from tests.grafana.alert_files import FOLDER, GROUPS, RULES, interval_of

REPOSITORY = FOLDER.parent
RUNBOOKS = REPOSITORY / "docs" / "runbooks"
OPTIONAL = {
    name: yaml.safe_load((FOLDER / "optional" / name).read_text(encoding="utf-8"))
    for name in ("contact-points.yaml", "policies.yaml")
}

# pkg/services/ngalert/models: what the states may be.
NO_DATA_STATES = {"Alerting", "NoData", "OK", "KeepLast"}
ERROR_STATES = {"Alerting", "Error", "OK", "KeepLast"}
EVALUATORS = {"gt", "gte", "lt", "lte", "eq", "ne"}

# pkg/services/provisioning/alerting/rules_types.go: a key that is misspelt is not read.
GROUP_KEYS = {"orgId", "name", "folder", "interval", "rules"}
RULE_KEYS = {
    *("uid", "title", "condition", "data", "dashboardUid", "panelId", "noDataState", "execErrState"),
    *("for", "keepFiringFor", "missing_series_evals_to_resolve", "annotations", "labels", "isPaused"),
    *("notification_settings", "record"),
}  # fmt: skip
QUERY_KEYS = {"refId", "queryType", "relativeTimeRange", "datasourceUid", "model"}


def test_the_files_are_those_that_the_code_makes() -> None:
    generated = {
        path: text
        for path, text in write.files().items()
        if path.parts[0] == "optional" or path.parts[:2] == ("provisioning", "alerting")
    }
    on_disk = {
        path.relative_to(FOLDER): path.read_text(encoding="utf-8")
        for folder in ("optional", "provisioning/alerting")
        for path in (FOLDER / folder).iterdir()
    }

    assert on_disk == generated


def test_grafana_reads_every_file() -> None:
    """Any other suffix in the folder is an error to it."""
    suffixes = {path.suffix for path in (FOLDER / "provisioning" / "alerting").iterdir()}

    assert suffixes == {".yaml"}


def test_groups_are_complete() -> None:
    for group in GROUPS:
        assert set(group) == GROUP_KEYS
        assert duration(group["interval"]).total_seconds() % 10 == 0
        assert len(group["name"]) <= 190
    assert {group["folder"] for group in GROUPS} == {"Metering Alerts"}
    assert sorted(group["name"] for group in GROUPS) == [
        *("metering-data", "metering-keys", "metering-pipeline", "metering-quota", "metering-usage")
    ]


def test_uids_and_titles_are_unique() -> None:
    rules = [rule for group in GROUPS for rule in group["rules"]]

    assert len({rule["uid"] for rule in rules}) == len(rules) == len(RULES)
    assert len({rule["title"] for rule in rules}) == len(rules)


@pytest.mark.parametrize("uid", RULES)
def test_a_rule_has_what_grafana_wants(uid: str) -> None:
    rule = RULES[uid]

    assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", uid)
    assert 0 < len(rule["title"]) <= 190
    assert set(rule) <= RULE_KEYS
    assert rule["noDataState"] in NO_DATA_STATES
    assert rule["execErrState"] in ERROR_STATES
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["labels"]["product"] == "metering"
    assert rule["isPaused"] is False


@pytest.mark.parametrize("uid", RULES)
def test_a_rule_waits_for_two_evaluations_and_does_not_end_at_once(uid: str) -> None:
    rule = RULES[uid]

    assert duration(rule["for"]) >= 2 * interval_of(uid)
    assert duration(rule["for"]) % interval_of(uid) == duration("0s")
    assert duration(rule["keepFiringFor"]) > duration("0s")


@pytest.mark.parametrize("uid", RULES)
def test_the_steps_of_a_rule_lead_to_its_condition(uid: str) -> None:
    query, reduce, threshold = RULES[uid]["data"]

    assert [step["refId"] for step in (query, reduce, threshold)] == ["A", "B", "C"]
    assert all(step["model"]["refId"] == step["refId"] for step in (query, reduce, threshold))
    assert all(set(step) <= QUERY_KEYS for step in (query, reduce, threshold))
    assert query["datasourceUid"] == query["model"]["datasource"]["uid"] == DATASOURCE_UID
    assert reduce["datasourceUid"] == threshold["datasourceUid"] == "__expr__"
    assert (reduce["model"]["type"], reduce["model"]["expression"]) == ("reduce", "A")
    assert (threshold["model"]["type"], threshold["model"]["expression"]) == ("threshold", "B")
    assert RULES[uid]["condition"] == "C"


@pytest.mark.parametrize("uid", RULES)
def test_a_query_is_a_table_of_a_time_that_is_over(uid: str) -> None:
    query = RULES[uid]["data"][0]
    model, window = query["model"], query["relativeTimeRange"]

    assert (model["format"], model["editorType"], model["queryType"]) == (1, "sql", "table")
    assert isinstance(window["from"], int)
    assert isinstance(window["to"], int)
    assert window["from"] > window["to"] >= 0
    assert "SELECT *" not in model["rawSql"]
    # Variables are of dashboards; a macro with a name that nobody knows stays as it is.
    assert set(re.findall(r"\$\w*", model["rawSql"])) <= {
        "$__toTime",
        "$__fromTime",
        "$__timeFilter",
    }


@pytest.mark.parametrize("uid", RULES)
def test_there_is_one_condition_and_it_does_not_flap(uid: str) -> None:
    (condition,) = RULES[uid]["data"][2]["model"]["conditions"]
    evaluator, unload = condition["evaluator"], condition.get("unloadEvaluator")

    assert evaluator["type"] in EVALUATORS
    (limit,) = evaluator["params"]
    if unload is None:
        # Nothing, or something.
        assert (evaluator["type"], limit) == ("gt", 0)
    else:
        (lower,) = unload["params"]
        is_upper = evaluator["type"] in ("gt", "gte")
        assert unload["type"] == ("lt" if is_upper else "gt")
        assert lower < limit if is_upper else lower > limit


def test_what_reads_much_says_itself_that_it_failed() -> None:
    """Those that keep their state on an error are spoken for by the rule that reads all of their tables."""
    spoken_for = tables_of("metering-datasource-failing")

    for uid, rule in RULES.items():
        assert tables_of(uid) <= spoken_for, uid
        if re.search(r"metering\.(events|usage_\w+)", sql_of(uid)) and "datasource" not in uid:
            assert rule["execErrState"] == "Error", uid


@pytest.mark.parametrize("uid", RULES)
def test_a_dollar_stands_in_queries_only(uid: str) -> None:
    """Elsewhere Grafana puts in variables of the environment, in some versions even in annotations."""
    rule = dict(RULES[uid])
    del rule["data"]
    assert "$" not in str(rule)
    assert "$" not in str(RULES[uid]["data"][1:])


def test_contact_points_have_their_addresses_from_the_environment() -> None:
    text = (FOLDER / "optional" / "contact-points.yaml").read_text(encoding="utf-8")

    assert set(re.findall(r"\$\S*", text)) == {
        "$METERING_ALERT_WEBHOOK",
        "$METERING_ALERT_ON_CALL_WEBHOOK",
    }
    assert "$" not in (FOLDER / "optional" / "policies.yaml").read_text(encoding="utf-8")


def test_policies_name_contact_points_that_exist() -> None:
    known = {point["name"] for point in OPTIONAL["contact-points.yaml"]["contactPoints"]}
    (policy,) = OPTIONAL["policies.yaml"]["policies"]
    routes: list[dict[str, Any]] = policy["routes"]

    assert {policy["receiver"], *(route["receiver"] for route in routes)} == known
    for one in (policy, *routes):
        assert duration(one["repeat_interval"]) > duration("0s")
    assert routes[0]["object_matchers"] == [
        ["product", "=", "metering"],
        ["severity", "=", "critical"],
    ]


@pytest.mark.parametrize("uid", RULES)
def test_a_rule_leads_to_a_panel_that_exists(uid: str) -> None:
    rule = RULES[uid]
    built = {one.uid: one.to_json() for one in (build() for build in dashboards.ALL)}

    panels = {panel["id"] for panel in panels_of(built[rule["dashboardUid"]])}

    assert rule["panelId"] in panels


@pytest.mark.parametrize("uid", RULES)
def test_templates_name_labels_that_the_query_has(uid: str) -> None:
    rule = RULES[uid]
    text = " ".join(rule["annotations"].values())
    head = sql_of(uid)

    assert text.count("{{") == text.count("}}")
    for label in re.findall(r"\.Labels\.(\w+)", text):
        assert re.search(rf"\b{label}\b", head), label
    for value in re.findall(r"\.Values\.(\S+)", text):
        assert value == "B.Value"
    if rule["noDataState"] == "Alerting":
        # Without rows there is no B.
        assert ".Values" not in text


@pytest.mark.parametrize("uid", RULES)
def test_a_rule_has_a_page_that_says_what_to_do(uid: str) -> None:
    rule = RULES[uid]
    page = RUNBOOKS / f"{uid}.md"
    text = page.read_text(encoding="utf-8")

    assert rule["annotations"]["runbook_url"] == f"{RUNBOOKS_URL}/{uid}.md"
    assert text.startswith(f"# {rule['title']}\n")
    assert f"**{rule['labels']['severity'].capitalize()}**" in text
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        *("What it means", "Look first", "Fix", "When it ends"),
    ]
    assert f"({uid}.md)" in (RUNBOOKS / "README.md").read_text(encoding="utf-8")


def test_every_page_is_of_a_rule() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {"README", *RULES}


def sql_of(uid: str) -> str:
    return str(RULES[uid]["data"][0]["model"]["rawSql"])


def tables_of(uid: str) -> set[str]:
    return set(re.findall(r"metering\.\w+", sql_of(uid)))


def test_the_readers_of_files_are_not_fooled() -> None:
    """The expressions above find something at all."""
    assert len(RULES) == 17
    assert tables_of("metering-quota-80") == {"metering.quota_usage"}
    assert Path(RUNBOOKS).is_dir()
