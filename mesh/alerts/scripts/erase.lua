-- keys: alerts student_alerts open due
-- args: alert_prefix
--
-- Removes all alerts of a student. Returns how many there were.

local erased = 0
for _, alert_id in ipairs(redis.call('ZRANGE', keys.student_alerts, 0, -1)) do
  erased = erased + redis.call('DEL', args.alert_prefix .. alert_id)
  redis.call('ZREM', keys.alerts, alert_id)
  redis.call('ZREM', keys.due, alert_id)
end
redis.call('DEL', keys.student_alerts, keys.open)
return erased
