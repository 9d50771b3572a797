#!/bin/sh
# Run by the image at each start, while the server listens to nobody else: the password of Grafana's user.
set -eu
clickhouse-client --host 127.0.0.1 --query \
    "ALTER USER grafana_reader IDENTIFIED WITH sha256_hash BY '$GRAFANA_READER_PASSWORD_SHA256' HOST ANY"
