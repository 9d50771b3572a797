-- Who reads the tables by SQL on a ClickHouse server: dashboards, notebooks, BI. Least privilege, idempotent; what
-- exists is left as it is, so limits and the password are the operator's.
--
-- The role is what may be read, the profile is how much, and the user grafana_reader has both. Nobody can log in as
-- it before an administrator gives it a password and hosts:
--
--   ALTER USER grafana_reader IDENTIFIED WITH sha256_password BY '<password>' HOST ANY
--
-- Names after "withheld:" are what the role may not read; a test compares them, and the grants, with the schema.

-- readonly = 1: SELECT only, and no setting may be changed but those that clients always send. Grafana's plugin
-- sends max_execution_time with each query, its own timeout plus five seconds.
CREATE SETTINGS PROFILE IF NOT EXISTS metering_reader SETTINGS
    readonly = 1,
    max_execution_time = 60 MIN 1 MAX 120 CHANGEABLE_IN_READONLY,
    enable_http_compression = 1 CHANGEABLE_IN_READONLY,
    timeout_overflow_mode = 'throw',
    max_rows_to_read = 1000000000,
    read_overflow_mode = 'throw',
    max_result_rows = 1000000,
    max_result_bytes = 268435456,
    result_overflow_mode = 'throw',
    max_memory_usage = 2147483648,
    max_concurrent_queries_for_user = 32,
    max_threads = 4,
    allow_ddl = 0,
    allow_introspection_functions = 0;

CREATE ROLE IF NOT EXISTS metering_reader SETTINGS PROFILE 'metering_reader';

-- No password has this hash, and no host may connect.
CREATE USER IF NOT EXISTS grafana_reader
    IDENTIFIED WITH sha256_hash BY '0000000000000000000000000000000000000000000000000000000000000000'
    HOST NONE
    DEFAULT DATABASE metering
    SETTINGS PROFILE 'metering_reader';

-- In an hour, for each user with the role: enough for a wall of dashboards, too little to keep a server busy.
CREATE QUOTA IF NOT EXISTS metering_reader KEYED BY user_name
    FOR INTERVAL 1 hour MAX queries = 200000, read_rows = 1000000000000, execution_time = 14400
    TO metering_reader;

GRANT SELECT ON metering.events TO metering_reader;
GRANT SELECT ON metering.event_corrections TO metering_reader;
GRANT SELECT ON metering.usage_minute TO metering_reader;
GRANT SELECT ON metering.usage_hour TO metering_reader;
GRANT SELECT ON metering.usage_day TO metering_reader;
GRANT SELECT ON metering.usage_month TO metering_reader;
GRANT SELECT ON metering.meters TO metering_reader;
GRANT SELECT ON metering.meter_definitions TO metering_reader;
GRANT SELECT ON metering.quotas TO metering_reader;
GRANT SELECT ON metering.quota_usage TO metering_reader;
GRANT SELECT ON metering.pipeline_stats TO metering_reader;
GRANT SELECT ON metering.api_key_use TO metering_reader;
GRANT SELECT ON metering.audit_log TO metering_reader;
GRANT SELECT ON metering.quarantine_resolved TO metering_reader;
GRANT SELECT ON metering.explicit_ids TO metering_reader;
GRANT SELECT ON metering.migrations TO metering_reader;

-- withheld: metering.api_keys.key_hash
GRANT SELECT(key_id, name, scopes, tenant_id, created_at, expires_at, revoked_at, updated_at, rate_limit_per_second, replaces, replaced_ends_at)
    ON metering.api_keys TO metering_reader;

-- The payload is what was sent, whole. withheld: metering.quarantine.payload
GRANT SELECT(event_id, reason, detail, signal, name, tenant_id, timestamp, attributes, service_name, key_id, ingested_at, batch_id)
    ON metering.quarantine TO metering_reader;

GRANT metering_reader TO grafana_reader;
