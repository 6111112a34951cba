-- keys: feed queued leases tokens open lane baseline sizes change_counter ended removals
-- args: clone_id sequence clone effect token delay_milliseconds channel
--
-- Writes a clone's next change.
--
-- Returns 1 if this is now the clone's last change, also if an earlier call wrote it. Returns 0 if another change came
-- first, or if the token does not allow the change. A clone that has not ended and has no change, because the store has
-- lost its feed, takes one with sequence 1.
--
-- effect: 'runs', 'waits' (the clone goes back to the queue, for at least delay_milliseconds) or 'ends'.
-- token: of the writer's lease. '0' writes only while there is no lease; '' writes whatever lease there is.

-- A clone whose place is lost comes first.
local function place_of(clone_id) return redis.call('ZSCORE', keys.open, clone_id) or 0 end

local last = redis.call('XREVRANGE', keys.feed, '+', '-', 'COUNT', 1)[1]
if not last and not redis.call('ZSCORE', keys.open, args.clone_id) then return 0 end
local last_entry, last_clone = '0-0', nil
if last then last_entry, last_clone = last[1], last[2][2] end
if last_entry == args.sequence .. '-0' and last_clone == args.clone then return 1 end
if args.token ~= '' and (redis.call('HGET', keys.tokens, args.clone_id) or '0') ~= args.token then return 0 end
if last_entry ~= (tonumber(args.sequence) - 1) .. '-0' then return 0 end

redis.call('XADD', keys.feed, args.sequence .. '-0', 'clone', args.clone, 'number', redis.call('INCR', keys.change_counter))
if args.effect ~= 'runs' then
  redis.call('HDEL', keys.tokens, args.clone_id)
  redis.call('ZREM', keys.leases, args.clone_id)
end
if args.effect == 'waits' then
  if tonumber(args.delay_milliseconds) > 0 then
    -- It can be claimed when this time is over, as a clone whose lease expires then.
    redis.call('ZADD', keys.leases, now_milliseconds() + args.delay_milliseconds, args.clone_id)
  else
    redis.call('ZADD', keys.queued, place_of(args.clone_id), args.clone_id)
  end
elseif args.effect == 'ends' then
  redis.call('ZREM', keys.queued, args.clone_id)
  redis.call('ZREM', keys.open, args.clone_id)
  redis.call('ZADD', keys.ended, now_milliseconds(), args.clone_id)
  redis.call('HDEL', keys.sizes, args.clone_id)
  redis.call('DEL', keys.baseline)
  redis.call('INCR', keys.removals)
  redis.call('LREM', keys.lane, 0, args.clone_id)
  local next = redis.call('LINDEX', keys.lane, 0)
  if next and not redis.call('ZSCORE', keys.leases, next) then
    redis.call('ZADD', keys.queued, place_of(next), next)
  end
end
redis.call('PUBLISH', args.channel, args.clone_id)
return 1
