"""The receiver with TLS."""

import json
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.conformance.test_tls import Pki
from tests.e2e.up import KEY, Up


class SecureUp(Up):
    """As `Up`, with a certificate on every edge; its clients trust `pki`."""

    def __init__(self, data_dir: Path, pki: Pki) -> None:
        super().__init__(data_dir)
        self._pki = pki

    def command(self) -> list[str]:
        files = (
            f"METERING_TLS_{kind.upper()}_FILE={self._pki.path(f'one.{ending}')}"
            for kind, ending in (("cert", "crt"), ("key", "key"))
        )
        return ["env", *files, *super().command()]

    def get(self, path: str, **parameters: Any) -> Any:
        query = urllib.parse.urlencode(parameters, doseq=True)
        request = urllib.request.Request(
            f"https://{self.api}{path}?{query}", headers={"authorization": f"Bearer {KEY}"}
        )
        with urllib.request.urlopen(request, timeout=30, context=self._pki.client(None)) as answer:
            return json.load(answer)
