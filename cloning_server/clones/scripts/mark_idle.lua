-- keys: students due
-- args: idle_milliseconds turn limit mark_milliseconds
--
-- Marks the students whose latest clone was accepted longer ago than this, by the store's clock, as due in this turn.
--
-- Returns {number of students, the time before which theirs was accepted, how many an earlier turn has marked, and of
-- those at most `limit` ids}, the longest idle first. Students who are no longer idle lose their mark. A mark of a turn
-- with another idle_milliseconds counts for nothing, and neither does one that no turn has confirmed for
-- mark_milliseconds.
--
-- A repeated call with the same turn answers as the first.

local before = now_milliseconds() - args.idle_milliseconds
local idle_ids = redis.call('ZRANGEBYSCORE', keys.students, '-inf', string.format('(%d', before))
local is_idle, due_count, due_ids = {}, 0, {}
local rule = args.idle_milliseconds .. ':'
for _, student_id in ipairs(idle_ids) do
  is_idle[student_id] = true
  local mark = redis.call('HGET', keys.due, student_id)
  if not mark or string.sub(mark, 1, #rule) ~= rule then
    redis.call('HSET', keys.due, student_id, rule .. args.turn)
  elseif mark ~= rule .. args.turn then
    due_count = due_count + 1
    if due_count <= tonumber(args.limit) then table.insert(due_ids, student_id) end
  end
end
for _, student_id in ipairs(redis.call('HKEYS', keys.due)) do
  if not is_idle[student_id] then redis.call('HDEL', keys.due, student_id) end
end
redis.call('PEXPIRE', keys.due, args.mark_milliseconds)
return {redis.call('ZCARD', keys.students), before, due_count, due_ids}
