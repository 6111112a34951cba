-- keys: clones student_clones student_requests lane students due ended queued open leases tokens sizes removals records...
-- args: student_id channel request_count clone_ids...
--
-- Removes everything about a student. The caller has read the ids of the student's clones and how many requests made
-- them, has ended the clones, and passes the keys of clones and requests as `records`.
--
-- Returns how many keys were removed. Returns -1, and removes nothing, if the student has another clone or request by
-- now. A clone that the caller has ended and that is in the lane all the same is one of which the store lost a part.

local is_known = {}
for _, clone_id in ipairs(args.clone_ids) do is_known[clone_id] = true end
for _, clone_id in ipairs(redis.call('LRANGE', keys.lane, 0, -1)) do if not is_known[clone_id] then return -1 end end
for _, clone_id in ipairs(redis.call('ZRANGE', keys.student_clones, 0, -1)) do
  if not is_known[clone_id] then return -1 end
end
if redis.call('SCARD', keys.student_requests) ~= tonumber(args.request_count) then return -1 end

local removed = redis.call('DEL', keys.student_clones, keys.student_requests, keys.lane)
for _, record in ipairs(keys.records) do removed = removed + redis.call('DEL', record) end
redis.call('ZREM', keys.students, args.student_id)
redis.call('HDEL', keys.due, args.student_id)
-- Also if nothing was there: the caller has removed alerts, or repeats a call that was cut off.
redis.call('INCR', keys.removals)
for _, clone_id in ipairs(args.clone_ids) do
  for _, index in ipairs({keys.clones, keys.ended, keys.queued, keys.open, keys.leases}) do
    redis.call('ZREM', index, clone_id)
  end
  redis.call('HDEL', keys.tokens, clone_id)
  redis.call('HDEL', keys.sizes, clone_id)
  redis.call('PUBLISH', args.channel, clone_id)
end
return removed
