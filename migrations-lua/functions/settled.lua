-- es_settled: up to where a consumer group has settled everything in a partition.
--
-- KEYS     those of groups.lua
-- ARGV     1 group    2 generation
-- RETURNS  the last position of which holds: it and all before it are acked, skipped, dropped or not wanted. May be too
--          low while replays wait for their turn, or a stream is being released.
-- ERRORS   NOGROUP <name>           there is no such group, or it is of another generation

local function settled(keys, args)
  local group = load_group(keys, args[1])
  if not group or group.generation ~= args[2] then
    return redis.error_reply('NOGROUP ' .. args[1])
  end
  -- What was passed over lies behind the event that its stream is busy with, which is pending, ready or parked; only
  -- of a stream that is being released, and of replays that wait, nobody knows the first position.
  if redis.call('ZCARD', keys[TODO]) > 0 or redis.call('ZCARD', keys[AGAIN]) > 0 then
    return 0
  end
  local last = group.cursor
  local pending = redis.call('XPENDING', keys[SOURCE], group.name)[2]
  if pending then
    last = math.min(last, tonumber(string.match(pending, '%d+$')) - 1)
  end
  for _, key in ipairs({ keys[READY], keys[PARKED] }) do
    local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
    if first then
      last = math.min(last, tonumber(first) - 1)
    end
  end
  return last
end

redis.register_function { function_name = 'es_settled' .. suffix, callback = settled, flags = { 'no-writes' } }
