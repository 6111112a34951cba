"""The steps on the clone store that happen whole or not at all, as Lua scripts that run inside Valkey or Redis.

The keys are told in `clone_store`. Time is the store's own: no server's clock says when a lease ends. A script may be
sent again when its answer was lost and then finds its work done, except CLAIM, whose lost lease expires.
"""

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# KEYS and ARGV are named in the first two lines. `head_start` is in places; `may_wait` is '1' or '0'.
#
# Answers {'made' | 'same' | 'reused' | 'running' | 'full', clone id}. Looks for its own clone first: when the answer of
# the first try is lost, the second one finds its work done.
START = (
    """
local request, lane, queued, open, clones, own, sizes, tokens, feed, baseline, counter, students, requests
  = unpack(KEYS)
local id, digest, limit, clone, data, size, channel, head_start, may_wait, student, request_id = unpack(ARGV)
"""
    + _NOW
    + """
if redis.call('ZSCORE', own, id) then return {'made', id} end
if request_id ~= '' then
  local made = redis.call('HMGET', request, 'clone_id', 'digest')
  if made[1] then return {made[2] == digest and 'same' or 'reused', made[1]} end
end
local before = redis.call('LRANGE', lane, 0, -1)
if #before > 0 and may_wait == '0' then return {'running', before[1]} end
if #before > 1 then return {'running', before[2]} end
if redis.call('ZCARD', open) - redis.call('HLEN', tokens) >= tonumber(limit) then return {'full', ''} end
local number = redis.call('INCR', counter)
local place = number - head_start
if request_id ~= '' then
  redis.call('HSET', request, 'clone_id', id, 'digest', digest)
  redis.call('SADD', requests, request_id)
end
redis.call('RPUSH', lane, id)
redis.call('ZADD', open, place, id)
if #before == 0 then redis.call('ZADD', queued, place, id) end
redis.call('ZADD', clones, number, id)
redis.call('ZADD', own, number, id)
redis.call('ZADD', students, now, student)
redis.call('HSET', sizes, id, size)
redis.call('XADD', feed, '1-0', 'clone', clone)
redis.call('SET', baseline, data)
redis.call('PUBLISH', channel, id)
return {'made', id}
"""
)

# Answers {clone id, token}, or {'', milliseconds until a lease expires, -1 if there is none}. A clone whose lease has
# expired comes before those that wait, as it had its turn before them.
CLAIM = (
    """
local queued, leases, tokens, counter = unpack(KEYS)
local milliseconds = unpack(ARGV)
"""
    + _NOW
    + """
local first = redis.call('ZRANGE', leases, 0, 0, 'WITHSCORES')
local id = first[1]
if not id or tonumber(first[2]) > now then id = redis.call('ZPOPMIN', queued)[1] end
if not id then return {'', first[2] and tonumber(first[2]) - now or -1} end
local token = redis.call('INCR', counter)
redis.call('ZADD', leases, now + milliseconds, id)
redis.call('HSET', tokens, id, token)
return {id, token}
"""
)

# Answers whether the token is still the clone's. It is until somebody else claims the clone, also past its time.
RENEW = (
    """
local leases, tokens = unpack(KEYS)
local id, token, milliseconds = unpack(ARGV)
"""
    + _NOW
    + """
if redis.call('HGET', tokens, id) ~= token then return 0 end
redis.call('ZADD', leases, now + milliseconds, id)
return 1
"""
)

# `effect` is 'runs' | 'waits' | 'ends'; one that waits is claimed no sooner than after `delay` milliseconds. `token` is
# the writer's; '0' writes only while nobody holds the clone, and '' whoever does.
#
# Answers whether this is now the clone's last change; else somebody else changed it first, or holds it.
CHANGE = (
    """
local feed, queued, leases, tokens, open, lane, baseline, sizes = unpack(KEYS)
local id, number, clone, effect, token, delay, channel = unpack(ARGV)
"""
    + _NOW
    + """
local last = redis.call('XREVRANGE', feed, '+', '-', 'COUNT', 1)[1]
if not last then return 0 end
if last[1] == number .. '-0' and last[2][2] == clone then return 1 end
if token ~= '' and (redis.call('HGET', tokens, id) or '0') ~= token then return 0 end
if last[1] ~= (tonumber(number) - 1) .. '-0' then return 0 end
redis.call('XADD', feed, number .. '-0', 'clone', clone)
if effect ~= 'runs' then
  redis.call('HDEL', tokens, id)
  redis.call('ZREM', leases, id)
end
if effect == 'waits' then
  if tonumber(delay) > 0 then
    redis.call('ZADD', leases, now + delay, id)
  else
    redis.call('ZADD', queued, redis.call('ZSCORE', open, id), id)
  end
elseif effect == 'ends' then
  redis.call('ZREM', queued, id)
  redis.call('ZREM', open, id)
  redis.call('HDEL', sizes, id)
  redis.call('DEL', baseline)
  redis.call('LREM', lane, 0, id)
  local next = redis.call('LINDEX', lane, 0)
  if next and not redis.call('ZSCORE', leases, next) then
    redis.call('ZADD', queued, redis.call('ZSCORE', open, next), next)
  end
end
redis.call('PUBLISH', channel, id)
return 1
"""
)

# KEYS go on with all that is removed, ARGV with the ids of the student's clones.
#
# Answers how many keys were removed, or -1 if the student has gained a clone or a request since they were read.
ERASE = """
local clones, own, requests, lane, students = unpack(KEYS, 1, 5)
local student, channel, request_count = unpack(ARGV, 1, 3)
if redis.call('LLEN', lane) > 0 then return -1 end
if redis.call('ZCARD', own) ~= #ARGV - 3 or redis.call('SCARD', requests) ~= tonumber(request_count) then return -1 end
local removed = redis.call('DEL', own, requests)
for i = 6, #KEYS do removed = removed + redis.call('DEL', KEYS[i]) end
redis.call('ZREM', students, student)
for i = 4, #ARGV do
  redis.call('ZREM', clones, ARGV[i])
  redis.call('PUBLISH', channel, ARGV[i])
end
return removed
"""
