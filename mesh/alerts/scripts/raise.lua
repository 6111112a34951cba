-- keys: sequence open alerts student_alerts due
-- args: alert_id finding_id alert_prefix student_id action text guard request_id words window_milliseconds retention_milliseconds with_webhook channel probabilities...
--
-- Counts a finding in the student's open alert, or raises a new one with the given id. A student's alert stays open for
-- the window after it was raised, until it is acknowledged. A finding without a student always raises a new one.
-- `probabilities` holds a category and its probability in turn. 0 as retention keeps the alert for ever.
--
-- An alert is due for the webhook when it is raised, and again when a category is found that it does not hold yet. That
-- counts as an attempt, so that one that is under way does not end the delivery of the news.
--
-- Returns the id of the alert. A finding that was counted before changes nothing.

local alert_id = args.alert_id
if args.student_id ~= '' then
  local open_id = redis.call('GET', keys.open)
  -- One that was erased, or that can't be read, counts no further findings.
  local counts = open_id and redis.call('HMGET', args.alert_prefix .. open_id, 'action', 'count')
  if counts and tonumber(counts[1]) and tonumber(counts[2]) then
    alert_id = open_id
  else
    redis.call('SET', keys.open, alert_id, 'PX', args.window_milliseconds)
  end
end

local alert = args.alert_prefix .. alert_id
if redis.call('HGET', alert, 'finding_id') == args.finding_id then return alert_id end

local now = string.format('%.0f', now_milliseconds())
if redis.call('EXISTS', alert) == 0 then
  redis.call('HSET', alert, 'alert_id', alert_id, 'student_id', args.student_id, 'create_milliseconds', now, 'action', 0)
end

local sequence = redis.call('INCR', keys.sequence)
redis.call('HINCRBY', alert, 'count', 1)
redis.call('HSET', alert, 'sequence', sequence, 'finding_id', args.finding_id, 'text', args.text, 'guard', args.guard,
  'request_id', args.request_id, 'words', args.words, 'update_milliseconds', now)
if tonumber(args.action) > tonumber(redis.call('HGET', alert, 'action')) then
  redis.call('HSET', alert, 'action', args.action)
end
local is_news = false
for i = 1, #args.probabilities, 2 do
  local field = 'probability:' .. args.probabilities[i]
  local highest = redis.call('HGET', alert, field)
  is_news = is_news or not highest
  if not highest or tonumber(args.probabilities[i + 1]) > (tonumber(highest) or 0) then
    redis.call('HSET', alert, field, args.probabilities[i + 1])
  end
end

if is_news and args.with_webhook == '1' then
  if redis.call('HEXISTS', alert, 'deliveries') == 1 then redis.call('HINCRBY', alert, 'deliveries', 1) end
  redis.call('ZADD', keys.due, now, alert_id)
end

redis.call('ZADD', keys.alerts, sequence, alert_id)
if args.student_id ~= '' then redis.call('ZADD', keys.student_alerts, sequence, alert_id) end
if args.retention_milliseconds ~= '0' then
  redis.call('PEXPIRE', alert, args.retention_milliseconds)
  redis.call('PEXPIRE', keys.student_alerts, args.retention_milliseconds)
end
-- Ids of alerts whose time is over; a few each time, so that none stay for ever.
for _, old_id in ipairs(redis.call('ZRANGE', keys.alerts, 0, 9)) do
  if redis.call('EXISTS', args.alert_prefix .. old_id) == 0 then redis.call('ZREM', keys.alerts, old_id) end
end
redis.call('PUBLISH', args.channel, alert_id)
return alert_id
