-- keys: request lane queued open clones student_clones sizes tokens feed baseline counter change_counter students due student_requests
-- args: clone_id digest queue_limit clone baseline size channel head_start may_wait student_id request_id
--
-- Accepts a clone unless something stands in its way.
--
-- Returns {outcome, clone id}:
--   made     the new clone is accepted, or was by an earlier call whose answer was lost
--   same     an earlier request with this id and digest made this clone
--   reused   an earlier request with this id and another digest made this clone
--   running  this clone of the student must end first
--   full     too many clones wait; the clone id is empty
--
-- head_start: places in the queue before clones that are accepted at the same time.
-- may_wait: '1' if the clone may wait behind the student's earlier clone, else '0'.

-- The caller repeats a call whose answer was lost. Its clone is already there, so look for it first.
if redis.call('ZSCORE', keys.student_clones, args.clone_id) then return {'made', args.clone_id} end
if args.request_id ~= '' then
  local earlier = redis.call('HMGET', keys.request, 'clone_id', 'digest')
  local clone_id, digest = earlier[1], earlier[2]
  if clone_id then return {digest == args.digest and 'same' or 'reused', clone_id} end
end

local lane = redis.call('LRANGE', keys.lane, 0, -1)
if #lane > 0 and args.may_wait == '0' then return {'running', lane[1]} end
if #lane > 1 then return {'running', lane[2]} end

local waiting = redis.call('ZCARD', keys.open) - redis.call('HLEN', keys.tokens)
if waiting >= tonumber(args.queue_limit) then return {'full', ''} end

local number = redis.call('INCR', keys.counter)
local place = number - args.head_start
if args.request_id ~= '' then
  redis.call('HSET', keys.request, 'clone_id', args.clone_id, 'digest', args.digest)
  redis.call('SADD', keys.student_requests, args.request_id)
end
redis.call('RPUSH', keys.lane, args.clone_id)
redis.call('ZADD', keys.open, place, args.clone_id)
if #lane == 0 then redis.call('ZADD', keys.queued, place, args.clone_id) end
redis.call('ZADD', keys.clones, number, args.clone_id)
redis.call('ZADD', keys.student_clones, number, args.clone_id)
redis.call('ZADD', keys.students, now_milliseconds(), args.student_id)
redis.call('HDEL', keys.due, args.student_id)
redis.call('HSET', keys.sizes, args.clone_id, args.size)
redis.call('XADD', keys.feed, '1-0', 'clone', args.clone, 'number', redis.call('INCR', keys.change_counter))
redis.call('SET', keys.baseline, args.baseline)
redis.call('PUBLISH', args.channel, args.clone_id)
return {'made', args.clone_id}
