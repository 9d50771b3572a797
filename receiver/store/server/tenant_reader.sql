-- A user who sees the rows of one tenant: for a customer's own notebook or BI tool. Made by
-- `otel-metering grants --tenant <tenant> --user <user>`, which fills in both and prints this, for an
-- administrator to run after grafana_reader.sql. Idempotent.
--
-- A row is read if a permissive policy shows it and no restrictive one hides it. So the first policy of a table keeps
-- everybody else reading everything, whatever users_without_row_policies_can_read_rows says: without it, the
-- first policy of one user could hide all rows from all others, the receiver among them.
--
-- withheld: metering.meters metering.pipeline_stats metering.api_keys metering.api_key_use metering.audit_log
-- withheld: metering.quarantine metering.quarantine_resolved metering.explicit_ids metering.migrations

CREATE USER IF NOT EXISTS $user
    IDENTIFIED WITH sha256_hash BY '0000000000000000000000000000000000000000000000000000000000000000'
    HOST NONE
    DEFAULT DATABASE metering
    SETTINGS PROFILE 'metering_reader';

CREATE QUOTA IF NOT EXISTS $user KEYED BY user_name
    FOR INTERVAL 1 hour MAX queries = 20000, read_rows = 100000000000, execution_time = 3600
    TO $user;

-- Policies before grants: there is no moment at which the user reads another tenant's rows.
CREATE ROW POLICY IF NOT EXISTS metering_everybody ON metering.events FOR SELECT USING 1 AS PERMISSIVE TO ALL;
CREATE ROW POLICY IF NOT EXISTS metering_everybody ON metering.event_corrections FOR SELECT USING 1 AS PERMISSIVE TO ALL;
CREATE ROW POLICY IF NOT EXISTS metering_everybody ON metering.usage_minute FOR SELECT USING 1 AS PERMISSIVE TO ALL;
CREATE ROW POLICY IF NOT EXISTS metering_everybody ON metering.usage_hour FOR SELECT USING 1 AS PERMISSIVE TO ALL;
CREATE ROW POLICY IF NOT EXISTS metering_everybody ON metering.usage_day FOR SELECT USING 1 AS PERMISSIVE TO ALL;
CREATE ROW POLICY IF NOT EXISTS metering_everybody ON metering.usage_month FOR SELECT USING 1 AS PERMISSIVE TO ALL;
CREATE ROW POLICY IF NOT EXISTS metering_everybody ON metering.quotas FOR SELECT USING 1 AS PERMISSIVE TO ALL;
CREATE ROW POLICY IF NOT EXISTS metering_everybody ON metering.quota_usage FOR SELECT USING 1 AS PERMISSIVE TO ALL;

CREATE ROW POLICY OR REPLACE $user ON metering.events FOR SELECT USING tenant_id = '$tenant' AS RESTRICTIVE TO $user;
CREATE ROW POLICY OR REPLACE $user ON metering.event_corrections FOR SELECT USING tenant_id = '$tenant' AS RESTRICTIVE TO $user;
CREATE ROW POLICY OR REPLACE $user ON metering.usage_minute FOR SELECT USING tenant_id = '$tenant' AS RESTRICTIVE TO $user;
CREATE ROW POLICY OR REPLACE $user ON metering.usage_hour FOR SELECT USING tenant_id = '$tenant' AS RESTRICTIVE TO $user;
CREATE ROW POLICY OR REPLACE $user ON metering.usage_day FOR SELECT USING tenant_id = '$tenant' AS RESTRICTIVE TO $user;
CREATE ROW POLICY OR REPLACE $user ON metering.usage_month FOR SELECT USING tenant_id = '$tenant' AS RESTRICTIVE TO $user;
CREATE ROW POLICY OR REPLACE $user ON metering.quotas FOR SELECT USING tenant_id IS NULL OR tenant_id = '$tenant' AS RESTRICTIVE TO $user;
CREATE ROW POLICY OR REPLACE $user ON metering.quota_usage FOR SELECT USING tenant_id = '$tenant' AS RESTRICTIVE TO $user;

GRANT SELECT ON metering.events TO $user;
GRANT SELECT ON metering.event_corrections TO $user;
GRANT SELECT ON metering.usage_minute TO $user;
GRANT SELECT ON metering.usage_hour TO $user;
GRANT SELECT ON metering.usage_day TO $user;
GRANT SELECT ON metering.usage_month TO $user;
GRANT SELECT ON metering.meter_definitions TO $user;
GRANT SELECT ON metering.quotas TO $user;
GRANT SELECT ON metering.quota_usage TO $user;
