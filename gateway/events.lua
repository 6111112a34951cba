-- Makes of streams what a page's `EventSource` expects: a charset, an id per event, a stream that goes on after the id
-- that the page had last, and 204 once nothing can follow, so that the page stops asking
-- (https://html.spec.whatwg.org/multipage/server-sent-events.html).
--
-- Each message of a watch begins with its `sequence`, and each watch takes `after_sequence`.

local function is_watch(path)
  return path:match("^[^?]*"):find("/watch$") ~= nil
end

-- The page's URL is the same whenever it connects, so the header replaces what the URL says.
local function with_after_sequence(path, id)
  local route, query = path:match("^([^?]*)%??(.*)$")
  local parameters = {}
  for parameter in query:gmatch("[^&]+") do
    if not parameter:find("^after_sequence=") then parameters[#parameters + 1] = parameter end
  end
  parameters[#parameters + 1] = "after_sequence=" .. id
  return route .. "?" .. table.concat(parameters, "&")
end

local function with_id(event)
  local sequence = event:match('^data: {"sequence":([1-9]%d*),')
  return sequence and "id: " .. sequence .. "\n" .. event or event
end

function envoy_on_request(request)
  local headers = request:headers()
  local path = headers:get(":path")
  if not is_watch(path) then return end
  request:streamInfo():dynamicMetadata():set("aivo.watch", "is_watch", true)
  local id = headers:get("last-event-id") or ""
  if id == "" then return end
  if not id:find("^%d+$") or #id > 10 then
    -- Not ours; going on from elsewhere would lose changes.
    return request:respond({[":status"] = "400"}, "the Last-Event-ID header must be the id of an event of this stream")
  end
  headers:replace(":path", with_after_sequence(path, id))
end

function envoy_on_response(reply)
  local headers = reply:headers()
  if headers:get("content-type") ~= "text/event-stream" then return end
  headers:replace("content-type", "text/event-stream; charset=utf-8")
  if not reply:streamInfo():dynamicMetadata():get("aivo.watch") then return end
  -- A stream that ended without a message has its status in its headers.
  if headers:get("grpc-status") == "0" then
    headers:replace(":status", "204")
    headers:remove("content-type")
    headers:remove("content-length")
    return
  end
  for chunk in reply:bodyChunks() do
    -- The transcoder hands on whole events.
    chunk:setBytes((chunk:getBytes(0, chunk:length()):gsub("(.-\n\n)", with_id)))
  end
end
