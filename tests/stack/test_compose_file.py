"""docker-compose.yml, without Docker: everything that it names is there, and everything agrees."""

import hashlib
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from query_api import config as api_config
from receiver.config import Settings
from tests.stack.compose import (
    PROFILES,
    REPOSITORY,
    every_service,
    example,
    mounts,
    services,
    top,
    variables,
)

DEPLOY = REPOSITORY / "deploy"
SETTINGS = {
    f"METERING_{name.upper()}"
    for settings in (Settings, api_config.Settings)
    for name in settings.model_fields
}
OURS = {"migrate", "receiver", "api", "collector-key", "embedded", "grafana-key"}
"""Services that run our own image with settings of ours."""


@pytest.fixture(params=sorted(every_service()))
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    return every_service()[request.param]


def test_the_profiles_share_no_service_and_leave_none_out() -> None:
    server, embedded = (set(services(profile)) for profile in PROFILES)

    assert server & embedded == set()
    assert server | embedded == set(every_service())
    assert {"clickhouse", "redis", "migrate", "receiver", "api", "collector", "grafana"} <= server


def test_every_variable_is_in_the_example_with_its_default_and_has_an_effect() -> None:
    composed = {name: value for name, value in example().items() if name != "COMPOSE_PROFILES"}

    assert composed == variables()
    assert example()["COMPOSE_PROFILES"] == "server"


def test_every_setting_of_a_service_is_one_of_the_code() -> None:
    for name in sorted(OURS & {"migrate", "receiver", "api", "embedded"}):
        given = set(every_service()[name]["environment"])
        assert given - SETTINGS - {"METERING_SECRETS_DIR"} == set(), name


def test_every_secret_of_a_setting_is_named_like_it() -> None:
    for name in sorted({"migrate", "receiver", "api", "embedded"}):
        secrets = {one.upper() for one in every_service()[name]["secrets"]}
        assert secrets <= SETTINGS, name


def test_every_variable_of_the_collector_is_one_of_its_configuration() -> None:
    known = set(re.findall(r"\$\{env:(\w+)", (REPOSITORY / "collector-config.yaml").read_text()))
    given = set(every_service()["collector"]["environment"]) - {"GOMEMLIMIT"}

    assert given <= known
    required = set(
        re.findall(r"\$\{env:(\w+)\}", (REPOSITORY / "collector-config.yaml").read_text())
    )
    assert required <= given


def test_every_variable_of_the_data_source_is_given_to_grafana() -> None:
    file = REPOSITORY / "grafana" / "provisioning" / "datasources" / "metering.yaml"
    wanted = set(re.findall(r"\$\{?(METERING_\w+)", file.read_text()))

    for name in ("grafana", "grafana-embedded"):
        service = every_service()[name]
        given = set(service["environment"]) | set(
            re.findall(r"export (\w+)", service["entrypoint"][2])
        )
        assert wanted - given == set(), name


def test_what_is_mounted_is_there(service: dict[str, Any]) -> None:
    for source, target in mounts(service):
        if source.startswith("."):
            assert (REPOSITORY / source).exists(), source
        else:
            assert source in top("volumes")
        assert target.startswith("/")


def test_every_volume_and_secret_has_a_service() -> None:
    mounted = {source for one in every_service().values() for source, _ in mounts(one)}
    shown = {name for one in every_service().values() for name in one.get("secrets", ())}

    assert set(top("volumes")) <= mounted
    assert set(top("secrets")) == shown


def test_a_service_is_not_root_writes_only_where_it_must_and_has_limits(
    service: dict[str, Any],
) -> None:
    assert service["user"].split(":")[0] not in ("0", "root")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}


def test_a_service_that_goes_on_says_whether_it_is_well(service: dict[str, Any]) -> None:
    assert ("healthcheck" in service) is (service["restart"] != "no")


def test_what_a_service_waits_for_is_in_its_profile_and_can_say_so() -> None:
    for profile in PROFILES:
        there = services(profile)
        for one in there.values():
            for other, wanted in one.get("depends_on", {}).items():
                condition = wanted["condition"]
                ends = there[other]["restart"] == "no"
                assert condition == (
                    "service_completed_successfully" if ends else "service_healthy"
                )


def test_only_loopback_is_open_unless_told_otherwise_and_no_two_ports_are_one() -> None:
    for profile in PROFILES:
        ports = [one for each in services(profile).values() for one in each.get("ports", ())]
        assert all(one.startswith("127.0.0.1:") for one in ports)
        published = [one.split(":")[1] for one in ports]
        assert len(set(published)) == len(published)


def test_the_ports_are_those_that_the_settings_say() -> None:
    there = every_service()

    def inside(name: str) -> set[str]:
        return {one.split(":")[2] for one in there[name].get("ports", ())}

    def settings(name: str, *wanted: str) -> set[str]:
        return {there[name]["environment"][f"METERING_{one}_PORT"] for one in wanted}

    assert inside("receiver") == settings("receiver", "OTLP_GRPC", "OTLP_HTTP")
    assert inside("api") == settings("api", "API")
    assert inside("embedded") == settings("embedded", "OTLP_GRPC", "OTLP_HTTP", "API")
    [receiver_api] = settings("receiver", "API")
    [receiver_http] = settings("receiver", "OTLP_HTTP")
    assert there["api"]["environment"]["METERING_RECEIVER_URL"] == f"http://receiver:{receiver_api}"
    assert there["collector-key"]["environment"]["METERING_API_URL"].endswith(receiver_api)
    assert there["collector"]["environment"]["COLLECTOR_METERING_ENDPOINT"].endswith(receiver_http)
    assert settings("embedded", "CLICKHOUSE") == {
        there["grafana-embedded"]["environment"]["METERING_CH_PORT"]
    }


def test_secrets_are_made_once_for_every_one_that_is_named_and_agree(tmp_path: Path) -> None:
    script = DEPLOY / "make-secrets.sh"
    folder = tmp_path / "secrets"

    subprocess.run(["sh", script, folder], check=True, capture_output=True)

    made = {one.name: one.read_text().strip() for one in folder.iterdir()}
    assert set(made) == set(top("secrets"))
    assert len({made[name] for name in made}) == len(made)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    # Readable for the users of the containers, who are not the owner.
    assert {stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()} == {0o444}
    assert made["clickhouse_password"] in made["metering_clickhouse_url"]
    assert made["redis_password"] in made["metering_redis_url"]
    assert re.fullmatch(r"otm_[0-9a-f]{12}_[0-9a-f]{64}", made["metering_admin_key"])

    (folder / "redis_password").unlink()
    subprocess.run(["sh", script, folder], check=True, capture_output=True)
    again = {one.name: one.read_text().strip() for one in folder.iterdir()}
    assert {name for name in made if made[name] != again[name]} == {"redis_password"}


def test_the_secrets_are_kept_out_of_git_and_of_the_images() -> None:
    git = subprocess.run(["git", "check-ignore", "secrets/x", ".env"], cwd=REPOSITORY, check=False)
    assert git.returncode == 0
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert not any(line.startswith(("!secrets", "!.env", "!.git")) for line in lines)


def test_the_users_of_clickhouse_are_those_of_the_stack_and_each_has_its_password() -> None:
    ElementTree.parse(DEPLOY / "clickhouse" / "config.xml")
    users = ElementTree.parse(DEPLOY / "clickhouse" / "users.xml").getroot().find("users")
    assert users is not None
    start = (DEPLOY / "clickhouse" / "start.sh").read_text()
    password = (DEPLOY / "clickhouse" / "password.sh").read_text()

    assert {user.tag for user in users} == {"default", "metering"}
    read = {
        user.tag: one.get("from_env")
        for user in users
        for one in user.iter()
        if one.get("from_env")
    }
    assert read == {"metering": "METERING_PASSWORD_SHA256"}
    assert "ALTER USER grafana_reader" in password
    used = {*read.values(), *re.findall(r"\$(\w+)", password)}
    assert used == set(re.findall(r"(\w+)=\$\(hash_of", start))
    # Who needs no password may come from inside the container alone.
    [networks] = [one for user in users if user.tag == "default" for one in user.iter("networks")]
    assert networks.get("replace") == "replace"
    assert {one.text for one in networks} == {"127.0.0.1", "::1"}


def test_clickhouse_gets_the_hashes_of_its_passwords(tmp_path: Path) -> None:
    script = (DEPLOY / "clickhouse" / "start.sh").read_text()
    for name in ("clickhouse_password", "grafana_reader_password"):
        (tmp_path / name).write_text(f"{name} of this test\n")

    started = subprocess.run(
        [
            "sh",
            "-c",
            script.replace("/run/secrets", str(tmp_path)).replace("/entrypoint.sh", "env"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )

    for name, variable in (
        ("clickhouse_password", "METERING_PASSWORD_SHA256"),
        ("grafana_reader_password", "GRAFANA_READER_PASSWORD_SHA256"),
    ):
        hashed = hashlib.sha256(f"{name} of this test".encode()).hexdigest()
        assert f"{variable}={hashed}\n" in started.stdout


def test_the_meters_of_the_stack_are_those_of_the_repository() -> None:
    assert (DEPLOY / "meters" / "meters.yaml").read_text() == (
        REPOSITORY / "meters.yaml"
    ).read_text()


@pytest.mark.parametrize("name", ["build", "server", "embedded"])
def test_the_images_install_what_the_lock_file_pins(name: str) -> None:
    pins = _pins(DEPLOY / "locks" / f"{name}.lock")

    assert pins.items() <= _pins(REPOSITORY / "requirements.lock").items()
    assert ("chdb" in pins) is (name == "embedded")
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    wanted = {"build": ["hatchling"], "server": extras["server"], "embedded": ["chdb"]}[name]
    names = {re.split(r"[\[>=; ]", one)[0] for one in wanted} - {"otel-metering", "backports-zstd"}
    assert names <= set(pins)


def test_every_target_that_is_built_is_in_the_dockerfile() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (REPOSITORY / "Dockerfile").read_text(), re.M))
    built = {one["build"]["target"] for one in every_service().values() if "build" in one}

    assert built <= targets
    assert built == {"server", "embedded", "collector"}


def test_the_dockerfile_copies_only_what_is_there_and_not_ignored() -> None:
    kept = {
        line[1:]
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line[:1] == "!"
    }
    for line in re.findall(r"^COPY (?!--from)(.+)$", (REPOSITORY / "Dockerfile").read_text(), re.M):
        for source in line.split()[:-1]:
            assert (REPOSITORY / source).exists(), source
            assert any(source == one or source.startswith(f"{one}/") for one in kept), source


def test_the_scripts_are_sh() -> None:
    for script in DEPLOY.rglob("*.sh"):
        assert script.read_text().startswith("#!/bin/sh\n")
        subprocess.run(["sh", "-n", script], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, *DEPLOY.rglob("*.sh")], check=True)


def test_the_collector_that_the_image_builds_is_that_of_the_manifest() -> None:
    manifest = (REPOSITORY / "collector" / "manifest.yaml").read_text()
    version = yaml.safe_load(manifest)["dist"]["version"]

    assert f"cmd/builder@v{version}" in (REPOSITORY / "Dockerfile").read_text()


def _pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^ ;]+)", lock.read_text(), re.M))
