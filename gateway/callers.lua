-- Turns away requests that a web page of somebody else could have sent, and all that are meant for another host
-- (docs/adr/0030-close-the-doors-to-web-pages.md). `template.py` tells which hosts and origins may come.

-- The local reply of envoy.yaml makes the error's body of these; the message quotes nothing of the request.
local function refuse(request, http_code, grpc_code, reason, message)
  request:streamInfo():dynamicMetadata():set("aivo.refusal", "reason", reason)
  request:streamInfo():dynamicMetadata():set("aivo.refusal", "code", grpc_code)
  request:respond({[":status"] = http_code}, message)
end

-- Without a list nothing is allowed: Envoy lets a request pass whose script fails.
local function is_allowed(name, allowed)
  return allowed ~= nil and (allowed[name] or allowed["*"])
end

-- A name that was made to point at this machine (DNS rebinding) is in the header as the page knows it.
local function is_for_us(authority, hosts)
  return is_allowed(authority:lower():gsub(":%d+$", ""), hosts)
end

-- Browsers name the page's origin in every request but simple reads; a page of this very port is not foreign.
local function is_from_us(origin, authority, origins)
  return origin == nil or is_allowed(origin, origins) or origin:lower():gsub("^https?://", "") == authority:lower()
end

-- A page sends other types of bodies without asking first.
local function is_json_or_grpc(content_type)
  local media_type = content_type:lower():match("^[^;%s]*")
  return media_type == "application/json" or media_type == "application/grpc" or media_type:find("^application/grpc%+")
end

-- As gRPC has it: up to eight digits and a unit. The servers would answer any other with INTERNAL.
local function is_timeout(value)
  local digits = value:match("^(%d+)[HMSmun]$")
  return digits ~= nil and #digits <= 8
end

function envoy_on_request(request)
  local headers = request:headers()
  local authority = headers:get(":authority") or ""
  if not is_for_us(authority, request:filterContext():get("hosts")) then
    return refuse(request, "403", 7, "HOST_NOT_ALLOWED", "the Host header is not one of ALLOWED_HOSTS")
  end
  if not is_from_us(headers:get("origin"), authority, request:filterContext():get("origins")) then
    return refuse(request, "403", 7, "ORIGIN_NOT_ALLOWED", "the Origin header is not one of CORS_ALLOW_ORIGINS")
  end
  local timeout = headers:get("grpc-timeout")
  if timeout and not is_timeout(timeout) then
    return refuse(request, "400", 3, "MALFORMED_REQUEST", "the grpc-timeout header is no timeout, such as 30S")
  end
  if not is_json_or_grpc(headers:get("content-type") or "") then
    local body = request:body()
    if body and body:length() > 0 then
      refuse(request, "415", 3, "UNSUPPORTED_MEDIA_TYPE", "the body's content-type must be application/json, or gRPC's")
    end
  end
end
