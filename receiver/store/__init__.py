"""The database: schema, migrations, access, API keys."""
