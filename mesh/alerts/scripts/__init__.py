"""The Lua scripts that change the alerts atomically."""
