-- keys: clones student_clones student_requests lane students due records...
-- args: student_id channel request_count clone_ids...
--
-- Removes everything about a student. The caller has read the ids of the student's clones and how many requests made
-- them, and passes the keys of both as `records`.
--
-- Returns how many keys were removed. Returns -1, and removes nothing, if a clone is not final or if the student has
-- another clone or request by now.

if redis.call('LLEN', keys.lane) > 0 then return -1 end
if redis.call('ZCARD', keys.student_clones) ~= #args.clone_ids then return -1 end
if redis.call('SCARD', keys.student_requests) ~= tonumber(args.request_count) then return -1 end

local removed = redis.call('DEL', keys.student_clones, keys.student_requests)
for _, record in ipairs(keys.records) do removed = removed + redis.call('DEL', record) end
redis.call('ZREM', keys.students, args.student_id)
redis.call('HDEL', keys.due, args.student_id)
for _, clone_id in ipairs(args.clone_ids) do
  redis.call('ZREM', keys.clones, clone_id)
  redis.call('PUBLISH', args.channel, clone_id)
end
return removed
