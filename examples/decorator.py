"""Count calls, and what they did, with a decorator.

export METERING_API_KEY=otm_...          # the key that `make up` printed
.venv/bin/python examples/decorator.py
.venv/bin/otel-metering usage --meter reports.pages --group-by kind
"""

from decimal import Decimal

import otel_metering
from otel_metering import meter, record, tenant


@meter("reports.made")  # 1 for each call that returns
@meter(
    "reports.pages",
    quantity=lambda report, *_: len(report),
    attributes=lambda _report, kind, _pages: {"kind": kind},
)
def make_report(kind: str, pages: int) -> list[str]:
    if pages > 100:
        raise ValueError("nobody reads that")  # and so nobody pays for it
    return [f"{kind}, page {page}" for page in range(1, pages + 1)]


class Archive:
    @meter("archive.gigabytes", quantity=lambda _result, _self, gigabytes: gigabytes)
    def store(self, gigabytes: Decimal) -> None: ...


def main() -> None:
    otel_metering.configure(service_name="example-decorator")
    archive = Archive()
    for customer, pages in (("acme", 12), ("globex", 3)):
        with tenant(customer):
            make_report("sales", pages)
            make_report("stock", 2)
            archive.store(Decimal("0.25"))
            record("emails", 2, attributes={"template": "report"})  # anywhere, without a decorator
    try:
        with tenant("acme"):
            make_report("everything", 1000)
    except ValueError:
        print("a call that fails is not counted")

    print("acknowledged:", otel_metering.flush(send=True))


if __name__ == "__main__":
    main()
