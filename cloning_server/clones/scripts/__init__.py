"""The Lua scripts that change the clone store atomically."""
