-- Answers HEAD as GET without the body (RFC 9110, section 9.3.2), except for watches, which have no end.
--
-- The transcoder knows only the methods that the protos name.

local function is_watch(path)
  return path:match("^[^?]*"):find("/watch$") ~= nil
end

function envoy_on_request(request)
  local headers = request:headers()
  if headers:get(":method") ~= "HEAD" or is_watch(headers:get(":path")) then return end
  headers:replace(":method", "GET")
  request:streamInfo():dynamicMetadata():set("aivo.head", "is_head", true)
end

function envoy_on_response(reply)
  if not reply:streamInfo():dynamicMetadata():get("aivo.head") then return end
  local body = reply:body()
  if body == nil then return end
  local bytes = body:length()
  body:setBytes("")
  reply:headers():replace("content-length", bytes)
end
