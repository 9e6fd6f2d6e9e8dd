-- es_expire: find leases and retries that are due and have used up their deliveries, so that they are parked although
-- nobody asks for events.
--
-- KEYS     those of groups.lua
-- ARGV     1 group    2 generation    3 nonce, 16 hex digits, new for every call    4 how many due ones to leave out
--          5 most to look at
-- RETURNS  1 how many due ones to leave out in the next call, -1 where there is none to be made
--          2 three for each chore: 'exhausted', position, lease text
-- ERRORS   NOGROUP <name>           there is no such group, or it is of another generation

local function expire(keys, args)
  local group = load_group(keys, args[1])
  if not group or group.generation ~= args[2] then
    return redis.error_reply('NOGROUP ' .. args[1])
  end
  local now, skip, most, chores, retried = clock(), tonumber(args[4]), tonumber(args[5]), {}, 0
  local due = redis.call('ZRANGEBYSCORE', keys[DUE], '-inf', digits(now), 'LIMIT', skip, most)
  for _, position in ipairs(due) do
    local text = redis.call('HGET', keys[LEASE], position)
    local nonce, count = parse_lease(text)
    if count >= group.max_deliveries then
      retried = retried + (nonce == '0' and 1 or 0)
      leave_chore(keys, chores, args[3], now, 'exhausted', position, text)
    end
  end
  if retried > 0 then
    add_to(keys, 'waiting', -retried)
  end
  return { #due < most and -1 or skip + #due - #chores / 3, chores }
end

redis.register_function('es_expire' .. suffix, expire)
