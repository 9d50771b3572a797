"""Alert rules, contact points and policies -> provisioning files.

Contact points and policies are in `optional`: a policies file replaces the whole tree of the organisation, and a
contact point without an address keeps Grafana from starting.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from grafana.builders import dashboards
from grafana.builders.alerting import data, keys, pipeline, quota, usage
from grafana.builders.alerting.rule import PRODUCT, Group, Panel, Severity, group_as_file

GROUPS: Final[tuple[Callable[[], Group], ...]] = (
    quota.group,
    usage.group,
    pipeline.group,
    keys.group,
    data.group,
)

_EVERYONE: Final = "metering-team"
_ON_CALL: Final = "metering-on-call"


def files(runbooks_url: str) -> dict[Path, dict[str, Any]]:
    """Path below `grafana` -> content; rules link to their pages below `runbooks_url`.

    Raises:
        KeyError: A rule names a panel that no dashboard has.
    """
    groups = [group() for group in GROUPS]
    panel_ids = find_panels(rule.panel for group in groups for rule in group.rules)
    found = {
        Path(f"provisioning/alerting/{group.name}.yaml"): {
            "apiVersion": 1,
            "groups": [group_as_file(group, panel_ids, runbooks_url)],
        }
        for group in groups
    }
    found[Path("optional/contact-points.yaml")] = contact_points()
    found[Path("optional/policies.yaml")] = policies()
    return found


def find_panels(panels: Iterable[Panel]) -> Mapping[Panel, int]:
    """Id of each panel.

    Raises:
        KeyError: There is none.
    """
    built = {one.uid: one for one in (build() for build in dashboards.ALL)}
    return {panel: built[panel.dashboard].panel_id(panel.title) for panel in panels}


def contact_points() -> dict[str, Any]:
    """Webhooks: of the team, and of who is on call. Grafana puts the variables in."""
    return {
        "apiVersion": 1,
        "contactPoints": [
            _webhook(_EVERYONE, "$METERING_ALERT_WEBHOOK"),
            _webhook(_ON_CALL, "$METERING_ALERT_ON_CALL_WEBHOOK"),
        ],
    }


def policies() -> dict[str, Any]:
    """Critical alerts of ours to who is on call, all others to the team.

    DatasourceError has the labels of its rule, so it goes where that would.
    """
    return {
        "apiVersion": 1,
        "policies": [
            {
                "orgId": 1,
                "receiver": _EVERYONE,
                "group_by": ["grafana_folder", "alertname"],
                "group_wait": "30s",
                "group_interval": "5m",
                "repeat_interval": "12h",
                "routes": [
                    {
                        "receiver": _ON_CALL,
                        "object_matchers": [
                            ["product", "=", PRODUCT],
                            ["severity", "=", str(Severity.CRITICAL)],
                        ],
                        "repeat_interval": "1h",
                    }
                ],
            }
        ],
    }


def _webhook(name: str, url: str) -> dict[str, Any]:
    return {
        "orgId": 1,
        "name": name,
        "receivers": [
            {
                "uid": f"{name}-webhook",
                "type": "webhook",
                "disableResolveMessage": False,
                "settings": {"url": url, "httpMethod": "POST"},
            }
        ],
    }
