-- es_nack: give events back: to be retried, parked or skipped. A retry of the last delivery parks.
--
-- KEYS     those of groups.lua; in ordered groups then, for each lease, events:<stream>
-- ARGV     1 group    2 'retry', 'park', 'skip' or 'exhausted' (parks)    3 delay of the retry in ms, '' for the backoff
--          4 reason    5.. three for each lease: generation, position, lease text
-- RETURNS  'ok' where all leases hold; else a word for each: 'ok', 'already', or why it is lost
-- ERRORS   NOGROUP <name>           there is no such group

local function retry(keys, group, position, text, delay, now)
  local _, deliveries, version, stream = parse_lease(text)
  delay = delay ~= '' and tonumber(delay) or backoff(group, deliveries)
  redis.call('HSET', keys[LEASE], position, '0:' .. digits(deliveries) .. ':' .. version .. ':' .. stream)
  redis.call('ZADD', keys[DUE], digits(now + delay), position)
  add_to(keys, 'waiting', 1)
end

local function nack(keys, args)
  local group = load_group(keys, args[1])
  if not group then
    return redis.error_reply('NOGROUP ' .. args[1])
  end
  local action, delay, reason, now = args[2], args[3], args[4], clock()
  local full = is_full(keys, group)
  local function give_back(position, text, index)
    local _, deliveries, _, stream = parse_lease(text)
    if reason ~= '' then
      redis.call('HSET', keys[ERROR], position, reason)
    end
    if action == 'retry' and deliveries < group.max_deliveries then
      retry(keys, group, position, text, delay, now)
      return
    end
    if action == 'skip' then
      forget(keys, group, { position })
      redis.call('HDEL', keys[ERROR], position)
    else
      park(keys, group, position, text, action == 'park' and 'nack' or 'exhausted', now)
    end
    release(keys, group, { stream, position, events_key(keys, index) })
  end
  local answers = settle(keys, args, 5, group, function(positions, texts, indexes)
    for i, position in ipairs(positions) do
      give_back(position, texts[i], indexes[i])
    end
  end)
  if action == 'retry' or full then
    -- Whoever waits must know of the new due times, also where they lie ahead.
    wake(keys, group.name)
  end
  return answers
end

-- Also when memory is full: a skip frees it, and a failing consumer must not hang.
redis.register_function { function_name = 'es_nack' .. suffix, callback = nack, flags = { 'allow-oom' } }
