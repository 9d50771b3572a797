import asyncio
import threading
from contextvars import copy_context

from otel_metering import current_tenant, set_tenant, tenant


def test_blocks_nest_and_end() -> None:
    with tenant("tenant_a"):
        with tenant("tenant_b"):
            assert current_tenant() == "tenant_b"
        assert current_tenant() == "tenant_a"
    assert current_tenant() is None


def test_one_scope_may_be_entered_again_and_by_other_threads() -> None:
    scope = tenant("tenant_a")
    seen: list[str | None] = []

    def enter() -> None:
        with scope:
            seen.append(current_tenant())

    with scope, scope:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()

    assert seen == ["tenant_a"]
    assert current_tenant() is None


def test_tasks_side_by_side_do_not_see_each_others_tenant() -> None:
    async def use(name: str, mine: asyncio.Event, other: asyncio.Event) -> str | None:
        async with tenant(name):
            mine.set()
            await other.wait()
            return current_tenant()

    async def both() -> list[str | None]:
        a, b = asyncio.Event(), asyncio.Event()
        return list(await asyncio.gather(use("tenant_a", a, b), use("tenant_b", b, a)))

    assert asyncio.run(both()) == ["tenant_a", "tenant_b"]


def test_a_copied_context_can_say_the_tenant_of_the_whole_block() -> None:
    with tenant("unknown"):
        copy_context().run(set_tenant, "tenant_a")

        assert current_tenant() == "tenant_a"
    assert current_tenant() is None


def test_outside_a_block_the_tenant_holds_for_the_context_only() -> None:
    def use() -> str | None:
        set_tenant("tenant_a")
        return current_tenant()

    assert copy_context().run(use) == "tenant_a"
    assert current_tenant() is None
