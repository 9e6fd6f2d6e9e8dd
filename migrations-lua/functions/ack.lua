-- es_ack: settle events for good, by the leases they were handed out with.
--
-- KEYS     those of groups.lua; in ordered groups then, for each lease, events:<stream>
-- ARGV     1 group    2.. three for each lease: generation, position, lease text
-- RETURNS  a word for each lease: 'ok', 'already', or why it is lost
-- ERRORS   NOGROUP <name>           there is no such group

local function ack(keys, args)
  local group = load_group(keys, args[1])
  if not group then
    return redis.error_reply('NOGROUP ' .. args[1])
  end
  local full = is_full(keys, group)
  local answers = settle(keys, args, 2, group, function(position, text, index)
    local _, _, _, stream = parse_lease(text)
    forget(keys, group, position)
    redis.call('HDEL', keys[ERROR], position)
    release(keys, group, stream, position, events_key(keys, index))
  end)
  if full then
    wake(keys, group.name)
  end
  return answers
end

-- Also when memory is full: settling frees it.
redis.register_function { function_name = 'es_ack' .. suffix, callback = ack, flags = { 'allow-oom' } }
