"""The Lua scripts that change the clone store atomically, and the class that calls them."""
