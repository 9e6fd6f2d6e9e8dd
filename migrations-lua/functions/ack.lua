-- es_ack: settle events for good, by the leases they were handed out with.
--
-- KEYS     those of groups.lua; in ordered groups then, for each lease, events:<stream>
-- ARGV     1 group    2.. three for each lease: generation, position, lease text
-- RETURNS  'ok' where all leases hold; else a word for each: 'ok', 'already', or why it is lost
-- ERRORS   NOGROUP <name>           there is no such group

-- The reasons of earlier nacks: a first delivery, as its text tells, has none.
local function forget_errors(keys, positions, texts)
  local again = {}
  for i = 1, #texts do
    -- `1:` behind the nonce; to compare bytes makes no strings.
    local count, colon = string.byte(texts[i], 18, 19)
    if count ~= 49 or colon ~= 58 then
      again[#again + 1] = positions[i]
    end
  end
  if #again > 0 then
    redis.call('HDEL', keys[ERROR], unpack(again))
  end
end

local function ack(keys, args)
  local group = load_group(keys, args[1])
  if not group then
    return redis.error_reply('NOGROUP ' .. args[1])
  end
  local full = is_full(keys, group)
  local answers = settle(keys, args, 2, group, function(positions, texts, indexes)
    forget(keys, group, positions)
    forget_errors(keys, positions, texts)
    local settled = {}
    for i = 1, group.ordered and #positions or 0 do
      local _, _, _, stream = parse_lease(texts[i])
      local n = #settled
      settled[n + 1], settled[n + 2], settled[n + 3] = stream, positions[i], events_key(keys, indexes[i])
    end
    release(keys, group, settled)
  end)
  if full then
    wake(keys, group.name)
  end
  return answers
end

-- Also when memory is full: settling frees it.
redis.register_function { function_name = 'es_ack' .. suffix, callback = ack, flags = { 'allow-oom' } }
