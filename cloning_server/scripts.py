"""The steps on the clone store that happen whole or not at all, as Lua scripts that run inside Valkey or Redis.

The keys are told in `clone_store`. Every script may be sent again when its answer was lost: it finds its work done.
"""

# KEYS: request, active, queued, clones, clones of the student, sizes, feed, baseline, counter
# ARGV: clone id, request's digest or '', queue limit, clone, baseline, its size, channel
#
# Answers {'made' | 'same' | 'reused' | 'running' | 'full', clone id}. Looks for its own clone first: when the answer of
# the first try is lost, the second one finds its work done.
START = """
if redis.call('GET', KEYS[2]) == ARGV[1] then return {'made', ARGV[1]} end
if ARGV[2] ~= '' then
  local made = redis.call('HMGET', KEYS[1], 'clone_id', 'digest')
  if made[1] then return {made[2] == ARGV[2] and 'same' or 'reused', made[1]} end
end
local running = redis.call('GET', KEYS[2])
if running then return {'running', running} end
if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[3]) then return {'full', ''} end
local number = redis.call('INCR', KEYS[9])
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'clone_id', ARGV[1], 'digest', ARGV[2]) end
redis.call('SET', KEYS[2], ARGV[1])
for i = 3, 5 do redis.call('ZADD', KEYS[i], number, ARGV[1]) end
redis.call('HSET', KEYS[6], ARGV[1], ARGV[6])
redis.call('XADD', KEYS[7], '1-0', 'clone', ARGV[4])
redis.call('SET', KEYS[8], ARGV[5])
redis.call('PUBLISH', ARGV[7], ARGV[1])
return {'made', ARGV[1]}
"""

# KEYS: queued, claims
# ARGV: clone id, name of the claim, of this call alone
#
# Answers whether the clone is taken by this claim, also when it already was.
CLAIM = """
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
  return 1
end
return redis.call('HGET', KEYS[2], ARGV[1]) == ARGV[2] and 1 or 0
"""

# KEYS: feed, queued, claims, clones, active, baseline, sizes
# ARGV: clone id, number of the change, clone, 'runs' | 'waits' | 'ends', channel
#
# Answers whether this is the clone's next change, or already its last one; else somebody else changed it first.
CHANGE = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last then return 0 end
if last[1] == ARGV[2] .. '-0' and last[2][2] == ARGV[3] then return 1 end
if last[1] ~= (tonumber(ARGV[2]) - 1) .. '-0' then return 0 end
redis.call('XADD', KEYS[1], ARGV[2] .. '-0', 'clone', ARGV[3])
if ARGV[4] == 'waits' then
  redis.call('ZADD', KEYS[2], redis.call('ZSCORE', KEYS[4], ARGV[1]), ARGV[1])
  redis.call('HDEL', KEYS[3], ARGV[1])
elseif ARGV[4] == 'ends' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[3], ARGV[1])
  if redis.call('GET', KEYS[5]) == ARGV[1] then redis.call('DEL', KEYS[5]) end
  redis.call('DEL', KEYS[6])
  redis.call('HDEL', KEYS[7], ARGV[1])
end
redis.call('PUBLISH', ARGV[5], ARGV[1])
return 1
"""
