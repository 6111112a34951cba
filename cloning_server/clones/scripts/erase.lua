-- keys: clones student_clones student_requests lane students due ended queued open leases tokens sizes removals erasure records...
-- args: student_id channel stay_seconds listed_count clone_ids...
--
-- Removes everything about a student. The caller has read the student's clones (listed_count of them) and requests, has
-- ended the clones, and passes the keys of clones and requests as `records`.
--
-- Returns how many clones were removed, now or by an earlier call whose answer was lost; clones that another erasure has
-- removed meanwhile do not count. Returns -1, and removes nothing, if the student has other clones by now. A clone that
-- the caller has ended and that is in the lane all the same is one of which the store lost a part.
--
-- erasure: stays for stay_seconds, and holds that number and nothing about the student. The caller repeats a call
-- whose answer was lost, and would take a student who is gone for one who has other clones.

local earlier = redis.call('GET', keys.erasure)
if earlier then return tonumber(earlier) end
local is_known = {}
for _, clone_id in ipairs(args.clone_ids) do is_known[clone_id] = true end
for _, clone_id in ipairs(redis.call('LRANGE', keys.lane, 0, -1)) do if not is_known[clone_id] then return -1 end end
-- Another erasure may have removed these clones, and as many may have been accepted since. A request id comes and goes
-- with its clone.
local listed_ids = redis.call('ZRANGE', keys.student_clones, 0, -1)
if #listed_ids ~= tonumber(args.listed_count) then return -1 end
for _, clone_id in ipairs(listed_ids) do if not is_known[clone_id] then return -1 end end

redis.call('DEL', keys.student_clones, keys.student_requests, keys.lane)
for _, record in ipairs(keys.records) do redis.call('DEL', record) end
redis.call('ZREM', keys.students, args.student_id)
redis.call('HDEL', keys.due, args.student_id)
-- Also if nothing was there: the caller has removed alerts, or repeats a call that was cut off.
redis.call('INCR', keys.removals)
local erased = 0
for _, clone_id in ipairs(args.clone_ids) do
  local entries = 0
  for _, index in ipairs({keys.clones, keys.ended, keys.queued, keys.open, keys.leases}) do
    entries = entries + redis.call('ZREM', index, clone_id)
  end
  if entries > 0 then erased = erased + 1 end
  redis.call('HDEL', keys.tokens, clone_id)
  redis.call('HDEL', keys.sizes, clone_id)
  redis.call('PUBLISH', args.channel, clone_id)
end
redis.call('SET', keys.erasure, erased, 'EX', args.stay_seconds)
return erased
