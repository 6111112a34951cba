-- Completes errors of the servers and of the transcoder.
--
-- The JSON parser quotes what it could not read. That may be a student's words, and errors are logged by callers: the
-- excerpt and the value go, the fault and the field's name stay.
--
-- When a deadline passes, gRPC itself ends the call, and its status has no details: the reason is added.
--
-- When a server says how long to wait, `Retry-After` says so to callers that read no bodies.

local LATE_BODY = '{"code":4,"message":"the deadline passed before the work was done","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"DEADLINE_EXCEEDED","domain":"aivo"}]}'

local function without_words(text)
  -- First what may hold line breaks; behind others stands an excerpt. The message is the body's last member.
  text = text:gsub("invalid value .* for type", "a value that is not of type")
  text = text:gsub("type%.googleapis%.com/google%.protobuf%.", "")
  text = text:gsub("Failed to convert binding value ([%w_.]+):.*", '%1: a value that is not of its type"}')
  text = text:gsub("[Tt]he binding value .* of the field ([%w_.]+) is conflicting .*",
    '%1 has another value in the body than in the path"}')
  text = text:gsub("\\n.*", '"}'):gsub("\\u000[aA].*", '"}')
  return (text:gsub(" for key '.*'", ""))
end

-- Whole seconds, rounded up, so that nobody comes too early.
local function retry_after(text)
  local seconds = text:match('google%.rpc%.RetryInfo","retry_delay":"([%d.]+)s"')
  return seconds and string.format("%d", math.ceil(tonumber(seconds)))
end

function envoy_on_response(reply)
  local status = reply:headers():get(":status")
  if status ~= "400" and status ~= "429" and status ~= "504" then return end
  local body = reply:body()
  if body == nil then return end
  local text = body:getBytes(0, body:length())
  if status == "429" then
    local seconds = retry_after(text)
    if seconds then reply:headers():replace("retry-after", seconds) end
    return
  end
  if status == "400" then
    text = without_words(text)
  elseif not text:find('"reason"', 1, true) then
    text = LATE_BODY
  end
  reply:headers():replace("content-length", body:setBytes(text))
end
