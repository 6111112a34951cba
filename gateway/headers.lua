-- Lets through only the headers that somebody behind reads, and bounds them.
--
-- gRPC refuses headers above 8 KiB by chance and those above 16 KiB always, with an error of its own. Cookies of other
-- sites of the same host are often larger, and nothing here reads them.

-- Whoever makes a server or a filter read another header adds it here.
local READ_HEADERS = {
  [":authority"] = true,
  [":method"] = true,
  [":path"] = true,
  [":scheme"] = true,
  ["content-length"] = true,
  ["content-type"] = true,
  ["grpc-accept-encoding"] = true,
  ["grpc-encoding"] = true,
  ["grpc-timeout"] = true,
  ["origin"] = true,
  ["te"] = true,
  ["transfer-encoding"] = true,
  ["x-forwarded-proto"] = true,
  ["x-request-id"] = true,
  ["x-student-id"] = true,
}
-- Half of what gRPC accepts: the gateway adds some of its own.
local MAX_BYTES = 4096
-- What HPACK adds to the bytes of a name and its value (RFC 7541, section 4.1), by which gRPC counts too.
local ENTRY_BYTES = 32

function envoy_on_request(request)
  local headers = request:headers()
  local unread_names, bytes = {}, 0
  for name, value in pairs(headers) do
    if not READ_HEADERS[name] then
      unread_names[#unread_names + 1] = name
    elseif name ~= ":path" then
      -- What goes on is the path of the RPC.
      bytes = bytes + #name + #value + ENTRY_BYTES
    end
  end
  if bytes > MAX_BYTES then
    -- local_replies.py makes the error of this.
    return request:respond({[":status"] = "431"}, "the headers are too large")
  end
  for _, name in ipairs(unread_names) do headers:remove(name) end
end
