"""`python -m grafana`: write the dashboards and provisioning files anew."""

from grafana.builders.write import write

if __name__ == "__main__":
    touched = write()
    for path in touched:
        print(f"grafana/{path}")
    print(f"{len(touched)} files changed")
