-- keys: feeds...
-- args: after limit
--
-- Reads several feeds as of one moment.
--
-- Returns {indices of the feeds that do not exist, changes, 1 or 0}. A change is {index of the feed, number, clone}. With
-- an empty `after` they are the last changes of all feeds, in the order of the feeds. Else they are the first `limit`
-- changes whose number is higher than `after`, in the order of their numbers, and the 0 says that there are more.
-- Entries without a number, as an older version wrote them, count as 0, and none of them is left for another reading.

local after, limit = tonumber(args.after), tonumber(args.limit)

local function number_of(entry) return tonumber(entry[2][4]) or 0 end
local function sequence_of(entry) return tonumber(string.match(entry[1], '%d+')) end
local function entry_from(feed, sequence) return redis.call('XRANGE', feed, sequence .. '-0', '+', 'COUNT', 1)[1] end

-- The first entry of a feed whose number is higher than `after`, by bisection: numbers grow within a feed. The last
-- entry is known to be one.
local function first_after(feed, last)
  local first, low, high = last, 1, sequence_of(last)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local entry = entry_from(feed, middle)
    if number_of(entry) > after then first, high = entry, middle else low = sequence_of(entry) + 1 end
  end
  return first
end

local missing, changes = {}, {}
-- By the index of the feed: its next entry to be returned, and the number of that.
local entries, numbers = {}, {}
for index, feed in ipairs(keys.feeds) do
  local last = redis.call('XREVRANGE', feed, '+', '-', 'COUNT', 1)[1]
  if not last then
    table.insert(missing, index)
  elseif not after then
    table.insert(changes, {index, number_of(last), last[2][2]})
  elseif number_of(last) > after then
    entries[index] = first_after(feed, last)
    numbers[index] = number_of(entries[index])
  end
end
while next(numbers) do
  local index, number
  for each, its_number in pairs(numbers) do
    if not number or its_number < number or (its_number == number and each < index) then
      index, number = each, its_number
    end
  end
  if #changes >= limit and number > 0 then return {missing, changes, 0} end
  local entry = entries[index]
  table.insert(changes, {index, number, entry[2][2]})
  entries[index] = entry_from(keys.feeds[index], sequence_of(entry) + 1)
  numbers[index] = entries[index] and number_of(entries[index])
end
return {missing, changes, 1}
