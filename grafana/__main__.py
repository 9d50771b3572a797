"""`python -m grafana`: write the dashboards and provisioning files anew."""

import argparse

from grafana.builders.alerting.rule import RUNBOOKS_URL
from grafana.builders.write import write

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m grafana", description=__doc__)
    parser.add_argument(
        "--runbooks-url",
        default=RUNBOOKS_URL,
        metavar="URL",
        help="where docs/runbooks is published: alert rules link to its pages",
    )
    touched = write(runbooks_url=parser.parse_args().runbooks_url.rstrip("/"))
    for path in touched:
        print(f"grafana/{path}")
    print(f"{len(touched)} files changed")
