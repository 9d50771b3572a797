#!/bin/sh
# The server, with hashes of its users' passwords in its environment: for users.xml and password.sh.
set -eu
hash_of() {
    printf '%s' "$(cat "/run/secrets/$1")" | sha256sum | cut -d ' ' -f 1
}
METERING_PASSWORD_SHA256=$(hash_of clickhouse_password)
GRAFANA_READER_PASSWORD_SHA256=$(hash_of grafana_reader_password)
export METERING_PASSWORD_SHA256 GRAFANA_READER_PASSWORD_SHA256
exec /entrypoint.sh "$@"
