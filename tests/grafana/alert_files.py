"""The provisioning files of the alert rules, read as Grafana reads them."""

from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import yaml

from grafana.emulator.alerts import duration

FOLDER: Final = Path(__file__).parents[2] / "grafana"
GROUPS: Final[list[dict[str, Any]]] = [
    group
    for path in sorted((FOLDER / "provisioning" / "alerting").iterdir())
    for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
]
RULES: Final[dict[str, dict[str, Any]]] = {
    rule["uid"]: rule for group in GROUPS for rule in group["rules"]
}


def interval_of(uid: str) -> timedelta:
    """How often a rule is evaluated."""
    for group in GROUPS:
        if uid in {rule["uid"] for rule in group["rules"]}:
            return duration(group["interval"])
    raise KeyError(uid)
