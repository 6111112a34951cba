-- keys: alerts student_alerts open due erasure
-- args: alert_prefix stay_seconds
--
-- Removes all alerts of a student. Returns how many were removed, now or by an earlier call whose answer was lost.
--
-- erasure: stays for stay_seconds, and holds that number and nothing about the student. The caller repeats a call
-- whose answer was lost.

local earlier = redis.call('GET', keys.erasure)
if earlier then return tonumber(earlier) end
local erased = 0
for _, alert_id in ipairs(redis.call('ZRANGE', keys.student_alerts, 0, -1)) do
  erased = erased + redis.call('DEL', args.alert_prefix .. alert_id)
  redis.call('ZREM', keys.alerts, alert_id)
  redis.call('ZREM', keys.due, alert_id)
end
redis.call('DEL', keys.student_alerts, keys.open)
redis.call('SET', keys.erasure, erased, 'EX', args.stay_seconds)
return erased
