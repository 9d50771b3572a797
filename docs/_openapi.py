"""Writes docs/api/openapi.yaml from the query API: `python docs/_openapi.py`. A test compares."""

import json
from pathlib import Path

import yaml

from query_api.app import openapi_document

PAGE = Path(__file__).parent / "api" / "openapi.yaml"

_HEAD = "# Made by `python docs/_openapi.py`; a test fails when it differs from the code.\n"


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def page() -> str:
    """The whole file, with everything sorted by name."""
    plain = json.loads(json.dumps(openapi_document()))
    return _HEAD + yaml.dump(plain, Dumper=_Dumper, sort_keys=True, allow_unicode=True, width=100)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
