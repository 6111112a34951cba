-- keys: feeds...
-- args: after
--
-- Reads several feeds as of one moment.
--
-- Returns two lists: the indices of the feeds that do not exist, and {index of the feed, number, clone} of each change
-- whose number is higher than `after`; with an empty `after`, of the last change of each feed. Entries without a
-- number, as an older version wrote them, count as 0. The changes of a feed come newest first.

local missing, changes = {}, {}
local after = tonumber(args.after)
for index, feed in ipairs(keys.feeds) do
  local entry = redis.call('XREVRANGE', feed, '+', '-', 'COUNT', 1)[1]
  if not entry then table.insert(missing, index) end
  while entry do
    local number, clone = tonumber(entry[2][4]) or 0, entry[2][2]
    if after and number <= after then break end
    table.insert(changes, {index, number, clone})
    if not after then break end
    entry = redis.call('XREVRANGE', feed, '(' .. entry[1], '-', 'COUNT', 1)[1]
  end
end
return {missing, changes}
