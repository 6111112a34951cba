-- keys: feed ended
-- args: clone_id
--
-- Leaves of the feed of a clone that has ended its first change, which tells how the clone was accepted, and its last.
--
-- Writes a new stream, because an entry that is deleted within a stream goes on taking memory.

local first = redis.call('XRANGE', keys.feed, '-', '+', 'COUNT', 1)[1]
local last = redis.call('XREVRANGE', keys.feed, '+', '-', 'COUNT', 1)[1]
if first and first[1] ~= last[1] then
  redis.call('DEL', keys.feed)
  redis.call('XADD', keys.feed, first[1], unpack(first[2]))
  redis.call('XADD', keys.feed, last[1], unpack(last[2]))
end
redis.call('ZREM', keys.ended, args.clone_id)
