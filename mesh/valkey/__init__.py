"""What stands on Valkey or Redis: the connection, Lua scripts, and wake-ups. Knows nothing of what is stored."""
