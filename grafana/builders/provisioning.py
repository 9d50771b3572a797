"""Provisioning files of the data source and of the dashboards' folder. Those of alerts: `alerting`."""

from pathlib import Path
from typing import Any

from grafana.builders.variables import DATASOURCE_NAME, DATASOURCE_UID, PLUGIN

FOLDER = "Metering"
FOLDER_UID = "metering"
DASHBOARDS_PATH = "/var/lib/grafana/dashboards"
"""Where the folder of dashboards is mounted."""


def files() -> dict[Path, dict[str, Any]]:
    """Path below `provisioning` -> content."""
    return {
        Path("datasources/metering.yaml"): datasources(),
        Path("dashboards/metering.yaml"): dashboard_providers(),
    }


def datasources() -> dict[str, Any]:
    """The data source. Grafana expands `$NAME` in all of it, and knows no default for a name that is not set.

    Types matter: the plugin casts without a check, and panics on a boolean where it wants a text.
    """
    return {
        "apiVersion": 1,
        "prune": False,
        "datasources": [
            {
                "name": DATASOURCE_NAME,
                "uid": DATASOURCE_UID,
                "type": PLUGIN,
                "access": "proxy",
                "orgId": 1,
                "isDefault": False,
                "editable": False,
                "jsonData": {
                    "host": "$METERING_CH_HOST",
                    "port": "$METERING_CH_PORT",
                    "protocol": "http",
                    "secure": "$METERING_CH_SECURE",
                    "username": "grafana_reader",
                    "defaultDatabase": "metering",
                    "dialTimeout": "10",
                    "queryTimeout": "60",
                    "validateSql": True,
                },
                "secureJsonData": {"password": "$METERING_CH_PASSWORD"},
            }
        ],
    }


def dashboard_providers() -> dict[str, Any]:
    """The folder of dashboards."""
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "metering",
                "orgId": 1,
                "folder": FOLDER,
                "folderUid": FOLDER_UID,
                "type": "file",
                "disableDeletion": False,
                "allowUiUpdates": False,
                "updateIntervalSeconds": 30,
                "options": {"path": DASHBOARDS_PATH},
            }
        ],
    }
