"""Makes an API key with the administrator's, and keeps it in a file, for another container of the stack.

A key that is there stays if the receiver still knows it; after the database was made anew, it does not.

    python make_key.py NAME SCOPE FILE ADMIN_KEY_FILE      with METERING_API_URL
"""

import sys
from pathlib import Path

from otel_metering import MeteringClient


def main(name: str, scope: str, file: Path, admin_key_file: Path) -> None:
    """Make it, unless the one in `file` is known and not revoked."""
    there = file.read_text().split("_")[1] if file.exists() else ""
    with MeteringClient(api_key=admin_key_file.read_text().strip()) as client:
        known = client.keys()
        if any(key.key_id == there and key.revoked_at is None for key in known):
            return
        text = client.create_key(name, [scope]).text
    made = file.with_suffix(".new")
    made.unlink(missing_ok=True)
    made.write_text(f"{text}\n")
    made.chmod(0o444)
    made.replace(file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
