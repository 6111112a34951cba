-- keys: queued leases tokens lease_counter
-- args: milliseconds
--
-- Leases the next clone for so many milliseconds.
--
-- Returns {clone id, token}. If no clone can be claimed: {'', milliseconds until a lease expires, or -1 if there is none}.
--
-- A repeated call claims another clone. If the first answer was lost, the lease of the first clone expires.

local now = now_milliseconds()
local soonest = redis.call('ZRANGE', keys.leases, 0, 0, 'WITHSCORES')
local clone_id, expires = soonest[1], tonumber(soonest[2])
-- A clone whose lease has expired had its turn before those that wait.
if not clone_id or expires > now then clone_id = redis.call('ZPOPMIN', keys.queued)[1] end
if not clone_id then return {'', expires and expires - now or -1} end

local token = redis.call('INCR', keys.lease_counter)
redis.call('ZADD', keys.leases, now + args.milliseconds, clone_id)
redis.call('HSET', keys.tokens, clone_id, token)
return {clone_id, token}
