-- es_put_group: make a partition's copy of a consumer group what the registry says: create it, move it, change its
-- settings.
--
-- KEYS     those of groups.lua
-- ARGV     1 group    2 epoch, new at every creation    3 generation, new at every creation and seek
--          4 revision, which rises with every change    5 position of the last event not to be delivered; counts where
--          the generation is new here    6.. settings, name and value; among them `stamp`, new in
--          every call
-- RETURNS  1, or 0 where the copy is of a later revision: whoever spreads an older one was overtaken
-- ERRORS   none

local function create(keys, args, start)
  redis.call('XGROUP', 'CREATE', keys[SOURCE], args[1], '0-' .. start, 'MKSTREAM', 'ENTRIESREAD', start)
  -- What every call reads comes first: in a small hash a field is found from the front.
  redis.call('HSET', keys[GROUP], 'generation', args[3], 'revision', args[4], 'stamp', '', 'cursor', start, 'held', 0,
    'epoch', args[2], 'waiting', 0, 'stopped', 0)
end

-- Leases, retries and what was passed over are forgotten. Parked events stay, and leave by themselves where they are
-- delivered again: those up to `overlap`.
local function move(keys, args, start)
  local parked = tonumber(redis.call('ZRANGE', keys[PARKED], -1, -1)[1] or 0)
  redis.call('XGROUP', 'DESTROY', keys[SOURCE], args[1])
  redis.call('UNLINK', keys[DUE], keys[LEASE], keys[READY], keys[BUSY], keys[AGAIN], keys[TODO], keys[ERROR])
  create(keys, args, start)
  redis.call('HSET', keys[GROUP], 'overlap', parked > tonumber(start) and digits(parked) or 0)
end

local function put_group(keys, args)
  local current = redis.call('HMGET', keys[GROUP], 'epoch', 'generation', 'revision')
  if tonumber(current[3] or 0) > tonumber(args[4]) then
    return 0
  end
  if current[1] ~= args[2] or current[2] ~= args[3] then
    local start = digits(math.min(tonumber(args[5]), last_number(keys[SOURCE]) or 0))
    if current[1] == args[2] then
      move(keys, args, start)
    else
      if current[1] then
        destroy(keys, args[1])
      end
      create(keys, args, start)
      redis.call('HSET', keys[GROUP], 'overlap', 0, 'asked', digits(clock()))
    end
  end
  redis.call('HSET', keys[GROUP], 'revision', args[4])
  for i = 6, #args, 2 do
    redis.call('HSET', keys[GROUP], args[i], args[i + 1])
  end
  wake(keys, args[1])
  return 1
end

redis.register_function('es_put_group' .. suffix, put_group)
