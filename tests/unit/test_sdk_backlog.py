from otel_metering._backlog import Backlog, Tries


def look(
    backlog: Backlog, now: float, *, settled: int = 0, adopted: bool = False, pending: int = 1
) -> str | None:
    return backlog.look(
        now, settled_count=settled, has_adopted=adopted, pending_requests=pending, pending_bytes=0
    )


def test_the_oldest_request_counts_whatever_came_after() -> None:
    backlog = Backlog(max_bytes=1_000)
    backlog.note_put(2, 100.0)
    backlog.note_put(3, 150.0)

    assert look(backlog, 159.9) is None
    assert look(backlog, 160.0) == "the oldest of 1 requests has waited for 60 s"
    assert look(backlog, 500.0) is None  # it was said


def test_requests_that_go_out_one_after_another_do_not_pile_up() -> None:
    backlog = Backlog(max_bytes=1_000)

    for second in range(1, 300):
        backlog.note_put(second, float(second))
        assert look(backlog, float(second), settled=second - 1) is None


def test_a_request_that_lets_others_pass_keeps_its_age() -> None:
    backlog = Backlog(max_bytes=1_000)
    backlog.note_put(1, 0.0)
    backlog.note_postponed(10.0)
    backlog.note_put(2, 60.0)

    assert look(backlog, 70.0, settled=1) is not None


def test_what_is_adopted_ages_from_its_adoption() -> None:
    backlog = Backlog(max_bytes=1_000)

    assert look(backlog, 1_000.0, adopted=True) is None
    assert look(backlog, 1_059.0, adopted=True) is None
    assert look(backlog, 1_060.0, adopted=True) is not None


def test_half_a_spool_is_too_much() -> None:
    def at(pending_bytes: int) -> str | None:
        return Backlog(max_bytes=1_000).look(
            0.0, settled_count=0, has_adopted=False, pending_requests=1, pending_bytes=pending_bytes
        )

    assert at(499) is None
    assert at(500) == "500 of at most 1000 bytes wait"


def test_after_it_has_drained_it_is_said_again() -> None:
    backlog = Backlog(max_bytes=1_000)
    backlog.note_put(1, 0.0)
    assert look(backlog, 60.0) is not None

    assert look(backlog, 61.0, settled=1, pending=0) is None
    backlog.note_put(2, 100.0)

    assert look(backlog, 160.0, settled=1) is not None


def test_attempts_are_counted_by_request_until_it_is_settled() -> None:
    tries = Tries()

    assert [tries.count(b"a"), tries.count(b"b"), tries.count(b"a")] == [1, 1, 2]
    tries.forget(b"a")
    assert tries.count(b"a") == 1
