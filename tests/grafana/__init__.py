"""Every query that Grafana would send, sent; every alert rule, fired."""
