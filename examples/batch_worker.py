"""A batch of jobs in worker processes. Run it twice, or kill it: each job is billed once.

export METERING_API_KEY=otm_...          # the key that `make up` printed
.venv/bin/python examples/batch_worker.py
.venv/bin/otel-metering usage --meter jobs.gigabytes
"""

import multiprocessing
from decimal import Decimal

import otel_metering
from otel_metering import record

JOBS = [
    (f"job-{number}", ("acme", "globex")[number % 2], Decimal(number) / 10) for number in range(20)
]


def work(job: tuple[str, str, Decimal]) -> str:
    job_id, customer, gigabytes = job
    # The id makes it an event of its own, which counts once however often it is recorded; durable: it is
    # on disk before the job is reported as done.
    record("jobs.gigabytes", gigabytes, tenant=customer, event_id=job_id, durable=True)
    record("jobs.done", tenant=customer)
    return job_id


def main() -> None:
    otel_metering.configure(service_name="example-batch", durability="full")
    with multiprocessing.Pool(2) as pool:
        for job_id in pool.imap_unordered(work, JOBS):
            print("done:", job_id)
        pool.close()
        pool.join()  # leaving the block without it would kill the workers
    print("acknowledged:", otel_metering.flush(send=True))


if __name__ == "__main__":
    main()
