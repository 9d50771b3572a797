#!/bin/sh
# Makes the secrets of docker-compose.yml in ./secrets (or the folder named). Those that are there stay as they are.
#
# Containers run as users of their own and must be able to read the files; on this machine the folder
# keeps others out.
set -eu
folder=${1:-"$(dirname "$0")/../secrets"}
umask 077
mkdir -p "$folder"
chmod 700 "$folder"

random() { # bytes
    od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'
}

secret() { # name text
    if [ ! -e "$folder/$1" ]; then
        printf '%s\n' "$2" > "$folder/$1.new"
        chmod 444 "$folder/$1.new"
        mv "$folder/$1.new" "$folder/$1"
        echo "made $folder/$1"
    fi
}

secret clickhouse_password "$(random 24)"
secret grafana_reader_password "$(random 24)"
secret redis_password "$(random 24)"
secret metering_clickhouse_url "clickhouse://metering:$(cat "$folder/clickhouse_password")@clickhouse:8123/metering"
secret metering_redis_url "redis://:$(cat "$folder/redis_password")@redis:6379/0"
secret metering_admin_key "otm_$(random 6)_$(random 32)"
secret grafana_admin_password "$(random 12)"
secret collector_tokens "$(random 24)"
