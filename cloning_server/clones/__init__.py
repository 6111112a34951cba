"""The queue of clones in Valkey or Redis: their records, leases, feeds and estimates."""
