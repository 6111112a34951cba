-- keys: due
-- args: alert_prefix limit lease_milliseconds
--
-- Hands out alerts whose delivery to the webhook is due; nobody else gets them before the lease is over. Counts the
-- attempt. Alerts that were erased are left out.
--
-- Returns id and number of the attempt in turn.

local now = now_milliseconds()
local claimed = {}
for _, alert_id in ipairs(redis.call('ZRANGEBYSCORE', keys.due, '-inf', now, 'LIMIT', 0, args.limit)) do
  local alert = args.alert_prefix .. alert_id
  if redis.call('EXISTS', alert) == 1 then
    redis.call('ZADD', keys.due, now + args.lease_milliseconds, alert_id)
    table.insert(claimed, alert_id)
    table.insert(claimed, redis.call('HINCRBY', alert, 'deliveries', 1))
  else
    redis.call('ZREM', keys.due, alert_id)
  end
end
return claimed
