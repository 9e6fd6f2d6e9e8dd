-- es_status: how a consumer group stands in a partition.
--
-- KEYS     those of groups.lua
-- ARGV     1 group    2 generation
-- RETURNS  1 entries behind the cursor    2 leased    3 waiting for a retry    4 passed over, released, or to be replayed
--          5 streams that stand behind a parked event    6 parked    7 the lowest position that is not settled, 0 for
--          none    8 cursor    9 when somebody last asked, ms since 1970    10 Redis' clock, likewise
-- ERRORS   NOGROUP <name>           there is no such group, or it is of another generation

-- Entries that were removed before they were looked at are none.
local function behind(keys, cursor)
  if #redis.call('XRANGE', keys[SOURCE], '0-' .. digits(cursor + 1), '+', 'COUNT', 1) == 0 then
    return 0
  end
  return math.max((last_number(keys[SOURCE]) or 0) - cursor, 0)
end

local function lowest_pending(keys, name)
  local summary = redis.call('XPENDING', keys[SOURCE], name)
  return summary[2] and tonumber(string.match(summary[2], '%d+$')) or 0
end

local function status(keys, args)
  local group = load_group(keys, args[1])
  if not group or group.generation ~= args[2] then
    return redis.error_reply('NOGROUP ' .. args[1])
  end
  local more = redis.call('HMGET', keys[GROUP], 'waiting', 'stopped', 'asked')
  local retrying = tonumber(more[1])
  return {
    behind(keys, group.cursor), redis.call('ZCARD', keys[DUE]) - retrying, retrying,
    group.held + redis.call('ZCARD', keys[READY]) + redis.call('ZCARD', keys[AGAIN]), tonumber(more[2]),
    redis.call('ZCARD', keys[PARKED]), lowest_pending(keys, group.name), group.cursor, tonumber(more[3] or 0), clock(),
  }
end

redis.register_function { function_name = 'es_status' .. suffix, callback = status, flags = { 'no-writes' } }
