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

-- Whether a lease is lost to an earlier call that asked for the same: what stands for its position is of its own delivery.
-- A call is repeated where its reply was lost.
local function is_done(keys, action, answer, position, text)
  local _, deliveries, version, stream = parse_lease(text)
  if answer == 'given-back' and action == 'retry' then
    local waiting = '0:' .. digits(deliveries) .. ':' .. version .. ':' .. stream
    return redis.call('HGET', keys[LEASE], position) == waiting
  elseif answer == 'parked' and action ~= 'skip' then
    local info = redis.call('HGET', keys[PARKED_INFO], position)
    local counted, reason = string.match(info, '^%x+:%d+:(%d+):%d+:(%a+):')
    return tonumber(counted) == deliveries and reason == (action == 'park' and 'nack' or 'exhausted')
  end
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
  for i, answer in ipairs(answers == 'ok' and {} or answers) do
    if answer ~= 'ok' and is_done(keys, action, answer, args[2 + 3 * i + 1], args[2 + 3 * i + 2]) then
      answers[i] = 'already'
    end
  end
  if action == 'retry' or full then
    -- Whoever waits must know of the new due times, also where they lie ahead.
    wake(keys, group.name)
  end
  return answers
end

-- Also when memory is full: a skip frees it, and a failing consumer must not hang.
redis.register_function { function_name = 'es_nack' .. suffix, callback = nack, flags = { 'allow-oom' } }
