-- keys: sequence alert alerts
-- args: alert_id acknowledged_by student_alerts_prefix open_prefix channel
--
-- Says that an adult took care of an alert. What is found later raises a new one.
--
-- Returns 0 if there is no such alert. One that was acknowledged before stays as it is.

if redis.call('EXISTS', keys.alert) == 0 then return 0 end
if redis.call('HEXISTS', keys.alert, 'acknowledge_milliseconds') == 1 then return 1 end

local now = string.format('%.0f', now_milliseconds())
local sequence = redis.call('INCR', keys.sequence)
redis.call('HSET', keys.alert, 'sequence', sequence, 'update_milliseconds', now, 'acknowledge_milliseconds', now,
  'acknowledged_by', args.acknowledged_by)
redis.call('ZADD', keys.alerts, sequence, args.alert_id)
local student_id = redis.call('HGET', keys.alert, 'student_id') or ''
if student_id ~= '' then
  redis.call('ZADD', args.student_alerts_prefix .. student_id, 'XX', sequence, args.alert_id)
  local open = args.open_prefix .. student_id
  if redis.call('GET', open) == args.alert_id then redis.call('DEL', open) end
end
redis.call('PUBLISH', args.channel, args.alert_id)
return 1
